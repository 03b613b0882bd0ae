"""Checks of a training on images: what is right passes, and each fault is found by its own check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn as nn

from onpath.data.images import Digits
from onpath.evaluation.check_images import check_images
from onpath.models.unet import ImageUNet
from onpath.objectives.denoising import Denoising
from onpath.processes.gaussian import Gaussian
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.training.optimizers import AdamW
from onpath.types import Batch

PROCESS = Gaussian(LinearSchedule())


def network() -> nn.Module:
    torch.manual_seed(0)
    return ImageUNet(Digits().spec(), width=16, levels=(1, 2))


def verdicts(model: nn.Module, process: Gaussian = PROCESS, **options: Any) -> dict[str, bool]:
    optimizer = options.pop("optimizer", AdamW(learning_rate=3e-3))
    checks = check_images(model, Denoising(process), options.pop("source", Digits()), optimizer, **options)
    return {check.name: check.passed for check in checks}


def test_a_sound_training_passes() -> None:
    found = verdicts(network(), schedules=(LinearSchedule(),))
    assert all(found.values()) and len(found) == 6


class Blind(nn.Module):
    """The network without the time, or without the label."""

    def __init__(self, lacks: str) -> None:
        super().__init__()
        self.inner, self.lacks = network(), lacks

    def encode(self, label: torch.Tensor, **drop: torch.Tensor) -> Any:
        return self.inner.encode(label=label * (self.lacks != "label"))

    def forward(self, x: torch.Tensor, t: torch.Tensor, memo: Any) -> torch.Tensor:
        return self.inner(x, t * (self.lacks != "time"), memo)


@pytest.mark.parametrize(("lacks", "check"), [("time", "the time matters"), ("label", "the condition matters")])
def test_what_does_not_reach_the_network_is_found(lacks: str, check: str) -> None:
    found = verdicts(Blind(lacks))
    other = {"the time matters", "the condition matters"} - {check}
    assert not found[check] and all(found[name] for name in other)


def test_a_rate_that_learns_nothing_is_found() -> None:
    assert not verdicts(network(), optimizer=AdamW(learning_rate=1e-9))["overfits one batch"]


@dataclass(frozen=True)
class Bright(Digits):  # a source whose values are not of the size of the noise
    def examples(self, ids: torch.Tensor, device: torch.device | str = "cpu") -> Batch:
        batch = Digits().examples(ids, device)
        return replace(batch, x=batch.x * 100.0)


def test_values_of_another_size_are_found() -> None:
    assert not verdicts(network(), source=Bright())["values are of the size of the noise"]


def test_another_schedule_is_found() -> None:
    assert not verdicts(network(), schedules=(CosineSchedule(),))["schedule used = schedule saved"]
