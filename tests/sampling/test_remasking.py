"""Rules that mask again: their formulas, the marginals they keep, and what they may touch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from onpath.processes.masking import Masking, remask_limit, reveal_chance
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount, ScheduleCount, Threshold
from onpath.sampling.grids import EvenGrid, UniformGrid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.remasking import ByConfidence, Cap, Loop, Proofread, RandomRemask, Rescale
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch
from statistical import assert_mean
from tables import REMASKS
from worlds import HashDenoiser, RelativeDenoiser, read

WORDS, LENGTH = 6, 24
MASK = WORDS
PROCESS = Masking(CosineSchedule(), MASK)
KEY = Key(3, "sample")

RANDOM = {name: rule for name, rule in REMASKS.items() if isinstance(rule, RandomRemask)}
every_random_rule = pytest.mark.parametrize("rule", RANDOM.values(), ids=RANDOM.keys())


def blank(size: int, length: int = LENGTH) -> Batch:
    return Batch.of_tokens(torch.zeros(size, length, dtype=torch.int64), torch.arange(size))


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_limit_and_chance_are_those_of_the_paper() -> None:
    alpha_t, alpha_s = double(0.0, 0.1, 0.5, 0.9), double(0.1, 0.5, 0.9, 1.0)
    limit = remask_limit(1 - alpha_t, 1 - alpha_s)
    torch.testing.assert_close(limit, double(1.0, 1.0, 0.2, 0.0))
    for share in (0.0, 0.3, 1.0):
        sigma = share * limit
        chance = reveal_chance(1 - alpha_t, 1 - alpha_s, sigma)
        torch.testing.assert_close(chance, (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t))
        assert (chance >= 0).all() and (chance <= 1 + 1e-12).all()
    assert float(remask_limit(double(1.0), double(0.4))) == 1.0
    assert float(reveal_chance(double(0.0), double(0.0), 0.3)) == 0.0


def test_shares_are_those_of_the_paper() -> None:
    limit, some = double(0.004, 0.5, 1.0), double(3, 4, 0)
    times = (double(0.5, 0.5, 0.5), double(0.4, 0.4, 0.4))
    assert Cap().sigma(limit, some, times).tolist() == [0.004, 0.008, 0.008]
    torch.testing.assert_close(Rescale().sigma(limit, some, times), 0.015 * limit)
    torch.testing.assert_close(ByConfidence().sigma(limit, some, times), double(0.004 / 3, 0.125, 0.0))
    confidence, shown = torch.tensor([[0.9, 0.1, 0.5, 0.3]]), torch.tensor([[True, True, False, True]])
    each = ByConfidence().sigma(double(0.5), double(3), (double(0.5), double(0.4))) * ByConfidence().weights(
        confidence, shown
    )
    psi = torch.tensor([0.9, 0.1, torch.inf, 0.3])
    torch.testing.assert_close(each[0].double(), 0.5 * (-psi).double().softmax(0), rtol=1e-6, atol=0)


def test_loop_follows_its_three_parts() -> None:
    """Linear schedule: alpha goes to .9 at .55 in equal parts, rests, and goes on to 1 from .05."""
    rule, schedule = Loop(), LinearSchedule()
    t = double(2.0, 1.0, 0.775, 0.55, 0.3, 0.05, 0.025, 0.0, -1.0)
    ratio = rule.mask_ratio(schedule, t)
    torch.testing.assert_close(ratio, double(1.0, 1.0, 0.55, 0.1, 0.1, 0.1, 0.05, 0.0, 0.0))
    limit, some = torch.full((4,), 0.11, dtype=torch.float64), double(9, 9, 9, 9)
    times = (double(0.56, 0.55, 0.06, 0.05), double(0.54, 0.54, 0.05, 0.04))
    assert rule.sigma(limit, some, times).tolist() == [0.0, 0.02, 0.02, 0.0]
    # any schedule: alpha rests at .9
    held = Loop().mask_ratio(CosineSchedule(), double(0.55, 0.3, 0.05))
    torch.testing.assert_close(held, double(0.1, 0.1, 0.1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["cap", "rescale"])
@pytest.mark.parametrize("count", [ScheduleCount(), AncestralCount()], ids=["schedule", "ancestral"])
def test_a_share_of_0_is_no_remasking(name: str, count: ScheduleCount) -> None:
    rule = Cap(0.0) if name == "cap" else Rescale(0.0)
    one, two = (
        sample(HashDenoiser(WORDS), PROCESS, Unmasking(count=count, remask=r), UniformGrid(9), blank(20), KEY)
        for r in (None, rule)
    )
    assert torch.equal(one.x, two.x) and torch.equal(one.revealed_at, two.revealed_at)


@every_random_rule
@pytest.mark.parametrize("order", ["random", "confidence", "left_to_right"])
def test_counts_are_those_of_the_schedule(rule: RandomRemask, order: str) -> None:
    """Whatever is masked again, the schedule's number stays masked, and the host knows it."""
    grid, batch = UniformGrid(12), blank(30)
    times = double(*grid.times(PROCESS.schedule))
    states = list(walk(HashDenoiser(WORDS), PROCESS, Unmasking(order=order, remask=rule), grid, batch, KEY))
    again = 0
    for time, state in zip(times, states, strict=False):
        wanted = (LENGTH * float(rule.mask_ratio(PROCESS.schedule, time[None])) + 0.5 - 1e-9) // 1
        assert (state.masked.sum(1) == wanted).all() and torch.equal(state.num_masked, state.masked.sum(1))
        assert torch.equal(state.x == MASK, state.masked)
    for before, after in pairwise(states):
        again += int((after.masked & ~before.masked).sum())
    assert again > 20


@pytest.mark.parametrize("rule", [Cap(0.15), Rescale(0.4)], ids=["cap", "rescale"])
def test_coins_keep_the_marginals(rule: RandomRemask) -> None:
    """At every time each position is masked with the mask ratio, independently: the number is binomial."""
    process, size, grid = Masking(LinearSchedule(), MASK), 3000, UniformGrid(6)
    sampler = Unmasking(count=AncestralCount(), remask=rule)
    states = list(walk(HashDenoiser(WORDS), process, sampler, grid, blank(size, 10), KEY))
    assert len(states) == 7
    for time, state in zip(grid.times(process.schedule), states, strict=True):
        if 0 < time < 1:
            assert_mean(state.masked.double().flatten(), time)
            number = state.masked.sum(1).double()
            assert float(number.var()) == pytest.approx(10 * time * (1 - time), rel=0.12)
    for (before, after), (t, s) in zip(pairwise(states), pairwise(grid.times(process.schedule)), strict=True):
        shown = ~before.masked
        sigma = rule.sigma(remask_limit(double(t), double(s)), double(1), (double(t), double(s)))
        if shown.any():
            assert_mean(after.masked[shown].double(), float(sigma))


def test_by_confidence_keeps_the_expected_number_and_prefers_the_unsure() -> None:
    process, grid = Masking(LinearSchedule(), MASK), UniformGrid(8)
    network = HashDenoiser(WORDS, spread=3.0)
    for count in (ScheduleCount(), AncestralCount()):
        sampler = Unmasking(count=count, remask=ByConfidence())
        states = list(walk(network, process, sampler, grid, blank(1500, 16), KEY))
        low, all_shown = [], []
        for state, time in zip(states, grid.times(process.schedule), strict=False):
            if 0 < time < 1:
                assert float(state.masked.double().mean()) == pytest.approx(time, abs=0.02)
        for before, after in pairwise(states):
            shown, again = ~before.masked, after.masked & ~before.masked
            low.append(before.confidence[again])
            all_shown.append(before.confidence[shown])
        assert float(torch.cat(low).mean()) < float(torch.cat(all_shown).mean()) - 0.01


def test_fixed_numbers_mask_the_share_in_the_mean() -> None:
    process, grid, rule = Masking(LinearSchedule(), MASK), UniformGrid(8), Cap(0.05)
    states = list(walk(HashDenoiser(WORDS), process, Unmasking(remask=rule), grid, blank(2000, 16), KEY))
    for before, after in pairwise(states[1:-1]):
        number = (after.masked & ~before.masked).sum(1).double()
        shown = float((~before.masked).sum(1)[0])
        assert number.unique().numel() <= 2
        assert_mean(number, 0.05 * shown)


@every_random_rule
def test_a_revealed_position_is_masked_again_and_revealed_anew(rule: RandomRemask) -> None:
    states = list(walk(HashDenoiser(WORDS), PROCESS, Unmasking(remask=rule), EvenGrid(20), blank(10), KEY))
    for step, (before, after) in enumerate(pairwise(states)):
        again, shown = after.masked & ~before.masked, before.masked & ~after.masked
        assert (after.revealed_at[again] == -1).all() and (after.confidence[again] == 0).all()
        assert (after.revealed_at[shown] == step).all() and (after.confidence[shown] > 0).all()
        same = before.masked == after.masked
        assert torch.equal(after.x[same], before.x[same])
    assert not states[-1].masked.any()


# --- proofreading ---------------------------------------------------------------------------------------------------


class Doubter(RelativeDenoiser):
    """Doubts every token but word 2, which is somewhat likelier than the others."""

    def __call__(self, x, t, memo, *, rows=None, readout=None):
        self.forwards.append((x, t, rows))
        logits = torch.zeros(*x.shape, MASK + 1)
        logits[..., 2] = 1.0
        doubt = (x != 2) & (x != MASK)
        logits[..., MASK] = torch.where(doubt, 6.0, -6.0)
        return read(logits, rows, readout)


@pytest.mark.parametrize("count", [ScheduleCount(), Threshold(0.2)], ids=["schedule", "threshold"])
def test_proofreading_masks_again_what_the_network_doubts(count: ScheduleCount) -> None:
    network = Doubter(WORDS, MASK)
    sampler = Unmasking(count=count, remask=Proofread())
    states = list(walk(network, PROCESS, sampler, EvenGrid(30), blank(20), KEY))
    again = 0
    for before, after in pairwise(states):
        flagged = after.masked & ~before.masked
        assert (before.x[flagged] != 2).all()
        again += int(flagged.sum())
    assert again > 50
    plain = sample(network, PROCESS, Unmasking(count=count), EvenGrid(30), blank(20), KEY)
    assert float((states[-1].x == 2).double().mean()) > float((plain.x == 2).double().mean()) + 0.1


def test_proofreading_keeps_the_schedule_and_masks_the_most_doubtful() -> None:
    network = RelativeDenoiser(WORDS, MASK, with_mask=True)
    grid, batch = UniformGrid(8), blank(40, 12)
    sampler = Unmasking(remask=Proofread(0.15))
    states = list(walk(network, PROCESS, sampler, grid, batch, KEY))
    for time, state in zip(grid.times(PROCESS.schedule), states, strict=False):
        wanted = (12 * float(PROCESS.schedule.mask_ratio(double(time))) + 0.5 - 1e-9) // 1
        assert (state.masked.sum(1) == wanted).all() and torch.equal(state.num_masked, state.masked.sum(1))
    for before, after in pairwise(states[1:]):
        if (after.masked.sum(1) == before.masked.sum(1)).all():
            continue
        p = network(before.x, torch.zeros(40), network.encode()).softmax(-1)[..., MASK]
        again = after.masked & ~before.masked
        flagged = ~before.masked & (p > 0.15)
        number = torch.minimum(flagged.sum(1), after.masked.sum(1))
        assert torch.equal(again.sum(1), number) and not (again & ~flagged).any()
        least = torch.where(again, p, 2.0).amin(1)
        assert (torch.where(flagged & ~again, p, 0.0).amax(1) <= least).all()


@pytest.mark.usefixtures("unchecked")
def test_proofreading_needs_a_logit_for_mask() -> None:
    with pytest.raises(ValueError, match="masking_penalties"):
        sample(HashDenoiser(WORDS), PROCESS, Unmasking(remask=Proofread()), UniformGrid(3), blank(2), KEY)


REFUSED = {
    "cap eta": (lambda: Cap(1.5), "eta"),
    "rescale eta": (lambda: Rescale(-0.1), "eta"),
    "loop hold": (lambda: Loop(hold=2.0), "hold"),
    "loop times": (lambda: Loop(start=0.1, stop=0.5), "start"),
    "proofread": (lambda: Proofread(1.0), "threshold"),
    "adaptive": (lambda: Unmasking(count=Threshold(), remask=Cap()), "proofread"),
    "coins": (lambda: Unmasking(count=AncestralCount(), remask=Proofread()), "schedule"),
    "loop and blocks": (lambda: Unmasking(remask=Loop(), blocks=Blocks()), "Loop"),
    "loop and bounds": (
        lambda: Loop().mask_ratio(CosineSchedule(alpha_max=0.8), double(0.5)),
        "alpha",
    ),
    "reveal": (
        lambda: sample(
            HashDenoiser(WORDS),
            PROCESS,
            Unmasking(remask=Cap()),
            UniformGrid(2),
            blank(2),
            KEY,
            Knobs(reveal=torch.ones(2).long()),
        ),
        "reveal",
    ),
}


@pytest.mark.parametrize(("make", "word"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.usefixtures("unchecked")
def test_refusals(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
