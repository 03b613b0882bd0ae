"""Every sampler of the contract table: what it must leave alone, what it must finish, and what it may cost."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch

from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.counts import AncestralCount, ScheduleCount, Threshold
from onpath.sampling.grids import EvenGrid, UniformGrid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch
from tables import COUNTS, SAMPLERS
from worlds import HashDenoiser

SIZE, LENGTH, WORDS = 7, 9, 6
MASK = WORDS
PROCESS = Masking(CosineSchedule(), MASK)
BOUNDED = Masking(CosineSchedule(alpha_min=0.1, alpha_max=0.8), MASK)
KEY = Key(5, "sample")

CORE = {name: sampler for name, sampler in SAMPLERS.items() if name.endswith("plain") or "gumbel" in name}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
every_rule = pytest.mark.parametrize("sampler", CORE.values(), ids=CORE.keys())


def request(with_cond: bool = False) -> Batch:
    """Ragged: given positions inside, padding at the end, one row without any, one row with nothing to do."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(0, WORDS, (SIZE, LENGTH), generator=generator)
    given = torch.rand(SIZE, LENGTH, generator=generator) < 0.3
    padding = torch.arange(LENGTH) >= torch.tensor([9, 9, 8, 7, 5, 9, 9])[:, None]
    given[1], padding[1] = False, False
    given[5] = True
    cond = {"c": torch.arange(SIZE)} if with_cond else None
    return Batch.of_tokens(x, 100 + torch.arange(SIZE), given=given, padding=padding, cond=cond)


def free_request() -> Batch:
    return Batch.of_tokens(torch.zeros(SIZE, LENGTH, dtype=torch.int64), torch.arange(SIZE))


def run(sampler: Unmasking, batch: Batch | None = None, **options: Any) -> TokenState:
    network = options.get("network", HashDenoiser(WORDS))
    grid = options.get("grid", UniformGrid(5))
    batch = request() if batch is None else batch
    return sample(network, options.get("process", PROCESS), sampler, grid, batch, KEY, options.get("knobs"))


def same(one: TokenState, two: TokenState) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("x", "revealed_at", "confidence", "masked")
    )


# --- promises of every sampler ------------------------------------------------------------------------------------


@every_sampler
@pytest.mark.parametrize("process", [PROCESS, BOUNDED], ids=["exact ends", "bounds"])
def test_finishes_and_leaves_given_and_padded_positions_alone(sampler: Unmasking, process: Masking) -> None:
    batch = request()
    state = run(sampler, batch, process=process)
    free = batch.free()
    assert (state.x.shape, state.x.dtype) == (batch.x.shape, torch.int64)
    assert torch.equal(state.x[~free], batch.x[~free])
    assert (state.x[free] < WORDS).all() and (state.x[free] >= 0).all() and not state.masked.any()
    assert (state.revealed_at[~free] == -1).all() and (state.revealed_at[free] >= 0).all()
    assert (state.confidence[free] > 0).all() and (state.confidence <= 1).all()
    if state.num_masked is not None:
        assert (state.num_masked == 0).all()


@every_sampler
def test_a_network_with_a_logit_for_mask_never_emits_it(sampler: Unmasking) -> None:
    state = run(sampler, network=HashDenoiser(WORDS, with_mask=True, spread=8.0))
    assert (state.x[request().free()] != MASK).all()


@every_sampler
def test_same_key_same_output_and_nothing_is_changed(sampler: Unmasking) -> None:
    batch, before = request(), torch.get_rng_state()
    whole = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name != "cond"}
    tensors = {name: value.clone() for name, value in whole.items() if value is not None}
    assert same(run(sampler, batch), run(sampler, batch))
    assert all(torch.equal(getattr(batch, name), value) for name, value in tensors.items())
    assert torch.equal(torch.get_rng_state(), before)


@every_rule
def test_a_row_alone_is_the_row_of_a_batch(sampler: Unmasking) -> None:
    whole = run(sampler)
    for row in (0, 4, 5):
        index = torch.tensor([row])
        alone = run(sampler, request().rows(index))
        for name in ("x", "revealed_at", "confidence", "num_forwards"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[row]), f"{name} of row {row}"


@every_rule
def test_states_of_a_walk_are_steps_apart(sampler: Unmasking) -> None:
    """What is revealed stays; a state that was yielded is not written to by the next step."""
    states, copies = [], []
    for state in walk(HashDenoiser(WORDS), PROCESS, sampler, UniformGrid(5), request(), KEY):
        states.append(state)
        copies.append((state.x.clone(), state.masked.clone()))
    assert all(torch.equal(s.x, x) and torch.equal(s.masked, m) for s, (x, m) in zip(states, copies, strict=True))
    for step, (before, after) in enumerate(pairwise(states)):
        assert (after.masked <= before.masked).all()
        assert torch.equal(after.x[~before.masked], before.x[~before.masked])
        revealed = before.masked & ~after.masked
        assert (after.revealed_at[revealed] == step).all()
        assert ((after.x == MASK) == after.masked).all()


@every_rule
def test_time_is_the_masked_fraction_of_the_input(sampler: Unmasking) -> None:
    network = HashDenoiser(WORDS)
    batch = free_request()
    run(sampler, batch, network=network)
    for x, t, _ in network.forwards:
        torch.testing.assert_close(t, (x == MASK).float().mean(-1), rtol=0, atol=1e-7)


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "confidence", "left_to_right"])
@pytest.mark.parametrize("process", [PROCESS, BOUNDED], ids=["exact ends", "bounds"])
def test_fixed_counts_follow_the_schedule(order: str, process: Masking) -> None:
    grid, batch = UniformGrid(4), request()
    times = torch.tensor(grid.times(process.schedule), dtype=torch.float64)
    free = batch.free().sum(1)
    states = list(walk(HashDenoiser(WORDS), process, Unmasking(order=order), grid, batch, KEY))
    for time, state in zip(times, states, strict=False):
        wanted = (free.double() * float(process.schedule.mask_ratio(time)) + 0.5 - 1e-9).floor().long()
        assert torch.equal(state.masked.sum(1), wanted)
        assert torch.equal(state.num_masked, wanted)


def test_even_steps_reveal_the_same_number_each() -> None:
    batch = Batch.of_tokens(torch.zeros(2, 40, dtype=torch.int64), torch.arange(2))
    for process in (PROCESS, Masking(LinearSchedule(), MASK)):
        states = walk(HashDenoiser(WORDS), process, Unmasking(), EvenGrid(10), batch, KEY)
        assert [int(s.masked[0].sum()) for s in states] == list(range(40, -1, -4))


def test_left_to_right_goes_from_the_left() -> None:
    state = run(Unmasking(order="left_to_right"))
    for row in range(SIZE):
        steps = state.revealed_at[row][request().free()[row]]
        assert (steps.diff() >= 0).all()


def test_random_order_is_uniform() -> None:
    batch = Batch.of_tokens(torch.zeros(6000, 4, dtype=torch.int64), torch.arange(6000))
    state = sample(HashDenoiser(WORDS), Masking(LinearSchedule(), MASK), Unmasking(), UniformGrid(4), batch, KEY)
    code = (state.revealed_at * 4 ** torch.arange(4)).sum(1)
    _, counts = code.unique(return_counts=True)
    assert len(counts) == 24
    statistic = float(((counts - 250.0) ** 2 / 250).sum())
    assert statistic < 23 + 5 * (2 * 23) ** 0.5


@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize("count", ["schedule", "threshold", "factor", "entropy bound"])
def test_sighted_orders_equal_a_reference_by_row(order: str, count: str) -> None:
    """One greedy step of each row, done slowly: the best positions by their score, as many as the rule says."""
    sampler = Unmasking(order=order, count=COUNTS[count], tokens=Categorical(temperature=0.0))
    batch, network = request(), HashDenoiser(WORDS)
    before, after = list(walk(network, PROCESS, sampler, UniformGrid(5), batch, KEY))[:2]
    probs = network(before.x, torch.zeros(SIZE), None).double().softmax(-1)
    for row in range(SIZE):
        positions = before.masked[row].nonzero()[:, 0].tolist()
        info = {}
        for p in positions:
            top = probs[row, p].sort(descending=True).values
            entropy = float(-(probs[row, p] * probs[row, p].log()).sum())
            info[p] = {"confidence": float(top[0]), "margin": float(top[0] - top[1]), "entropy": entropy}
        ranked = sorted(positions, key=lambda p: info[p]["entropy"] if order == "entropy" else -info[p][order])
        if count == "schedule":
            number = len(positions) - int(after.masked[row].sum())
            chosen = set(ranked[:number])
        else:
            confidence = torch.tensor([[info[p]["confidence"] for p in ranked]])
            entropy = torch.tensor([[info[p]["entropy"] for p in ranked]])
            chosen = set()
            if ranked:
                admitted = COUNTS[count].admit(confidence, entropy)[0].tolist()
                chosen = {p for p, yes in zip(ranked, admitted, strict=True) if yes} | {ranked[0]}
        revealed = (before.masked[row] & ~after.masked[row]).nonzero()[:, 0].tolist()
        assert set(revealed) == chosen
        assert all(int(after.x[row, p]) == int(probs[row, p].argmax()) for p in revealed)


def test_order_noise_changes_the_order_and_vanishes_with_the_masked_fraction() -> None:
    plain = run(Unmasking(order="confidence"), free_request(), grid=UniformGrid(9))
    noisy = run(Unmasking(order="confidence", order_noise=50.0), free_request(), grid=UniformGrid(9))
    none = run(Unmasking(order="confidence", order_noise=1e-9), free_request(), grid=UniformGrid(9))
    assert not torch.equal(plain.revealed_at, noisy.revealed_at)
    assert torch.equal(plain.revealed_at, none.revealed_at)


def test_order_noise_does_not_depend_on_padding() -> None:
    sampler = Unmasking(order="confidence", order_noise=1.0)
    short, place = free_request(), torch.arange(3 * LENGTH).expand(SIZE, -1)
    padded = Batch.of_tokens(torch.zeros_like(place), short.ids, padding=place >= LENGTH)
    whole = run(sampler, short, grid=UniformGrid(9)).revealed_at
    assert torch.equal(run(sampler, padded, grid=UniformGrid(9)).revealed_at[:, :LENGTH], whole)


# --- settings by row ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_settings_by_row_equal_separate_calls(order: str) -> None:
    heat = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.0, 1.0, 3.0])
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 0.0, 1.0, 3.0])
    reveal = torch.tensor([1, 2, 3, 4, 1, 2, 9])
    sampler, batch = Unmasking(order=order), request(with_cond=True)
    whole = run(sampler, batch, knobs=Knobs(heat, weight, reveal))
    for row in range(SIZE):
        index = torch.tensor([row])
        alone = run(sampler, batch.rows(index), knobs=Knobs(heat[index], weight[index], reveal[index]))
        assert torch.equal(alone.x[0], whole.x[row]) and torch.equal(alone.revealed_at[0], whole.revealed_at[row])
        fields = {"order": order, "tokens": Categorical(float(heat[row])), "guidance": float(weight[row])}
        fixed = run(Unmasking(**fields), batch.rows(index), knobs=Knobs(reveal=reveal[index]))
        assert torch.equal(fixed.x[0], whole.x[row])


def test_reveal_counts_by_row() -> None:
    batch, reveal = free_request(), torch.tensor([1, 2, 3, 4, 5, 9, 99])
    states = list(walk(HashDenoiser(WORDS), PROCESS, Unmasking(), UniformGrid(4), batch, KEY, Knobs(reveal=reveal)))
    for step, state in enumerate(states[:-1]):
        assert torch.equal(state.masked.sum(1), (LENGTH - step * reveal).clamp_min(0))
    assert not states[-1].masked.any()


@pytest.mark.parametrize("count", [ScheduleCount(), AncestralCount()], ids=["schedule", "ancestral"])
def test_times_by_row_equal_separate_steps(count: ScheduleCount) -> None:
    """One step takes each row from its own t to its own s."""
    sampler, batch, network = Unmasking(count=count), free_request(), HashDenoiser(WORDS)
    t = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], dtype=torch.float64)
    s = torch.tensor([0.5, 0.8, 0.1, 0.0, 0.59, 0.2, 0.3], dtype=torch.float64)
    start = sampler.init(PROCESS, network, PROCESS.prior(batch), batch, Knobs())
    whole = sampler.step(PROCESS, network, start, (t, s), KEY, Knobs())
    for row in range(SIZE):
        index = torch.tensor([row])
        part = sampler.step(PROCESS, network, start.rows(index), (float(t[row]), float(s[row])), KEY, Knobs())
        assert torch.equal(part.x[0], whole.x[row])
    assert not whole.masked[3].any()


# --- what it costs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "left_to_right"])
def test_the_head_runs_at_the_revealed_rows_only(order: str) -> None:
    network, batch = HashDenoiser(WORDS), request()
    run(Unmasking(order=order), batch, network=network)
    assert network.num_read == int(batch.free().sum())  # each free position is read once in all


def test_the_head_runs_at_masked_rows_only_where_all_must_be_seen() -> None:
    network, batch = HashDenoiser(WORDS), request()
    run(Unmasking(order="confidence"), batch, network=network)
    for x, _, rows in network.forwards:
        assert torch.equal(rows, (x == MASK).flatten().nonzero()[:, 0])


@pytest.mark.parametrize("name", ["threshold", "factor", "entropy bound", "ancestral", "schedule"])
def test_finished_rows_cost_nothing(name: str) -> None:
    network, batch = HashDenoiser(WORDS, spread=6.0), request()
    sampler = Unmasking(count=COUNTS[name])
    state = run(sampler, batch, network=network, grid=UniformGrid(12))
    for x, _, _ in network.forwards:
        assert (x == MASK).any(1).all(), "a finished row went through the network"
    assert int(state.num_forwards.sum()) == sum(len(x) for x, _, _ in network.forwards)
    assert int(state.num_forwards[5]) == 0  # nothing was to be done there


def test_steps_that_reveal_nothing_are_not_forwarded() -> None:
    network, batch = HashDenoiser(WORDS), free_request()
    state = run(Unmasking(), batch, network=network, grid=UniformGrid(100))
    assert len(network.forwards) <= LENGTH
    assert (state.num_forwards <= LENGTH).all() and not state.masked.any()


def test_an_easy_row_needs_one_forward() -> None:
    network = HashDenoiser(WORDS, spread=0.0)
    network.table[:, 2] = 50.0
    state = run(Unmasking(order="confidence", count=Threshold(0.9)), request(), network=network)
    assert len(network.forwards) == 1
    assert (state.x[request().free()] == 2).all()


def test_guided_rows_count_two_forwards_and_share_one_call() -> None:
    network = HashDenoiser(WORDS)
    state = run(Unmasking(guidance=1.0), request(with_cond=True), network=network, grid=UniformGrid(3))
    rows = [len(x) for x, _, _ in network.forwards]
    assert sum(rows) == int(state.num_forwards.sum()) and all(number % 2 == 0 for number in rows)


@pytest.mark.parametrize("order", ["random", "confidence"])
def test_any_tree_of_memos_keeps_both_branches_of_a_row_together(order: str) -> None:
    class Nested(HashDenoiser):
        """A first leaf of None must not tell guided rows from others."""

        def encode(self, **cond: torch.Tensor) -> Any:
            return None, (super().encode(**cond),)

        def __call__(self, x: torch.Tensor, t: torch.Tensor, memo: Any, **options: Any) -> Any:
            assert len(memo[1][0]) == len(x)
            return super().__call__(x, t, memo[1][0], **options)

    sampler, batch = Unmasking(order=order, guidance=1.0), request(with_cond=True)
    plain, nested = (run(sampler, batch, network=kind(WORDS)) for kind in (HashDenoiser, Nested))
    assert same(plain, nested)


def test_encoding_runs_once() -> None:
    class Counting(HashDenoiser):
        encoded = 0

        def encode(self, **cond: torch.Tensor) -> Any:
            self.encoded += 1
            return super().encode(**cond)

    network = Counting(WORDS)
    run(Unmasking(count=Threshold(0.6)), request(with_cond=True), network=network)
    assert network.encoded == 1


def test_guidance_without_conditions_hides_the_given_tokens() -> None:
    """Branches: with the prompt as it is, and with the prompt masked; the output keeps the prompt."""
    network, batch = HashDenoiser(WORDS), request()
    state = run(Unmasking(guidance=0.5), batch, network=network, grid=UniformGrid(1))
    x, _, _ = network.forwards[0]
    rows = len(x) // 2
    with_work = batch.free().any(1)
    given = batch.given[with_work]
    assert (x[rows:][given] == MASK).all() and torch.equal(x[:rows][given], batch.x[with_work][given])
    assert torch.equal(state.x[batch.given], batch.x[batch.given])


REFUSED = {
    "order": (lambda: Unmasking(order="best"), "order"),
    "ancestral": (lambda: Unmasking(order="confidence", count=AncestralCount()), "ancestral"),
    "blind noise": (lambda: Unmasking(order="random", order_noise=1.0), "order_noise"),
    "negative noise": (lambda: Unmasking(order="confidence", order_noise=-1.0), "order_noise"),
    "reveal": (lambda: run(Unmasking(count=Threshold()), knobs=Knobs(reveal=torch.ones(SIZE).long())), "reveal"),
    "guidance": (lambda: run(Unmasking(guidance=1.0), free_request()), "guidance"),
}


@pytest.mark.parametrize(("make", "word"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.usefixtures("unchecked")
def test_refusals(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
