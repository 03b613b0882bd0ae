"""What a run folder says, as plain data for the page: whatever is there, and notes about what is not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onpath.config import RunConfig
from onpath.data.source import ImageSource, TextSource
from onpath.records import RunFolder
from onpath.reports.completions import some

_MOST_ROWS = 4000  # of metrics in a page, over all runs and sets; more of them cannot be seen, but they can be felt
_MOST_TRACES = 3_000_000  # characters of JSON, over all runs
_MOST_PIXELS = 10_000  # of a side of a picture
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_SUBJECTS = {
    "plan": ("success", "plans"),
    "text": ("the likelihood of text", "texts"),
    "image": ("the quality of samples", "samples"),
}  # what is measured of each, and what can be watched


@dataclass(frozen=True)
class Note:
    """Something that the page lacks. what: one sentence. command: what makes it, empty where nothing can."""

    what: str
    command: str = ""


@dataclass(frozen=True)
class Contents:
    """One run folder as it was read.

    subject: `plan`, `text` or `image`, what it generates. metrics: set -> name -> values by row, `step` among the
    names; numbers that are not finite are None. every: the page holds each so-many-th row of metrics. environment: {}
    where it is not there. completions: some of those of policy optimisation, see ``reports.completions``. seconds: that
    training took, as logged. written: when metrics.jsonl was last written, ISO time, "" where there is none.
    """

    folder: RunFolder
    name: str
    subject: str
    environment: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, list[Any]]]
    every: int
    evaluation: Sequence[Mapping[str, Any]]
    traces: Sequence[Mapping[str, Any]]
    completions: Sequence[Mapping[str, Any]]
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
    subject = _subject(folder, traces)
    measured, watched = _SUBJECTS[subject]
    if not evaluation:
        notes.append(Note(f"No evaluation: {measured} is not measured yet.", f"onpath evaluate {path}"))
    if not traces:
        notes.append(Note(f"No traces: there are no {watched} to watch.", f"onpath evaluate {path}"))
    metrics = folder.path / "metrics.jsonl"
    return Contents(
        folder=folder,
        name=name,
        subject=subject,
        environment=_environment(folder, notes),
        metrics=columns,
        every=every,
        evaluation=evaluation,
        traces=_few(traces, _MOST_TRACES // num_runs, notes),
        completions=some(folder.completions()),
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


def _subject(folder: RunFolder, traces: Sequence[Mapping[str, Any]]) -> str:
    """What a run generates, by its config or, where that is not understood, by its traces."""
    try:
        source = RunConfig.parse(folder.config()).data.cls
        return "text" if issubclass(source, TextSource) else "image" if issubclass(source, ImageSource) else "plan"
    except Exception:  # a config of another version, or a class that is not there any more
        return next((str(one["kind"]) for one in traces if one["kind"] in _SUBJECTS), "plan")


def _is_measurement(row: Mapping[str, Any]) -> bool:
    return all(isinstance(row.get(key), str) for key in ("set", "mode", "metric")) and _is_number(row.get("value"))


def _is_trace(row: Mapping[str, Any]) -> bool:
    """Whether a line of traces.jsonl is one that the page can show."""
    if row.get("kind") == "image":
        pictures = row.get("pictures")
        return isinstance(pictures, list) and bool(pictures) and all(map(_is_picture, pictures))
    if row.get("kind") == "search":
        return _is_tree(row.get("search")) and bool(not row.get("maze") or row.get("poses"))
    generations = row.get("generations")
    if not isinstance(generations, list) or not generations or not _is_number(row.get("length")):
        return False
    whole = all(isinstance(one, dict) and isinstance(one.get("events"), list) for one in generations)
    return whole and (row.get("kind") == "text" or bool(row.get("maze") and row.get("poses")))


def _is_tree(search: Any) -> bool:
    """Whether this is a tree that the page can draw: every node behind its parent, numbers where there must be some."""
    nodes = search.get("nodes") if isinstance(search, dict) else None
    if not isinstance(nodes, list) or not nodes or not isinstance(search.get("found"), list):
        return False
    return _is_number(search.get("spent")) and all(
        isinstance(node, dict)
        and all(_is_number(node.get(name)) for name in ("born", "depth", "value", "visits"))
        and (node.get("parent") is None if at == 0 else isinstance(node.get("parent"), int) and node["parent"] < at)
        for at, node in enumerate(nodes)
    )


def _is_picture(one: Any) -> bool:
    """Whether this is a picture whose data can be nothing but base64."""
    return (
        isinstance(one, dict)
        and isinstance(one.get("label"), str)
        and isinstance(one.get("png"), str)
        and _BASE64.fullmatch(one["png"]) is not None
        and all(isinstance(one.get(side), int) and 0 < one[side] <= _MOST_PIXELS for side in ("width", "height"))
    )


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
