"""Settings of rollouts: which are refused, how the probability runs, and how lengths are drawn."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from onpath.consistency import require_ramps
from onpath.objectives.denoising import Denoising
from onpath.processes.gaussian import Gaussian
from onpath.ramps import CosineRamp, LinearRamp, Piecewise
from onpath.sampling.solvers import DPMSolver, Euler, RungeKutta, UniPC
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
from onpath.schedules import CosineSchedule, LinearSchedule

ON: dict[str, Any] = {"max_step_offset": 10, "probability": 0.5}
RAMPED: dict[str, Any] = {"max_step_offset": 10, "ramp_steps": 100}


def rule(**settings: Any) -> ScheduledSampling:
    return ScheduledSampling(**{**ON, **settings})


# each entry: settings, and what the message says is without effect or out of range
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing is rolled out": (
        {"max_step_offset": 10},
        "probability is 0 at every step, so nothing would be rolled out",
    ),
    "a ramp from 0 to 0": ({**RAMPED, "prob_end": 0.0}, "probability is 0 at every step"),
    "a ramp of zeros": ({**ON, "probability": LinearRamp(0.0, 0.0, 5)}, "probability is 0 at every step"),
    "both a ramp and a probability": ({**RAMPED, "probability": 0.5}, "probability is 0.5, but ramp_steps is 100"),
    "start of no ramp": ({**ON, "prob_start": 0.2}, "prob_start is 0.2, but ramp_steps is 0"),
    "end of no ramp": ({**ON, "prob_end": 0.9}, "prob_end is 0.9, but ramp_steps is 0"),
    "shape of no ramp": ({**ON, "ramp_shape": "cosine"}, "ramp_shape is 'cosine', but ramp_steps is 0"),
    "order of euler": ({**ON, "sampler": "euler", "order": 3}, "order is 3, but euler has a fixed order"),
    "order of rk4": ({**ON, "sampler": "rk4", "order": 1}, "order is 1, but rk4 has a fixed order"),
    "choice among one length": ({**ON, "max_step_offset": 1, "strategy": "biased_early"}, "all offsets are 1"),
    "order that dpm lacks": ({**ON, "sampler": "dpm", "order": 3}, "dpm: order is 3"),
    "order that unipc lacks": ({**ON, "order": 4}, "unipc: order is 4"),
    "target of inject": ({**ON, "mode": "inject", "target": "original"}, "target is 'original', but mode inject"),
    "weights of inject": ({**ON, "mode": "inject", "weights": "average"}, "weights is 'average', but mode inject"),
    "reflexflow of inject": ({**ON, "mode": "inject", "reflexflow": ReflexFlow()}, "reflexflow is .*, but mode inject"),
    "coarse steps of a rollout": ({**ON, "coarse_steps": 2}, "coarse_steps is 2, but mode rollout"),
    "fine steps of a rollout": ({**ON, "fine_steps": 8}, "fine_steps is 8, but mode rollout"),
    "bound of the original target": ({**ON, "target": "original", "s_min": 0.1}, "s_min is 0.1, but target original"),
    **{
        f"{name} of a jump": (
            {**ON, "reflexflow": ReflexFlow(mode="jump"), name: value},
            f"{name} is .*, but reflexflow",
        )
        for name, value in {
            "sampler": "dpm",
            "order": 3,
            "weights": "average",
            "target": "original",
            "s_min": 0.1,
        }.items()
    },
    **{
        f"{name} while off": ({name: value}, f"{name} is .*, but max_step_offset is 0")
        for name, value in {
            "probability": 0.5,
            "grid_steps": 20,
            "start_step": 5,
            "ramp_steps": 5,
            "sampler": "dpm",
            "order": 1,
            "strategy": "biased_late",
            "mode": "inject",
            "target": "original",
            "s_min": 0.1,
            "weights": "average",
            "min_step_offset": 0,
            "reflexflow": ReflexFlow(),
            "correction": 1.0,
        }.items()
    },
    "longer than the grid": ({**ON, "grid_steps": 9}, "max_step_offset is 10, but the whole way has grid_steps 9"),
    "shortest above longest": ({**ON, "min_step_offset": 11}, "offsets from 11 to 10"),
    "no steps": ({**ON, "grid_steps": 0}, "grid_steps of 1 or more"),
    "negative offset": ({**ON, "max_step_offset": -1, "min_step_offset": -2}, "0 <= min_step_offset"),
    "more than all": ({**ON, "probability": 1.5}, "must stay within 0 and 1"),
    "less than none": ({**ON, "probability": -0.5}, "must stay within 0 and 1"),
    "a ramp beyond 1": ({**RAMPED, "prob_end": 1.5}, "must stay within 0 and 1"),
    "a knot beyond 1": ({**ON, "probability": Piecewise(((0, 0.1), (5, 2.0), (9, 0.1)))}, "must stay within 0 and 1"),
    "no bound": ({**ON, "s_min": 0.0}, "s_min is 0.0"),
    "negative correction": ({**ON, "correction": -1.0}, "correction is -1.0"),
    "negative start": ({**ON, "start_step": -1}, "start_step -1"),
    "no coarse steps": ({**ON, "mode": "inject", "coarse_steps": 0}, "coarse_steps 0"),
    **{
        f"unknown {name}": ({**settings, name: "other"}, f"{name} is 'other'; allowed are")
        for name, settings in {
            "sampler": ON,
            "strategy": ON,
            "mode": ON,
            "target": ON,
            "weights": ON,
            "ramp_shape": RAMPED,
        }.items()
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_without_effect_is_refused(name: str, unchecked: None) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ScheduledSampling(**settings)


def test_what_is_refused_is_not_refused_where_it_has_an_effect() -> None:
    assert not ScheduledSampling().is_on and ScheduledSampling().probability_at(10**6) == 0.0
    accepted = (
        {"mode": "inject", "coarse_steps": 2, "fine_steps": 8, "s_min": 0.1, "sampler": "euler"},
        {"min_step_offset": 0, "sampler": "dpm", "order": 1, "weights": "average"},
        {"reflexflow": ReflexFlow(mode="jump"), "strategy": "biased_late", "start_step": 3},
        {"max_step_offset": 1000, "grid_steps": 1000},
    )
    assert all(rule(**settings).is_on for settings in accepted)


def test_what_the_objective_alone_can_know_is_refused() -> None:
    flow, vp = Gaussian(LinearSchedule()), Gaussian(CosineSchedule(), "vp", "v")
    with pytest.raises(ValueError, match="reflexflow is set, but the process has path vp"):
        Denoising(vp, scheduled_sampling=rule(reflexflow=ReflexFlow()))
    with pytest.raises(ValueError, match=r"correction is 0\.5, which is of tokens"):
        Denoising(flow, scheduled_sampling=rule(correction=0.5))
    assert Denoising(flow, scheduled_sampling=rule()).conditional().scheduled_sampling is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**RAMPED, "start_step": 50}, "scheduled_sampling ends its ramp at step 150, but the training has 100 steps"),
        ({**ON, "probability": LinearRamp(0.0, 0.5, 101)}, "ends its ramp at step 101"),
        ({**ON, "start_step": 100}, "start_step is 100, but the training has 100 steps"),
    ],
)
def test_a_ramp_beyond_the_training_is_refused(settings: dict[str, Any], message: str) -> None:
    objective = Denoising(Gaussian(LinearSchedule()), scheduled_sampling=ScheduledSampling(**settings))
    with pytest.raises(ValueError, match=message):
        require_ramps(objective, 100)
    require_ramps(objective, 200)


def test_the_ramp_runs_from_its_start_to_its_end() -> None:
    """A start of 0.0 is 0.0, not the probability; before start_step nothing is rolled out."""
    up = ScheduledSampling(**{**RAMPED, "prob_end": 0.8, "start_step": 20})
    assert [up.probability_at(step) for step in (0, 19, 20, 70, 120, 10**6)] == pytest.approx([0, 0, 0, 0.4, 0.8, 0.8])
    down = ScheduledSampling(**{**RAMPED, "prob_start": 1.0, "prob_end": 0.5})
    assert [down.probability_at(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.75, 0.5])
    wave = ScheduledSampling(**{**RAMPED, "ramp_shape": "cosine"})
    assert [wave.probability_at(step) for step in (0, 25, 50)] == pytest.approx([0.0, 0.5 * (0.5 - 0.5**1.5), 0.25])


def test_start_step_holds_without_a_ramp_too() -> None:
    assert [rule(start_step=5).probability_at(step) for step in (0, 4, 5, 6)] == [0.0, 0.0, 0.5, 0.5]
    curve = CosineRamp(0.2, 0.6, 10)
    later = rule(probability=curve, start_step=4)
    assert [later.probability_at(step) for step in (3, 4, 10)] == [0.0, curve.value(4), 0.6]


@pytest.mark.parametrize("strategy", ["uniform", "biased_early", "biased_late"])
@pytest.mark.parametrize(("low", "high"), [(1, 10), (1, 1), (3, 7), (0, 5)])
def test_lengths_by_enumeration(strategy: Any, low: int, high: int) -> None:
    """On a fine lattice of draws each length has the share that its formula gives it, and none lies outside."""
    count = 100_000
    draws = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    settings: dict[str, Any] = {} if low == 1 else {"min_step_offset": low}
    if low < high:
        settings["strategy"] = strategy
    lengths = rule(max_step_offset=high, **settings).offsets(draws)
    assert int(lengths.min()) == low and int(lengths.max()) == high
    shares = torch.bincount(lengths - low, minlength=high - low + 1).double() / count
    edges = torch.arange(high - low + 2, dtype=torch.float64) / (high - low + 1)
    below = {"uniform": edges, "biased_early": edges.sqrt(), "biased_late": 1 - (1 - edges).sqrt()}[strategy]
    torch.testing.assert_close(shares, below.diff(), rtol=0.0, atol=2e-5)
    if strategy != "uniform" and high > low:
        falls = [one > two for one, two in itertools.pairwise(shares.tolist())]
        assert all(falls) if strategy == "biased_early" else not any(falls)


def test_the_ends_of_the_draws_stay_inside() -> None:
    """At u = 0 biased_late would be one too many, and no rounding makes a length of 0."""
    for strategy in ("uniform", "biased_early", "biased_late"):
        ends = rule(strategy=strategy).offsets(torch.tensor([0.0, 1.0 - 2.0**-24], dtype=torch.float64))
        assert sorted(ends.tolist()) == [1, 10]


def test_the_solver_is_the_one_that_is_named() -> None:
    wanted = {"unipc": UniPC(), "euler": Euler(), "dpm": DPMSolver(), "rk4": RungeKutta()}
    assert {name: rule(sampler=name).solver for name in wanted} == wanted
    assert rule(order=3).solver == UniPC(order=3) and rule(sampler="dpm", order=1).solver == DPMSolver(order=1)
