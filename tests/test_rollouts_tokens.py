"""States that a model of tokens reaches by itself: what is kept, which draws are made, what a rollout teaches.

In an enumerated world, with the exact posterior and one reveal at a time, rollouts end in the states of the forward
process. What is then trained on them is not the same, for the text that they began from is another; the price is
computed beforehand too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from onpath.build import build
from onpath.config import RunConfig, override
from onpath.objectives.base import score_masked, stack_noisy
from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.rollouts import DrawnStates, TokenRollouts, draw_state
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount, Threshold
from onpath.sampling.remasking import Cap
from onpath.sampling.solvers import Euler
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Nets, Noisy
from statistical import assert_mean, chi_square_p
from tables import SCHEDULES
from tiny import CONFIG, tiny_job, tiny_parts
from worlds import HashDenoiser, TableDenoiser, World, read

WORDS, LENGTH = 5, 12
MASK = WORDS
PROCESS = Masking(LinearSchedule(), MASK)
RULE = ScheduledSampling(max_step_offset=4, grid_steps=10, probability=0.7)
ALWAYS = replace(RULE, probability=1.0)
KEY = Key(3, "test", 5)


def ragged(size: int = 8, first: int = 50) -> Batch:
    """Prompts, padding, one row without either and one with nothing to score; a condition."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, WORDS, (size, LENGTH), generator=generator)
    given = torch.rand(size, LENGTH, generator=generator) < 0.3
    padding = torch.arange(LENGTH) >= torch.randint(6, LENGTH + 1, (size, 1), generator=generator)
    given[2], padding[2], given[3] = False, False, True
    x = x.masked_fill(padding, 10**6)
    ids = torch.arange(first, first + size)
    return Batch.of_tokens(x, ids, given=given, padding=padding, cond={"c": torch.arange(size)})


def blank(size: int, length: int = LENGTH) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch.of_tokens(torch.randint(0, WORDS, (size, length), generator=generator), torch.arange(size))


def state_of(batch: Batch, share: float = 0.4, process: Masking = PROCESS) -> Noisy:
    return process.corrupt_count(batch, (batch.free_counts() * share).ceil().long(), KEY.fold("corrupt"))


def drawn(
    batch: Batch,
    state: Noisy,
    rule: ScheduledSampling = RULE,
    network: Any = None,
    sampler: Unmasking | None = None,
    process: Masking = PROCESS,
) -> DrawnStates:
    rollouts = TokenRollouts(rule, sampler or Unmasking())
    return draw_state(rollouts, process, Nets(network or HashDenoiser(WORDS)), batch, state, KEY, 0)


# --- what a rollout keeps -------------------------------------------------------------------------------------------

SAMPLERS = {
    "random": Unmasking(),
    "ancestral": Unmasking(count=AncestralCount()),
    "confidence, greedy": Unmasking(order="confidence", tokens=Categorical(temperature=0.0)),
    "margin, noisy": Unmasking(order="margin", order_noise=0.5),
    "left to right": Unmasking(order="left_to_right"),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("name", ["linear", "maskgit", "cosine .01 .99"])
def test_counts_and_fixed_positions_are_kept(sampler: Unmasking, name: str) -> None:
    process, batch = Masking(SCHEDULES[name], MASK), ragged()
    for share in (0.1, 0.5, 1.0):
        before = state_of(batch, share, process)
        result = drawn(batch, before, sampler=sampler, process=process)
        after = result.state
        assert isinstance(after, Noisy)
        assert torch.equal(after.num_masked, before.num_masked) and torch.equal(after.masked.sum(1), after.num_masked)
        fixed = ~batch.free()
        assert torch.equal(after.x[fixed], batch.x[fixed]) and not after.masked[fixed].any()
        assert torch.equal(after.x == MASK, after.masked)
        if result.joined is not None:
            assert result.revealed is not None and int(result.revealed.sum()) == result.num_revealed > 0
            assert not (result.revealed & after.masked).any()
        revealed = torch.zeros_like(after.masked) if result.revealed is None else result.revealed
        assert not ((after.x != batch.x) & ~after.masked & ~revealed).any()


def test_probability_0_is_plain_training() -> None:
    later = ScheduledSampling(max_step_offset=4, probability=0.5, start_step=10)
    for make in (ContinuousNELBO, TrajectoryNELBO, MaskedCrossEntropy):
        plain = make(PROCESS)(Nets(HashDenoiser(WORDS)), ragged(), KEY, 3)
        rolled = make(PROCESS, scheduled_sampling=later, sampler=Unmasking())(
            Nets(HashDenoiser(WORDS)), ragged(), KEY, 3
        )
        assert torch.equal(plain.numerator, rolled.numerator) and plain.denominator == rolled.denominator
        assert float(rolled.metrics["rollout_share"][0]) == 0
        one, two = ({n: v for n, v in loss.metrics.items() if n in plain.metrics} for loss in (plain, rolled))
        assert all(float(two[n][0]) == float(one[n][0]) for n in two)


def test_coins_are_counted_on_the_host() -> None:
    batch = ragged()
    before = PROCESS.corrupt_ratio(batch, torch.full((8,), 0.4), KEY)
    after = drawn(batch, before, ALWAYS).state
    assert isinstance(after, Noisy) and before.num_masked is None
    assert torch.equal(after.masked.sum(1), before.masked.sum(1))


# --- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [SAMPLERS["random"], SAMPLERS["margin, noisy"]], ids=["random", "margin"])
def test_a_state_does_not_depend_on_its_batch_and_shares_no_draw(sampler: Unmasking) -> None:
    batch = ragged()
    one = state_of(batch)
    whole = drawn(batch, stack_noisy([one, one]), sampler=sampler).state
    assert isinstance(whole, Noisy)
    for row in (0, 2, 3, 5):
        index = torch.tensor([row])
        assert one.num_masked is not None
        state = Noisy(one.x[index], one.masked[index], one.num_masked[index])
        alone = drawn(batch.rows(index), stack_noisy([state, state]), sampler=sampler).state
        assert torch.equal(alone.x, whole.x[[row, row + 8]])
    many = blank(64)
    twins = drawn(many, stack_noisy([state_of(many)] * 2), ALWAYS, sampler=sampler).state.x
    assert (twins[:64] != twins[64:]).any(1).float().mean() > 0.9


def test_the_share_of_rows_and_the_cost_are_as_set() -> None:
    batch, network = blank(400), HashDenoiser(WORDS)
    result = drawn(batch, state_of(batch), replace(RULE, probability=0.3), network)
    assert result.joined is not None and 0.22 < len(result.joined) / 400 < 0.38
    assert result.num_forwards == sum(len(x) for x, _, _ in network.forwards)
    # 12 positions on 10 steps: each reveals something, so the longest of the rollouts is the number of forwards
    assert len(network.forwards) == 4
    for x, t, _ in network.forwards:
        torch.testing.assert_close(t, (x == MASK).float().mean(1))


def test_the_network_is_evaluated_without_gradient_by_the_weights_that_are_asked_for() -> None:
    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.seen = nn.Parameter(torch.zeros(WORDS)), []

        def encode(self, **cond: Tensor) -> None:
            return None

        def forward(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
            self.seen.append((self.training, torch.is_grad_enabled()))
            return read(self.table.expand(*x.shape, -1), rows, readout)

    for weights in ("current", "average"):
        current, average = Spy().train(), Spy().eval()
        rollouts = TokenRollouts(replace(ALWAYS, weights=weights), Unmasking())
        batch = blank(8)
        draw_state(rollouts, PROCESS, Nets(current, average), batch, state_of(batch), KEY, 0)
        asked, idle = (current, average) if weights == "current" else (average, current)
        assert set(asked.seen) == {(False, False)} and not idle.seen and current.training
    with pytest.raises(ValueError, match="moving average"):
        drawn(batch, state_of(batch), replace(ALWAYS, weights="average"))


def test_longer_rollouts_of_a_wrong_network_are_further_off() -> None:
    batch, wrong = blank(200), []
    for offset in (1, 2, 4, 8):
        rule = ScheduledSampling(max_step_offset=offset, min_step_offset=offset, grid_steps=10, probability=1.0)
        state = drawn(batch, state_of(batch, 0.2), rule).state
        wrong.append(float(((state.x != batch.x) & (state.x != MASK)).float().mean()))
    assert 0 < wrong[0] < wrong[1] < wrong[2] < wrong[3]


# --- what is learned from them --------------------------------------------------------------------------------------

WORLD = World.random(seed=1)
IN_WORLD = Masking(LinearSchedule(), WORLD.mask_id)
GREEDY = Unmasking(order="confidence", tokens=Categorical(temperature=0.0))


def states_at(
    masked: int, offset: int, sampler: Unmasking, world: World = WORLD, size: int = 9000
) -> tuple[Batch, Noisy]:
    """Texts of the world, and states with `masked` masks that rollouts with `offset` reveals have reached."""
    texts = torch.multinomial(world.joint, size, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = world.batch(world.sequences[texts])
    rule = ScheduledSampling(max_step_offset=offset, min_step_offset=offset, grid_steps=3, probability=1.0)
    before = IN_WORLD.corrupt_count(batch, torch.full((size,), masked), KEY.fold("corrupt"))
    network = TableDenoiser(world.posterior().nan_to_num(0.5))
    result = draw_state(TokenRollouts(rule, sampler), IN_WORLD, Nets(network), batch, before, KEY, 0)
    assert result.num_revealed == size * offset and isinstance(result.state, Noisy)
    return batch, result.state


def forward_distribution(masked: int) -> Tensor:
    """(num_states,) probability of each state with so many masks in the forward process."""
    hidden = WORLD.states == WORLD.mask_id
    agrees = ((WORLD.states[:, None] == WORLD.sequences) | hidden[:, None]).all(-1)
    likely = (agrees * WORLD.joint).sum(1) * (hidden.sum(1) == masked)
    return likely / likely.sum()


@pytest.mark.parametrize(("masked", "offset"), [(1, 1), (1, 2), (2, 1)])
def test_a_perfect_rollout_ends_in_the_states_of_the_forward_process(masked: int, offset: int) -> None:
    expected = 9000 * forward_distribution(masked)

    def p_value(sampler: Unmasking) -> float:
        _, state = states_at(masked, offset, sampler)
        return chi_square_p(torch.bincount(WORLD.code(state.x), minlength=len(expected)), expected)

    assert p_value(Unmasking()) > 1e-3
    assert p_value(GREEDY) < 1e-9


def test_what_a_perfect_rollout_costs_is_known() -> None:
    """Targets are those of the text that the rollout began from, of which its own tokens know nothing.

    From the all-masked source the state is independent of the text: the exact posterior pays the cross-entropy of the
    marginals under it, more than its entropy, and training there pulls it toward the posterior of the source.
    """
    batch, state = states_at(1, 2, Unmasking())
    posterior, network = WORLD.posterior(), TableDenoiser(WORLD.posterior())
    marginal, logs = posterior[-1], posterior.clamp_min(1e-300).log()  # (L, V) of the all-masked state; (states, L, V)
    hidden = WORLD.states == WORLD.mask_id
    nats = -(marginal * logs).sum(-1)  # (states, L)
    expected = float((forward_distribution(1) * (nats * hidden).sum(1)).sum())
    own = -(posterior * logs).sum(-1)
    entropy = float((forward_distribution(1) * (own * hidden).sum(1)).sum())
    assert expected > entropy + 0.1
    assert_mean(score_masked(IN_WORLD, network, batch, state).cost, expected)
    plain = IN_WORLD.corrupt_count(batch, torch.ones(batch.size, dtype=torch.int64), KEY.fold("other"))
    assert_mean(score_masked(IN_WORLD, network, batch, plain).cost, entropy)


def test_where_the_text_is_determined_a_perfect_rollout_changes_nothing() -> None:
    """As with plans of an expert that breaks every tie: the posterior is sure, and the rollout leads to the text."""
    sure = World(WORLD.num_words, WORLD.length, (torch.arange(8) == 5).double())
    batch, state = states_at(1, 2, GREEDY, sure, size=50)
    assert torch.equal(state.x[~state.masked], batch.x[~state.masked])
    cost = score_masked(IN_WORLD, TableDenoiser(sure.posterior().nan_to_num(0.5)), batch, state).cost
    assert float(cost.abs().max()) == 0.0


class Apart(nn.Module):
    """Logits of each row and position are parameters of their own."""

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(num_rows, WORDS, generator=torch.Generator().manual_seed(0)))
        self.times: list[Tensor] = []

    def encode(self, **cond: Tensor) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
        self.times.append(t)
        return read(self.logits[: x.numel()].view(*x.shape, -1), rows, readout)


@pytest.mark.parametrize("make", [ContinuousNELBO, MaskedCrossEntropy])
def test_a_correction_reaches_wrong_positions_only(make: Any) -> None:
    batch, gradients, times, states = ragged(), [], [], []
    copies = 2 if make is ContinuousNELBO else 1
    for correction in (0.0, 0.5):
        network = Apart(copies * 8 * LENGTH)
        objective = make(PROCESS, scheduled_sampling=replace(ALWAYS, correction=correction), sampler=Unmasking())
        loss = objective(Nets(network), batch, KEY, 0)
        loss.numerator.backward()
        assert network.logits.grad is not None
        gradients.append(network.logits.grad.view(copies * 8, LENGTH, WORDS))
        times.append(network.times[-1])
        states.append(loss)
    plain, corrected = gradients
    wrong = ((corrected - plain).abs().sum(-1) > 0) & (plain.abs().sum(-1) == 0)
    changed = (corrected != plain).any(-1)
    assert torch.equal(wrong, changed) and int(wrong.sum()) == float(states[0].metrics["rollout_wrong"][0]) > 0
    assert torch.equal(times[0], times[1])
    # the gradient of weight·cross-entropy: weight·(softmax - target)
    target = nn.functional.one_hot(batch.x.repeat(copies, 1)[wrong], WORDS)
    logits = Apart(copies * 8 * LENGTH).logits.detach().view(copies * 8, LENGTH, WORDS)[wrong]
    torch.testing.assert_close(corrected[wrong], 0.5 / copies * (logits.softmax(-1) - target))
    for name in ("accuracy", "masked_cross_entropy", "rollout_wrong"):
        one, two = ([float(part) for part in loss.metrics[name]] for loss in states)
        assert one == pytest.approx(two)


# --- in an objective and a run --------------------------------------------------------------------------------------


def test_a_loss_on_own_states_is_no_bound_and_validation_reports_one() -> None:
    objective = ContinuousNELBO(PROCESS, scheduled_sampling=RULE, sampler=Unmasking())
    assert not objective.is_bound and objective.conditional().is_bound
    loss = objective(Nets(HashDenoiser(WORDS)), ragged(), KEY, 0)
    assert "nelbo" not in loss.metrics and float(loss.metrics["rollout_forwards"][0]) > 0
    assert "nelbo" in objective.conditional()(Nets(HashDenoiser(WORDS)), ragged(), KEY, 0).metrics


@pytest.mark.parametrize("make", [ContinuousNELBO, TrajectoryNELBO, MaskedCrossEntropy])
def test_parts_of_a_batch_add_up_to_the_whole(make: Any) -> None:
    objective = make(PROCESS, scheduled_sampling=replace(RULE, correction=0.5), sampler=Unmasking(order="margin"))
    nets, batch = Nets(HashDenoiser(WORDS)), ragged()
    whole = objective(nets, batch, KEY, 0)
    parts = [objective(nets, batch.rows(slice(first, first + 2)), KEY, 0) for first in (0, 2, 4, 6)]
    torch.testing.assert_close(sum(part.numerator for part in parts), whole.numerator, rtol=1e-5, atol=1e-5)
    assert sum(float(part.denominator) for part in parts) == float(whole.denominator)
    for name in ("rollout_share", "rollout_wrong", "rollout_forwards", "accuracy"):
        for place in (0, 1):
            total = sum(float(part.metrics[name][place]) for part in parts)
            assert total == pytest.approx(float(whole.metrics[name][place]))


def test_a_run_rolls_out_by_its_own_sampler() -> None:
    rule = "objective.scheduled_sampling={max_step_offset: 3, grid_steps: 10, probability: 0.5}"
    for kind in ("nelbo", "masked_cross_entropy", "trajectory_nelbo"):
        parts = tiny_parts(f"objective={kind}", rule, "sampler={kind: unmasking, order: confidence}")
        assert getattr(parts.objective, "sampler") == parts.sampler  # noqa: B009  (not every objective has one)
        job = replace(tiny_job(parts), validated=parts.objective.conditional(), bounds=parts.job().bounds)
        state = parts.trainer.start(job)
        assert bool(parts.trainer.step(state, job, 3).isfinite())
        assert state.meter.means()["rollout_forwards"] > 0
        assert "nelbo_per_token" in parts.trainer.validate(state.average, job, 3)
        assert len(job.bounds) == (kind == "masked_cross_entropy")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"order": 3}, "order is 3, which is of images"),
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"mode": "inject"}, "mode is 'inject'"),
        ({"target": "original"}, "target is 'original'"),
        ({"s_min": 0.1}, r"s_min is 0\.1"),
        ({"reflexflow": ReflexFlow()}, "reflexflow"),
    ],
)
def test_settings_of_images_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MaskedCrossEntropy(PROCESS, scheduled_sampling=replace(RULE, **settings), sampler=Unmasking())


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (None, "sampler is None"),
        (Euler(), "sampler is Euler"),
        (Unmasking(count=Threshold()), r"sampler\.count is Threshold"),
        (Unmasking(remask=Cap()), r"sampler\.remask is Cap"),
        (Unmasking(blocks=Blocks()), r"sampler\.blocks is Blocks"),
        (Unmasking(stop_at_end=True), r"sampler\.stop_at_end is True"),
    ],
)
def test_samplers_that_cannot_be_followed_are_refused(sampler: Any, said: str) -> None:
    for make in (ContinuousNELBO, TrajectoryNELBO, MaskedCrossEntropy):
        assert make(PROCESS, sampler=sampler).rollouts is None
        with pytest.raises(ValueError, match=said):
            make(PROCESS, scheduled_sampling=RULE, sampler=sampler)


def test_shards_are_refused() -> None:
    rule = "objective.scheduled_sampling={max_step_offset: 3, probability: 0.5}"
    with pytest.raises(ValueError, match=r"training\.parallel=ddp"):
        build(RunConfig.parse(override(CONFIG, [rule, "training.parallel=fsdp"])))
