"""Runs so small that a test can train them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onpath.build import Parts, build
from onpath.config import RunConfig, override
from onpath.training.trainer import Job

CONFIG: dict[str, Any] = {
    "data": {"kind": "fourrooms", "starts_per_goal": 4},
    "model": {"kind": "plan_mlp", "width": 16, "hidden": 16, "depth": 1},
    "objective": "nelbo",
    "training": {"steps": 3, "batch_size": 8, "validation_examples": 8, "warmup_steps": 2},
    "evaluation": {"num_tasks": 5, "modes": ["open@2"], "latency": False},
    "device": "cpu",
}


def tiny(*overrides: str) -> RunConfig:
    return RunConfig.parse(override(CONFIG, overrides))


def tiny_parts(*overrides: str) -> Parts:
    return build(tiny(*overrides))


def tiny_job(parts: Parts) -> Job:
    """The job of `parts` on uncalibrated inputs, which spares thousands of examples."""
    return Job(
        model=parts.model,
        objective=parts.objective,
        source=parts.source,
        validation=parts.source.at_split("validation"),
        seed=parts.seed,
        identity=parts.identity,
    )


def settings(overrides: Iterable[str]) -> list[str]:
    """The tiny sizes as overrides of a recipe, and more."""
    sizes = ["training.steps=3", "training.batch_size=8", "training.validation_examples=8", "device=cpu"]
    return [*sizes, *overrides]
