"""The config: every part goes out and comes back, and every mistake is told with its path."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from onpath.components import Part
from onpath.config import RunConfig
from onpath.data.source import Source
from onpath.data.trajectories import FourRoomsExpert
from onpath.kinds import FAMILIES, RunSections, wired_into
from onpath.overrides import override
from onpath.ramps import CosineRamp, LinearRamp, Ramp
from onpath.sampling.counts import Count
from onpath.sampling.grids import EvenGrid, Grid, UniformGrid
from onpath.schedules import CosineSchedule, LinearSchedule, Schedule, ShiftedSchedule
from onpath.training.optimizers import AdamW, Muon, OptimizerConfig
from onpath.types import Spec
from tiny import CONFIG, tiny

MEMBERS = [(family, kind, cls) for family, kinds in FAMILIES.items() for kind, cls in kinds.items()]
# What a class without defaults needs, and fields that differ from their defaults where that could go wrong.
NEEDED: dict[str, dict[str, Any]] = {
    "Constant": {"number": 0.5},
    "LinearRamp": {"start": 1.0, "end": 0.25, "steps": 1000},
    "CosineRamp": {"start": 0.0, "end": 1.0, "steps": 20, "start_step": 3},
    "Piecewise": {"knots": [[0, 0.0], [10, 1.0], [20, 0.5]]},
    "TabulatedSchedule": {"alphas_cumprod": [0.9, 0.45, 0.2]},
    "ShiftedSchedule": {"base": {"kind": "cosine", "alpha_max": 0.9}},
    "ExplicitGrid": {"points": [1.0, 0.5, 0.0]},
    "TrajectoryFile": {"path": "demonstrations.npz"},
    "TextFile": {"path": "text.txt"},
    "TextPairs": {"path": "pairs.jsonl"},
    "Prompts": {"path": "prompts.jsonl"},
    "FunctionReward": {"function": "judges:shortness"},
    "FunctionEvaluator": {"function": "judges:shortness"},
    "HubText": {"name": "texts"},
    **{name: {"path": "images"} for name in ("MNIST", "FashionMNIST", "Cifar10")},
    "ImageFolder": {"path": "images", "size": 32},
    "HubImages": {"name": "images", "size": 32},
    "Latents": {"path": "latents.safetensors"},
    "HuggingFaceTokenizer": {"name": "model"},
    "MaskedLM": {"name": "bert"},
    "CausalLM": {"name": "qwen", "lora": {"rank": 4, "targets": ["q_proj"]}},
    "Diffusers": {"path": "flux", "lora": {"rank": 4, "targets": ["to_q", "to_out.0"]}},
    "RemoteLM": {"name": "llada", "trust": True, "lora": None},
    "MaskedCrossEntropy": {"low": {"kind": "linear", "start": 0.5, "end": 0.0, "steps": 10}, "high": 1.0},
}


@dataclasses.dataclass(frozen=True)
class Holder:
    """Something of a family, read as the sections of a run are."""

    part: Any


def parsed(family: type, data: Any) -> Part:
    """`data` read as a field of type `family`."""
    from onpath import components

    return components._parse(family, data, "part")


def written(part: Part) -> Any:
    """Through YAML and back, as a run folder does."""
    return yaml.safe_load(yaml.safe_dump(part.as_dict()))


@pytest.mark.parametrize(("family", "kind", "cls"), MEMBERS)
def test_every_kind_goes_out_and_comes_back(family: type, kind: str, cls: type) -> None:
    part = parsed(family, {"kind": kind, **NEEDED.get(cls.__name__, {})})
    again = parsed(family, written(part))
    assert again == part and again.as_dict() == part.as_dict()
    assert part.cls is cls and written(part)["kind"] == kind
    # every field of the constructor is in the file, less what the run fills in
    assert set(written(part)) - {"kind"} == set(inspect.signature(cls).parameters) - wired_into(cls)
    if dataclasses.is_dataclass(cls) and not wired_into(cls) & set(inspect.signature(cls).parameters):
        assert again.make() == part.make()
        if cls.__name__ not in NEEDED:
            assert part.make() == cls()


@pytest.mark.parametrize(("family", "kind", "cls"), [m for m in MEMBERS if m[2].__name__ not in NEEDED])
def test_a_bare_kind_is_the_kind_with_its_defaults(family: type, kind: str, cls: type) -> None:
    assert parsed(family, kind) == parsed(family, {"kind": kind})


def test_values_arrive_in_the_objects() -> None:
    shifted = parsed(Schedule, {"kind": "shifted", "shift": 2, "base": {"kind": "cosine", "alpha_max": 0.9}})
    assert shifted.make() == ShiftedSchedule(CosineSchedule(alpha_max=0.9), 2.0)
    muon = parsed(OptimizerConfig, {"kind": "muon", "rest": {"weight_decay": 0.1}})
    assert muon.make() == Muon(rest=AdamW(learning_rate=2e-3, weight_decay=0.1))  # the default of `rest`, not AdamW's


def test_the_whole_config_goes_out_and_comes_back() -> None:
    config = tiny("schedule=cosine", "sampler={order: confidence, tokens: {temperature: 0}}")
    assert RunConfig.parse(yaml.safe_load(yaml.safe_dump(config.as_dict()))) == config
    assert set(config.as_dict()) == {field.name for field in dataclasses.fields(RunSections)}


def at(config: RunConfig, path: str) -> Any:
    node: Any = config.as_dict()
    for name in path.split("."):
        node = node[name]
    return node


@pytest.mark.parametrize(
    ("given", "path", "value"),
    [
        ("training.steps=12", "training.steps", 12),
        ("training.steps=1e3", "training.steps", 1000),
        ("training.steps = 12", "training.steps", 12),
        ("training.optimizer.learning_rate=3e-4", "training.optimizer.learning_rate", 3e-4),
        ("training.optimizer.learning_rate=3E-4", "training.optimizer.learning_rate", 3e-4),
        ("training.optimizer.learning_rate=.5e-3", "training.optimizer.learning_rate", 5e-4),
        ("training.optimizer.learning_rate=1", "training.optimizer.learning_rate", 1.0),
        ("training.optimizer.betas=[0.9, 0.95]", "training.optimizer.betas", [0.9, 0.95]),
        ("training.compile=true", "training.compile", True),
        ("training.decay=linear", "training.decay", "linear"),
        ("schedule=cosine", "schedule.kind", "cosine"),
        ("schedule=cosine ", "schedule.kind", "cosine"),
        ("schedule.kind=cosine", "schedule.kind", "cosine"),
        ("schedule.alpha_min=0.1", "schedule", {"kind": "linear", "alpha_min": 0.1, "alpha_max": 1.0}),
        ("grid.steps=40", "grid", {"kind": "even", "steps": 40}),
        ("grid={kind: explicit, points: [1, 0.25, 0]}", "grid.points", [1.0, 0.25, 0.0]),
        ("sampler.tokens.top_p=0.9", "sampler.tokens.top_p", 0.9),
        ("data.episodes=100", "data.episodes", 100),
        ("data.episodes=null", "data.episodes", None),
        ("evaluation.modes=[open@1, closed@10/minigrid]", "evaluation.modes", ["open@1", "closed@10/minigrid"]),
        ("evaluation.sets=[test, long]", "evaluation.sets", ["test", "long"]),
    ],
)
def test_overrides(given: str, path: str, value: Any) -> None:
    found = at(tiny(given), path)
    assert found == value and type(found) is type(value)


def test_a_number_may_be_a_ramp() -> None:
    low = ["objective.low.kind=cosine", "objective.low.start=1", "objective.low.end=0", "objective.low.steps=1e3"]
    config = tiny("objective=masked_cross_entropy", *low)
    assert config.objective.fields["low"].make() == CosineRamp(1.0, 0.0, 1000)
    config = tiny("objective={kind: masked_cross_entropy, low: {kind: linear, start: 0.1, end: 0, steps: 5}, high: 1}")
    assert config.objective.fields["low"].make() == LinearRamp(0.1, 0.0, 5)
    assert config.objective.fields["high"] == 1.0


def test_a_new_kind_starts_afresh_and_the_same_one_does_not() -> None:
    assert at(tiny("grid={kind: uniform, steps: 3}", "grid.kind=uniform"), "grid.steps") == 3
    assert at(tiny("grid={kind: uniform, steps: 3}", "grid.kind=even"), "grid.steps") == EvenGrid().steps
    assert at(tiny("schedule={kind: exponential, alpha_min: 0.2}", "schedule.kind=linear"), "schedule.alpha_min") == 0.0


def test_overrides_leave_what_they_are_given() -> None:
    before = yaml.safe_dump(CONFIG)
    assert override(CONFIG, ["training.steps=7"])["training"]["steps"] == 7
    assert yaml.safe_dump(CONFIG) == before


# Each mistake, and all that its message must hold: where, what was given, what is allowed, what to do.
MISTAKES: list[tuple[str, list[str]]] = [
    ("trainig.steps=3", ["config: trainig", "allowed are data, model", "did you mean training?"]),
    ("training.stesp=3", ["training.stesp", "did you mean steps?"]),
    ("sampler.tokens.temprature=1", ["sampler.tokens.temprature", "did you mean temperature?"]),
    ("schedule=cosin", ["schedule.kind: 'cosin'", "allowed are linear, cosine", "did you mean cosine?"]),
    ("schedule='cosine '", ["schedule.kind: 'cosine '", "did you mean cosine?"]),
    ("schedule=Cosine", ["schedule.kind: 'Cosine'", "did you mean cosine?"]),
    ("schedule=[1, 2]", ["schedule is [1, 2]", "`kind`", "`class: package.module:Class`"]),
    ("schedule={kind: linear, class: a:B}", ["schedule is", "not both"]),
    ("schedule={kind: shifted}", ["schedule.base is missing", "one of linear, cosine"]),
    ("schedule.alpha_min=2", ["schedule:", "alpha_min is 2.0", "0 <= alpha_min < alpha_max <= 1"]),
    ("training.decay=cosin", ["training.decay is 'cosin'", "cosine, linear, constant", "did you mean cosine?"]),
    ("training.decay=no", ["training.decay is False", "one of cosine"]),
    ("training.steps=true", ["training.steps is True", "int is needed"]),
    ("training.steps='12'", ["training.steps is '12'", "int is needed"]),
    ("training.steps=1.5", ["training.steps is 1.5", "int is needed"]),
    ("training.steps=null", ["training.steps is None", "int is needed"]),
    ("training.steps=", ["training.steps is None", "int is needed"]),
    ("training.steps=[key]", ["training.steps is ['key']", "int is needed"]),
    ("training.compile=1", ["training.compile is 1", "bool is needed"]),
    ("training.ema=.nan", ["training.ema is nan", "finite"]),
    ("training.optimizer.learning_rate=.inf", ["learning_rate is inf", "finite"]),
    ("training.optimizer.learning_rate=fast", ["learning_rate is 'fast'", "float is needed"]),
    ("training.optimizer.betas=[0.9]", ["training.optimizer.betas is [0.9]", "a list [float, float]"]),
    ("training.optimizer.betas=[true, 0.9]", ["training.optimizer.betas is [True, 0.9]", "a list [float, float]"]),
    ("training.optimizer=3", ["training.optimizer is 3", "one of adamw, muon"]),
    ("training.accumulation=3", ["config: training: batch_size is 8 and accumulation is 3", "a positive multiple"]),
    ("training.plateau.factor=0.3", ["config: training: plateau is set, but decay is cosine"]),
    ("training.steps.x=1", ["reaches into training.steps", "3"]),
    ("training=null", ["training is None", "a mapping of steps"]),
    ("training.steps", ["'training.steps' is not of the form key.path=value"]),
    ("=3", ["is not of the form"]),
    ("training.steps=[1", ["is not YAML"]),
    ("device=gpu", ["device is 'gpu'", "auto, cpu, cuda"]),
    ("evaluation.sets=[tets]", ["evaluation.sets is ['tets']", "one of train, test, long", "did you mean test?"]),
    ("evaluation.modes=open@2", ["evaluation.modes is 'open@2'", "a list of str"]),
    ("evaluation.num_tasks=0", ["evaluation:", "num_tasks is 0"]),
    ("objective.process=1", ["objective.process", "set by the run itself"]),
    ("model.spec=1", ["model.spec", "set by the run itself"]),
    ("objective={kind: trajectory_nelbo, grid: {kind: even}}", ["objective.grid", "set by the run itself"]),
    ("objective={kind: masked_cross_entropy, low: {kind: linear, start: 1, end: 0}}", ["low.steps is missing"]),
    ("objective={kind: masked_cross_entropy, low: true}", ["objective.low is True"]),
    ("schedule.class=nope", ["schedule.class is 'nope'", "package.module:Class"]),
    ("schedule.class=nope:X", ["'nope:X'", "cannot be imported", "PYTHONPATH"]),
    ("schedule.class=onpath.schedules:Cosine", ["cannot be imported", "Cosine"]),
    ("schedule.class=onpath.ramps:Constant", ["not a subclass of Schedule"]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "parts"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes(given: str, parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        tiny(given)
    message = str(caught.value)
    assert not [part for part in parts if part not in message], message
    assert message.count("config:") <= 1


def test_a_missing_section() -> None:
    with pytest.raises(ValueError, match=r"config: data is missing; it has no default.*fourrooms, trajectories"):
        RunConfig.parse({name: value for name, value in CONFIG.items() if name != "data"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- 1\n- 2\n", "holds a list; a mapping"),
        ("", "data is missing"),
        ("\x00", "is not YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "my.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunConfig.load(tmp_path / "my.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml cannot be read"):
        RunConfig.load(tmp_path / "nothing.yaml")


# Classes of a user, named by their place.


@dataclasses.dataclass(frozen=True)
class OwnSource(FourRoomsExpert):
    """A source with fields of every sort that a config can hold."""

    names: tuple[str, ...] = ("a", "b")
    table: dict[str, float] = dataclasses.field(default_factory=lambda: {"x": 1.0})
    schedule: Schedule = LinearSchedule()
    count: Count | None = None
    steps: Grid = UniformGrid(7)
    weight: float | Ramp = 0.5
    anything: Any = None


@dataclasses.dataclass(frozen=True)
class BadSource(FourRoomsExpert):
    kind: str = "mine"


HERE = f"{__name__}:OwnSource"


def test_a_users_class() -> None:
    part = parsed(Source, {"class": HERE, "count": "threshold", "steps": {"steps": 9}, "table": {"y": 2}})
    again = parsed(Source, written(part))
    assert again == part and again.make() == part.make()
    made = part.make()
    assert type(made).__name__ == "OwnSource"
    assert (made.steps, made.table, made.names, made.weight) == (UniformGrid(9), {"y": 2.0}, ("a", "b"), 0.5)
    assert written(parsed(Source, {"class": HERE}))["table"] == {"x": 1.0}


def test_a_field_called_kind_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"BadSource has a field 'kind'.*call the field something else"):
        parsed(Source, {"class": f"{__name__}:BadSource"})


class Seeded(torch.nn.Module):
    """A user's network whose own parameters are called like what the run gives to other families."""

    def __init__(self, spec: Spec, seed: int, grid: float = 0.5) -> None:
        super().__init__()
        self.seed, self.grid = seed, grid

    def encode(self, **cond: Tensor) -> None:
        return None


def test_a_network_may_have_a_seed_of_its_own() -> None:
    config = RunConfig.parse({**CONFIG, "model": {"class": f"{__name__}:Seeded", "seed": 7}})
    model = config.model.make(spec=Spec(1, 2, 2))
    assert (model.seed, model.grid) == (7, 0.5)
    with pytest.raises(ValueError, match=r"data\.seed.*set by the run itself"):
        RunConfig.parse({**CONFIG, "data": {"kind": "fourrooms", "seed": 7}})
