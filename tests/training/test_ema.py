"""The moving average against its closed form."""

from __future__ import annotations

import torch
import torch.nn as nn

from onpath.training.ema import average_of, update_average


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_closed_form() -> None:
    # average after n steps = w_0·Π d_k + Σ_k (1 - d_k)·w_k·Π_{j>k} d_j, with d_k = min(decay, (1 + k)/(10 + k))
    model, decay, num_steps = Held(), 0.9, 120
    average = average_of(model)
    weights = [float(torch.sin(torch.tensor(0.1 * step))) for step in range(num_steps)]
    for step, value in enumerate(weights):
        with torch.no_grad():
            model.weight.fill_(value)
            model.count += 1
        update_average(average, model, decay, step)
    decays = [min(decay, (1 + step) / (10 + step)) for step in range(num_steps)]
    assert decays[0] == 0.1 and decays[-1] == decay
    expected, remaining = 0.0, 1.0
    for kept, value in zip(reversed(decays), reversed(weights), strict=True):
        expected += remaining * (1 - kept) * value
        remaining *= kept
    expected += remaining * 2.0
    torch.testing.assert_close(average.weight.double(), torch.full((3,), expected).double(), rtol=0, atol=1e-6)
    assert int(average.count) == num_steps


def test_the_average_is_apart_from_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    average = average_of(model)
    assert not average.training and model.training
    assert not any(p.requires_grad for p in average.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert average[0].weight.abs().sum() > 0


def test_no_decay_is_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    average = average_of(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    update_average(average, model, 0.0, 1000)
    torch.testing.assert_close(average.weight, model.weight.detach())
