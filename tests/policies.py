"""Runs of policy optimisation so small that a test can train them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from onpath.build import Parts, build
from onpath.config import RunConfig, override
from onpath.experience.rounds import Round, Rounds
from onpath.records import RunFolder
from onpath.training.distributed import ALONE
from onpath.types import Nets

CONFIG: dict[str, Any] = {
    "data": {"kind": "sudoku"},
    "model": {"kind": "token_transformer", "width": 16, "num_heads": 2, "depth": 1},
    "objective": {"kind": "policy_gradient", "estimator": {"kind": "diffu", "p_mask_prompt": 0.1}},
    "experience": {"rewards": [{"kind": "function", "function": "judges:ones"}], "num_generations": 4},
    "sampler": {"kind": "unmasking"},
    "grid": {"kind": "even", "steps": 3},
    "training": {
        "steps": 4,
        "batch_size": 16,
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "warmup_steps": 0,
        "log_every": 1,
        "validation_examples": 8,
    },
    "device": "cpu",
}
CPU = torch.device("cpu")


def policy_config(*overrides: str) -> RunConfig:
    return RunConfig.parse(override(CONFIG, overrides))


def policy_parts(*overrides: str) -> Parts:
    """The parts of a run whose network is sure of something already."""
    parts = build(policy_config(*overrides))
    shaken(parts.model)
    return parts


def shaken(network: nn.Module, seed: int = 0) -> None:
    """Puts noise on every weight; a fresh network says the same of every word."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)


def rounds_of(parts: Parts) -> Rounds:
    assert parts.rounds is not None
    return parts.rounds


def collected(parts: Parts, number: int = 0) -> Round:
    """A round by the weights as they are."""
    nets, size = Nets(parts.model), parts.trainer.batch_size
    return rounds_of(parts).collect(nets, number, size, CPU, ALONE)


def train(path: Path, *overrides: str, resume: bool = False) -> RunFolder:
    parts = policy_parts(*overrides)
    run = RunFolder.open(path) if resume else RunFolder.create(path, parts.config.as_dict())
    parts.trainer.fit(parts.job(), run, resume=resume)
    return run
