"""The terms of ReflexFlow against numbers by hand, with sign, and the gradient through the jump."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onpath.objectives.denoising import Denoising
from onpath.objectives.reflexflow import anti_drift, compensation
from onpath.processes.gaussian import Gaussian, Prediction
from onpath.rng import Key
from onpath.rollouts import draw_state
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Loss, Nets, Noised

FLOW = Gaussian(LinearSchedule())


def pixels(*rows: list[float]) -> Tensor:
    """(B, 1, 1, W)."""
    return torch.tensor(rows, dtype=torch.float64)[:, None, None]


# --- the terms alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("velocity", "away", "wanted"),
    [
        ([3.0, 0.0], [2.0, 0.0], 0.0),  # the length of neither counts
        ([3.0, 0.0], [-2.0, 0.0], 4.0),  # and the sign does
        ([0.0, 1.0], [5.0, 0.0], 2.0),
        ([3.0, 4.0], [4.0, 3.0], 2.0 - 2.0 * 24.0 / 25.0),
        ([-3.0, -4.0], [4.0, 3.0], 2.0 + 2.0 * 24.0 / 25.0),
    ],
)
def test_anti_drift_by_hand(velocity: list[float], away: list[float], wanted: float) -> None:
    assert float(anti_drift(pixels(velocity), pixels(away))) == pytest.approx(wanted, abs=1e-12)


def test_anti_drift_is_by_example() -> None:
    both = anti_drift(pixels([3.0, 0.0], [3.0, 4.0]), pixels([-1.0, 0.0], [6.0, 8.0]))
    torch.testing.assert_close(both, torch.tensor([4.0, 0.0], dtype=torch.float64))


def test_a_network_that_begins_at_zero_gets_no_gradient_from_a_direction_that_it_does_not_have() -> None:
    velocity = torch.zeros(2, 1, 1, 2, dtype=torch.float64, requires_grad=True)
    drift = anti_drift(velocity, pixels([3.0, 4.0], [1.0, 0.0]))
    drift.sum().backward()
    torch.testing.assert_close(drift.detach(), torch.ones(2, dtype=torch.float64))
    assert velocity.grad is not None and not velocity.grad.any()


def test_compensation_by_hand() -> None:
    """Absolute errors 1, 3 and 2, 2, in both directions: their signs must not cancel, nor one row dilute another."""
    clean, drifted = pixels([1.0, 5.0], [-1.0, -2.0]), pixels([2.0, 2.0], [1.0, -4.0])
    wanted = pixels([1 + 0.5 * 1 / 2, 1 + 0.5 * 3 / 2], [1.5, 1.5])
    torch.testing.assert_close(compensation(clean, drifted, 0.5), wanted)


@given(
    seed=st.integers(0, 10**6),
    side=st.sampled_from([1, 2, 7, 16]),
    size=st.integers(1, 4),
    alpha=st.floats(0.0, 5.0),
    shift=st.sampled_from([-100.0, 0.0, 100.0]),
)
@settings(max_examples=40, deadline=None)
def test_weights_have_mean_1_plus_alpha_by_example(seed: int, side: int, size: int, alpha: float, shift: float) -> None:
    """Whatever the size of the images and the sign of the data."""
    generator = torch.Generator().manual_seed(seed)
    clean, drifted = (shift + torch.randn(size, 3, side, side, generator=generator).double() for _ in range(2))
    weights = compensation(clean, drifted, alpha)
    torch.testing.assert_close(weights.flatten(1).mean(1), torch.full((size,), 1 + alpha, dtype=torch.float64))
    assert float(weights.min()) >= 1.0
    torch.testing.assert_close(weights, compensation(-clean, -drifted, alpha))


def test_equal_predictions_weigh_1_and_no_gradient_goes_through_a_weight() -> None:
    one = torch.randn(2, 1, 3, 3, requires_grad=True)
    assert torch.equal(compensation(one, one, 3.0), torch.ones(2, 1, 3, 3))
    assert not compensation(one, one * 2, 3.0).requires_grad


@given(seed=st.integers(0, 10**6), t=st.floats(1e-3, 1.0))
@settings(max_examples=40, deadline=None)
def test_on_the_path_the_direction_is_that_of_the_target(seed: int, t: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(3, 1, 2, 2, generator=generator).double() for _ in range(2))
    time = torch.full((3,), t, dtype=torch.float64)
    state = FLOW.mixed(x0, noise, time)
    target = FLOW.target(x0, noise, time)
    assert float(anti_drift(target, state.x - x0).max()) < 1e-12
    torch.testing.assert_close(anti_drift(-target, state.x - x0), torch.full((3,), 4.0, dtype=torch.float64))


# --- the loss as a whole ------------------------------------------------------------------------------------------


class Line(nn.Module):
    """p·x + q·t + r: three weights, in fp64."""

    def __init__(self, p: float = 0.7, q: float = -0.4, r: float = 0.2) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([p, q, r], dtype=torch.float64))

    def encode(self, **cond: Tensor) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
        p, q, r = self.weights
        return p * x + q * t.double().view(-1, 1, 1, 1) + r


@dataclass(frozen=True)
class Case:
    """A batch of one or more rows, the objective, and what the rollout makes of it."""

    objective: Denoising
    batch: Batch
    network: Line

    def loss(self, network: nn.Module | None = None) -> Loss:
        return self.objective(Nets(network or self.network), self.batch, Key(3, "reflex", 2), 0)

    def clean(self) -> Noised:
        """The states of the forward process, by the same draws."""
        plain = replace(self.objective, scheduled_sampling=None)
        seen: list[Noised] = []

        class Spy(Line):
            def forward(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
                seen.append(Noised(x, t.double(), x))
                return super().forward(x, t, memo)

        plain(Nets(Spy()), self.batch, Key(3, "reflex", 2), 0)
        state = seen[0]
        t = state.t.view(-1, 1, 1, 1)
        return replace(state, noise=(state.x - (1 - t) * self.batch.x) / t)


def case(mode: str, prediction: Prediction = "flow", size: int = 1, **rule: Any) -> Case:
    x0 = torch.tensor([[0.5, -1.0], [-0.25, 0.75], [1.0, 0.0], [0.3, 0.3]], dtype=torch.float64)[:size, None, None]
    reflex = ReflexFlow(alpha=0.5, beta1=3.0, beta2=2.0, mode=mode)  # pyright: ignore[reportArgumentType]
    rollout = {"sampler": "euler"} if mode == "rollout" else {}
    sampling = ScheduledSampling(
        **{
            "max_step_offset": 1,
            "grid_steps": 4,
            "probability": 1.0,
            "reflexflow": reflex,
            **rollout,
            **rule,
        }
    )
    process = Gaussian(LinearSchedule(), prediction=prediction)
    return Case(Denoising(process, scheduled_sampling=sampling), Batch(x0, torch.arange(8, 8 + size)), Line())


def by_hand(x: float, t: float) -> float:
    return 0.7 * x - 0.4 * t + 0.2


def weights_by_hand(clean: list[float], drifted: list[float], alpha: float) -> list[float]:
    errors = [abs(one - two) for one, two in zip(clean, drifted, strict=True)]
    return [1 + alpha * error / (sum(errors) / len(errors)) for error in errors]


def drift_by_hand(velocity: list[float], away: list[float]) -> float:
    lengths = [math.sqrt(sum(v * v for v in vector)) for vector in (velocity, away)]
    return sum((v / lengths[0] - d / lengths[1]) ** 2 for v, d in zip(velocity, away, strict=True))


@pytest.mark.parametrize("target", ["original", "restoring"])
def test_the_loss_after_a_rollout_by_hand(target: str) -> None:
    """One Euler step of a line in two pixels, all numbers written out."""
    made = case("rollout", target=target)
    clean = made.clean()
    t, x0, noise = float(clean.t), made.batch.x.flatten().tolist(), clean.noise.flatten().tolist()
    assert 0.05 < t < 0.75
    source = t + 0.25
    begin = [(1 - source) * one + source * two for one, two in zip(x0, noise, strict=True)]
    drifted = [x + (t - source) * by_hand(x, source) for x in begin]
    on_path = [(1 - t) * one + t * two for one, two in zip(x0, noise, strict=True)]
    said, said_clean = [by_hand(x, t) for x in drifted], [by_hand(x, t) for x in on_path]
    aim = {
        "original": [two - one for one, two in zip(x0, noise, strict=True)],
        "restoring": [(x - one) / t for x, one in zip(drifted, x0, strict=True)],
    }[target]
    weights = weights_by_hand(said_clean, said, 0.5)
    compensated = sum(w * (u - v) ** 2 for w, u, v in zip(weights, said, aim, strict=True)) / 2
    drift = drift_by_hand(said, [x - one for x, one in zip(drifted, x0, strict=True)])
    loss = made.loss()
    assert float(loss.mean.detach()) == pytest.approx(2.0 * compensated + 3.0 * drift, rel=1e-5)
    assert float(loss.metrics["frequency_compensated"][0]) == pytest.approx(compensated, rel=1e-5)
    assert float(loss.metrics["anti_drift"][0]) == pytest.approx(drift, rel=1e-5)
    # and the weights came to bear: without them the number is another
    plain = sum((u - v) ** 2 for u, v in zip(said, aim, strict=True)) / 2
    assert abs(compensated / plain - 1) > 0.1


def jumped(made: Case, weights: Tensor) -> Tensor:
    """The loss of the jump as a function of the three weights, written out; the compensation is held as it is."""
    clean, x0 = made.clean(), made.batch.x
    t = clean.t.view(-1, 1, 1, 1)
    source = t + 0.25
    begin = (1 - source) * x0 + source * clean.noise

    def said(x: Tensor, at: Tensor, w: Tensor) -> Tensor:
        return w[0] * x + w[1] * at + w[2]

    velocity = said(begin, source, weights)
    landed = begin - 0.25 * velocity
    there = said(landed, t, weights)
    with torch.no_grad():
        away = (said(clean.x, t, weights) - there).abs()
        factor = 1 + 0.5 * away / away.flatten(1).mean(1).view(-1, 1, 1, 1)
    compensated = (factor * (velocity - (clean.noise - x0)) ** 2).flatten(1).mean(1)
    direction = [v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (there, landed - x0)]
    drift = (direction[0] - direction[1]).square().flatten(1).sum(1)
    return (2.0 * compensated + 3.0 * drift).mean()


def test_the_loss_of_a_jump_and_its_gradient_by_hand() -> None:
    """The gradient goes through the step and through the direction that leads away from the image."""
    made = case("jump", size=3)
    made = replace(made, batch=made.batch.rows((made.clean().t < 0.75).nonzero()[:, 0]))  # 1/4 is left before noise
    loss = made.loss()
    loss.mean.backward()
    weights = made.network.weights.detach().clone().requires_grad_()
    wanted = jumped(made, weights)
    wanted.backward()
    assert float(loss.mean.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(made.network.weights.grad, weights.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["rollout", "jump"])
def test_the_gradient_is_that_of_finite_differences(mode: str) -> None:
    """With alpha 0, since weights are held; a rollout is held too, a jump is not."""
    reflex = ReflexFlow(alpha=0.0, beta1=3.0, beta2=2.0, mode=mode)  # pyright: ignore[reportArgumentType]
    made = case(mode, size=3, reflexflow=reflex)
    made.loss().mean.backward()
    start = made.network.weights.detach()
    differences = []
    for index in range(3):
        ends = []
        for step in (1e-3, -1e-3):
            moved = Line(*(start + step * torch.eye(3, dtype=torch.float64)[index]).tolist())
            ends.append(float(made.loss(moved).mean.detach()))
        differences.append((ends[0] - ends[1]) / 2e-3)
    gradient = torch.tensor(differences, dtype=torch.float64)
    gap = (made.network.weights.grad - gradient).abs().max() / gradient.abs().max()
    assert gap < 2e-3 if mode == "jump" else gap > 2e-2


@pytest.mark.parametrize("mode", ["rollout", "jump"])
@pytest.mark.parametrize("prediction", ["flow", "v", "x0"])
def test_only_rows_of_the_rollout_pay(mode: str, prediction: Prediction) -> None:
    made = case(mode, prediction, size=4, probability=0.5)
    rule = made.objective.scheduled_sampling
    assert rule is not None
    drawn = draw_state(
        rule, made.objective.process, Nets(made.network), made.batch, made.clean(), Key(3, "reflex", 2), 0
    )
    assert drawn.joined is not None and 0 < len(drawn.joined) < 4
    apart = torch.tensor([row for row in range(4) if row not in drawn.joined.tolist()])
    others = replace(made, batch=made.batch.rows(apart))
    plain = replace(others, objective=replace(made.objective, scheduled_sampling=None)).loss()
    kept = others.loss()
    assert torch.equal(kept.numerator, plain.numerator) and "anti_drift" not in kept.metrics
    whole = made.loss()
    paid = float(whole.metrics["rolled_loss"][0])
    assert float(whole.metrics["anti_drift"][1]) == len(drawn.joined)
    assert float(whole.numerator.detach()) == pytest.approx(float(plain.numerator.detach()) + paid, rel=1e-6)


def test_a_velocity_is_the_same_whatever_is_predicted() -> None:
    """With v the line says a·noise - s·x0: the terms of ReflexFlow are of noise - x0 all the same."""
    flow, said = case("rollout", "flow"), case("rollout", "v")

    class Told(Line):
        """The flow of the line, as v."""

        def forward(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
            velocity = super().forward(x, t, memo)
            s = t.double().view(-1, 1, 1, 1)
            image = x - s * velocity
            return (1 - s) * (image + velocity) - s * image

    one, two = flow.loss(), replace(said, network=Told()).loss()
    assert float(one.metrics["anti_drift"][0]) == pytest.approx(float(two.metrics["anti_drift"][0]), rel=1e-5)


@pytest.mark.parametrize("values", [{"alpha": -1.0}, {"beta1": -0.1}, {"beta2": -2.0}, {"mode": "leap"}])
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"reflexflow: alpha .*0 or more, and mode rollout or jump"):
        ReflexFlow(**values)
