"""The bounds: denominators, what is scored, and the spread of the estimators. The numbers: test_enumerated_world.py."""

from __future__ import annotations

import pytest
import torch

from onpath.objectives.base import stratified
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.grids import UniformGrid
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch, Nets
from statistical import uniform_p
from worlds import HashDenoiser, read

WORDS, LENGTH = 5, 32
PROCESS = Masking(LinearSchedule(), WORDS)


def sequences(count: int, first: int = 0) -> Batch:
    one = torch.randint(0, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    return Batch.of_tokens(one.repeat(count, 1), torch.arange(first, first + count))


class Certain(HashDenoiser):
    """Sure of word 0 in proportion to the share of revealed positions, as a trained network would be."""

    def __call__(self, x, t, memo, *, rows=None, readout=None):
        logits = torch.zeros(*x.shape, WORDS)
        logits[..., 0] = 4 * (1 - t)[:, None]
        return read(logits, rows, readout)


def spread(masks: str, size: int) -> float:
    """Relative standard deviation of an estimate from one batch of copies of one sequence of zeros."""
    objective = ContinuousNELBO(PROCESS, masks=masks)
    x = torch.zeros(size, LENGTH, dtype=torch.int64)
    batch, nets = Batch.of_tokens(x, torch.arange(size)), Nets(Certain(WORDS))
    losses = torch.stack([objective(nets, batch, Key(1, "spread", step), 0).mean for step in range(100)])
    return float(losses.std() / losses.mean())


def test_low_variance_in_the_order_of_the_estimators() -> None:
    """32 passes each: coins, exact counts, exact counts in pairs (16 pairs)."""
    coins, counts, pairs = spread("bernoulli", 32), spread("counts", 32), spread("pairs", 16)
    assert pairs < counts < coins


def test_stratified_draws_are_uniform_and_even() -> None:
    draws = torch.cat([stratified(Key(3).at(step), torch.arange(40 * step, 40 * step + 40)) for step in range(200)])
    assert uniform_p((draws * 20).long(), 20) > 0.99  # more even than chance
    single = torch.cat([stratified(Key(3).at(step), torch.tensor([7])) for step in range(2000)])
    assert uniform_p((single * 20).long(), 20) > 1e-4
    for count in (8, 64, 1000):
        batch = stratified(Key(4), torch.arange(10**6, 10**6 + count)).sort().values
        gaps = torch.diff(batch, prepend=batch[-1:] - 1)
        assert float(gaps.max()) < 2.7 / count and float(gaps.min()) > 0.3 / count


def test_stratified_draws_do_not_depend_on_how_the_batch_is_cut() -> None:
    whole = stratified(Key(5), torch.arange(16))
    assert torch.equal(torch.cat([stratified(Key(5), torch.arange(8)), stratified(Key(5), torch.arange(8, 16))]), whole)


@pytest.mark.parametrize("masks", ["pairs", "counts"])
def test_no_estimate_masks_what_it_weighs_0(masks: str) -> None:
    """Every example has its weight: Σ over masked positions of weight has the mean L."""
    network = HashDenoiser(WORDS, spread=0.0)  # each masked position costs log V
    objective = ContinuousNELBO(PROCESS, masks=masks)
    losses = [float(objective(Nets(network), sequences(64), Key(2).at(s), 0).mean) for s in range(50)]
    # L/k·k and (L+1)/k·k: constant for counts; for pairs (L+1)/2·[k>0] + (L+1)/2·[k<L] has the mean L
    wanted = float(torch.tensor(WORDS).log())
    assert sum(losses) / 50 == pytest.approx(wanted, rel=1e-6 if masks == "counts" else 5e-3)


def test_bounds_are_refused_by_the_integral() -> None:
    with pytest.raises(ValueError, match="trajectory_nelbo"):
        ContinuousNELBO(Masking(CosineSchedule(alpha_min=0.01), WORDS))


@pytest.mark.parametrize("steps", [-1, 6])
def test_more_steps_than_the_grid_has_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="steps_per_example"):
        TrajectoryNELBO(PROCESS, UniformGrid(5), steps_per_example=steps)


def test_a_bounded_schedule_has_two_more_steps() -> None:
    bounded = Masking(CosineSchedule(alpha_min=0.1, alpha_max=0.9), WORDS)
    TrajectoryNELBO(bounded, UniformGrid(5), steps_per_example=7)
    with pytest.raises(ValueError, match="7 steps"):
        TrajectoryNELBO(bounded, UniformGrid(5), steps_per_example=8)


@pytest.mark.usefixtures("unchecked")
def test_unknown_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs, counts, bernoulli"):
        ContinuousNELBO(PROCESS, masks="some")


def test_units_of_the_metrics() -> None:
    loss = ContinuousNELBO(PROCESS)(Nets(HashDenoiser(WORDS)), sequences(4), Key(), 0)
    per_token, per_sequence = (
        total / count for total, count in (loss.metrics[n] for n in ("nelbo_per_token", "nelbo"))
    )
    assert float(per_sequence) == pytest.approx(float(per_token) * LENGTH)
    assert float(loss.mean) == pytest.approx(float(per_token))
