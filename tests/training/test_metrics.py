"""Sums of losses and their metrics."""

from __future__ import annotations

import torch

from onpath.training.metrics import Meter
from onpath.types import Loss


def test_means_are_of_all_that_was_counted() -> None:
    meter = Meter()
    meter.add(Loss(torch.tensor(6.0), 2.0, {"accuracy": (torch.tensor(1.0), 4.0), "rare": (0.0, 0.0)}))
    meter.add(Loss(torch.tensor(1.0), torch.tensor(5.0), {"accuracy": (3.0, torch.tensor(4))}))
    assert meter.means() == {"loss": 1.0, "accuracy": 0.5}
    assert meter.num_losses == 2


def test_a_meter_goes_on_from_its_sums() -> None:
    whole, first = Meter(), Meter()
    losses = [Loss(torch.tensor(0.1 * n), float(n + 1)) for n in range(6)]
    for loss in losses:
        whole.add(loss)
    for loss in losses[:3]:
        first.add(loss)
    second = Meter(first.sums())
    for loss in losses[3:]:
        second.add(loss)
    assert second.means() == whole.means()  # to the last bit


def test_an_empty_meter() -> None:
    assert Meter().means() == {} and Meter().sums() == {}
