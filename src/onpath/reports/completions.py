"""What a policy answered while it was trained, for the page: a table of some answers, and how the latest came about."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

_FIRST, _LATEST = 4, 12  # completions of the first logged step and of the last ones
_MOST = 200_000  # characters of JSON
_MOST_SHOWN = 4000  # characters of a prompt or of a completion in the table
_LINES = (4, 6, 9)  # of the grids that are drawn


def some(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those of the first logged step and of the last ones that can be shown, the latest first."""
    found = [dict(row) for row in rows if _is_completion(row)]
    first = [row for row in found if row["step"] == found[0]["step"]][:_FIRST]
    latest = [row for row in found if row["step"] != found[0]["step"]][-_LATEST:] if found else []
    kept, size = [], 0
    for row in [*sorted(latest, key=lambda row: -row["step"]), *first]:
        size += len(json.dumps(row))
        if size <= _MOST:
            kept.append(row)
    return kept


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{rewards, is_grid, rows}: names of the rewards, and what stands in each line of a table.

    A row has `cells` where its completion is a grid: lines of {word, kind}, kind `given`, `right`, `wrong` or `free`,
    the last where nothing tells which it is.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["rewards"]))
    told = [
        {
            "step": row["step"],
            "group": row.get("group"),
            "prompt": _cut(row["prompt"]),
            "completion": _cut(row["completion"]),
            "cells": _cells(row),
            "reward": row["reward"],
            "rewards": [row["rewards"].get(name) for name in names],
            "advantage": row.get("advantage"),
        }
        for row in rows
    ]
    return {"rewards": names, "is_grid": bool(told) and all(row["cells"] for row in told), "rows": told}


def traces(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the completions of the last step came about, in the form of ``records.Trace``, of kind `rollout`.

    The better of two that answer the same prompt is of mode `best`, the other of mode `worst`. wrong: positions.
    """
    last = max((row["step"] for row in rows), default=0)
    whole = [row for row in rows if row["step"] == last and _has_words(row)]
    steps = max((step + 1 for row in whole for step in row["revealed_at"]), default=0)
    best: dict[Any, float] = {}
    for row in whole:
        best[row.get("group")] = max(row["reward"], best.get(row.get("group"), -math.inf))
    return [
        {
            "kind": "rollout",
            "set": "train",
            "mode": "best" if row["reward"] == best[row.get("group")] else "worst",
            "task": row.get("group"),
            "length": len(row["words"]),
            "line": _line(row),
            "wrong": sorted(_wrong(row)),
            "reward": row["reward"],
            "step": last,
            "generations": [{"after": 0, "steps": steps, "events": _events(row)}],
        }
        for row in whole
    ]


def _events(row: Mapping[str, Any]) -> list[list[Any]]:
    """As ``records.Event``: step 0 holds the prompt."""
    chances = row.get("log_prob") or [None] * len(row["words"])
    told = [
        [step + 1, place, word, None if step < 0 or chance is None else round(math.exp(min(0.0, chance)), 4)]
        for place, (word, step, chance) in enumerate(zip(row["words"], row["revealed_at"], chances, strict=True))
    ]
    return sorted(told, key=lambda event: event[0])


def _cells(row: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """The lines of a grid, none where a completion is none."""
    line = _line(row)
    if line not in _LINES:
        return []
    wrong, is_known = _wrong(row), _solution(row) is not None
    cells = [
        {
            "word": word,
            "kind": "given" if step < 0 else "wrong" if place in wrong else "right" if is_known else "free",
        }
        for place, (word, step) in enumerate(zip(row["words"], row["revealed_at"], strict=True))
    ]
    return [cells[first : first + line] for first in range(0, len(cells), line)]


def _line(row: Mapping[str, Any]) -> int:
    line = row.get("line")
    return line if isinstance(line, int) and _has_words(row) else 0


def _solution(row: Mapping[str, Any]) -> str | None:
    """What a completion should have been, where the data have one solution."""
    solution = (row.get("columns") or {}).get("solution")
    return solution if isinstance(solution, str) and _line(row) and len(solution) == len(row["words"]) else None


def _wrong(row: Mapping[str, Any]) -> set[int]:
    solution = _solution(row)
    if solution is None or any(value for name, value in row["rewards"].items() if "solved" in name):
        return set()  # of several solutions another may have been found
    return {place for place, (word, right) in enumerate(zip(row["words"], solution, strict=True)) if word != right}


def _has_words(row: Mapping[str, Any]) -> bool:
    words, steps, chances = row.get("words"), row.get("revealed_at"), row.get("log_prob")
    return (
        isinstance(words, list)
        and isinstance(steps, list)
        and len(words) == len(steps) > 0
        and all(isinstance(word, str) for word in words)
        and all(isinstance(step, int) for step in steps)
        and (chances is None or (isinstance(chances, list) and len(chances) == len(words)))
        and all(_is_number(chance) for chance in chances or ())
    )


def _is_completion(row: Mapping[str, Any]) -> bool:
    rewards = row.get("rewards")
    return (
        _is_number(row.get("step"))
        and _is_number(row.get("reward"))
        and isinstance(row.get("prompt"), str)
        and isinstance(row.get("completion"), str)
        and isinstance(rewards, dict)
        and all(value is None or _is_number(value) for value in rewards.values())
        and (row.get("advantage") is None or _is_number(row["advantage"]))
        and (row.get("group") is None or isinstance(row["group"], int))
        and (row.get("columns") is None or isinstance(row["columns"], dict))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"
