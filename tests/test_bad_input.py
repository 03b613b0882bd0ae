"""Every mistake that a user can make, in one table, and what its message must tell: four columns, four points."""

# ruff: noqa: E501  (one mistake a line: it is a table)

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import pictures
import policies
import texts
from onpath import build, cli
from onpath.config import RunConfig
from onpath.overrides import override
from onpath.records import RunFolder
from tiny import CONFIG, tiny

Prepare = Callable[[pytest.MonkeyPatch], Any]


@dataclass(frozen=True)
class Case:
    """A mistake.

    command: what is typed after `onpath`, in a folder with the config mine.yaml and the trained run `run`.
    prepare: makes the bad file. The message must hold `where` (the path of the setting or the file), `given` (the
    value, or what was found), `allowed` (or needed), and `todo`.
    """

    name: str
    command: str
    where: str
    given: str
    allowed: str
    todo: str
    prepare: Prepare = lambda patch: None


def text(path: str, content: str | bytes) -> Prepare:
    """Writes a file, in place of whatever stands there."""

    def write(patch: pytest.MonkeyPatch) -> None:
        file = Path(path)
        if file.is_dir():
            shutil.rmtree(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def changed(path: str, old: str, new: str) -> Prepare:
    """Edits a text file."""

    def write(patch: pytest.MonkeyPatch) -> None:
        before = Path(path).read_text()
        assert old in before
        Path(path).write_text(before.replace(old, new))

    return write


def gone(path: str) -> Prepare:
    def remove(patch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()

    return remove


def folder(path: str) -> Prepare:
    return lambda patch: Path(path).mkdir()


def flipped(path: str) -> Prepare:
    """Changes one bit of a file."""

    def write(patch: pytest.MonkeyPatch) -> None:
        data = bytearray(Path(path).read_bytes())
        data[-3] ^= 1
        Path(path).write_bytes(data)

    return write


def cut(path: str) -> Prepare:
    """Leaves the first half of a file."""

    def write(patch: pytest.MonkeyPatch) -> None:
        data = Path(path).read_bytes()
        Path(path).write_bytes(data[: len(data) // 2])

    return write


GRID = [[10, 1], [1, 2], [8, 1]]


def arrays(**changes: Any) -> Prepare:
    """Four demonstrations in d.npz, with some arrays changed or (None) left out."""

    def write(patch: pytest.MonkeyPatch) -> None:
        good = {"grid": np.array([GRID] * 4), "direction": np.zeros(4, int), "actions": np.full((4, 2), 2)}
        whole = {**good, "length": np.full(4, 2), **changes}
        np.savez("d.npz", **{name: array for name, array in whole.items() if array is not None})

    return write


def cells(code: int) -> np.ndarray:
    """Grids with an object of this code."""
    return np.array([[[10, 1], [code, 2], [8, 1]]] * 4)


def lines(*rows: Any) -> Prepare:
    """d.jsonl: a good row, and these."""
    good = {"grid": GRID, "direction": 0, "actions": [2, 2]}
    return text("d.jsonl", "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in (good, *rows)))


def missing(module: str) -> Prepare:
    return lambda patch: patch.setitem(sys.modules, module, None)


def many(*parts: Prepare) -> Prepare:
    return lambda patch: [part(patch) for part in parts]


def locked(patch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    Path("locked").mkdir(mode=0o500)


def without_gpu(patch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")


TRAIN = "train mine.yaml --run new"
NPZ = f"{TRAIN} training.validation_examples=0 'data={{kind: trajectories, path: d.npz, max_seq_len: 8}}'"
JSONL = NPZ.replace("d.npz", "d.jsonl")
SMALL = "'model={kind: plan_transformer, width: 16, num_heads: 2, depth: 1, patch: 1}'"
RESUME = "train mine.yaml --run run --resume training.steps=5"
LAST = "run/checkpoints/step-3"

SETTINGS = [
    Case("section", f"{TRAIN} trainig.steps=3", "config: trainig", "'trainig'", "allowed are data, model", "did you mean training?"),
    Case("field", f"{TRAIN} training.stesp=3", "training.stesp", "'stesp'", "allowed are steps, epochs", "did you mean steps?"),
    Case("field of a kind", f"{TRAIN} data.lenght=40", "data.lenght", "'lenght'", "allowed are num_actions", "did you mean length?"),
    Case("field of a part of a part", f"{TRAIN} sampler.tokens.temprature=1", "sampler.tokens.temprature", "'temprature'", "allowed are temperature", "did you mean temperature?"),
    Case("nothing like it", f"{TRAIN} xyzzy=1", "config: xyzzy", "'xyzzy'", "allowed are data", "Rename it, or remove it"),
    Case("of the run itself", f"{TRAIN} data.seed=1", "data.seed", "'seed'", "set by the run itself", "remove it"),
    Case("kind", f"{TRAIN} schedule=cosin", "schedule.kind", "'cosin'", "allowed are linear, cosine", "did you mean cosine?"),
    Case("kind and class", f"{TRAIN} 'schedule={{kind: linear, class: a:B}}'", "config: schedule", "'class': 'a:B'", "one of linear", "not both"),
    Case("no mapping", f"{TRAIN} training=3", "config: training", "is 3", "a mapping of steps", "set its fields one by one"),
    Case("word for a number", f"{TRAIN} training.steps=many", "training.steps", "'many'", "int is needed", "write it like training.steps=1"),
    Case("truth for a number", f"{TRAIN} training.steps=true", "training.steps", "True", "int is needed", "write it like training.steps=1"),
    Case("nothing for a number", f"{TRAIN} training.steps=", "training.steps", "None", "int is needed", "write it like training.steps=1"),
    Case("fraction", f"{TRAIN} training.steps=1.5", "training.steps", "1.5", "int is needed", "write it like"),
    Case("number too big", f"{TRAIN} training.steps=1e400", "training.steps", "inf", "finite number", "write it like"),
    Case("infinity", f"{TRAIN} training.optimizer.learning_rate=.inf", "training.optimizer.learning_rate", "inf", "finite number", "write it like"),
    Case("not a number", f"{TRAIN} training.ema=.nan", "training.ema", "nan", "finite number", "write it like training.ema=0.5"),
    Case("number for truth", f"{TRAIN} training.compile=1", "training.compile", "is 1", "bool is needed", "write it like training.compile=true"),
    Case("word", f"{TRAIN} training.decay=cosin", "training.decay", "'cosin'", "one of cosine, linear", "did you mean cosine?"),
    Case("list too short", f"{TRAIN} training.optimizer.betas=[0.9]", "training.optimizer.betas", "[0.9]", "a list [float, float]", "write it like training.optimizer.betas=[0.5, 0.5]"),
    Case("word in a list", f"{TRAIN} evaluation.sets=[tets]", "evaluation.sets", "['tets']", "a list of one of train, test, long", "did you mean test?"),
    Case("no list", f"{TRAIN} evaluation.modes=open@2", "evaluation.modes", "'open@2'", "a list of str", "write it like evaluation.modes=[text]"),
    Case("missing field", f"{TRAIN} 'schedule={{kind: shifted}}'", "schedule.base", "is missing", "one of linear, cosine", "like schedule.base=linear"),
    Case("missing path", f"{TRAIN} data=trajectories", "data.path", "is missing", "(str)", "like data.path="),
    Case("negative seed", f"{TRAIN} seed=-1", "config: seed", "-1", "allowed are 0 to 9223372036854775807", "write it like seed=1"),
    Case("huge seed", f"{TRAIN} seed=18446744073709551616", "config: seed", "18446744073709551616", "allowed are 0 to", "write it like seed=1"),
    Case("override without =", f"{TRAIN} training", "override:", "'training'", "of the form key.path=value", "write it like training.steps=1000"),
    Case("override of nothing", f"{TRAIN} training..steps=1", "override:", "'training..steps=1'", "of the form key.path=value", "write it like training.steps=1000"),
    Case("override into a scalar", f"{TRAIN} training.steps.x=1", "training.steps", "which is 3", "has no fields", "set the whole of it, like training.steps=3"),
    Case("override into a list", f"{TRAIN} evaluation.sets.0=test", "evaluation.sets", "{'0': 'test'}", "a list of one of", "write it like evaluation.sets=[train]"),
    Case("override that is torn", f"{TRAIN} training.steps=[1", "'training.steps=[1'", "got '<stream end>'", "expected ',' or ']'", "[a, list]"),
    Case("override with no such day", f"{TRAIN} training.steps=2024-13-45", "'training.steps=2024-13-45'", "13", "month must be in 1..12", "text in quotes"),
]  # fmt: skip

VALUES = [
    Case("steps and epochs", f"{TRAIN} training.epochs=3", "training.epochs", "epochs is 3", "exactly one of them", "change training.steps or training.epochs"),
    Case("accumulation", f"{TRAIN} training.accumulation=3", "training.accumulation", "accumulation is 3", "a positive multiple of accumulation", "change training.batch_size or training.accumulation"),
    Case("negative rate", f"{TRAIN} training.optimizer.learning_rate=-1", "training.optimizer.learning_rate", "learning_rate -1.0", "rates of 0 or more", "change training.optimizer.learning_rate"),
    Case("average", f"{TRAIN} training.ema=1", "training.ema", "ema is 1.0", "0 <= ema < 1", "change training.ema"),
    Case("plateau without validation", f"{TRAIN} training.decay=plateau", "training.validate_every", "validate_every is 0", "set how often to validate", "change training.decay or training.validate_every"),
    Case("plateau without effect", f"{TRAIN} training.plateau.factor=0.3", "training.plateau", "decay is cosine", "set decay: plateau", "or remove it"),
    Case("final rate without effect", f"{TRAIN} training.decay=constant training.final_rate=0.1", "training.final_rate", "final_rate is 0.1", "take decay: cosine or linear", "remove final_rate"),
    Case("width", f"{TRAIN} model.width=0", "model.width", "width is 0", "1 or more", "change model.width"),
    Case("width beyond memory", f"{TRAIN} model.width=1e13", "config: model", "width 10000000000000", "can't allocate memory", "choose smaller sizes"),
    Case("heads", f"{TRAIN} 'model={{kind: plan_transformer, num_heads: 3}}'", "model.num_heads", "num_heads is 3", "width must be a multiple", "change model.width or model.num_heads"),
    Case("patch", f"{TRAIN} 'model={{kind: plan_transformer, patch: 50}}'", "model.patch", "patch is 50", "allowed are 1 to 19", "change model.patch"),
    Case("planes", f"{TRAIN} model.planes=[300]", "model.planes", "(300,)", "0 to 255", "change model.planes"),
    Case("actions", f"{TRAIN} data.num_actions=9", "data.num_actions", "num_actions is 9", "allowed are 3 to 7", "change data.num_actions"),
    Case("canvas shorter than plans", f"{TRAIN} data.length=20", "data.length", "length is 20", "allowed are 36 or more", "change data.length"),
    Case("turns without effect", f"{TRAIN} data.rotate=true", "data.rotate", "rotate or reflect is set without `episodes`", "set `episodes`", "or leave them out"),
    Case("mirror and canonical ties", f"{TRAIN} data.episodes=4 data.reflect=true", "data.reflect", 'ties "canonical"', 'choose ties "uniform"', "change data.ties"),
    Case("schedule bounds", f"{TRAIN} schedule.alpha_min=2", "schedule.alpha_min", "alpha_min is 2.0", "0 <= alpha_min < alpha_max <= 1", "change schedule.alpha_min"),
    Case("bounds and a bound", f"{TRAIN} schedule.alpha_min=0.1", "config: objective", "from alpha 1 to 0.1", "for 1 to 0 only", "take the objective trajectory_nelbo"),
    Case("table that rises", f"{TRAIN} 'schedule={{kind: tabulated, alphas_cumprod: [0.5, 0.9]}}'", "schedule.alphas_cumprod", "from (0.5,) to (0.9,)", "strictly falling", "change schedule.alphas_cumprod"),
    Case("grid of nothing", f"{TRAIN} grid.steps=0", "grid.steps", "steps is 0", "allowed are 1 to 100000", "change grid.steps"),
    Case("times that do not fall", f"{TRAIN} 'grid={{kind: explicit, points: [1, 0.5, 0.5, 0]}}'", "grid.points", "0.5, 0.5", "fall strictly from 1.0 to 0.0", "change grid.points"),
    Case("ramp of negative length", f"{TRAIN} 'objective={{kind: masked_cross_entropy, low: {{kind: linear, start: 1, end: 0, steps: -9}}}}'", "objective.low.steps", "steps is -9", "0 or more", "change objective.low.steps"),
    Case("ramp that ends too low", f"{TRAIN} 'objective={{kind: masked_cross_entropy, high: {{kind: linear, start: 1, end: 0.5, steps: 9}}}}'", "objective.high", "high ends at 0.5", "Let it reach 1.0", "or set partial: true"),
    Case("knots out of order", f"{TRAIN} 'objective={{kind: masked_cross_entropy, low: {{kind: piecewise, knots: [[5, 0], [1, 0]]}}}}'", "objective.low.knots", "[5, 1]", "with rising steps", "change objective.low.knots"),
    Case("drop-out", f"{TRAIN} objective.condition_dropout=2", "objective.condition_dropout", "is 2.0", "0 (never) to 1", "change objective.condition_dropout"),
    Case("guidance never trained", f"{TRAIN} sampler.guidance=2", "sampler.guidance", "is 2.0", "objective.condition_dropout is 0", "set objective.condition_dropout=0.1"),
    Case("order without effect", f"{TRAIN} 'sampler={{count: ancestral, order: margin}}'", "sampler.order", "'margin'", "set order: random", "or count: schedule"),
    Case("noise without effect", f"{TRAIN} sampler.order_noise=1", "sampler.order_noise", "order_noise is 1.0", "orders confidence, margin and entropy only", "change sampler.order or sampler.order_noise"),
    Case("greedy and top_k", f"{TRAIN} 'sampler.tokens={{temperature: 0, top_k: 3}}'", "sampler.tokens.top_k", "top_k 3", "takes the likeliest token", "remove them, or raise the temperature"),
    Case("threshold", f"{TRAIN} 'sampler.count={{kind: threshold, tau: 2}}'", "sampler.count.tau", "tau is 2.0", "0 < tau <= 1", "change sampler.count.tau"),
    Case("more terms than steps", f"{TRAIN} 'objective={{kind: trajectory_nelbo, steps_per_example: 99}}'", "objective.steps_per_example", "is 99", "0 (all) to the 10 steps", "change objective.steps_per_example"),
    Case("mode", f"{TRAIN} evaluation.modes=[opn@1]", "config: evaluation", "'opn@1'", "write open@40, closed@10", "did you mean open@10?"),
    Case("mode twice", f"{TRAIN} evaluation.modes=[open@2,open@2]", "evaluation.modes", "open@2", "once is enough", "remove the other"),
    Case("no task", f"{TRAIN} evaluation.num_tasks=0", "evaluation.num_tasks", "num_tasks is 0", "at least one task", "or evaluation.num_tasks"),
    Case("device", f"{TRAIN} device=gpu", "config: device", "'gpu'", "one of auto, cpu, cuda", "did you mean cpu?"),
    Case("epochs of endless data", f"{TRAIN} training.steps=0 training.epochs=3", "training.epochs", "is 3", "never end", "set training.steps instead"),
    Case("warm-up longer than the run", f"{TRAIN} training.warmup_steps=50", "training.warmup_steps", "is 50", "allowed are 0 to 2", "change training.warmup_steps or training.steps"),
    Case("threads", f"{TRAIN} training.threads=100000", "training.threads", "is 100000", "allowed are 0 (as many as there are) to", "change training.threads"),
    Case("ramps that cross", f"{TRAIN} 'objective={{kind: masked_cross_entropy, low: 0.9, high: 0.5}}'", "objective.low", "from low 0.9 to high 0.5", "0 <= low <= high <= 1", "change objective.low or objective.high"),
    Case("mode that cannot run", f"{TRAIN} evaluation.modes=[open@2+warm0.5]", "evaluation.modes", "'open@2+warm0.5'", "set replan_every", "change evaluation.modes"),
    Case("mode longer than the plan", f"{TRAIN} evaluation.modes=[horizon99@2]", "evaluation.modes", "replan_every is 99", "1 (every action) to 40", "change evaluation.modes"),
    Case("mode of another grid", f"{TRAIN} 'grid={{kind: explicit, points: [1, 0.5, 0]}}'", "evaluation.modes", "ExplicitGrid", "the uniform or the even grid", "change evaluation.modes"),
    Case("no GPU", f"{TRAIN} device=cuda", "config: device", "'cuda'", "this torch sees no GPU", "set device: cpu or auto", without_gpu),
    Case("tensorboard missing", f"{TRAIN} training.tensorboard=true", "training.tensorboard", "is true", "install the extra onpath[track]", "or set training.tensorboard=false", missing("tensorboard")),
    Case("ramp longer than the run", f"{TRAIN} 'objective={{kind: masked_cross_entropy, low: {{kind: linear, start: 0.5, end: 0, steps: 9}}}}'", "objective.low", "at step 9", "the training has 3 steps", "or set training.steps=9"),
    Case("validation of nothing", f"{TRAIN} training.validate_every=2 training.validation_examples=0", "training.validation_examples", "validation_examples is 0", "set how many examples", "or remove validate_every"),
    Case("kept by no rule", f"{TRAIN} training.keep_every=3", "training.keep_every", "keep_every is 3", "a multiple of save_every", "change training.save_every"),
]  # fmt: skip

CLASSES = [
    Case("not importable", f"{TRAIN} schedule.class=nope:X", "schedule.class", "'nope:X'", "No module named 'nope'", "put that on PYTHONPATH"),
    Case("not in its module", f"{TRAIN} schedule.class=onpath.schedules:Cosine", "schedule.class", "'onpath.schedules:Cosine'", "no attribute 'Cosine'", "put that on PYTHONPATH"),
    Case("no module named", f"{TRAIN} schedule.class=:X", "schedule.class", "':X'", "package.module:Class", "write it as"),
    Case("relative", f"{TRAIN} schedule.class=.x:X", "schedule.class", "'.x:X'", "package.module:Class", "write it as"),
    Case("not a class", f"{TRAIN} schedule.class=own:x", "schedule.class", "which is 1", "not a subclass of Schedule", "derive it from onpath.schedules.Schedule", text("own.py", "x = 1\n")),
    Case("of another family", f"{TRAIN} schedule.class=onpath.ramps:Constant", "schedule.class", "onpath.ramps.Constant", "not a subclass of Schedule", "derive it from onpath.schedules.Schedule"),
    Case("abstract", f"{TRAIN} schedule.class=onpath.schedules:BoundedSchedule", "schedule.class", "'onpath.schedules:BoundedSchedule'", "lacks _base", "write these methods"),
    Case("network without encode", f"{TRAIN} model.class=own:Net", "model.class", "'own:Net'", "lacks encode", "write these methods", text("own.py", "import torch.nn as nn\nclass Net(nn.Module):\n    def forward(self, x): ...\n")),
    Case("refused by itself", f"{TRAIN} 'schedule={{class: own:Mine, alpha_min: 0.5}}'", "schedule.alpha_min", "alpha_min is 0.5", "0.1 at most", "your class own:Mine says so", text("own.py", "from dataclasses import dataclass\nfrom onpath.schedules import LinearSchedule\n@dataclass(frozen=True)\nclass Mine(LinearSchedule):\n    def __post_init__(self):\n        if self.alpha_min > 0.1:\n            raise ValueError(f'alpha_min is {self.alpha_min}; 0.1 at most')\n")),
    Case("Muon without matrices", f"{TRAIN} model.class=own:Net training.optimizer=muon", "training.optimizer", "Net has no matrices", "under `blocks`", "take optimizer: adamw", text("own.py", "import torch.nn as nn\nclass Net(nn.Module):\n    def __init__(self, spec):\n        super().__init__()\n        self.a = nn.Linear(1, 1)\n    def encode(self, **cond): ...\n    def forward(self, x): ...\n")),
]  # fmt: skip

FILES = [
    Case("recipe", "train fourroms-demo", "recipe:", "'fourroms-demo'", "allowed are cifar10", "did you mean fourrooms-demo?"),
    Case("recipe to print", "recipes nothing", "recipe:", "'nothing'", "allowed are cifar10", "onpath recipes"),
    Case("recipe is a folder", "train run", "recipe:", "'run'", "or a .yaml file", "--run FOLDER --resume"),
    Case("recipe of another ending", "train mine.json", "recipe:", "'mine.json'", "must end in .yaml", "rename it", text("mine.json", "{}")),
    Case("no file", "train nothing.yaml", "nothing.yaml", "No such file", "a YAML file in UTF-8", "onpath recipes"),
    Case("a folder", "train some.yaml", "some.yaml", "Is a directory", "a YAML file in UTF-8", "onpath recipes", folder("some.yaml")),
    Case("no text", TRAIN, "mine.yaml", "byte 0xff", "a YAML file in UTF-8", "give the path", text("mine.yaml", b"\xff\xfe\x00")),
    Case("control characters", TRAIN, "mine.yaml", "character #x0000", "not allowed", "write `name: value`", text("mine.yaml", "\0")),
    Case("empty", TRAIN, "config: data", "is missing", "one of fourrooms, trajectories", "like data=fourrooms", text("mine.yaml", "")),
    Case("a list", TRAIN, "mine.yaml", "holds a list", "a mapping of sections", "begin with `data:`", text("mine.yaml", "- 1\n")),
    Case("torn", TRAIN, "mine.yaml is not YAML at line 1", "'data: [1'", "expected ',' or ']'", "write `name: value`", text("mine.yaml", "data: [1")),
    Case("tabs", TRAIN, "mine.yaml is not YAML at line 2", "'steps: 3'", "nested by two spaces", "never by tabs", text("mine.yaml", "training:\n\tsteps: 3\n")),
    Case("a key twice", TRAIN, "mine.yaml is not YAML at line 3", "'steps: 4'", "'steps' stands twice", "write `name: value`", text("mine.yaml", "training:\n  steps: 3\n  steps: 4\n")),
    Case("two documents", TRAIN, "mine.yaml is not YAML at line 2", "another document", "expected a single document", "write `name: value`", text("mine.yaml", "a: 1\n---\nb: 2\n")),
    Case("code", TRAIN, "mine.yaml is not YAML at line 1", "python/object", "could not determine a constructor", "write `name: value`", text("mine.yaml", "a: !!python/object:os.system {}\n")),
    Case("in itself", TRAIN, "mine.yaml", "in itself", "YAML that ends", "write `name: value`", text("mine.yaml", "training: &a\n  x: *a\n")),
    Case("number for a name", TRAIN, "config: 1", "'1'", "allowed are data", "Rename it, or remove it", text("mine.yaml", "1: 2\n")),
]  # fmt: skip

DATA = [
    Case("no such file", NPZ, "d.npz", "no such file", "an .npz or .jsonl file", "give the path"),
    Case("ending", f"{TRAIN} 'data={{kind: trajectories, path: d.csv}}'", "d.csv", "'.csv'", ".npz or .jsonl", "convert it"),
    Case("a folder", NPZ, "d.npz", "no such file", "an .npz or .jsonl file", "give the path", folder("d.npz")),
    Case("not an archive", NPZ, "d.npz", "not a zip file", "an .npz archive", "write it with np.savez", text("d.npz", "hello")),
    Case("torn archive", NPZ, "d.npz", "not a zip file", "an .npz archive", "copy it again", many(arrays(), cut("d.npz"))),
    Case("pickled objects", NPZ, "d.npz", "Object arrays", "as numbers", "pad `actions` to one length", arrays(actions=np.array([[1, 2], [1], [2], [1]], dtype=object))),
    Case("array missing", NPZ, "d.npz", "direction missing", "needed are grid, direction, actions", "add or rename", arrays(direction=None)),
    Case("dtype", NPZ, "d.npz: `actions`", "dtype float64", "integers are needed", "astype(np.int64)", arrays(actions=np.full((4, 2), 2.0))),
    Case("NaN", NPZ, "d.npz: `actions`", "row 0 holds NaN", "integers are needed", "repair that first", arrays(actions=np.full((4, 2), np.nan))),
    Case("dimensions", NPZ, "d.npz: `actions`", "shape (4,)", "(N, T) is needed", "write it with np.savez", arrays(actions=np.full(4, 2))),
    Case("a number for an array", NPZ, "d.npz: `grid`", "shape ()", "(N, W, H, 3) or (N, W, H) is needed", "write it with np.savez", arrays(grid=np.array(3))),
    Case("lengths beyond the array", NPZ, "d.npz, row 2", "the length is 9", "allowed: 1 to 2", "repair the row", arrays(length=np.array([2, 2, 9, 2]))),
    Case("negative length", NPZ, "d.npz, row 1", "the length is -1", "allowed: 1 to 2", "repair the row", arrays(length=np.array([2, -1, 2, 2]))),
    Case("too long for the canvas", NPZ, "d.npz, row 0", "the length is 20", "allowed: 1 to 8", "raise max_seq_len to 20", arrays(actions=np.full((4, 20), 2), length=None)),
    Case("action out of range", NPZ, "d.npz, row 0", "the action is 7", "allowed: 0 to 2", "raise num_actions", arrays(actions=np.full((4, 2), 7))),
    Case("direction out of range", NPZ, "d.npz, row 0", "the direction is 4", "allowed: 0 (+x)", "repair the row", arrays(direction=np.full(4, 4))),
    Case("no agent", NPZ, "d.npz, row 0", "the number of agents is 0", "allowed: 1", "repair the row", arrays(grid=np.ones((4, 3, 2), int))),
    Case("object that does not exist", NPZ, "d.npz, row 0", "the object of a cell is 99", "allowed: 0 to 10", "map other codes to these", arrays(grid=cells(99))),
    Case("doors on the way", f"{NPZ} data.suffixes=true {SMALL}", "d.npz", "objects are [1, 2, 4, 8, 10]", "floor (1), walls (2)", "or set suffixes=False", arrays(grid=cells(4))),
    Case("no demonstration", NPZ, "d.npz", "no demonstration", "at least one", "write", arrays(grid=np.ones((0, 3, 2), int), direction=np.zeros(0, int), actions=np.ones((0, 2), int), length=None)),
    Case("everything to validate on", f"{NPZ} data.validation_share=1", "data.validation_share", "is 1.0", "0 up to, but not, 1", "change data.validation_share", arrays()),
    Case("no line", JSONL, "d.jsonl", "no demonstration", "one JSON object a line", "write", text("d.jsonl", "")),
    Case("torn line", JSONL, "d.jsonl, line 2", "'{\"grid\": [['", "is not JSON", "write one object a line", lines('{"grid": [[')),
    Case("line that is no text", JSONL, "d.jsonl, line 1", r"\\xff\\xfe", "is not JSON", "write one object a line", text("d.jsonl", b"\xff\xfe{}")),
    Case("line that is no object", JSONL, "d.jsonl, line 2", "'[1, 2]'", "is not an object", "write {grid, direction, actions}", lines([1, 2])),
    Case("mixed sizes", JSONL, "d.jsonl, line 2", "shape (1, 2)", "the ones before (3, 2)", "keep grids of one size", lines({"grid": [[10, 1]], "direction": 0, "actions": [2]})),
    Case("NaN in a line", JSONL, "d.jsonl, line 2: `direction`", "nan", "it needs integers", "repair the row", lines('{"grid": [[10, 1]], "direction": NaN, "actions": [2]}')),
    Case("number beyond 64 bits", JSONL, "d.jsonl, line 2: `actions`", "[1180591620717411303424]", "it needs integers", "repair the row", lines({"grid": GRID, "direction": 0, "actions": [2**70]})),
    Case("nothing to validate on", f"{TRAIN} 'data={{kind: trajectories, path: d.npz, validation_share: 0}}'", "d.npz", "validation_share 0.0", "no maze falls into the validation split", "change validation_share", arrays()),
]  # fmt: skip

TEXT_CONFIG = {
    "data": {"kind": "text", "path": "t.txt", "length": 8},
    "model": {"kind": "token_transformer", "width": 8, "num_heads": 2, "depth": 1},
    **{name: CONFIG[name] for name in ("objective", "training", "device")},
}
TEXT = "train text.yaml --run new data.path=t.txt"
ROWS = "train text.yaml --run new data.path=t.jsonl"
HUB = "train text.yaml --run new 'data={kind: hub_text, name: t.jsonl, length: 8, tokenizer: bytes}'"
PAIRS = "train text.yaml --run new 'data={kind: pairs, path: p.jsonl, length: 24, validation_share: 0.5}'"
CHATS = f"{PAIRS} data.messages=messages"
ASK = "sample text-run"


def rows(path: str, *objects: Any) -> Prepare:
    """A .jsonl file with these rows; text stands as it is."""
    return text(path, "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in objects))


def pair(**changes: Any) -> Prepare:
    """p.jsonl: a good pair, and one with some columns changed or (None) left out."""
    good = {"prompt": "1 + 1?", "response": "2."}
    bad = {name: value for name, value in {**good, **changes}.items() if value is not None}
    return rows("p.jsonl", good, bad)


def chat(turns: Any) -> Prepare:
    return rows("p.jsonl", {"messages": turns})


def byte_pairs(path: str, **fields: Any) -> Prepare:
    return lambda patch: texts.write_byte_pairs(Path(path), **fields)


GOOD = text("t.txt", "to be or not to be " * 9)
TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2."}]
TOKENIZER = "'data.tokenizer={kind: huggingface, name: tok}'"

TEXTS = [
    Case("no such file", TEXT, "t.txt", "no such file or folder", ".txt, .md, .jsonl", "give the path"),
    Case("ending", TEXT.replace("t.txt", "t.pdf"), "t.pdf", "'.pdf'", ".txt, .md, .jsonl", "rename or convert it", text("t.pdf", "%PDF")),
    Case("folder without text", TEXT.replace("t.txt", "many"), "many", "holds no text", "needed are files ending in .txt", "check the path", folder("many")),
    Case("empty file", TEXT, "t.txt", "holds no text", "is needed", "check the path", text("t.txt", "")),
    Case("not UTF-8", TEXT, "t.txt, line 3", r"caf\xe9", "must be UTF-8", "iconv", text("t.txt", b"one\ntwo\ncaf\xe9 \n")),
    Case("torn .gz", TEXT.replace("t.txt", "t.txt.gz"), "t.txt.gz", "cannot be unpacked as .gz", "torn or another kind", "copy it again", text("t.txt.gz", gzip.compress(b"to be or not to be" * 99)[:40])),
    Case("no .gz at all", TEXT.replace("t.txt", "t.txt.gz"), "t.txt.gz", "Not a gzipped file", "unpacked as .gz", "the ending that it is", text("t.txt.gz", b"to be")),
    Case("longer rows than the text", f"{TEXT} data.length=500", "t.txt: its validation part", "17 tokens of 171", "need 500 or more", "lower length", GOOD),
    Case("validation shorter than a window", f"{TEXT} data.length=100", "t.txt: its validation part", "17 tokens of 171", "need 100 or more", "change validation_share", GOOD),
    Case("row of nothing", f"{TEXT} data.length=1", "data.length", "length is 1", "2 or more", "change data.length", GOOD),
    Case("all of it held out", f"{TEXT} data.validation_share=1", "data.validation_share", "is 1.0", "0 up to, but not, 1", "change data.validation_share", GOOD),
    Case("outside the alphabet", f"{TEXT} data.tokenizer.alphabet='\"benort-\\n\"'", "t.txt, line 2", "holds '!'", "the 8 of the alphabet ('benort-", "leave it out", text("t.txt", "to-be-or-not-to-be\nno!")),
    Case("alphabet twice", f"{TEXT} data.tokenizer.alphabet=aba", "data.tokenizer.alphabet", "['a'] twice", "each character once", "change data.tokenizer.alphabet", GOOD),
    Case("documents without ends", f"{TEXT} data.documents=true", "data.documents", "is true", "has no end token", "set data.tokenizer.end=true", GOOD),
    Case("begin without a token", f"{TEXT} data.begin=true", "data.begin", "is true", "neither a begin nor an end token", "set data.tokenizer.end=true", GOOD),
    Case("not JSON", ROWS, "t.jsonl, line 2", "'{\"text\": \"b'", "is not JSON", "write one object a line", rows("t.jsonl", {"text": "a"}, '{"text": "b')),
    Case("not an object", ROWS, "t.jsonl, line 1", "'[1]'", "is not an object", 'like {"text": "…"}', rows("t.jsonl", [1])),
    Case("empty line", ROWS, "t.jsonl, line 2", "is empty", "one JSON object a line", "take the line out", rows("t.jsonl", {"text": "a"}, "", {"text": "b"})),
    Case("column", ROWS, "t.jsonl, line 2", "'text' is missing", "there are 'body'", "name the one that holds the text", rows("t.jsonl", {"text": "a"}, {"body": "b"})),
    Case("column that is no text", ROWS, "t.jsonl, line 1", "'text' is 3, int", "text is needed", "repair the row", rows("t.jsonl", {"text": 3})),
    Case("half a character", ROWS, "t.jsonl, line 1", "half of a surrogate pair", "whole characters are needed", "repair the row", rows("t.jsonl", '{"text": "\\ud83d"}')),
    Case("line not UTF-8", ROWS, "t.jsonl, line 2", "is not UTF-8", "must be UTF-8", "iconv", text("t.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')),
    Case("no tokenizer there", f"{TEXT} 'data.tokenizer={{kind: huggingface, name: ./nothing}}'", "data.tokenizer", "'./nothing'", "a folder with a tokenizer.json", "check the spelling", GOOD),
    Case("folder without a tokenizer", f"{TEXT} {TOKENIZER}", "data.tokenizer: name is 'tok'", "the folder holds none", "a folder with a tokenizer.json", "check the spelling", many(GOOD, folder("tok"))),
    Case("tokenizer that is torn", f"{TEXT} 'data.tokenizer={{kind: huggingface, name: tokenizer.json}}'", "'tokenizer.json'", "no tokenizer can be read", "a folder with a tokenizer.json", "download it first", many(GOOD, text("tokenizer.json", "{"))),
    Case("token that is not there", f"{TEXT} 'data.tokenizer={{kind: huggingface, name: tok, mask_token: <m>}}'", "mask_token", "'<m>'", "special ones are <|endoftext|>", "correct it, or leave it out", many(GOOD, byte_pairs("tok"))),
    Case("transformers missing", f"{TEXT} {TOKENIZER}", "data.tokenizer", "transformers", "is needed here", "pip install", many(GOOD, missing("transformers"))),
    Case("no such dataset", HUB.replace("t.jsonl", "./nothing"), "./nothing, split train", "no such file or folder", "allowed are a name on the Hugging Face hub", "check the spelling"),
    Case("no such split", f"{HUB} data.validation_split=held", "t.jsonl, split held", "and not 'held'", "has the split 'train' alone", "check the spelling", rows("t.jsonl", {"text": "to be or not"})),
    Case("column of a dataset", f"{HUB} data.column=body", "t.jsonl, split train, row 0", "'body' is missing", "there are 'text'", "name the one that holds the text", rows("t.jsonl", {"text": "to be or not"})),
    Case("stream without a limit", f"{HUB} data.streaming=true", "data.streaming", "streaming is true", "set max_documents or max_tokens", "or streaming: false"),
    Case("negative limit", f"{HUB} data.max_tokens=-1", "data.max_tokens", "max_tokens is -1", "0 (no limit) or more", "change data.max_"),
    Case("datasets missing", HUB, "t.jsonl, split train", "datasets", "is needed here", "pip install", many(rows("t.jsonl", {"text": "to be"}), missing("datasets"))),
    Case("no such pairs", PAIRS, "p.jsonl", "no such file", "a .jsonl file with one object a line", "give the path"),
    Case("pairs of another ending", PAIRS.replace("p.jsonl", "p.csv"), "p.csv", "'.csv'", ".jsonl or .jsonl.gz", "convert it", text("p.csv", "a,b")),
    Case("no pair", PAIRS, "p.jsonl", "holds no pair", "one JSON object a line", "write", text("p.jsonl", "")),
    Case("column of a pair", PAIRS, "p.jsonl, line 2", "'response' is missing", "there are 'prompt'", "name the one", pair(response=None)),
    Case("empty response", PAIRS, "p.jsonl, line 2", "the response is empty", "a text is needed", "take it out", pair(response=" ")),
    Case("response that is no text", PAIRS, "p.jsonl, line 2", "'response' is 2, int", "text is needed", "repair the row", pair(response=2)),
    Case("pair longer than a row", PAIRS, "p.jsonl: example 1 of the validation part", "37 tokens with its end", "allowed are 24 tokens", "set length=37", pair(response="2" * 30)),
    Case("no pair left", f"{PAIRS} data.overflow=drop", "p.jsonl: its validation part", "1 examples, of which none is left", "one at least is needed", "raise length", pair(response="2" * 30)),
    Case("pairs without an end", f"{PAIRS} data.tokenizer=bytes", "data.tokenizer", "this tokenizer has none", "pairs need an end token", "set data.tokenizer.end=true", pair()),
    Case("padding of nothing", f"{PAIRS} data.end=fill data.padding_side=left", "data.padding_side", "'left'", "end is 'fill'", "leave padding_side out", pair()),
    Case("format without a prompt", f"{PAIRS} data.prompt_format=Q", "data.prompt_format", "'Q'", "{prompt} must stand in it", "write it like", pair()),
    Case("format and chat", f"{PAIRS} data.chat=true data.prompt_format='Q {{prompt}}'", "data.prompt_format", "'Q {prompt}'", "framed by the chat template", "leave one out", pair()),
    Case("subset of a file", f"{PAIRS} data.subset=main", "data.subset", "is 'main'", "only a dataset", "leave subset out", pair()),
    Case("no conversation", CHATS, "p.jsonl, line 1", "'messages' is missing", "there are 'prompt', 'response'", "name the one", pair()),
    Case("conversation of one turn", CHATS, "p.jsonl, line 1", "'messages' is [{'role': 'user'", "two or more", "repair the row", chat(TURNS[:1])),
    Case("conversation without an answer", CHATS, "p.jsonl, line 1", "by 'user'", "must be by 'assistant'", "behind its last answer", chat([*TURNS, TURNS[0]])),
    Case("no chat template", CHATS, "p.jsonl, line 1", "Characters has no chat template", "take kind: huggingface", "or columns of prompts", chat(TURNS)),
    Case("tokenizer without a chat template", f"{CHATS} {TOKENIZER}", "p.jsonl, line 1", "tok has no chat template", "the tokenizer of a chat model", "or columns of prompts", many(chat(TURNS), byte_pairs("tok"))),
    Case("prompt longer than the row", f"{ASK} --prompt 'to be or not'", "prompt", "'to be or not' has 12 tokens", "prompts of up to 7", "shorten it"),
    Case("prompt outside the alphabet", f"{ASK} --prompt 'xyz'", "prompt: 'xyz'", "holds 'x'", "of the alphabet", "leave it out"),
]  # fmt: skip

RUNS = [
    Case("no folder", "evaluate nothing", "run folder: nothing", "is not there", "not a run", "onpath train RECIPE --run nothing"),
    Case("empty folder", "sample empty", "run folder: empty", "no config.yaml", "not a run", "onpath train RECIPE --run empty", folder("empty")),
    Case("a file", "evaluate mine.yaml", "run folder: mine.yaml", "is a file", "not a run", "give the folder of one"),
    Case("nothing to resume", f"{TRAIN} --resume", "run folder: new", "is not there", "not a run", "onpath train RECIPE --run new"),
    Case("a run stands there", "train mine.yaml --run run", "run folder: run", "already holds a run", "--resume to go on", "choose another --run"),
    Case("a file stands there", "train mine.yaml --run mine.yaml", "run folder: mine.yaml", "Not a directory", "can be written to", "choose another --run"),
    Case("no permission", "train mine.yaml --run locked/new", "run folder: locked/new", "Permission denied", "can be written to", "choose another --run", locked),
    Case("a run without its config", "train mine.yaml --run run", "run folder: run", "metrics.jsonl and checkpoints", "no config.yaml", "put that back", gone("run/config.yaml")),
    Case("torn config", "evaluate run", "run/config.yaml is not YAML at line 1", "'data: [1'", "expected ',' or ']'", "write `name: value`", text("run/config.yaml", "data: [1")),
    Case("config of another width", "sample run", "checkpoint:", "unconditional is (16,) there", "(32,) in PlanMLP", "Restore the settings of `model`", changed("run/config.yaml", "width: 16", "width: 32")),
    Case("config of another network", "evaluate run", "checkpoint:", "unconditional is (16,) there", "(8,) in PlanTransformer", "Restore the settings of `model`", changed("run/config.yaml", "kind: plan_mlp\n  width: 16\n  hidden: 16\n  depth: 1\n  planes:\n  - 2\n  located:\n  - 8\n  - 10\n", "kind: plan_transformer\n  width: 8\n  num_heads: 1\n")),
    Case("resume with another width", f"{RESUME} model.width=32", "checkpoint:", "(16,) there", "(32,) in PlanMLP", "Restore the settings of `model`"),
    Case("resume with another optimizer", f"{RESUME} training.optimizer=muon", "resume:", "holds 1 optimizers", "makes 2", "restore training.optimizer"),
    Case("samples is a file", "sample run", "run/samples", "File exists", "who may write there", "check the path", text("run/samples", "")),
    Case("config of another schedule", "evaluate run", "checkpoint: step 3", "'kind': 'cosine'", "was trained with schedule {'kind': 'linear'", "Restore the config", changed("run/config.yaml", "kind: linear", "kind: cosine")),
    Case("config for a GPU", "sample run", "config: device", "'cuda'", "sees no GPU", "--device cpu", many(without_gpu, changed("run/config.yaml", "device: cpu", "device: cuda"))),
    Case("no checkpoint", "evaluate run", "run: run", "no checkpoint", "that verifies", "train it first", gone("run/checkpoints")),
    Case("flipped bit", "evaluate run", "step-3/average.safetensors", "does not match its checksum", "no checkpoint that verifies", "copy a whole one there", flipped(f"{LAST}/average.safetensors")),
    Case("torn weights", "check run", "step-3/model.safetensors", "does not match its checksum", "no checkpoint that verifies", "copy a whole one there", cut(f"{LAST}/model.safetensors")),
    Case("weights missing", "sample run", "step-3/average.safetensors", "is missing", "no checkpoint that verifies", "copy a whole one there", gone(f"{LAST}/average.safetensors")),
    Case("manifest missing", "sample run", "step-3", "has no manifest.json", "no checkpoint that verifies", "copy a whole one there", gone(f"{LAST}/manifest.json")),
    Case("manifest torn", "sample run", "step-3/manifest.json", "is not JSON", "no checkpoint that verifies", "copy a whole one there", cut(f"{LAST}/manifest.json")),
    Case("resume with another schedule", f"{RESUME} schedule=cosine", "checkpoint: step 3", "'kind': 'cosine'", "one run has one schedule", "Restore the config"),
    Case("evaluation torn", "evaluate run", "run/evaluation.json", "but '['", "is not JSON", "delete it and run onpath evaluate again", text("run/evaluation.json", "[")),
    Case("evaluation of something else", "evaluate run", "run/evaluation.json", "{\"a\": 1}", "does not hold objects", "delete it and run onpath evaluate again", text("run/evaluation.json", '{"a": 1}')),
    Case("resume with another seed", f"{RESUME} seed=1", "checkpoint: step 3", "seed 0", "the config now says 1", "Restore the config"),
    Case("report of nothing", "report nothing", "run folder: nothing", "is not there", "not a run", "give the folder of one"),
    Case("report of a run twice", "report run run", "report: run, run", "names a run twice", "each run once", "give each run once"),
]  # fmt: skip

COMMANDS = [
    Case("command", "trian", "onpath trian", "'trian'", "--help to see what is allowed", "Did you mean 'train'?"),
    Case("option", f"{TRAIN} --rsume", "--rsume", "--rsume", "--help to see what is allowed", "--resume"),
    Case("no recipe", "train", "RECIPE|FILE", "onpath train`", "Missing argument", "--help"),
    Case("option without a value", "train mine.yaml --run", "'--run'", "onpath train mine.yaml --run`", "requires an argument", "--help"),
    Case("too much", "recipes one two", "(two)", "onpath recipes one two`", "unexpected extra argument", "--help"),
    Case("no sample", "sample run --num 0", "'--num'", "--num 0", "greater than or equal to 1", "--help"),
    Case("some samples", "sample run --num some", "'--num'", "--num some", "a valid integer", "--help"),
    Case("no step", "sample run --steps 0", "'--steps'", "--steps 0", "greater than or equal to 1", "--help"),
    Case("seed", "sample run --seed -1", "'--seed'", "--seed -1", "greater than or equal to 0", "--help"),
    Case("samples beyond memory", "sample run --num 10000000000000", "--num", "80000000000000 bytes", "can't allocate memory", "lower"),
    Case("mode to evaluate", "evaluate run modes=[opn@1]", "config: evaluation", "'opn@1'", "write open@40, closed@10", "did you mean open@10?"),
    Case("setting to evaluate", "evaluate run num_taks=3", "evaluation.num_taks", "'num_taks'", "allowed are sets, num_tasks", "did you mean num_tasks?"),
    Case("sampler to evaluate", "evaluate run sampler.ordr=margin", "sampler.ordr", "'ordr'", "allowed are order", "did you mean order?"),
    Case("minigrid missing", "evaluate run modes=[closed@2/minigrid]", "real environment", "minigrid is missing", "needs gymnasium and minigrid", "pip install", missing("minigrid")),
]  # fmt: skip


def image_files(patch: pytest.MonkeyPatch) -> None:
    pictures.write_all(Path())


POLICY_CONFIG: dict[str, Any] = {**policies.CONFIG, "experience": {"rewards": ["sudoku_cells"], "num_generations": 4}}
POLICY = "train policy.yaml --run new"
ASKED = "'data={kind: prompts, path: asked.jsonl, length: 24, max_completion_length: 8}'"
QUESTIONS = text("asked.jsonl", "".join(f'{{"prompt": "{n} + {n} ="}}\n' for n in range(40)))

POLICIES = [
    Case("greedy rollouts", f"{POLICY} sampler.tokens.temperature=0", "sampler.tokens.temperature", "is 0", "1.0 is usual", "set it above 0"),
    Case("top_k", f"{POLICY} sampler.tokens.top_k=2", "sampler.tokens", "top_k 2", "changes with the weights", "leave them out"),
    Case("top_p", f"{POLICY} sampler.tokens.top_p=0.5", "sampler.tokens", "top_p 0.5", "changes with the weights", "leave them out"),
    Case("guidance", f"{POLICY} sampler.guidance=1", "sampler.guidance", "is 1.0", "one of them is trained", "leave sampler.guidance out"),
    Case("remasking", f"{POLICY} sampler.remask=cap", "sampler.remask", "Cap(eta=0.008)", "drawn more than once", "leave sampler.remask out"),
    Case("stop at end", f"{POLICY} sampler.stop_at_end=true", "sampler.stop_at_end", "is True", "which writes over tokens", "leave sampler.stop_at_end out"),
    Case("blocks that stop", f"{POLICY} 'sampler.blocks={{size: 4, stop_at_end: true}}'", "sampler.blocks", "stop_at_end=True", "which writes over tokens", "set sampler.blocks.stop_at_end=false"),
    Case("sighted order", f"{POLICY} objective.estimator.kind=traj sampler.order=confidence", "sampler.order", "is confidence", "allowed are random and left_to_right", "set sampler.order=random"),
    Case("sighted count", f"{POLICY} objective.estimator.kind=traj 'sampler.count={{kind: threshold, tau: 0.5}}'", "sampler.count", "is Threshold", "allowed are schedule and ancestral", "set sampler.count=schedule"),
    Case("rollouts for a likelihood", f"{POLICY} objective=nelbo", "section experience", "objective nelbo", "is trained on examples", "set objective.kind=policy_gradient"),
    Case("policy without rollouts", f"{POLICY} experience=null", "objective policy_gradient", "no section experience", "is trained on rollouts", "like experience.rewards=[sudoku_solved]"),
    Case("half a group", f"{POLICY} training.batch_size=18", "training.batch_size", "18 rollouts", "experience.num_generations is 4", "must be a multiple of it"),
    Case("a group of one", f"{POLICY} experience.num_generations=1", "experience.num_generations", "is 1", "2 or more are needed", "change experience.num_generations"),
    Case("epochs of rollouts", f"{POLICY} training.steps=0 training.epochs=1", "training.epochs", "is 1", "which never end", "set training.steps instead"),
    Case("no column", f"{POLICY} experience.rewards=[gsm8k_correct]", "experience.rewards", "needs the column answer", "the data have canvas, givens, solution", "take another reward"),
    Case("no column in a file", f"{POLICY} {ASKED}", "experience.rewards", "needs the column givens", "the data have canvas", "name a column so", QUESTIONS),
    Case("prompts to learn", f"{POLICY} {ASKED} objective=nelbo experience=null", "data prompts", "without answers", "objective nelbo", "take data with answers", QUESTIONS),
    Case("start at nothing", f"{POLICY} start=nowhere", "config: start", "'nowhere'", "the folder of a trained run", "leave start out"),
    Case("start that does not fit", f"{POLICY} start=text-run", "its weights do not fit", "token.weight", "(5, 16) in TokenTransformer", "Restore the settings"),
    Case("no reward", f"{POLICY} experience.rewards=[]", "experience.rewards", "is []", "one reward or more is needed", "name what judges"),
    Case("reward", f"{POLICY} experience.rewards=[sudoku_cell]", "experience.rewards.0.kind", "'sudoku_cell'", "allowed are function", "did you mean sudoku_cells?"),
    Case("reward of nowhere", f"{POLICY} 'experience.rewards=[{{kind: function, function: \"nope:f\"}}]'", "experience.rewards.0", "'nope:f'", "No module named 'nope'", "put that on PYTHONPATH"),
    Case("reward twice", f"{POLICY} experience.rewards=[sudoku_cells,sudoku_cells]", "experience.rewards", "sudoku_cells 2 times", "is needed once", "remove one"),
    Case("weights of rewards", f"{POLICY} experience.reward_weights=[1,2]", "experience.reward_weights", "1 rewards and 2", "a weight for each, or none", "change experience.rewards or"),
    Case("weights of nothing", f"{POLICY} experience.reward_weights=[0]", "experience.reward_weights", "[0.0]", "allowed are finite numbers", "leave reward_weights out"),
    Case("no time for a reward", f"{POLICY} experience.time_limit_s=0", "experience.time_limit_s", "is 0.0", "seconds above 0", "change experience.time_limit_s"),
    Case("no pass", f"{POLICY} experience.num_iterations=0", "experience.num_iterations", "is 0", "1 or more", "change experience.num_iterations"),
    Case("used again without a ratio", f"{POLICY} 'objective.estimator={{kind: wd1}}' experience.num_iterations=2", "experience.num_iterations", "is 2", "allowed is 1", "set experience.num_iterations=1"),
    Case("batches without a ratio", f"{POLICY} 'objective.estimator={{kind: spg}}' experience.steps_per_round=2", "experience.steps_per_round", "is 2", "allowed is 1", "set experience.steps_per_round=1"),
    Case("clipping without a ratio", f"{POLICY} 'objective.estimator={{kind: wd1}}' objective.epsilon=0.1", "objective.epsilon", "is 0.1", "no ratio that could be clipped", "leave them out"),
    Case("truncation without an end", f"{POLICY} experience.mask_truncated_completions=true", "experience.mask_truncated_completions", "is true", "allowed is false", "leave it out"),
    Case("estimator", f"{POLICY} objective.estimator=trajectory", "objective.estimator.kind", "'trajectory'", "allowed are traj, traj_nelbo", "did you mean traj"),
    Case("share of a prompt", f"{POLICY} objective.estimator.p_mask_prompt=2", "objective.estimator.p_mask_prompt", "is 2.0", "0 to 1", "change objective.estimator.p_mask_prompt"),
    Case("share without effect", f"{POLICY} 'objective.estimator={{kind: diffu, p_mask: 0.5}}'", "objective.estimator.p_mask", "is 0.5", "masking is full", "set masking: probability"),
    Case("masking of nothing", f"{POLICY} 'objective.estimator={{kind: diffu, masking: probability, p_mask: 0}}'", "objective.estimator.p_mask", "is 0.0", "0 < p_mask <= 1", "change objective.estimator.p_mask"),
    Case("masking without times", f"{POLICY} 'objective.estimator={{kind: traj, masking: probability}}'", "objective.estimator.masking", "'masking'", "allowed are trajectory_samples", "remove it"),
    Case("steps of a trajectory", f"{POLICY} 'objective.estimator={{kind: traj, trajectory_samples: -1}}'", "objective.estimator.trajectory_samples", "is -1", "0 (all steps) and more", "change objective.estimator.trajectory_samples"),
    Case("steps to merge", f"{POLICY} 'objective.estimator={{kind: trace, merge: 0}}'", "objective.estimator.merge", "is 0", "1 and more", "change objective.estimator.merge"),
    Case("upper bound", f"{POLICY} 'objective.estimator={{kind: spg, beta: 0.5}}'", "objective.estimator.beta", "is 0.5", "1 or more", "change objective.estimator.beta"),
    Case("mixture", f"{POLICY} 'objective.estimator={{kind: spg, omega: 2}}'", "objective.estimator.omega", "is 2.0", "0 to 1", "change objective.estimator.omega"),
    Case("sharpness", f"{POLICY} 'objective.estimator={{kind: wd1, psi: 0}}'", "objective.estimator.psi", "is 0.0", "above 0", "change objective.estimator.psi"),
    Case("clipping", f"{POLICY} objective.epsilon=1.5", "objective.epsilon", "is 1.5", "0 < epsilon < 1", "change objective.epsilon"),
    Case("weight of a KL", f"{POLICY} objective.beta=-1", "objective.beta", "is -1.0", "0 (no KL) or more", "change objective.beta"),
    Case("KL without effect", f"{POLICY} objective.kl=k3", "objective.kl", "is k3", "beta is 0", "set beta"),
]  # fmt: skip

IMAGE_CONFIG: dict[str, Any] = {
    "data": "digits",
    "model": {"kind": "image_unet", "width": 8, "levels": [1, 2]},
    "objective": "denoising",
    "training": {"steps": 3, "batch_size": 8, "validation_examples": 4},
    "device": "cpu",
}
IMAGES = "train image.yaml --run new"
FASHION = f"{IMAGES} 'data={{kind: fashion_mnist, path: idx}}'"
CIFAR = f"{IMAGES} 'data={{kind: cifar10, path: cifar}}'"
PHOTOS = f"{IMAGES} 'data={{kind: image_folder, path: folder, size: 6}}'"
ENCODED = f"{IMAGES} 'data={{kind: latents, path: latents.safetensors}}'"
TRAIN_IMAGES = "idx/train-images-idx3-ubyte.gz"

PICTURES = [
    Case("no official files", FASHION, TRAIN_IMAGES, "there is no such folder", "needed are the official files train-images-idx3-ubyte", "get them from https://github.com/zalandoresearch"),
    Case("torn official file", FASHION, TRAIN_IMAGES, "cannot be unpacked", "a whole .gz file is needed", "get it again", many(image_files, cut(TRAIN_IMAGES))),
    Case("another idx file", FASHION, TRAIN_IMAGES, "begins with 00 00 08 01", "begins with 00 00 08 03", "get it again", many(image_files, text(TRAIN_IMAGES, gzip.compress(b"\0\0\x08\x01\0\0\0\0")))),
    Case("all images held out", FASHION, "idx", "validation_examples is 5000", "allowed are 0 to 59", "lower it", image_files),
    Case("side that does not divide", f"{FASHION} data.size=15", "data.size", "size is 15", "the divisors of 28", "change data.size"),
    Case("pickles of CIFAR-10", CIFAR, "cifar:", "holds the Python version", "the binary version is needed", "get cifar-10-binary.tar.gz", text("cifar/data_batch_1", b"\x80")),
    Case("torn CIFAR-10", CIFAR, "data_batch_2.bin", "holds 3 bytes", "a multiple of 3073", "unpack it again", many(image_files, text("cifar/cifar-10-batches-bin/data_batch_2.bin", "abc"))),
    Case("no folder of pictures", PHOTOS, "folder:", "there is no such folder", ".png, .jpg, .jpeg, .webp", "check data.path"),
    Case("no size of pictures", f"{IMAGES} 'data={{kind: image_folder, path: folder}}'", "data.size", "is missing", "(int)", "like data.size=32"),
    Case("size in words", f"{IMAGES} 'data={{kind: hub_images, name: pictures.parquet, size: large}}'", "data.size", "is 'large'", "int is needed", "like data.size=32"),
    Case("no picture in it", PHOTOS, "folder:", "holds no picture (but 1 x .txt)", "files ending in .png", "convert them", text("folder/a.txt", "")),
    Case("broken pictures", PHOTOS, "folder:", "1 of 61 pictures cannot be read: cat/a.jpg", "whole PNG, JPEG or WebP files", "repair these, or take them away", many(image_files, text("folder/cat/a.jpg", "no picture"))),
    Case("picture without a class", PHOTOS, "folder:", "a.png lies in the folder itself", "into the subfolder of its class", "or set data.labels=false", many(image_files, text("folder/a.png", ""))),
    Case("colours", f"{PHOTOS} data.channels=4", "data.channels", "channels is 4", "1 (grey) and 3 (RGB)", "change data.channels"),
    Case("pillow missing", PHOTOS, "PIL", "pillow is needed", "to read pictures", 'pip install "onpath[images]"', many(image_files, missing("PIL.Image"))),
    Case("column of pictures", f"{IMAGES} 'data={{kind: hub_images, name: pictures.parquet, size: 5, image: img}}'", "pictures.parquet, split train, row 0", "no column 'img'", "but image, label", "set data.image", image_files),
    Case("labels to drop that there are not", f"{IMAGES} data.labels=false objective.condition_dropout=0.1", "objective.condition_dropout", "is 0.1", "data digits have no conditions", "set objective.condition_dropout=0"),
    Case("objective of tokens", f"{IMAGES} objective=nelbo", "config: objective", "is nelbo", "allowed is denoising", "set objective.kind=denoising"),
    Case("evaluation of text", f"{IMAGES} evaluation.kind=text", "evaluation: kind text", "trained on Digits", "measures text", "leave evaluation.kind out"),
    Case("field of a kind without any", f"{IMAGES} objective.weight.gamma=3", "config: objective.weight.gamma", "'gamma'", "nothing to set beside its kind", "Rename it, or remove it"),
    Case("rollouts of no length", f"{IMAGES} objective.scheduled_sampling.probability=0.5", "config: objective.scheduled_sampling: probability", "is 0.5", "max_step_offset is 0", "set max_step_offset above 0"),
    Case("choice among one length", f"{IMAGES} 'objective={{kind: denoising, scheduled_sampling: {{max_step_offset: 1, probability: 0.5, strategy: biased_late}}}}'", "objective.scheduled_sampling.strategy", "'biased_late'", "all offsets are 1", "set min_step_offset below max_step_offset"),
    Case("average that there is not", f"{IMAGES} training.ema=0 'objective={{kind: denoising, scheduled_sampling: {{max_step_offset: 2, probability: 0.5, weights: average}}}}'", "objective.scheduled_sampling.weights", "is average", "training.ema is 0", "set training.ema=0.999"),
    Case("injected difference of nothing", f"{IMAGES} training.ema=0 'objective={{kind: denoising, scheduled_sampling: {{mode: inject, max_step_offset: 2, probability: 0.5, coarse_steps: 4}}}}'", "objective.scheduled_sampling.coarse_steps", "are both 4", "training.ema is 0", "set training.ema=0.999, or coarse_steps below fine_steps"),
    Case("sampler of tokens", f"{IMAGES} sampler=unmasking", "config: sampler", "is unmasking", "allowed are euler, dpm, unipc, rk4", "set sampler.kind=euler"),
    Case("no latents", ENCODED, "latents.safetensors", "no such file", "with the array `latents` (N, C, H, W)", "check data.path"),
    Case("torn latents", ENCODED, "latents.safetensors", "is torn", "with the array `latents` (N, C, H, W)", "write it again", many(image_files, cut("latents.safetensors"))),
]  # fmt: skip

TABLE = {
    f"{group}: {case.name}": case
    for group, cases in {
        "setting": SETTINGS,
        "value": VALUES,
        "class": CLASSES,
        "config file": FILES,
        "data": DATA,
        "text": TEXTS,
        "image": PICTURES,
        "policy": POLICIES,
        "run": RUNS,
        "command": COMMANDS,
    }.items()
    for case in cases
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and the run that was trained from it."""
    path = tmp_path_factory.mktemp("trained")
    (path / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    config = tiny()
    parts = build.build(config)
    parts.trainer.fit(parts.job(), RunFolder.create(path / "run", config.as_dict()))
    (path / "text.yaml").write_text(yaml.safe_dump(TEXT_CONFIG))
    (path / "image.yaml").write_text(yaml.safe_dump(IMAGE_CONFIG))
    (path / "policy.yaml").write_text(yaml.safe_dump(POLICY_CONFIG))
    (path / "t.txt").write_text("to be or not to be " * 20)
    parts = build.build(RunConfig.parse(override(TEXT_CONFIG, [f"data.path={path / 't.txt'}"])))
    parts.trainer.fit(parts.job(), RunFolder.create(path / "text-run", parts.config.as_dict()))
    (path / "t.txt").unlink()
    return path


@pytest.fixture(autouse=True)
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Path:
    """A copy of it as the working directory, with annotations unchecked, as a user has it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(build, "_CALIBRATION_EXAMPLES", 16)
    monkeypatch.setenv("ONPATH_CACHE", f"{tmp_path}-cache")
    return tmp_path


def contents(path: Path) -> dict[str, bytes | None]:
    """Every file and folder below `path`, but for what Python compiles by itself."""
    found = {str(file.relative_to(path)): file for file in path.rglob("*") if "__pycache__" not in str(file)}
    return {name: file.read_bytes() if file.is_file() else None for name, file in found.items()}


def test_the_table_holds_fifty_kinds_and_more() -> None:
    cases = [*SETTINGS, *VALUES, *CLASSES, *FILES, *DATA, *TEXTS, *PICTURES, *POLICIES, *RUNS, *COMMANDS]
    assert len(TABLE) == len(cases) >= 50
    assert all(part for case in cases for part in (case.where, case.given, case.allowed, case.todo))


def judge(case: Case, code: Any, out: str, err: str) -> None:
    """The four points, one message, exit code 2, no traceback."""
    points = {"where": case.where, "given": case.given, "allowed": case.allowed, "to do": case.todo}
    assert not {name: part for name, part in points.items() if part not in err}, err
    assert code == 2 and err.startswith("error: ") and err.count("error: ") == 1 and "Traceback" not in err
    assert len(err.splitlines()) == 1, "a message is one line, as long as it needs"
    assert "error" not in out.lower()


@pytest.mark.parametrize("name", TABLE)
def test_a_mistake(name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    case = TABLE[name]
    case.prepare(monkeypatch)
    before = contents(here)
    monkeypatch.setattr(sys, "argv", ["onpath", *shlex.split(case.command)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    judge(case, stop.value.code, *capsys.readouterr())
    assert contents(here) == before


@pytest.mark.parametrize("name", ["setting: field", "config file: tabs", "run: flipped bit", "command: command"])
def test_a_mistake_in_a_process_of_its_own(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = TABLE[name]
    case.prepare(monkeypatch)
    before = contents(here)
    command = [sys.executable, "-c", "from onpath.cli import main; main()", *shlex.split(case.command)]
    done = subprocess.run(command, check=False, cwd=here, capture_output=True, text=True)
    judge(case, done.returncode, done.stdout, done.stderr)
    assert contents(here) == before


OWN = {
    "import": ("1 / 0\n", "schedule.class=own:X", ZeroDivisionError, "config: schedule.class names 'own:X'"),
    "constructor": (
        "from onpath.schedules import LinearSchedule\nclass X(LinearSchedule):\n    def __init__(self): [].pop()\n",
        "schedule.class=own:X",
        IndexError,
        "X.__init__ in ",
    ),
    "examples": (
        "from onpath.data.trajectories import FourRoomsExpert\nclass X(FourRoomsExpert):\n"
        "    def examples(self, ids, device='cpu'): raise ValueError('mine')\n",
        "data.class=own:X",
        ValueError,
        "X.examples in ",
    ),
    "first step": (
        "from onpath.objectives.nelbo import ContinuousNELBO\nclass X(ContinuousNELBO):\n"
        "    def __call__(self, *arguments): raise KeyError('mine')\n",
        "objective.class=own:X",
        KeyError,
        "X.__call__ in ",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_an_error_in_a_class_of_the_users_own_keeps_its_traceback_and_leaves_nothing(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, setting, kind, note = OWN[name]
    Path("own.py").write_text(source)
    before = contents(here)
    monkeypatch.setattr(sys, "argv", ["onpath", *shlex.split(TRAIN), setting])
    with pytest.raises(kind) as caught:
        cli.main()
    told = "\n".join(caught.value.__notes__)
    assert note in told and "own.py" in told
    assert contents(here) == before
