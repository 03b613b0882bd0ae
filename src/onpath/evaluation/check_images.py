"""Sanity checks of a training on images, beside those of ``evaluation.check`` for tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn as nn
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.data.source import Source
from onpath.evaluation.check import Check, schedules_agree, train_step
from onpath.evaluation.schedule_table import schedule_table
from onpath.objectives.base import Objective
from onpath.processes.gaussian import Gaussian
from onpath.schedules import Schedule
from onpath.training.optimizers import OptimizerConfig
from onpath.types import Batch, Denoiser

MAX_ERROR, MIN_DIFFERENCE = 0.1, 0.02
_NUM_IMAGES, _MOST_STEPS = 16, 400
_KEY = rng.Key(purpose="check")


def check_images(
    fresh: nn.Module,
    objective: Objective,
    source: Source,
    optimizer: OptimizerConfig,
    *,
    trained: nn.Module | None = None,
    schedules: Sequence[Schedule] = (),
) -> tuple[Check, ...]:
    """Every check of a run on images; the arguments are those of ``evaluation.check.check_all``."""
    process = objective.process
    assert isinstance(process, Gaussian)
    device = next(fresh.parameters()).device
    batch = source.examples(torch.arange(_NUM_IMAGES), device)
    checks = [values_are_in_range(batch), overfits(fresh, objective, process, batch, optimizer)]
    judged = cast(Denoiser, fresh if trained is None else trained.eval())
    checks.append(time_matters(judged, process, batch))
    if batch.cond:
        checks.append(condition_matters(judged, process, batch))
    checks.append(noise_follows(process, batch))
    if schedules:
        checks.append(schedules_agree(process.schedule, schedules))
    return tuple(checks)


def values_are_in_range(batch: Batch) -> Check:
    """Spread and size of the values that the network is to make."""
    std, largest = float(batch.x.std()), float(batch.x.abs().max())
    return Check(
        "values are of the size of the noise",
        0.1 < std < 2.0 and largest < 20.0,
        {"std": std, "largest": largest},
        "standard deviation between 0.1 and 2",
        "The schedule mixes the data with noise of standard deviation 1, so it has to be of that size: pixels in -1 to "
        "1; latents divided by their standard deviation (data.scale).",
    )


def overfits(
    model: nn.Module, objective: Objective, process: Gaussian, batch: Batch, optimizer: OptimizerConfig
) -> Check:
    """Trains `model` on 16 images until it knows them: squared error of the image behind a state at t = 0.5, over the
    variance of the images, under noise of its own that never changes."""
    plain, optimizers = objective.conditional(), optimizer.build(model)
    error, num_steps = math.inf, 0
    while num_steps < _MOST_STEPS and not error < MAX_ERROR:
        train_step(model, optimizers, plain, batch, num_steps)
        num_steps += 1
        if num_steps % 20 == 0 or num_steps == _MOST_STEPS:
            model.eval()
            error = _image_error(cast(Denoiser, model), process, batch)
    return Check(
        "overfits one batch",
        error < MAX_ERROR,
        {"error": error, "steps": num_steps},
        f"error of the image at t = 0.5 < {MAX_ERROR} of its variance within {_MOST_STEPS} steps",
        "The network cannot learn even 16 images: look for a learning rate that is too low or too high, a prediction "
        "that is not what the network was trained to make (process.prediction), or a network that does not see x.",
    )


def time_matters(denoiser: Denoiser, process: Gaussian, batch: Batch) -> Check:
    """How much the prediction for the same input depends on the time, relative to its size."""
    x = process.corrupt(batch, _times(batch, 0.5), _KEY.fold("time")).x
    early, late = (_output(denoiser, batch, x, time) for time in (0.3, 0.7))
    difference = _relative(early - late, late)
    return Check(
        "the time matters",
        difference > MIN_DIFFERENCE,
        {"difference": difference},
        f"relative difference of the predictions at two times > {MIN_DIFFERENCE}",
        "The prediction hardly depends on t: the time does not reach the network, or on another scale than it expects.",
    )


def condition_matters(denoiser: Denoiser, process: Gaussian, batch: Batch) -> Check:
    """How much the prediction for noise depends on the condition, relative to its size."""
    x = process.prior(batch, _KEY).x
    rolled = Batch(batch.x, batch.ids, cond={name: value.roll(1, 0) for name, value in batch.cond.items()})
    own, other = (_output(denoiser, asked, x, 0.9) for asked in (batch, rolled))
    difference = _relative(own - other, own)
    return Check(
        "the condition matters",
        difference > MIN_DIFFERENCE,
        {"difference": difference},
        f"relative difference of the predictions under two conditions > {MIN_DIFFERENCE}",
        "The network answers alike whatever the condition is: check that condition_dropout is not near 1, and that the "
        "labels belong to the images.",
    )


def noise_follows(process: Gaussian, batch: Batch) -> Check:
    """Largest deviation, in standard errors, of the variance of the noise in a state from the schedule's s²."""
    worst, count = 0.0, batch.x.numel()
    for row in schedule_table(process.schedule):
        t = _times(batch, row.t)
        state = process.corrupt(batch, t, _KEY.fold(f"noise {row.t}"))
        a, s = (float(c[0]) for c in process.coefficients(t))
        if s > 0:
            variance = float((state.x - a * batch.x).double().square().mean())
            worst = max(worst, abs(variance / s**2 - 1.0) / math.sqrt(2.0 / count))
    return Check(
        "noise follows the schedule",
        worst < 5.0,
        {"standard_errors": worst},
        "variance of the noise within 5 standard errors of s²",
        "The process mixes in another amount of noise than its schedule says: its corrupt does not read its schedule.",
    )


def _times(batch: Batch, t: float) -> Float[Tensor, "B"]:
    return torch.full((batch.size,), t, dtype=torch.float64)


def _output(denoiser: Denoiser, batch: Batch, x: Tensor, t: float) -> Any:
    with torch.no_grad():
        memo = denoiser.encode(**batch.conditions())
        return denoiser(x, _times(batch, t).to(x.device, torch.float32), memo).float()


def _image_error(denoiser: Denoiser, process: Gaussian, batch: Batch) -> float:
    t = _times(batch, 0.5)
    state = process.corrupt(batch, t, _KEY.fold("recall"))
    image = process.image_of(_output(denoiser, batch, state.x, 0.5), state.x, t)
    return float((image - batch.x).square().mean() / batch.x.var())


def _relative(difference: Tensor, value: Tensor) -> float:
    return float(difference.square().mean().sqrt() / value.square().mean().sqrt().clamp_min(1e-12))
