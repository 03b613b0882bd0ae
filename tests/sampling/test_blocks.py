"""Blocks from left to right, and rows that end at an end token."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount, ScheduleCount, Threshold, shared_out
from onpath.sampling.grids import EvenGrid, UniformGrid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.remasking import Proofread
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule
from onpath.types import Batch
from statistical import chi_square_p
from tables import COUNTS, REMASKS, SAMPLERS
from worlds import HashDenoiser, read

WORDS, LENGTH = 6, 20
MASK = WORDS
PROCESS = Masking(CosineSchedule(), MASK)
BOUNDED = Masking(CosineSchedule(alpha_min=0.1, alpha_max=0.8), MASK)
KEY = Key(7, "sample")


def ragged(size: int = 6) -> Batch:
    """Prompts of 0 to 2·size tokens and something given further on."""
    given = torch.arange(LENGTH) < 2 * torch.arange(size)[:, None]
    given[:, 15] = True
    x = torch.randint(0, WORDS, (size, LENGTH), generator=torch.Generator().manual_seed(0))
    return Batch.of_tokens(x, torch.arange(size), given=given)


def place(batch: Batch, size: int) -> Tensor:
    """(B, L) the block of each free position, -1 elsewhere, one row after the other."""
    out = torch.full(batch.x.shape, -1)
    for row, free in enumerate(batch.free()):
        for rank, position in enumerate(free.nonzero()[:, 0].tolist()):
            out[row, position] = rank // size
    return out


def test_sharing_out_is_base_and_the_first_ones_one_more() -> None:
    for total in range(12):
        for parts in range(1, 9):
            sizes = [total // parts + (part < total % parts) for part in range(parts)]
            done = torch.arange(parts + 1)
            ours = shared_out(torch.full_like(done, total), torch.full_like(done, parts), done)
            assert ours.tolist() == [sum(sizes[:number]) for number in range(parts + 1)]


@pytest.mark.parametrize("process", [PROCESS, BOUNDED], ids=["exact ends", "bounds"])
@pytest.mark.parametrize("size", [3, 4, 7])
def test_blocks_go_from_left_to_right_with_even_counts(size: int, process: Masking) -> None:
    """Every step reveals in the block of its turn only, as many as the sharing out says; slowly, row by row."""
    batch, grid = ragged(), UniformGrid(11)
    states = list(walk(HashDenoiser(WORDS), process, Unmasking(blocks=Blocks(size)), grid, batch, KEY))
    num_steps, blocks = len(grid.times(process.schedule)) - 1, place(batch, size)
    for row in range(batch.size):
        free = int(batch.free()[row].sum())
        number = -(-free // size)
        if number == 1:
            continue
        plan: list[tuple[int, int]] = []  # (block, reveals) of each step
        for block in range(number):
            steps = num_steps // number + (block < num_steps % number)
            here = min(size, free - block * size)
            plan += [(block, here // steps + (step < here % steps)) for step in range(steps)]
        assert len(plan) == num_steps
        for (block, reveals), (before, after) in zip(plan, pairwise(states), strict=False):
            shown = before.masked[row] & ~after.masked[row]
            assert int(shown.sum()) == reveals and (blocks[row][shown] == block).all()
    assert not states[-1].masked.any()


ALIKE = [n for n in SAMPLERS if not any(word in n for word in ("blocks", "loop", "greedy", "top k", "nucleus"))]


@pytest.mark.parametrize("name", ALIKE)
def test_one_block_is_no_blocks(name: str) -> None:
    plain, batch = SAMPLERS[name], ragged()
    in_blocks = dataclasses.replace(plain, blocks=Blocks(LENGTH))
    one, two = (sample(HashDenoiser(WORDS), PROCESS, s, UniformGrid(5), batch, KEY) for s in (plain, in_blocks))
    assert torch.equal(one.x, two.x) and torch.equal(one.revealed_at, two.revealed_at)
    assert torch.equal(one.num_forwards, two.num_forwards)


@pytest.mark.parametrize("name", [n for n in REMASKS if n not in ("loop", "proofread")] + ["none"])
@pytest.mark.parametrize("count", COUNTS)
def test_no_later_block_is_touched_and_no_earlier_one(count: str, name: str) -> None:
    remask = REMASKS.get(name)
    if remask is not None and count not in ("schedule", "ancestral"):
        return
    sampler, batch = Unmasking(count=COUNTS[count], remask=remask, blocks=Blocks(4)), ragged()
    states = list(walk(HashDenoiser(WORDS), PROCESS, sampler, UniformGrid(25), batch, KEY))
    blocks, turn = place(batch, 4), torch.zeros(batch.size, dtype=torch.int64)
    for before, after in pairwise(states):
        for row in range(batch.size):
            changed = blocks[row][before.masked[row] != after.masked[row]].unique().tolist()
            if changed:
                assert len(changed) == 1 and changed[0] >= turn[row], "one block at a time, never back"
                turn[row] = changed[0]
                assert not before.masked[row][blocks[row] < turn[row]].any(), "the earlier ones are finished"
    assert not states[-1].masked.any()


def test_coins_of_a_block_fall_evenly_over_its_steps() -> None:
    batch = Batch.of_tokens(torch.zeros(3000, 8, dtype=torch.int64), torch.arange(3000))
    sampler = Unmasking(count=AncestralCount(), blocks=Blocks(4))
    state = sample(HashDenoiser(WORDS), PROCESS, sampler, UniformGrid(10), batch, KEY)
    for half in (0, 1):
        steps = state.revealed_at[:, 4 * half : 4 * half + 4] - 5 * half
        assert chi_square_p(torch.bincount(steps.flatten(), minlength=5), torch.full((5,), 2400.0)) > 1e-4


def test_adaptive_counts_go_on_when_a_block_is_finished() -> None:
    sure = HashDenoiser(WORDS, spread=0.0)
    sure.table[:, 1] = 50.0
    batch = Batch.of_tokens(torch.zeros(2, LENGTH, dtype=torch.int64), torch.arange(2))
    sampler = Unmasking(order="confidence", count=Threshold(0.9), blocks=Blocks(5))
    state = sample(sure, PROCESS, sampler, UniformGrid(40), batch, KEY)
    assert state.num_forwards.tolist() == [4, 4]  # a block each
    # and one that is never sure finishes each block in its turn
    states = list(walk(HashDenoiser(WORDS, spread=0.0), PROCESS, sampler, UniformGrid(8), batch, KEY))
    assert [int(s.masked[0].sum()) for s in states] == [20, 19, 15, 14, 10, 9, 5, 4, 0]


def test_reveals_by_row_stay_in_their_block() -> None:
    batch, reveal = ragged(), torch.tensor([1, 2, 3, 4, 5, 6])
    sampler = Unmasking(blocks=Blocks(4))
    states = list(walk(HashDenoiser(WORDS), PROCESS, sampler, UniformGrid(30), batch, KEY, Knobs(reveal=reveal)))
    blocks = place(batch, 4)
    for before, after in pairwise(states):
        shown = before.masked & ~after.masked
        assert (shown.sum(1) <= reveal).all()
        first = torch.where(before.masked, blocks, 99).amin(1, keepdim=True)
        assert (blocks[shown] == first.expand_as(blocks)[shown]).all()
    assert not states[-1].masked.any()


# --- end tokens -----------------------------------------------------------------------------------------------------

END = 5


class Ender(HashDenoiser):
    """Says the end token at position `end` of every row, and otherwise words below it."""

    def __init__(self, end: int) -> None:
        super().__init__(WORDS)
        self.end = end

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        self.forwards.append((x, t, rows))
        logits = torch.zeros(*x.shape, WORDS)
        logits[..., END] = -30.0
        logits[:, self.end, END] = 30.0
        return read(logits, rows, readout)


def finished(network: Any, sampler: Unmasking, batch: Batch, steps: int = 20) -> TokenState:
    return sample(network, PROCESS, sampler, EvenGrid(steps), batch, KEY)


@pytest.mark.parametrize("count", [ScheduleCount(), AncestralCount(), Threshold(0.9)], ids=["schedule", "coins", "tau"])
def test_a_finished_block_with_an_end_finishes_the_row(count: ScheduleCount) -> None:
    batch = ragged()
    sampler = Unmasking(count=count, blocks=Blocks(4), end_id=END)
    state = finished(Ender(12), sampler, batch)
    for row in range(batch.size):
        free = batch.free()[row]
        assert not state.masked[row].any()
        if free[12]:
            assert (state.x[row, 12:][free[12:]] == END).all()
            assert (state.confidence[row][free] > 0).all()
        assert (state.x[row, :12][free[:12]] != END).all()
    assert torch.equal(state.x[batch.given], batch.x[batch.given])
    whole = finished(Ender(12), dataclasses.replace(sampler, end_id=None), batch)
    assert (state.num_forwards[:5] < whole.num_forwards[:5]).all()
    never = dataclasses.replace(sampler, blocks=Blocks(4, stop_at_end=False))
    assert torch.equal(finished(Ender(12), never, batch).x, whole.x)


def test_without_blocks_the_stretch_up_to_an_end_must_be_revealed() -> None:
    batch = ragged()
    sampler = Unmasking(order="left_to_right", stop_at_end=True, end_id=END)
    state = finished(Ender(12), sampler, batch)
    assert (state.x[:, 12:][batch.free()[:, 12:]] == END).all()
    by_hand = 13 - batch.given[:, :13].sum(1)  # one position a step, up to the end token
    assert torch.equal(finished(Ender(12), sampler, batch, 40).num_forwards, by_hand)
    # in random order the rest waits for the stretch
    states = list(walk(Ender(3), PROCESS, Unmasking(stop_at_end=True, end_id=END), EvenGrid(20), batch, KEY))
    for before, after in pairwise(states):
        for row in range(batch.size):
            if after.masked[row].any():
                shown = (~after.masked[row]).long().cumprod(0).bool() & batch.free()[row]
                assert not (after.x[row][shown] == END).any()
            assert bool((after.masked[row] <= before.masked[row]).all())


def test_an_end_in_the_prompt_ends_nothing() -> None:
    x = torch.full((1, LENGTH), END)
    given = torch.arange(LENGTH)[None] < 4
    batch = Batch.of_tokens(x, torch.tensor([0]), given=given)
    for sampler in (Unmasking(blocks=Blocks(4), end_id=END), Unmasking(stop_at_end=True, end_id=END)):
        state = finished(Ender(19), sampler, batch)
        assert (state.x[0, 4:19] != END).all()


REFUSED = {
    "size": (lambda: Blocks(0), "size"),
    "steps": (lambda: finished(HashDenoiser(WORDS), Unmasking(blocks=Blocks(2)), ragged(), 5), "steps"),
    "no end": (lambda: finished(HashDenoiser(WORDS), Unmasking(stop_at_end=True), ragged()), "end_id"),
}


@pytest.mark.parametrize(("make", "word"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.usefixtures("unchecked")
def test_refusals(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()


def test_greedy_blocks_match_a_reference() -> None:
    """Confidence order within blocks, done slowly."""
    batch, network = ragged(), HashDenoiser(WORDS)
    sampler = Unmasking(order="confidence", tokens=Categorical(temperature=0.0), blocks=Blocks(5), remask=None)
    states = list(walk(network, PROCESS, sampler, UniformGrid(9), batch, KEY))
    blocks = place(batch, 5)
    for before, after in pairwise(states):
        probs = network(before.x, torch.zeros(batch.size), None).softmax(-1)
        for row in range(batch.size):
            shown = (before.masked[row] & ~after.masked[row]).nonzero()[:, 0].tolist()
            if not shown:
                continue
            block = blocks[row][shown[0]]
            here = (before.masked[row] & (blocks[row] == block)).nonzero()[:, 0].tolist()
            ranked = sorted(here, key=lambda p: -float(probs[row, p].max()))
            assert set(shown) == set(ranked[: len(shown)])
            assert all(int(after.x[row, p]) == int(probs[row, p].argmax()) for p in shown)


def test_proofreading_stays_in_its_block() -> None:
    network, batch = HashDenoiser(WORDS, with_mask=True), ragged()
    sampler = Unmasking(order="confidence", remask=Proofread(0.2), blocks=Blocks(5))
    blocks, again = place(batch, 5), 0
    for before, after in pairwise(walk(network, PROCESS, sampler, UniformGrid(20), batch, KEY)):
        changed = before.masked != after.masked
        again += int((after.masked & ~before.masked).sum())
        first = torch.where(before.masked, blocks, 99).amin(1, keepdim=True)
        assert (blocks[changed] == first.expand_as(blocks)[changed]).all()
    assert again > 3
