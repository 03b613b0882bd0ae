"""Run folders made by hand, with known contents."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from onpath.config import RunConfig, override
from onpath.evaluation.pictures import picture
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


TEXT = Trace(
    kind="text",
    set="generated",
    mode="samples@4",
    task=0,
    length=6,
    generations=(
        {
            "after": 0,
            "steps": 4,
            "events": [
                (0, 0, "T", None),
                (1, 1, "o", 0.9),
                (1, 3, "x", 0.2),
                (2, 2, " ", 0.6),
                (2, 3, None, None),
                (3, 3, "\n", 0.7),
                (3, 4, "b", 0.4),
                (4, 5, "e", 0.95),
            ],
        },
    ),
    step=3,
)
OF_TEXT = [
    measured("bits_per_token", 2.75, set="validation", mode="nelbo", ci95=[2.7, 2.8], se=0.0255),
    measured("bits_per_byte", 2.5, set="validation", mode="nelbo", ci95=None),
    measured("length", 64.0, set="generated", mode="samples@4", ci95=[60.0, 68.0]),
    measured("distinct_2", 0.5, set="generated", mode="samples@4", ci95=None),
    measured("length", 63.0, set="validation", mode="text", ci95=[59.0, 67.0]),
    measured("distinct_2", 0.25, set="validation", mode="text", ci95=None),
]
TEXT_CONFIG = {
    "data": {"kind": "text", "path": "onpath:tinyshakespeare.txt.gz", "length": 16},
    "model": {"kind": "token_transformer", "width": 16, "num_heads": 2, "depth": 1},
    "objective": "nelbo",
    "training": {"steps": 3, "batch_size": 8, "validation_examples": 8, "warmup_steps": 2},
    "device": "cpu",
}


def made_of_text(path: Path, mode: str = "samples@4") -> RunFolder:
    """A run on text that has trained, was evaluated and watched; its samples are called `mode`."""
    folder = RunFolder.create(path, RunConfig.parse(TEXT_CONFIG).as_dict())
    for row in ROWS:
        folder.append_metrics(row)
    folder.write_evaluation([row | {"mode": mode} if row["set"] == "generated" else row for row in OF_TEXT])
    folder.write_traces([replace(TEXT, mode=mode)])
    return folder


def of_images(metric: str, value: float, mode: str = "samples@4", **more: Any) -> dict[str, Any]:
    facts = {"reference": "test", "features": "digits", "checksum": "0123456789abcdef"}
    spent = {"nfe": 8.0} if mode.startswith("samples") else {}
    return measured(metric, value, mode=mode, **facts, **spent) | more


OF_IMAGES = [
    of_images("class_agreement", 0.98, "held-out", ci95=[0.95, 1.0]),
    of_images("copied", 0.125, "held-out", ci95=[0.1, 0.15]),
    of_images("frechet", 0.25, "train", ci95=None),
    of_images("kernel", -0.0125, "train", ci95=[-0.05, 0.02]),
    of_images("class_agreement", 0.5, ci95=[0.4, 0.6]),
    of_images("frechet", 3.75, ci95=None),
    of_images("copied", 0.0, ci95=[0.0, 0.07]),
]
PIXELS = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4, 1)
SHEETS = [
    Trace("image", "generated", mode, 0, 0, pictures=[picture("three", PIXELS[:1]), picture("", PIXELS[1:])])
    for mode in ("held-out", "samples@4")
]
STRIP = Trace("image", "generated", "denoising@2", 0, 2, pictures=[picture("three", PIXELS)])
IMAGE_CONFIG = {
    "data": "digits",
    "model": {"kind": "image_unet", "width": 8, "levels": [1], "attention": False},
    "objective": "denoising",
    "training": {"steps": 3, "batch_size": 8, "validation_examples": 8, "warmup_steps": 2},
    "device": "cpu",
}


def made_of_images(path: Path, *overrides: str) -> RunFolder:
    """A run on images that has trained, was evaluated and drew samples."""
    folder = RunFolder.create(path, RunConfig.parse(override(IMAGE_CONFIG, overrides)).as_dict())
    for row in ROWS:
        folder.append_metrics(row)
    folder.write_evaluation(OF_IMAGES)
    folder.write_traces([*SHEETS, STRIP])
    return folder


def data_of(page: Path) -> dict[str, Any]:
    """What the page's scripts read."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def as_written(trace: Trace) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(trace)))
