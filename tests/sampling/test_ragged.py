"""The contract of text samplers: every schedule, sampler, remasking rule and block size, on ragged batches.

The full product is too long; each pair of choices occurs in some case of the table.
"""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import Any

import pytest
import torch

from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount, EntropyBound, Factor, ScheduleCount, Threshold
from onpath.sampling.grids import EvenGrid, UniformGrid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.remasking import ByConfidence, Cap, Loop, Proofread, Rescale
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule, LinearSchedule, MaskGITCosineSchedule, PolynomialSchedule
from onpath.types import Batch
from worlds import RelativeDenoiser

WORDS, LENGTH, SIZE = 6, 14, 5
MASK = 7  # an id between words and mask is nearly impossible
KEY = Key(11, "sample")

CHOICES: dict[str, list[Any]] = {
    "schedule": [
        LinearSchedule(),
        CosineSchedule(),
        MaskGITCosineSchedule(alpha_min=0.05, alpha_max=0.95),
        PolynomialSchedule(),
    ],
    "order": ["random", "confidence", "margin", "entropy", "left_to_right"],
    "count": [ScheduleCount(), AncestralCount(), Threshold(0.6), Factor(1.5), EntropyBound(1.0)],
    "tokens": [Categorical(), Categorical(temperature=0.0), Categorical(temperature=0.8, top_p=0.9)],
    "remask": [None, Cap(0.2), Rescale(0.3), ByConfidence(), Loop(alpha=0.7, hold=0.2), Proofread(0.25)],
    "blocks": [None, Blocks(4), Blocks(3)],
    "guidance": [0.0, 1.0],
}


def fits(case: dict[str, Any]) -> bool:
    """Whether the sampler can be made; which combinations are refused is tested with their reasons elsewhere."""
    try:
        sampler_of(case)
    except ValueError:
        return False
    return True


def sampler_of(case: dict[str, Any]) -> Unmasking:
    return Unmasking(**{name: value for name, value in case.items() if name != "schedule"})


def covering() -> list[dict[str, Any]]:
    """Cases in which every pair of choices that can go together occurs, chosen greedily."""
    names = list(CHOICES)
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*CHOICES.values())]
    every = [case for case in every if fits(case)]
    pairs = [{(a, str(case[a]), b, str(case[b])) for a, b in itertools.combinations(names, 2)} for case in every]
    generator, left, chosen = torch.Generator().manual_seed(0), set().union(*pairs), []
    while left:
        sample = torch.randint(0, len(every), (300,), generator=generator).tolist()
        best = max(sample, key=lambda index: len(pairs[index] & left))
        if not pairs[best] & left:
            best = next(index for index, found in enumerate(pairs) if found & left)
        chosen.append(every[best])
        left -= pairs[best]
    return chosen


CASES = covering()
every_case = pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))


def request(pad_left: bool) -> Batch:
    """Rows of 14, 11, 9, 14 and 6 tokens, prompts of several lengths and infills, padded on one side with nonsense."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(0, WORDS, (SIZE, LENGTH), generator=generator)
    lengths = torch.tensor([14, 11, 9, 14, 6])[:, None]
    position = torch.arange(LENGTH).expand(SIZE, -1)
    own = position - (LENGTH - lengths) if pad_left else position  # counted from the first token
    padding = (own < 0) | (own >= lengths)
    given = ((own < torch.tensor([2, 0, 3, 1, 2])[:, None]) | (own == 5)) & ~padding
    tokens = torch.where(padding, 3, x.gather(1, own.clamp(0, LENGTH - 1)))
    return Batch.of_tokens(tokens, 40 + torch.arange(SIZE), given=given, padding=padding)


def alone(batch: Batch, row: int) -> Batch:
    keep = ~batch.padding[row]
    x, given = batch.x[row : row + 1, keep], batch.given[row : row + 1, keep]
    return Batch.of_tokens(x, batch.ids[row : row + 1], given=given)


def run(case: dict[str, Any], batch: Batch, knobs: Knobs | None = None) -> TokenState:
    network = RelativeDenoiser(WORDS, MASK, with_mask=True)
    network.table[:, WORDS:MASK] = -60.0
    return sample(network, Masking(case["schedule"], MASK), sampler_of(case), UniformGrid(5), batch, KEY, knobs)


@every_case
def test_contract(case: dict[str, Any]) -> None:
    """Prompts kept, no masks left, the same by the same seed, and each row of a ragged batch as it is alone."""
    whole = {side: run(case, request(side)) for side in (True, False)}
    for side, state in whole.items():
        batch = request(side)
        free = batch.free()
        assert torch.equal(state.x[~free], batch.x[~free])
        assert not state.masked.any() and (state.x[free] < WORDS).all()
        assert (state.revealed_at[free] >= 0).all() and (state.revealed_at[~free] == -1).all()
        if state.num_masked is not None:
            assert not state.num_masked.any()
    for row in (2, 4):  # a second run of the same seed, too
        one = run(case, alone(request(True), row))
        for side, state in whole.items():
            keep = ~request(side).padding[row]
            assert torch.equal(state.x[row, keep], one.x[0]), f"tokens of row {row}, padded left: {side}"
            assert torch.equal(state.revealed_at[row, keep], one.revealed_at[0])
            assert int(state.num_forwards[row]) == int(one.num_forwards[0])


def test_the_table_holds_every_choice() -> None:
    for name, values in CHOICES.items():
        for value in values:
            assert any(case[name] == value for case in CASES), f"{name} {value}"
    assert len(CASES) < 80


@pytest.mark.parametrize("count", [ScheduleCount(), AncestralCount()], ids=["schedule", "ancestral"])
@pytest.mark.parametrize("remask", [None, Cap(0.2)], ids=["plain", "cap"])
def test_forwards_are_the_steps_at_which_something_is_revealed(count: ScheduleCount, remask: Cap | None) -> None:
    """Random order over many steps: a row goes through the network in these steps only, and in each of them."""
    network, batch = RelativeDenoiser(WORDS, MASK), request(True)
    sampler = Unmasking(count=count, remask=remask)
    states = list(walk(network, Masking(LinearSchedule(), MASK), sampler, UniformGrid(40), batch, KEY))
    steps = torch.zeros(SIZE, dtype=torch.int64)
    for before, after in pairwise(states):
        steps += (before.masked & ~after.masked).any(1)
    assert torch.equal(states[-1].num_forwards, steps)
    assert sum(len(x) for x, _, _ in network.forwards) == int(steps.sum())
    read = sum(len(rows) for _, _, rows in network.forwards)
    assert read == sum(int((a.masked & ~b.masked).sum()) for a, b in pairwise(states))
    if remask is None:
        assert int(steps.sum()) == sum(len(row[row >= 0].unique()) for row in states[-1].revealed_at)


def test_settings_by_row_on_the_left_and_on_the_right() -> None:
    knobs = Knobs(temperature=torch.tensor([0.0, 0.5, 1.0, 2.0, 1.0]), reveal=torch.tensor([1, 2, 3, 2, 9]))
    case = {"schedule": LinearSchedule(), "order": "confidence", "order_noise": 1.0}
    left, right = (run(case, request(side), knobs) for side in (True, False))
    for row in range(SIZE):
        (one,), (two,) = (request(side).padding[row : row + 1] for side in (True, False))
        assert torch.equal(left.x[row, ~one], right.x[row, ~two])


def test_corruption_does_not_depend_on_padding() -> None:
    process, left, right = Masking(LinearSchedule(), MASK), request(True), request(False)
    t = torch.linspace(0.2, 0.9, SIZE)
    count = torch.tensor([3, 4, 2, 7, 1])
    for one, two in (
        (process.corrupt(left, t, KEY), process.corrupt(right, t, KEY)),
        (process.corrupt_count(left, count, KEY), process.corrupt_count(right, count, KEY)),
    ):
        for row in range(SIZE):
            own = alone(left, row)
            keep, other = ~left.padding[row], ~right.padding[row]
            assert torch.equal(one.x[row, keep], two.x[row, other])
            solo = process.corrupt(own, t[row : row + 1], KEY)
            if one.num_masked is None:
                assert torch.equal(solo.x[0], one.x[row, keep])


def test_guidance_without_conditions_hides_the_prompt_with_every_addition() -> None:
    batch = request(True)
    for options in ({"remask": Cap(0.3)}, {"blocks": Blocks(4)}, {"remask": Rescale(0.3), "blocks": Blocks(4)}):
        network = RelativeDenoiser(WORDS, MASK)
        sampler = Unmasking(guidance=1.5, **options)
        state = sample(network, Masking(LinearSchedule(), MASK), sampler, EvenGrid(9), batch, KEY)
        assert torch.equal(state.x[batch.given], batch.x[batch.given]) and not state.masked.any()
        for x, t, _ in network.forwards:
            half = len(x) // 2
            shown, bare = x[:half], x[half:]
            differs = shown != bare
            assert (bare[differs] == MASK).all() and differs.any() and torch.equal(t[:half], t[half:])
        assert (state.num_forwards % 2 == 0).all()
