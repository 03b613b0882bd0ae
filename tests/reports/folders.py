"""Run folders made by hand, with known contents."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onpath.records import RunFolder, Trace
from tiny import tiny

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028${x}{{ 7*7 }}"
MAZE = ("#####", "#...#", "#.#.#", "#...#", "#####")
PLAN = Trace(
    kind="plan",
    set="test",
    mode="open@2",
    task=7,
    length=4,
    generations=(
        {"after": 0, "steps": 2, "events": [(1, 0, "forward", 0.9), (1, 2, "right", 0.8), (2, 1, "forward", 0.6)]},
    ),
    maze=MAZE,
    goal=[3, 3],
    actions=("forward", "forward", "right"),
    poses=([1, 1, 0], [2, 1, 0], [3, 1, 0], [3, 1, 1]),
    reached=False,
    shortest=5,
    step=3,
)
ROWS = [
    {"step": 1, "set": "train", "loss": 1.5, "accuracy": 0.25, "masked_share": 0.5, "seconds": 2.0},
    {"step": 2, "set": "train", "loss": 0.1 + 0.2, "accuracy": 0.5, "masked_share": 0.5, "seconds": 4.0},
    {"step": 2, "set": "validation", "loss": 0.75, "nelbo_per_token": 0.875},
    {"step": 3, "set": "train", "loss": float("nan"), "accuracy": 0.75, "masked_share": 0.5, "seconds": 1.0},
]


def measured(metric: str = "success", value: float = 0.75, **more: Any) -> dict[str, Any]:
    row = {"set": "test", "mode": "open@2", "metric": metric, "value": value, "ci95": [0.5, 0.9], "n": 20, "step": 3}
    return row | more


EVALUATION = [measured(), measured("spl", 0.7), measured("ms_per_decision_batch1_p50", 3.5, ci95=None)]


def made(path: Path, *overrides: str) -> RunFolder:
    """A run that has trained, was evaluated and watched."""
    folder = RunFolder.create(path, tiny(*overrides).as_dict())
    for row in ROWS:
        folder.append_metrics(row)
    folder.write_evaluation(EVALUATION)
    folder.write_traces([PLAN])
    return folder


def data_of(page: Path) -> dict[str, Any]:
    """What the page's scripts read."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def as_written(trace: Trace) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(trace)))
