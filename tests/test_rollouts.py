"""Rollouts with the perfect network: where they end, what regression on them learns, and what they leave untouched."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from gaussians import MEAN, VARIANCE, Exact, Wavy, kolmogorov_p, spread
from onpath.build import build
from onpath.config import RunConfig
from onpath.objectives.denoising import Denoising
from onpath.objectives.weighting import TimeDensity
from onpath.processes.gaussian import Gaussian, Prediction
from onpath.processes.gaussian import Path as Way
from onpath.records import RunFolder
from onpath.rng import Key
from onpath.rollouts import draw_state, evaluating, trajectory
from onpath.sampling.solvers import Euler, RungeKutta
from onpath.scheduled_sampling import ScheduledSampling
from onpath.schedules import BetasSchedule, CosineSchedule, LinearSchedule
from onpath.types import Batch, Nets, Noised
from statistical import assert_mean

KEY = Key(5, "train", 7)


@dataclass(frozen=True)
class _At(TimeDensity):
    """One time for all."""

    time: float = 0.5

    def times(self, draws: Tensor) -> Tensor:
        return torch.full_like(draws, self.time, dtype=torch.float64)


def data(size: int, mean: float = MEAN, variance: float = VARIANCE, width: int = 1) -> Batch:
    """Gaussian images of one row of pixels."""
    generator = torch.Generator().manual_seed(11)
    x = mean + math.sqrt(variance) * torch.randn(size, 1, 1, width, generator=generator, dtype=torch.float64)
    return Batch(x, torch.arange(size))


def at(process: Gaussian, batch: Batch, t: float | Tensor) -> Noised:
    time = torch.as_tensor(t, dtype=torch.float64).expand(batch.size)
    return process.corrupt(batch, time, KEY.fold("corrupt"))


def rule(**settings: Any) -> ScheduledSampling:
    return ScheduledSampling(**{"max_step_offset": 10, "probability": 1.0, **settings})


# --- the right marginal -------------------------------------------------------------------------------------------


def kinds() -> list[Any]:
    table = []
    ways: tuple[Way, ...] = ("flow", "vp")
    predictions: tuple[Prediction, ...] = ("eps", "v", "x0", "flow")
    for way in ways:
        for prediction in predictions:
            schedule = {"flow": LinearSchedule(), "vp": CosineSchedule()}[way]
            schedule = BetasSchedule() if prediction == "eps" else schedule
            table.append(pytest.param(Gaussian(schedule, way, prediction), id=f"{way}, {prediction}"))
    return table


NUM = 20_000


def standing(process: Gaussian, reached: Noised | Any, fresh: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """The states in units of their marginal at their own times, and the p value of a comparison with fresh ones."""
    mean, std = spread(process, t)
    units = ((reached.x - mean) / std).flatten()
    return units, kolmogorov_p(units, fresh)


@pytest.mark.parametrize("solver", ["euler", "dpm", "unipc", "rk4"])
@pytest.mark.parametrize("process", kinds())
def test_a_rollout_of_the_perfect_network_ends_at_the_right_marginal(process: Gaussian, solver: Any) -> None:
    """At times of all kinds, lengths 1 to 10 of 50: mean, variance and the whole law, to 3 %."""
    batch = data(NUM)
    t = 0.05 + 0.9 * torch.arange(NUM, dtype=torch.float64) / NUM
    state = at(process, batch, t)
    # euler is of first order: at 200 steps it is within the sampling error
    steps = {"grid_steps": 200} if solver == "euler" else {}
    drawn = draw_state(rule(sampler=solver, **steps), process, Nets(Exact(process)), batch, state, KEY, 0)
    assert drawn.joined is not None and len(drawn.joined) == NUM
    assert isinstance(drawn.state, Noised) and torch.equal(drawn.state.t, t)
    assert float((drawn.state.x - state.x).abs().mean()) > 0.005  # it went another way
    fresh = torch.randn(NUM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    units, p = standing(process, drawn.state, fresh, t)
    assert_mean(units, 0.0)
    assert_mean(units.square(), 1.0)
    assert p > 1e-3
    # these see an error of 3 % in the spread, and one of a tenth of it in the place
    with pytest.raises(AssertionError):
        assert_mean((1.03 * units).square(), 1.0)
    with pytest.raises(AssertionError):
        assert_mean(units + 0.1, 0.0)


@pytest.mark.parametrize("process", kinds())
def test_the_marginal_would_tell_a_grid_that_runs_the_wrong_way(process: Gaussian) -> None:
    """From the data towards noise, as erratum 28 had it: the state is then far from the marginal at its time."""
    batch = data(4000)
    t = 0.3 + 0.4 * torch.arange(4000, dtype=torch.float64) / 4000
    start = at(process, batch, t + 0.1)
    grid = torch.stack([t + 0.1 + 0.02 * step for step in range(6)])  # upwards
    lengths = torch.full((4000,), 5)
    x = trajectory(Exact(process), process, Euler(), batch, start, (grid, lengths), KEY)
    fresh = torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    units, p = standing(process, replace(start, x=x), fresh, t)
    right = trajectory(
        Exact(process), process, RungeKutta(), batch, start, (t + 0.02 * (5 - torch.arange(6))[:, None], lengths), KEY
    )
    units_right, p_right = standing(process, replace(start, x=right), fresh, t)
    assert p_right > 1e-3
    assert p < 1e-3 or abs(float(units.square().mean()) - 1) > 4 * math.sqrt(2 / 4000)


# --- what regression on rolled states learns ----------------------------------------------------------------------

GAPS = {0.001: 0.997, 0.01: 0.968, 0.05: 0.847, 0.1: 0.707, 0.3: 0.277}


def coefficient(x: Tensor, x0: Tensor) -> float:
    """Of least squares through the origin."""
    return float((x * x0).sum() / (x * x).sum())


def centred(num: int) -> Batch:
    """x0 and the noise are uncorrelated as they are drawn, so that the law shows at once: data of variance .25."""
    return data(num, mean=0.0, width=16)


@pytest.mark.parametrize("solver", ["unipc", "euler"])
@pytest.mark.parametrize("gap", GAPS)
def test_regression_on_rolled_states_shrinks_by_the_law(gap: float, solver: Any) -> None:
    """A deterministic rollout is a function of its source, so x0 is told as badly as there; not by a bad network."""
    process = Gaussian(LinearSchedule())
    batch, per_unit = centred(25_000), 1000 if gap < 0.05 else 100
    state = at(process, batch, 0.5)
    steps = round(gap * per_unit)
    settings = rule(max_step_offset=steps, min_step_offset=steps, grid_steps=per_unit, sampler=solver)
    drawn = draw_state(settings, process, Nets(Exact(process, 0.0)), batch, state, KEY, 0)
    assert isinstance(drawn.state, Noised)
    ratio = coefficient(drawn.state.x, batch.x) / coefficient(state.x, batch.x)
    assert ratio == pytest.approx(GAPS[gap], rel=0.02)


@pytest.mark.parametrize(
    "process", [Gaussian(LinearSchedule()), Gaussian(CosineSchedule(), "vp", "v")], ids=["flow", "vp"]
)
@pytest.mark.parametrize("ends", [(0.3, 0.5), (0.6, 0.7), (0.2, 0.8)])
def test_the_law_in_general(process: Gaussian, ends: tuple[float, float]) -> None:
    """a_s·sigma_t/(a_t·sigma_s), sigma² = a²S² + s²."""
    t, source = (torch.tensor([end], dtype=torch.float64) for end in ends)
    (a, _), (a_s, _) = process.coefficients(t), process.coefficients(source)
    sigmas = [float(spread(process, time, 0.0)[1]) for time in (t, source)]
    wanted = float(a_s / a) * sigmas[0] / sigmas[1]
    batch = centred(25_000)
    state, begin = at(process, batch, ends[0]), at(process, batch, ends[1])
    grid = torch.linspace(ends[1], ends[0], 21, dtype=torch.float64)[:, None].expand(-1, batch.size)
    walks = (grid, torch.full((batch.size,), 20))
    x = trajectory(Exact(process, 0.0), process, RungeKutta(), batch, begin, walks, KEY)
    ratio = coefficient(x, batch.x) / coefficient(state.x, batch.x)
    assert ratio == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(("steps", "grid"), [(60, 200), (30, 100), (45, 50), (700, 1000)])
def test_long_rollouts_have_the_length_they_were_drawn_with(steps: int, grid: int) -> None:
    """A length that rounding lengthened by a step of nothing would end in NaN."""
    process, batch = Gaussian(LinearSchedule()), data(4)
    settings = rule(max_step_offset=steps, min_step_offset=steps, grid_steps=grid)
    state = at(process, batch, 0.0625)
    drawn = draw_state(settings, process, Nets(Exact(process)), batch, state, KEY, 0)
    assert drawn.state.x.isfinite().all() and drawn.num_forwards == 4 * steps


@pytest.mark.parametrize(("gap", "wanted"), [(0.01, 1.0001), (0.05, 1.003), (0.1, 1.013), (0.3, 1.099)])
def test_inject_keeps_what_can_be_learnt(gap: float, wanted: float) -> None:
    """One Euler step against an exact way: only the error of the step is added to the right state."""
    process = Gaussian(LinearSchedule())
    batch = centred(25_000)
    state = at(process, batch, 0.5)
    steps = round(100 * gap)
    settings = rule(
        max_step_offset=steps,
        min_step_offset=steps,
        grid_steps=100,
        mode="inject",
        sampler="euler",
        coarse_steps=1,
        fine_steps=60,
    )
    network = Exact(process, 0.0)
    drawn = draw_state(settings, process, Nets(network, ema=network), batch, state, KEY, 0)
    assert isinstance(drawn.state, Noised)
    ratio = coefficient(drawn.state.x, batch.x) / coefficient(state.x, batch.x)
    assert ratio == pytest.approx(wanted, rel=0.008)
    assert drawn.num_forwards == batch.size * 61


def test_inject_with_equal_rollouts_changes_nothing() -> None:
    process, batch = Gaussian(LinearSchedule()), centred(100)
    state = at(process, batch, 0.4)
    settings = rule(mode="inject", coarse_steps=3, fine_steps=3)
    network = Exact(process, 0.0)
    drawn = draw_state(settings, process, Nets(network, ema=network), batch, state, KEY, 0)
    torch.testing.assert_close(drawn.state.x, state.x, rtol=0.0, atol=1e-12)


# --- the target of a rolled state ---------------------------------------------------------------------------------


def restored(process: Gaussian, t: Tensor, s_min: float = 0.05) -> tuple[Tensor, Tensor]:
    """The loss of each row alone at times t, for a network that is wrong by what it is, and the image's own error."""
    batch = Batch(data(len(t), width=4).x.float(), torch.arange(len(t)))
    settings = rule(sampler="euler", grid_steps=50, **({} if s_min == 0.05 else {"s_min": s_min}))
    objective = Denoising(process, _At(), scheduled_sampling=settings)
    losses, errors = [], []
    for row, time in enumerate(t.tolist()):
        one = batch.rows(torch.tensor([row]))
        made = replace(objective, time_density=_At(time))(Nets(Wavy()), one, KEY, 0)
        losses.append(float(made.numerator))
        a, s = (float(c) for c in process.coefficients(torch.tensor(time, dtype=torch.float64)))
        share = min(1.0, a / s) ** 2 if process.prediction == "eps" and s else 1.0  # that is told of the image's error
        errors.append(float(made.metrics["image_error"][0]) / share)
    return torch.tensor(losses), torch.tensor(errors)


@pytest.mark.parametrize("process", kinds())
def test_restoring_losses_are_bounded_at_every_time(process: Gaussian) -> None:
    """The error of the image times min(1/s, 1/s_min)², and finite down to t = 0 and up to t = 1."""
    t = torch.tensor([0.0, 1e-9, 1e-4, 0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.98], dtype=torch.float64)
    losses, errors = restored(process, t)
    assert losses.isfinite().all() and errors.isfinite().all()
    a, s = process.coefficients(t)
    unit = {"eps": a, "v": a * a + s * s, "flow": a + s, "x0": torch.ones_like(a)}[process.prediction]
    weight = torch.ones_like(s) if process.prediction == "x0" else (unit / s.clamp_min(0.05)) ** 2
    torch.testing.assert_close(losses.double(), weight * errors.double(), rtol=1e-4, atol=1e-7)
    bound = 1.0 if process.prediction == "x0" else 2 / 0.05**2  # (a + s)² is 2 at most
    assert (losses <= bound * errors * 1.001 + 1e-6).all()


@pytest.mark.parametrize("process", kinds())
@pytest.mark.parametrize("target", ["restoring", "original"])
def test_the_target_by_hand(process: Gaussian, target: Any) -> None:
    """At t = .4: flow (x - x0)/s, eps (x - a·x0)/s, v (a·x - x0)/s in vp; or those of the state that should be."""
    batch = Batch(data(50, width=4).x.float(), torch.arange(50))
    state = at(process, batch, 0.4)
    network, settings = Wavy(), rule(target=target)
    drawn = draw_state(settings, process, Nets(network), batch, state, KEY, 0)
    assert isinstance(drawn.state, Noised)
    x, x0 = drawn.state.x, batch.x
    a, s = (float(c) for c in process.coefficients(torch.tensor([0.4], dtype=torch.float64)))
    noise = state.noise if target == "original" else (x - a * x0) / s
    aim = {
        "eps": noise,
        "x0": x0,
        "flow": noise - x0 if target == "original" else (x - (a + s) * x0) / s,
        "v": a * noise - s * x0,
    }[process.prediction]
    said = network(x, torch.full((50,), 0.4), None)
    wanted = (said - aim).square().mean()
    objective = Denoising(process, _At(0.4), scheduled_sampling=settings)
    # the objective corrupts with the same key
    loss = objective(Nets(network), batch, KEY, 0)
    assert float(loss.mean) == pytest.approx(float(wanted), rel=1e-4)


# --- what a rollout does not touch --------------------------------------------------------------------------------


class Dropped(nn.Module):
    """A network with drop-out and a part that stays in evaluation mode, which writes down how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.dropout, self.frozen = nn.Linear(1, 1), nn.Dropout(0.5), nn.Dropout(0.5)
        self.calls: list[tuple[int, bool, bool]] = []

    def encode(self, **cond: Tensor) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
        self.calls.append((len(x), self.dropout.training, torch.is_grad_enabled()))
        return self.frozen(self.dropout(self.line(x.float())))


def test_rollouts_are_batched_in_evaluation_mode_and_without_gradient() -> None:
    process, batch = Gaussian(LinearSchedule()), Batch(data(40).x.float(), torch.arange(40))
    network = Dropped().train()
    network.frozen.eval()
    state = at(process, batch, 0.3)
    one, two = (draw_state(rule(), process, Nets(network), batch, state, KEY, 0) for _ in range(2))
    assert torch.equal(one.state.x, two.state.x), "drop-out is off"
    assert not one.state.x.requires_grad and network.line.weight.grad is None
    assert network.training and network.dropout.training and not network.frozen.training
    calls = network.calls[: len(network.calls) // 2]
    rows = [rows for rows, _, _ in calls]
    assert len(rows) == 10 and rows == sorted(rows, reverse=True) and sum(rows) == one.num_forwards
    assert not any(training or gradient for _, training, gradient in calls)


def test_modes_are_put_back_after_an_error() -> None:
    network = Dropped().train()
    with pytest.raises(RuntimeError, match="mine"), evaluating(network):
        assert not network.dropout.training and not torch.is_grad_enabled()
        raise RuntimeError("mine")
    assert network.dropout.training and torch.is_grad_enabled()


def test_a_rollout_under_autocast_leaves_the_gradient_of_the_loss() -> None:
    """The half-precision weights of its forwards are not those that the loss must reach."""
    process, batch = Gaussian(LinearSchedule()), Batch(data(8).x.float(), torch.arange(8))
    gradients = []
    for settings in (None, rule(probability=1e-9)):
        network = Dropped().eval()
        nn.init.constant_(network.line.weight, 0.5)
        nn.init.constant_(network.line.bias, 0.1)
        with torch.autocast("cpu", torch.bfloat16):
            if settings is not None:
                with evaluating(network):
                    network(batch.x, torch.ones(8), None)
            Denoising(process)(Nets(network), batch, KEY, 0).mean.backward()
        gradients.append(network.line.weight.grad)
    assert gradients[0] is not None and torch.equal(gradients[0], gradients[1])


def test_the_average_rolls_out_where_it_is_asked_to() -> None:
    process, batch = Gaussian(LinearSchedule()), data(10)
    state = at(process, batch, 0.3)
    current, average = Wavy(), Wavy()
    draw_state(rule(weights="average"), process, Nets(current, ema=average), batch, state, KEY, 0)
    assert not current.rows and average.rows
    draw_state(rule(), process, Nets(current, ema=average), batch, state, KEY, 0)
    assert current.rows == average.rows
    for settings in (rule(weights="average"), rule(mode="inject")):
        with pytest.raises(ValueError, match="needs the moving average"):
            draw_state(settings, process, Nets(current), batch, state, KEY, 0)


def test_neither_micro_batches_nor_their_order_change_which_rows_join() -> None:
    process, batch = Gaussian(LinearSchedule()), data(64)
    settings, network = rule(probability=0.4), Exact(process)
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)

    def rolled(index: Tensor) -> Tensor:
        part = batch.rows(index)
        state = at(process, part, t[index])
        drawn = draw_state(settings, process, Nets(network), part, state, KEY, 3)
        assert drawn.joined is not None
        moved = torch.full((64,), math.nan, dtype=torch.float64)
        moved[index[drawn.joined]] = drawn.state.x.flatten()[drawn.joined]
        return moved

    whole = rolled(torch.arange(64))
    assert 10 < int(whole.isfinite().sum()) < 40
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rolled(order), whole, equal_nan=True, rtol=0.0, atol=1e-12)
    parts = torch.stack([rolled(torch.arange(first, first + 16)) for first in range(0, 64, 16)]).nansum(0)
    torch.testing.assert_close(parts, whole.nan_to_num(), rtol=0.0, atol=1e-12)


def test_the_share_of_rows_and_the_lengths_are_those_asked_for() -> None:
    process, batch = Gaussian(LinearSchedule()), data(8000)
    state = at(process, batch, 0.5)
    drawn = draw_state(rule(probability=0.3, max_step_offset=4), process, Nets(Wavy()), batch, state, KEY, 0)
    assert drawn.joined is not None
    assert len(drawn.joined) / 8000 == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 8000))
    assert drawn.num_forwards / len(drawn.joined) == pytest.approx(2.5, abs=4 * math.sqrt(1.25 / 2400))


def test_a_source_beyond_noise_is_held_there_and_a_way_of_no_length_is_none() -> None:
    process, batch = Gaussian(LinearSchedule()), data(400)
    t = torch.linspace(0.9, 1.0, 400, dtype=torch.float64)
    network = Exact(process)
    for solver in ("euler", "dpm", "unipc", "rk4"):
        state = at(process, batch, t)
        drawn = draw_state(rule(sampler=solver, max_step_offset=20), process, Nets(network), batch, state, KEY, 0)
        assert drawn.joined is not None and drawn.state.x.isfinite().all()
        assert 399 not in drawn.joined.tolist() and len(drawn.joined) >= 398
        assert torch.equal(drawn.state.x[399], state.x[399])
    at_noise = at(process, batch, 1.0)
    drawn = draw_state(rule(), process, Nets(network), batch, at_noise, KEY, 0)
    assert drawn.joined is None and drawn.state is at_noise and drawn.num_forwards == 0


# --- through the trainer ------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "data": "digits",
    "model": {"kind": "image_unet", "width": 8, "levels": [1]},
    "objective": {"kind": "denoising", "condition_dropout": 0.1},
    "training": {"steps": 4, "batch_size": 8, "validation_examples": 8, "warmup_steps": 1, "log_every": 1},
    "device": "cpu",
}


def trained(path: Path, sampling: dict[str, Any] | None, **training: Any) -> dict[str, Tensor]:
    objective = {**CONFIG["objective"], **({"scheduled_sampling": sampling} if sampling else {})}
    parts = build(RunConfig.parse({**CONFIG, "objective": objective, "training": {**CONFIG["training"], **training}}))
    folder = RunFolder.create(path, parts.config.as_dict())
    parts.trainer.fit(parts.job(), folder)
    return {name: weight.detach().clone() for name, weight in parts.model.state_dict().items()}


def test_probability_0_is_plain_training_to_the_last_bit(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", None)
    # of four steps none begins before step 3, where the ramp is still at its start
    later = {"max_step_offset": 5, "ramp_steps": 1, "start_step": 3, "prob_start": 0.0, "prob_end": 1.0}
    ramped = trained(tmp_path / "ramped", later)
    assert all(torch.equal(plain[name], ramped[name]) for name in plain)
    rolled = trained(tmp_path / "rolled", {"max_step_offset": 5, "probability": 0.5, "start_step": 3})
    assert not all(torch.equal(plain[name], rolled[name]) for name in plain)


def test_what_rollouts_cost_is_in_the_metrics(tmp_path: Path) -> None:
    trained(tmp_path / "run", {"max_step_offset": 5, "probability": 1.0, "start_step": 2})
    rows = [row for row in RunFolder.open(tmp_path / "run").metrics() if row["set"] == "train"]
    assert [row["rollout_share"] > 0 for row in rows] == [False, False, True, True]
    assert all(row["rollout_forwards"] >= row["rollout_share"] for row in rows)
    assert rows[0]["rollout_seconds"] == 0.0 < rows[-1]["rollout_seconds"] < 60.0
