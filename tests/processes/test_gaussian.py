"""Mixing and conversions of Gaussian diffusion against their closed forms, and the law of the states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gaussians import blank
from onpath.processes.gaussian import Gaussian, Path, Prediction
from onpath.rng import Key
from onpath.schedules import DATA, BetasSchedule, CosineSchedule, LinearSchedule
from onpath.types import Batch
from statistical import assert_mean
from tables import SCHEDULES

PREDICTIONS: tuple[Prediction, ...] = ("eps", "v", "x0", "flow")
PATHS: tuple[Path, ...] = ("flow", "vp")
every_process = pytest.mark.parametrize(
    "process", [pytest.param(Gaussian(BetasSchedule(), w, p), id=f"{w}, {p}") for w in PATHS for p in PREDICTIONS]
)
T = torch.tensor([0.0, 0.01, 0.3, 0.5, 0.77, 1.0], dtype=torch.float64)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """An image and a noise for each time; rows differ, so that a (B,) that is not spread out would show."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, noise


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_those_of_the_path(name: str) -> None:
    schedule = SCHEDULES[name]
    flow, vp = Gaussian(schedule), Gaussian(schedule, "vp", "v")
    (a, s), (b, r) = flow.coefficients(T), vp.coefficients(T)
    torch.testing.assert_close(a + s, torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(b * b + r * r, torch.ones(6, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(b * b, a)
    assert (a.diff() < 0).all() and (s.diff() > 0).all()
    for process in (flow, vp):
        assert [float(c) for c in process.coefficients(torch.tensor(DATA))] == [1.0, 0.0]
    torch.testing.assert_close(vp.log_ratio(T[1:-1]), 0.5 * (a / s)[1:-1].log())
    torch.testing.assert_close(flow.log_ratio(T[1:-1]), (a / s)[1:-1].log())


def test_ends_are_exact() -> None:
    for process in (Gaussian(LinearSchedule()), Gaussian(CosineSchedule(), "vp", "v")):
        a, s = process.coefficients(torch.tensor([0.0, 1.0]))
        assert a.tolist() == [1.0, 0.0] and s.tolist() == [0.0, 1.0]
        assert process.log_ratio(torch.tensor([0.0, 1.0])).tolist() == [math.inf, -math.inf]


@every_process
def test_a_target_stands_for_its_image(process: Gaussian) -> None:
    """There and back, row by row at times of their own; and in closed form for one pixel."""
    x0, noise = pair()
    state = process.mixed(x0, noise, T)
    for row, t in enumerate(T):
        a, s = (float(c) for c in process.coefficients(t))
        torch.testing.assert_close(state.x[row], a * x0[row] + s * noise[row])
        wanted = {"eps": noise, "x0": x0, "flow": noise - x0, "v": a * noise - s * x0}[process.prediction]
        torch.testing.assert_close(process.target(x0, noise, T)[row], wanted[row])
    torch.testing.assert_close(process.image_of(process.target(x0, noise, T), state.x, T), x0)


@every_process
def test_the_residual_is_0_at_the_target_and_s_times_the_error_elsewhere(process: Gaussian) -> None:
    x0, noise = pair()
    x, output = process.mixed(x0, noise, T).x, torch.sin(noise)
    _, s = process.coefficients(T)
    scale = torch.ones_like(s) if process.prediction == "x0" else s
    target = process.target(x0, noise, T)
    torch.testing.assert_close(process.residual(target, x, x0, T), torch.zeros_like(x), rtol=0.0, atol=1e-12)
    error = process.residual(output, x, x0, T)
    torch.testing.assert_close(error, scale.view(-1, 1, 1, 1) * (output - target), rtol=1e-9, atol=1e-12)
    # at a state off the path: the restoring target, s·u* = x - (a + s)·x0 and so on, leads back to the image
    off = x + 0.1 * torch.cos(noise)
    inner = T[1:]
    a, s = (c.view(-1, 1, 1, 1) for c in process.coefficients(inner))
    back = {
        "flow": (off[1:] - (a + s) * x0[1:]) / s,
        "eps": (off[1:] - a * x0[1:]) / s,
        "v": (a * off[1:] - (a * a + s * s) * x0[1:]) / s,
        "x0": x0[1:],
    }[process.prediction]
    torch.testing.assert_close(
        process.residual(back, off[1:], x0[1:], inner), torch.zeros_like(back), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(process.image_of(back, off[1:], inner), x0[1:], rtol=1e-8, atol=1e-8)


@every_process
def test_gain_is_how_far_the_image_moves(process: Gaussian) -> None:
    x0, noise = pair()
    state = process.mixed(x0, noise, T)
    target = process.target(x0, noise, T)
    moved = process.image_of(target + 1.0, state.x, T) - x0
    wanted = process.gain(T).view(-1, 1, 1, 1).expand_as(moved)
    torch.testing.assert_close(moved.abs(), wanted, rtol=1e-8, atol=1e-8)


def test_states_have_their_law_and_the_same_key_the_same_noise() -> None:
    process = Gaussian(CosineSchedule(), "vp", "v")
    batch = Batch(torch.full((500, 1, 4, 4), 0.7), torch.arange(500))
    time = torch.full((500,), 0.3)
    one, two = process.corrupt(batch, time, Key(1)), process.corrupt(batch, 2 * time, Key(1))
    assert torch.equal(one.noise, two.noise) and one.t.dtype == torch.float64
    a, s = (float(c) for c in process.coefficients(torch.tensor(0.3)))
    assert_mean(one.x.flatten(), 0.7 * a)
    assert_mean((one.x.flatten() - 0.7 * a).square(), s * s)
    part = process.corrupt(batch.rows(slice(100, 103)), time[:3], Key(1))
    assert torch.equal(part.x, one.x[100:103])


def test_the_prior_is_noise_at_time_1() -> None:
    process = Gaussian(LinearSchedule())
    prior = process.prior(blank(400, (1, 5, 5)), Key(2))
    assert prior.x.shape == (400, 1, 5, 5) and prior.t.tolist() == [1.0] * 400
    assert_mean(prior.x.flatten(), 0.0)
    assert_mean(prior.x.flatten().square(), 1.0)
    assert torch.equal(prior.x, process.prior(blank(400, (1, 5, 5)), Key(2)).x)
    assert not torch.equal(prior.x, process.prior(blank(400, (1, 5, 5)), Key(3)).x)
    assert torch.equal(process.corrupt(blank(4), torch.ones(4), Key(1)).x, process.draw(blank(4), Key(1)))


@pytest.mark.parametrize("settings", [{"path": "ve"}, {"prediction": "epsilon"}])
def test_unknown_words_are_refused(settings: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"gaussian: .*; allowed are"):
        Gaussian(LinearSchedule(), **settings)
