"""What a run folder says, as plain data for the page: whatever is there, and notes about what is not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onpath.config import RunConfig
from onpath.data.source import TextSource
from onpath.records import RunFolder

_MOST_ROWS = 4000  # of metrics in a page, over all runs and sets; more of them cannot be seen, but they can be felt
_MOST_TRACES = 3_000_000  # characters of JSON, over all runs


@dataclass(frozen=True)
class Note:
    """Something that the page lacks. what: one sentence. command: what makes it, empty where nothing can."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Contents:
    """One run folder as it was read.

    is_text: whether its tokens are text. metrics: set -> name -> values by row, `step` among the names; numbers that
    are not finite are None. every: the page holds each so-many-th row of metrics. environment: {} where it is not
    there. seconds: that training took, as logged. written: when metrics.jsonl was last written, ISO time, "" where
    there is none.
    """

    folder: RunFolder
    name: str
    is_text: bool
    environment: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, list[Any]]]
    every: int
    evaluation: Sequence[Mapping[str, Any]]
    traces: Sequence[Mapping[str, Any]]
    seconds: float
    written: str
    notes: Sequence[Note]

    @property
    def step(self) -> int:
        """The last optimizer step that metrics.jsonl knows of; 0 where there is none."""
        return max((int(step) for columns in self.metrics.values() for step in columns["step"]), default=0)


def read(path: Path, name: str, num_runs: int = 1) -> Contents:
    """The run at `path`, called `name` in a page of `num_runs`; ValueError where there is no run at all."""
    folder = RunFolder.open(path)
    notes: list[Note] = []
    rows, torn = _rows(folder)
    if torn:
        notes.append(Note(f"metrics.jsonl: {torn} line(s) cannot be read and are left out, as after a kill.", ""))
    if not rows:
        notes.append(Note("No metrics yet: nothing has been logged.", f"onpath train … --run {path}"))
    columns, every = _columns(rows, max(50, _MOST_ROWS // (2 * num_runs)))
    evaluation = [row for row in _held(folder.evaluation, "evaluation.json", path, notes) if _is_measurement(row)]
    traces = [one for one in _held(folder.traces, "samples/traces.jsonl", path, notes) if _is_trace(one)]
    is_text = _is_text(folder, traces)
    if not evaluation:
        what = "the likelihood of text" if is_text else "success"
        notes.append(Note(f"No evaluation: {what} is not measured yet.", f"onpath evaluate {path}"))
    if not traces:
        what = "texts" if is_text else "plans"
        notes.append(Note(f"No traces: there are no {what} to watch.", f"onpath evaluate {path}"))
    metrics = folder.path / "metrics.jsonl"
    return Contents(
        folder=folder,
        name=name,
        is_text=is_text,
        environment=_environment(folder, notes),
        metrics=columns,
        every=every,
        evaluation=evaluation,
        traces=_few(traces, _MOST_TRACES // num_runs, notes),
        seconds=_seconds(rows),
        written=_time(metrics.stat().st_mtime) if metrics.exists() else "",
        notes=notes,
    )


def now() -> str:
    """The time, to the second, with its zone."""
    return _time(datetime.now(tz=UTC).timestamp())


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _rows(folder: RunFolder) -> tuple[list[dict[str, Any]], int]:
    """The rows of metrics.jsonl that can be read, and how many lines cannot."""
    path = folder.path / "metrics.jsonl"
    rows = [row for row in folder.metrics() if _is_number(row["step"])]
    lines = len(path.read_text(encoding="utf-8", errors="replace").splitlines()) if path.exists() else 0
    return rows, lines - len(rows)


def _columns(rows: list[dict[str, Any]], most: int) -> tuple[dict[str, dict[str, list[Any]]], int]:
    """Rows as columns by set, thinned evenly to `most` of each set, the last kept; and each how-many-th was kept."""
    found: dict[str, dict[str, list[Any]]] = {}
    every = 1
    for name in dict.fromkeys(str(row["set"]) for row in rows):
        kept = [row for row in rows if str(row["set"]) == name]
        stride = math.ceil(len(kept) / most)
        every, kept = max(every, stride), kept[(len(kept) - 1) % stride :: stride]
        names = dict.fromkeys(key for row in kept for key in row if key != "set")
        found[name] = {key: [_finite(row.get(key)) for row in kept] for key in names}
    return found, every


def _held(read_file: Callable[[], list[Any]], file: str, path: Path, notes: list[Note]) -> list[Any]:
    """What `read_file` holds; a file that cannot be read becomes a note."""
    try:
        return read_file()
    except (OSError, ValueError) as error:
        notes.append(Note(f"{file} cannot be read ({error}).", f"onpath evaluate {path}"))
        return []


def _environment(folder: RunFolder, notes: list[Note]) -> dict[str, Any]:
    try:
        return dict(json.loads((folder.path / "environment.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        notes.append(Note(f"environment.json cannot be read, so versions and machine are not known ({error})."))
        return {}


def _is_text(folder: RunFolder, traces: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the tokens of a run are text, by its config or, where that is not understood, by its traces."""
    try:
        return issubclass(RunConfig.parse(folder.config()).data.cls, TextSource)
    except Exception:  # a config of another version, or a class that is not there any more
        return any(one["kind"] == "text" for one in traces)


def _is_measurement(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(key), str) for key in ("set", "mode", "metric")) and _is_number(row.get("value"))


def _is_trace(row: Mapping[str, Any]) -> bool:
    """Whether a line of traces.jsonl is one that the page can play."""
    generations = row.get("generations")
    if not isinstance(generations, list) or not generations or not _is_number(row.get("length")):
        return False
    whole = all(isinstance(one, dict) and isinstance(one.get("events"), list) for one in generations)
    return whole and (row.get("kind") == "text" or bool(row.get("maze") and row.get("poses")))


def _few(traces: list[dict[str, Any]], most: int, notes: list[Note]) -> list[dict[str, Any]]:
    """The first traces that fit into `most` characters."""
    kept, size = [], 0
    for one in traces:
        size += len(json.dumps(one))
        if size <= most:
            kept.append(one)
    if len(kept) < len(traces):
        notes.append(Note(f"The page holds {len(kept)} of {len(traces)} traces, so that it stays small."))
    return kept


def _seconds(rows: list[dict[str, Any]]) -> float:
    """Training time as logged; where its clock began anew at a resume, the parts are added."""
    total = last = 0.0
    for row in rows:
        seconds = row.get("seconds")
        if isinstance(seconds, int | float) and math.isfinite(seconds):
            total += seconds - last if seconds >= last else seconds
            last = seconds
    return total


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _finite(value: Any) -> Any:
    return value if _is_number(value) or isinstance(value, str) else None
