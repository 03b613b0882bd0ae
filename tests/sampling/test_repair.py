"""Correcting a text: doubted tokens are masked and filled, pass after pass, and the rest stays."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import Factor, ScheduleCount, Threshold
from onpath.sampling.loop import repair
from onpath.sampling.remasking import Cap, Proofread
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch
from worlds import RelativeDenoiser, read

WORDS, MASK, LENGTH, SIZE = 8, 8, 16, 6
PROCESS = Masking(LinearSchedule(), MASK)
KEY = Key(5, "repair")
GREEDY = Unmasking(remask=Proofread(), tokens=Categorical(temperature=0.0))


def truth(size: int = SIZE) -> Tensor:
    return torch.randint(0, WORDS, (size, LENGTH), generator=torch.Generator().manual_seed(1))


class Reader:
    """Knows the text (its condition), but sees a wrong token only where the one to its left is right."""

    def __init__(self, blind: bool = True) -> None:
        self.blind = blind
        self.forwards: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def encode(self, text: Tensor, padding: Tensor | None = None) -> Tensor:
        return text

    def __call__(self, x: Tensor, t: Tensor, memo: Tensor, *, rows: Any = None, readout: Any = None) -> Any:
        self.forwards.append((x, t, rows))
        logits = torch.zeros(*x.shape, WORDS + 1)
        logits.scatter_(2, memo[..., None], 6.0)
        wrong = (x != memo) & (x != MASK)
        if self.blind:
            wrong[:, 1:] &= (x == memo)[:, :-1]
        logits[..., MASK] = torch.where(wrong, 12.0, -12.0)
        return read(logits, rows, readout)


def spoilt(runs: list[list[int]]) -> Batch:
    """Texts with a wrong token at these positions of each row."""
    text = truth(len(runs))
    x = text.clone()
    for row, positions in enumerate(runs):
        for position in positions:
            x[row, position] = (x[row, position] + 1) % WORDS
    return Batch.of_tokens(x, torch.arange(len(runs)), cond={"text": text})


ERRORS = [[], [3], [3, 4], [3, 4, 5], [1, 9], [2, 3, 4, 5, 6]]


def last(network: Any, sampler: Unmasking, batch: Batch, passes: int) -> TokenState:
    return list(repair(network, PROCESS, sampler, batch, KEY, passes))[-1]


@pytest.mark.parametrize("passes", [1, 2, 3, 12])
def test_each_pass_reads_anew_what_the_one_before_has_filled(passes: int) -> None:
    """A run of n wrong tokens opens from its left end, one in two steps: read, fill, read, fill."""
    network, batch = Reader(), spoilt(ERRORS)
    states = list(repair(network, PROCESS, GREEDY, batch, KEY, passes))
    assert torch.equal(states[0].x, batch.x) and len(states) <= passes + 2
    wrong = (states[-1].x != truth()).sum(1).tolist()
    mended = (passes + 1) // 2
    assert wrong == [max(0, len(e) - (2 if e == [1, 9] else mended)) for e in ERRORS]
    assert not states[-1].masked.any()


def test_a_row_costs_nothing_once_it_was_read_without_a_doubt() -> None:
    network = Reader()
    state = last(network, GREEDY, spoilt(ERRORS), 30)
    # one reading finds a clean text clean; an error costs a reading, a filling, and a reading of what was filled
    assert state.num_forwards.tolist() == [1, 3, 5, 7, 3, 11]
    assert sum(len(x) for x, _, _ in network.forwards) == int(state.num_forwards.sum())
    assert len(network.forwards) == 11
    assert torch.equal(state.x, truth())


def test_given_positions_and_padding_are_kept() -> None:
    batch = spoilt(ERRORS)
    given, padding = torch.zeros_like(batch.x, dtype=torch.bool), torch.zeros_like(batch.x, dtype=torch.bool)
    given[:, 3], padding[:, 14:] = True, True
    kept = Batch.of_tokens(batch.x, batch.ids, given=given, padding=padding, cond=batch.cond)
    state = last(Reader(blind=False), GREEDY, kept, 5)
    assert torch.equal(state.x[given | padding], batch.x[given | padding])
    free = kept.free()
    assert torch.equal(state.x[free], truth()[free])


@pytest.mark.parametrize("count", [ScheduleCount(), Threshold(0.5), Factor(0.5)], ids=["all", "threshold", "factor"])
@pytest.mark.parametrize("order", ["random", "confidence", "left_to_right"])
def test_rows_are_their_own_and_the_seed_decides(count: ScheduleCount, order: str) -> None:
    sampler = Unmasking(order=order, count=count, remask=Proofread(0.25))
    network = RelativeDenoiser(WORDS, MASK, with_mask=True)
    x = truth()
    batch = Batch.of_tokens(x, torch.arange(SIZE))
    states = list(repair(network, PROCESS, sampler, batch, KEY, 5))
    assert not states[-1].masked.any() and (states[-1].x < WORDS).all()
    again = list(repair(network, PROCESS, sampler, batch, KEY, 5))[-1]
    assert torch.equal(again.x, states[-1].x)
    for row in (0, 5):
        one = list(repair(network, PROCESS, sampler, batch.rows(torch.tensor([row])), KEY, 5))[-1]
        assert torch.equal(one.x[0], states[-1].x[row])
        assert torch.equal(one.num_forwards[0], states[-1].num_forwards[row])
    # what is masked was doubted in the state before it
    for before, after in pairwise(states):
        p = network(before.x, torch.zeros(SIZE), network.encode()).softmax(-1)[..., MASK]
        flagged = after.masked & ~before.masked
        assert (p[flagged] > 0.25).all()
        assert torch.equal(after.x == MASK, after.masked)


def test_bounds_of_the_schedule_do_not_matter() -> None:
    bounded = Masking(CosineSchedule(alpha_min=0.1, alpha_max=0.8), MASK)
    one = list(repair(Reader(), bounded, GREEDY, spoilt(ERRORS), KEY, 4))
    two = list(repair(Reader(), PROCESS, GREEDY, spoilt(ERRORS), KEY, 4))
    assert all(torch.equal(a.x, b.x) for a, b in zip(one, two, strict=True))


REFUSED = {
    "no rule": (Unmasking(), 3, "Proofread"),
    "by chance": (Unmasking(remask=Cap()), 3, "Proofread"),
    "blocks": (Unmasking(remask=Proofread(), blocks=Blocks()), 3, "blocks"),
    "end": (Unmasking(remask=Proofread(), stop_at_end=True, end_id=1), 3, "stop_at_end"),
    "passes": (GREEDY, 0, "passes"),
}


@pytest.mark.parametrize(("sampler", "passes", "word"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.usefixtures("unchecked")
def test_refusals(sampler: Unmasking, passes: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        last(Reader(), sampler, spoilt(ERRORS), passes)
