"""The run folder: the one format that training writes and that evaluation, reports and people read.

config.yaml       resolved, every default written out
recipe.yaml       what the config was made from, before settings were put over it
environment.json  versions and machine
metrics.jsonl     one object a line: {"step": …, "set": "train" | "validation", name: value, …}
completions.jsonl of policy optimisation: the best and the worst answers to some prompts, one object a line, {"step": …,
                  "completion": …, "reward": …, …}, see ``experience.completions``
checkpoints/      step-N/, see ``training.checkpoint``
samples/          samples.jsonl, what was generated; traces.jsonl, how: one ``Trace`` a line
evaluation.json   rows {set, mode, metric, value, ci95, n, step}
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

Event = tuple[int, int, str | None, float | None]
"""(step, position, word, share): what a denoising step put at a position. Step 0 holds what was given before the
first; the word is None where the position is masked again; the share is the probability that the network gave to the
word, None where the word was not its choice."""


@dataclass(frozen=True)
class Trace:
    """How something was generated, step by step, and what became of it: one line of samples/traces.jsonl.

    kind: "plan" is walked in a maze; "text" is read as it is; "image" is looked at; "search" is a tree. set, mode,
    task: what was generated, and how; those of evaluation.json. length: positions. line: those of a line, where a text
    is a grid, else 0. generations: one dict for each canvas that was filled: `after`, the actions executed before it;
    `steps`, its denoising steps; `events`, see ``Event``, rising by step.
    Of images only. pictures: one dict each: `label`, what it shows, `png`, the file as base64, `width` and `height` in
    pixels. With a length it is one sample, and its pictures show the states of so many denoising steps side by side.
    Of plans only. maze: lines of "#" walls and "." floor, from above. goal: [x, y]. actions: words. poses: [x, y,
    direction] before each action and after the last one, direction 0 to 3 for right, down, left, up. reached: whether
    the goal was. shortest: actions of a shortest plan. step: optimizer step of the weights.
    Of searches only, beside maze, goal, poses (the first), reached and shortest. search: `spent` forwards; `nodes`, one
    dict each: forwards until it was `born`, `parent` by number (None of the first), `depth`, greatest `value`, `visits`
    and `cell`, [x, y] or None; `found`, one dict for each plan better than those before: `forwards`, `value`, `solved`,
    `cost`, `plan` in words and the `cells` that it leads through.
    """

    kind: str
    set: str
    mode: str
    task: int
    length: int
    generations: Sequence[Mapping[str, Any]] = ()
    pictures: Sequence[Mapping[str, Any]] = ()
    maze: Sequence[str] = ()
    goal: Sequence[int] = ()
    actions: Sequence[str] = ()
    poses: Sequence[Sequence[int]] = ()
    reached: bool | None = None
    shortest: int | None = None
    step: int = 0
    line: int = 0
    search: Mapping[str, Any] | None = None


_COMPLETIONS = "completions.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """A run on disk. ``create`` makes one, ``open`` takes one that exists."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> RunFolder:
        """A new folder with its config and environment; ValueError where a run stands there already.

        recipe: what the config was made from, before settings were put over it.
        """
        if (path / "config.yaml").exists():
            raise ValueError(
                f"run folder: {path} already holds a run; pass --resume to go on with it, or choose another --run"
            )
        folder = cls(path)
        left = [name for name in ("metrics.jsonl", "checkpoints/step-*") if any(path.glob(name))]
        if left:
            raise ValueError(
                f"run folder: {path} holds {' and '.join(left)} of a run, but no config.yaml; put that back to go on "
                "with it, or choose another --run"
            )
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"run folder: {path} cannot be made ({error}); choose another --run, one that can be written to"
            ) from error
        write_atomically(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        if recipe is not None:
            write_atomically(path / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False))
        folder.write_config(config)  # the last: with it the folder is a run
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run at `path`; ValueError where there is none."""
        if not (path / "config.yaml").is_file():
            found = "is a file" if path.is_file() else "holds no config.yaml" if path.exists() else "is not there"
            raise ValueError(
                f"run folder: {path} {found}, so it is not a run; give the folder of one, or start it with onpath "
                f"train RECIPE --run {path}"
            )
        return cls(path)

    def discard(self) -> None:
        """Takes a folder away again in which nothing was trained yet; one with metrics or a checkpoint stays."""
        if not (self.path / "metrics.jsonl").exists() and not any(self.path.glob("checkpoints/step-*")):
            for name in ("config.yaml", "recipe.yaml", "environment.json"):
                (self.path / name).unlink(missing_ok=True)
            for folder in (self.checkpoints, self.path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from writing to the run; the lock ends with the process, however that ends.

        ValueError where another process holds it. No lock where the system or its file system has none.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            import fcntl

            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(folder)
            raise ValueError(
                f"run folder: another process is training in {self.path}; wait for it, end it, or choose another --run"
            ) from error
        except (ImportError, OSError):
            pass
        try:
            yield
        finally:
            os.close(folder)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.yaml; a resumed run may have been given new settings."""
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "config.yaml").read_text())

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one row to metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        with _writing(path), path.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl in order; lines that hold no row, such as a torn last one, are left out."""
        return _json_lines(self.path / "metrics.jsonl", {"step", "set"})

    def truncate_metrics(self, step: int) -> None:
        """Keeps the rows up to `step`, so that a resumed run writes each row once."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_atomically(self.path / "metrics.jsonl", "".join(kept))
        if self.completions():
            kept = [json.dumps(row) + "\n" for row in self.completions() if row["step"] <= step]
            write_atomically(self.path / _COMPLETIONS, "".join(kept))

    def append_completions(self, step: int, completions: Sequence[Mapping[str, Any]]) -> None:
        """Adds what a policy answered at `step` to completions.jsonl, one object a completion."""
        with (self.path / _COMPLETIONS).open("a") as file:
            file.writelines(json.dumps({"step": step, **row}) + "\n" for row in completions)

    def completions(self) -> list[dict[str, Any]]:
        """What a policy answered while it was trained, the oldest first; lines that hold no row are left out."""
        return list(_json_lines(self.path / _COMPLETIONS, {"step", "completion"}))

    def write_picture(self, name: str, data: bytes) -> Path:
        """Writes a PNG as samples/NAME.png, over what is there."""
        path = self.path / "samples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def append_samples(self, seed: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Adds what was generated to samples/samples.jsonl, one object a sample."""
        path = self.path / "samples" / "samples.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            for sample in samples:
                file.write(json.dumps({"seed": seed, **sample}) + "\n")

    def write_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes evaluation.json: rows of the same (set, mode, metric) are replaced, those of another step dropped."""
        steps = {row["step"] for row in rows}
        kept = [row for row in self.evaluation() if row["step"] in steps]
        merged = {(row["set"], row["mode"], row["metric"]): dict(row) for row in [*kept, *rows]}
        write_atomically(self.path / "evaluation.json", json.dumps(list(merged.values()), indent=1) + "\n")

    def evaluation(self) -> list[dict[str, Any]]:
        """The rows of evaluation.json, none where there is no such file; ValueError where it holds something else."""
        path = self.path / "evaluation.json"
        return _rows(path, path.read_text()) if path.exists() else []

    def write_traces(self, traces: Sequence[Trace]) -> None:
        """Writes samples/traces.jsonl: those of the same (set, mode, task) are replaced, others of this step kept."""
        steps = {trace.step for trace in traces}
        kept = [row for row in self.traces() if row.get("step") in steps]
        merged = {(row["set"], row["mode"], row["task"]): row for row in [*kept, *map(asdict, traces)]}
        write_atomically(self._traces, "".join(json.dumps(row) + "\n" for row in merged.values()))

    def traces(self) -> list[dict[str, Any]]:
        """The traces of samples/traces.jsonl as plain data, fields as in ``Trace``; ValueError for something else."""
        path = self._traces
        return _rows(path, f"[{','.join(path.read_text().splitlines())}]") if path.exists() else []

    @property
    def _traces(self) -> Path:
        return self.path / "samples" / "traces.jsonl"


def _rows(path: Path, text: str) -> list[dict[str, Any]]:
    """A JSON list of objects; ValueError, naming the file, where it is none."""
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON but {text[:80]!r} ({error}); delete it and run onpath evaluate again"
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} does not hold objects but {text[:80]!r}; delete it and run onpath evaluate again")
    return rows


def write_atomically(path: Path, text: str) -> None:
    """Writes aside, syncs and renames: a reader sees the old file or the new one, never a half."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the system's error into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"run folder: {path} cannot be written ({error}). Everything before is intact: make room or set the "
            "permissions, then go on with --resume"
        ) from error


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants to repeat a run."""
    core = ("onpath", "torch", "numpy", "safetensors", "pydantic")
    packages = (*core, "gymnasium", "minigrid", "transformers", "tokenizers", "datasets", "peft")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv[1:],
    }


def _json_lines(path: Path, keys: set[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines that have these keys; other lines, such as a torn last one, are left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="backslashreplace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if isinstance(row, dict) and row.keys() >= keys:
            yield row
