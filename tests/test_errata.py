"""Mistakes of the documents that this package was made from, by the number under which they are listed.

Each test would fail if the mistake were made here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gaussians import Exact, Wavy, kolmogorov_p, spread
from onpath.codes import LEFT, RIGHT
from onpath.data.trajectories import FourRoomsExpert
from onpath.envs import fourrooms, gridworld, symmetry
from onpath.envs.expert import demonstrate, solve
from onpath.envs.gridworld import Agents, Worlds
from onpath.evaluation.check import mask_is_learnt, overfits, states_differ
from onpath.kinds import FAMILIES
from onpath.models.policy import PlanMLP
from onpath.objectives.denoising import Denoising
from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import OneStep
from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.objectives.penalties import MaskingPenalties
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.objectives.reflexflow import compensation
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.ramps import LinearRamp, Ramp
from onpath.rewards.countdown import Countdown
from onpath.rewards.gsm8k import GSM8KCorrect, IntegerAnswer, SoftFormat, StrictFormat
from onpath.rewards.scoring import score
from onpath.rewards.sudoku import SudokuCells, SudokuSolved
from onpath.rng import Key
from onpath.rollouts import draw_state
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import UniformGrid
from onpath.sampling.loop import Knobs, repair, sample, walk
from onpath.sampling.remasking import Cap, Proofread
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
from onpath.schedules import (
    DATA,
    PRIOR,
    BetasSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    MaskGITCosineSchedule,
)
from onpath.training.optimizers import AdamW
from onpath.training.trainer import Job, Trainer
from onpath.types import Batch, Experience, Nets, Noised, Spec
from policies import collected, policy_parts, rounds_of
from statistical import chi_square_p
from tables import OBJECTIVES, SAMPLERS
from worlds import HashDenoiser, read

WORDS, LENGTH = 6, 10
MASK = WORDS
PROCESS = Masking(CosineSchedule(), MASK)


def blank(size: int, length: int = LENGTH) -> Batch:
    return Batch.of_tokens(torch.zeros(size, length, dtype=torch.int64), torch.arange(size))


def test_erratum_01_cosine_table() -> None:
    schedule = CosineSchedule(alpha_min=0.01, alpha_max=0.99)
    table = {1: 0.9899, 16: 0.9527, 32: 0.8465, 64: 0.5, 96: 0.1535, 128: 0.01}
    for step, alpha in table.items():
        assert float(schedule.alpha(torch.tensor(step / 128))) == pytest.approx(alpha, abs=5e-5)


def test_erratum_02_exponential_reaches_its_lower_bound() -> None:
    schedule = ExponentialSchedule(alpha_min=0.01, alpha_max=0.99)
    assert float(schedule.alpha(torch.tensor(1.0))) == pytest.approx(0.01, rel=1e-6)
    assert float(schedule.alpha(torch.tensor(1.0))) < 0.0493
    assert float(schedule.alpha(torch.tensor(0.5))) == pytest.approx(math.sqrt(0.01 * 0.99), rel=1e-6)


def test_erratum_03_default_ends_are_exact() -> None:
    t = torch.tensor([0.0, 1.0])
    clean, noise = (PROCESS.corrupt(blank(500), end.expand(500), Key(1)) for end in t)
    assert not clean.masked.any() and noise.masked.all()
    assert torch.equal(noise.x, PROCESS.prior(blank(500)).x)  # training meets the state from which sampling starts


def test_erratum_03_bounds_cost_a_step_and_a_term_at_each_end() -> None:
    bounded = Masking(CosineSchedule(alpha_min=0.01, alpha_max=0.99), MASK)
    times = UniformGrid(4).times(bounded.schedule)
    assert len(times) == 7 and times[0] == PRIOR and times[-1] == DATA
    states = list(
        walk(HashDenoiser(WORDS), bounded, Unmasking(count=AncestralCount()), UniformGrid(4), blank(400), Key(2))
    )
    assert states[0].masked.all() and not states[-1].masked.any()
    # the first step reveals one position in a hundred, the last one what is left
    assert 0.004 < 1 - float(states[1].masked.float().mean()) < 0.02
    assert 0.004 < float(states[-2].masked.float().mean()) < 0.02
    # the bound has all six steps, the first at the all-mask state with weight alpha_min
    uniform = HashDenoiser(WORDS, spread=0.0)
    loss = TrajectoryNELBO(bounded, UniformGrid(4), steps_per_example=0)(Nets(uniform), blank(400), Key(3), 0)
    assert any((x == MASK).all(1).sum() >= 400 for x, _, _ in uniform.forwards)
    assert float(loss.mean) == pytest.approx(math.log(WORDS), rel=0.03)  # every token costs log V once


def test_erratum_04_mask_ratio_is_0_at_data_and_1_at_noise() -> None:
    ratio = MaskGITCosineSchedule().mask_ratio(torch.tensor([0.0, 0.5, 1.0]))
    assert ratio.tolist() == pytest.approx([0.0, math.cos(math.pi / 4), 1.0], abs=1e-6)
    assert ratio[0] == 0 and ratio[2] == 1
    process = Masking(MaskGITCosineSchedule(), MASK)
    states = list(walk(HashDenoiser(WORDS), process, Unmasking(), UniformGrid(5), blank(3), Key(0)))
    assert [int(s.masked[0].sum()) for s in states] == [10, 10, 8, 6, 3, 0]  # 10·cos(π/2·(1 - t)), rounded


def test_erratum_05_a_curriculum_reaches_the_fully_masked_state() -> None:
    seed = {"low": LinearRamp(0.1, 0.15, 50), "high": LinearRamp(0.3, 0.825, 50)}
    with pytest.raises(ValueError, match=r"0\.825"):
        MaskedCrossEntropy(PROCESS, **seed)
    objective = MaskedCrossEntropy(PROCESS, low=seed["low"], high=LinearRamp(0.3, 1.0, 50))
    network = HashDenoiser(WORDS)
    objective(Nets(network), blank(400), Key(4), 50)
    assert (network.forwards[0][0] == MASK).all(1).any()
    ContinuousNELBO(PROCESS)(Nets(network), blank(400), Key(4), 0)
    assert (network.forwards[1][0] == MASK).all(1).any()


def test_erratum_06_one_schedule_is_read_by_everything_and_a_second_one_has_no_place() -> None:
    """In full in ``test_consistency.py``."""
    parts = policy_parts("schedule=cosine", "objective.estimator={kind: traj_nelbo}")
    rounds, subject = rounds_of(parts), parts.subject(parts.model)
    schedules = [owner.process.schedule for owner in (parts, parts.objective, rounds.policy, rounds.generator, subject)]
    assert all(schedule is parts.process.schedule for schedule in schedules)
    for path in ("objective", "objective.estimator", "experience", "sampler", "grid", "process"):
        with pytest.raises(ValueError, match=rf"{path}\.schedule: 'schedule' is "):
            policy_parts(f"{path}.schedule=linear")


@pytest.mark.parametrize("kind", [kind for kind, cls in FAMILIES[Estimator].items() if cls.has_ratio])
def test_erratum_07_old_and_new_are_read_at_the_same_states(kind: str) -> None:
    parts = policy_parts(f"objective.estimator.kind={kind}", "experience.num_iterations=3", "objective.beta=0.1")
    experience, policy = collected(parts).experience, rounds_of(parts).policy
    for iteration in range(3):
        part = replace(experience, iteration=iteration)
        # the step of the optimizer does not enter
        one, other = (policy.views(part, Key(parts.seed).fold("train").at(step)) for step in (iteration, 40))
        assert torch.equal(one.x, other.x) and torch.equal(one.scored, other.scored)
        metrics = policy(Nets(parts.model, reference=parts.model), part, Key(parts.seed).at(7), 7).metrics
        for name, expected in (("sampling/importance_sampling_ratio/mean", 1.0), ("kl", 0.0)):
            total, count = (float(value) for value in metrics[name])
            assert total / count == expected and count > 0, name


def test_erratum_07_maskings_without_a_time_are_refused_where_one_is_needed() -> None:
    for kind in ("diffu, p_mask: 0.5", "uni"):
        assert policy_parts(f"objective.estimator={{kind: {kind}, masking: probability}}").rounds is not None
    for kind in ("traj", "traj_nelbo", "trace", "coupled", "espo", "spg", "wd1"):
        with pytest.raises(ValueError, match=r"objective\.estimator\.masking"):
            policy_parts(f"objective.estimator={{kind: {kind}, masking: probability}}")


def test_erratum_08_no_mask_is_frozen_and_no_global_state_is_touched() -> None:
    settings = ["objective.estimator={kind: uni}", "experience.num_iterations=2", "training.steps=6"]
    parts = policy_parts(*settings, "objective.beta=0.1")
    job, policy, masks = parts.job(), rounds_of(parts).policy, []
    state, before = parts.trainer.start(job), (torch.get_rng_state(), np.random.get_state()[1])
    for step in range(6):
        parts.trainer.step(state, job, 6)
        assert state.round is not None
        part = replace(state.round.experience, iteration=step % 2)
        # of the round and the pass: other masks for the same ids and tokens in each
        fixed = replace(part, batch=replace(part.batch, ids=torch.arange(16)), revealed_at=torch.zeros(16, 16).long())
        masks.append(policy.views(fixed, Key(parts.seed)).masked)
        state.step += 1
    parts.trainer.validate(parts.model, job, 6)
    assert all(not torch.equal(a, b) for n, a in enumerate(masks) for b in masks[:n])
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_erratum_08_masks_know_no_length_of_a_prompt_that_came_before() -> None:
    policy = PolicyGradient(PROCESS, OneStep(p_mask_prompt=0.5))

    def read(prompt: int) -> tuple[Tensor, Tensor]:
        """What is masked of the prompt, and of the completion, where the prompt has so many tokens."""
        revealed_at = torch.where(torch.arange(LENGTH) < prompt, -1, 0).expand(6, -1)
        batch = Batch.of_tokens(torch.zeros(6, LENGTH, dtype=torch.int64), torch.arange(6), given=revealed_at < 0)
        zeros = torch.zeros(6)
        one = Experience(
            batch, batch.x, revealed_at, 1, torch.zeros(6, LENGTH), zeros, zeros[:, None], zeros, batch.ids
        )
        hidden = policy.views(one, Key(0)).x == MASK
        return hidden[:, :prompt], hidden[:, prompt:]

    for prompt in (3, 7, 3, 5):
        asked, answer = read(prompt)
        assert answer.all() and torch.equal(asked, read(7)[0][:, :prompt])
        assert 0 < float(asked.float().mean()) < 1


def test_erratum_09_a_block_of_64_over_32_steps_reveals_two_at_each_and_never_leaks() -> None:
    def reveals(length: int, size: int, steps: int) -> list[list[int]]:
        """Of every step, the reveals in each block."""
        states = list(
            walk(
                HashDenoiser(WORDS),
                PROCESS,
                Unmasking(blocks=Blocks(size)),
                UniformGrid(steps),
                blank(2, length),
                Key(1),
            )
        )
        shown = [(a.masked & ~b.masked)[0] for a, b in pairwise(states)]
        return [[int(part.sum()) for part in step.split(size)] for step in shown]

    assert reveals(192, 64, 96) == [[2, 0, 0]] * 32 + [[0, 2, 0]] * 32 + [[0, 0, 2]] * 32
    # base = n // steps, and the first n % steps one more
    assert reveals(20, 10, 8) == [[n, 0] for n in (3, 3, 2, 2)] + [[0, n] for n in (3, 3, 2, 2)]
    assert reveals(4, 2, 6) == [[1, 0], [1, 0], [0, 0], [0, 1], [0, 1]]  # and is finished


def test_erratum_10_every_scale_is_honoured_and_answers_may_cross_lines() -> None:
    text = "<reasoning>\nsix\ntimes seven\n</reasoning>\n<answer>\n42\n</answer>"
    sudoku = {"canvas": ["1234341221434321"], "givens": ["1..4" + "." * 12], "solution": ["1234341221434321"]}
    columns = {"answer": ["#### 42"], "numbers": [[6, 7]], "target": [42], **sudoku}
    for scale in (0.25, 3.0):
        rewards = [GSM8KCorrect(scale), StrictFormat(scale), SoftFormat(scale), IntegerAnswer(scale)]
        puzzles = [Countdown(scale), SudokuSolved(scale), SudokuCells(scale)]
        for completion, those in ((text, rewards), ("<answer>\n6\n* 7\n</answer>", puzzles)):
            weights = [1.0] * len(those)
            # what else a caller passes, such as what it logs, changes nothing
            for extra in ({}, {"log": [True]}, {"log": [False]}):
                scores = score(those, weights, [""], [completion], [[1]], {**columns, **extra}, 10.0)
                assert [float(one) for one in scores.by_name.values()] == [scale] * len(those)
                assert float(scores.total) == scale * len(those)


def test_erratum_10_temperature_0_makes_equal_groups_and_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"sampler\.tokens\.temperature is 0.*all rollouts of a prompt are the same.*above 0"
    ):
        policy_parts("sampler.tokens.temperature=0")
    tokens = collected(policy_parts("sampler.tokens.temperature=0.05")).experience.tokens.view(4, 4, -1)
    assert all(len({tuple(row) for row in group.tolist()}) > 1 for group in tokens)  # nearly greedy, and not alike


def test_erratum_11_many_steps_lower_neither_entropy_nor_the_number_of_reveals() -> None:
    """150 ancestral steps over a Zipf vocabulary, logits in half precision."""
    size, length, steps = 160, 32, 150
    log_p = -torch.arange(1, 2001).double().log()
    log_p -= log_p.logsumexp(0)

    class Zipf(HashDenoiser):
        def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
            return readout(log_p.bfloat16().expand(len(rows), -1), rows)

    process = Masking(LinearSchedule(), 2000)
    state = sample(Zipf(1), process, Unmasking(count=AncestralCount()), UniformGrid(steps), blank(size, length), Key(5))
    tokens = state.x.flatten()
    used = log_p.bfloat16().double().log_softmax(0)  # what bf16 logits say
    surprise = -used[tokens]
    entropy = float(-(used.exp() * used).sum())
    assert abs(float(surprise.mean()) - entropy) < 4 * float(surprise.std()) / len(tokens) ** 0.5
    # reveals are uniform over the steps: no more and no fewer at the end, where a position is nearly alone
    tenth = torch.bincount(state.revealed_at.flatten() // (steps // 10), minlength=10)
    assert chi_square_p(tenth, torch.full((10,), len(tokens) / 10)) > 1e-4


@pytest.mark.parametrize(
    ("step", "keep", "correct"),
    [(0, 1.0, 0.0), (250, 0.8125, 0.125), (500, 0.625, 0.25), (1000, 0.25, 0.5), (10_000, 0.25, 0.5)],
)
def test_erratum_12_the_penalties_are_discounts_on_a_linear_curriculum(step: int, keep: float, correct: float) -> None:
    assert MaskingPenalties(PROCESS, WORDS).penalties(step) == pytest.approx((keep, correct))


def test_erratum_12_validation_uses_the_final_values() -> None:
    """A best checkpoint must not be chosen by the curriculum: the same network has the same loss at every step."""
    source = FourRoomsExpert()
    spec = replace(source.spec(), mask_logit=True)
    torch.manual_seed(0)
    network = PlanMLP(spec, width=32, hidden=32, depth=1)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    process = Masking(LinearSchedule(), spec.mask_id)

    def loss(keep: float | Ramp, correct: float | Ramp) -> float:
        objective = MaskingPenalties(process, spec.num_words, keep, correct)
        job = Job(network, objective, source, source.at_split("validation"))
        return Trainer(steps=10, batch_size=64, validation_examples=64).validate(network, job, 10)["loss"]

    ramped = loss(LinearRamp(1.0, 0.25, 10), LinearRamp(0.0, 0.5, 10))
    assert ramped == loss(0.25, 0.5) != loss(1.0, 0.0)


class Corrector(HashDenoiser):
    """Takes any token but word 3 for a mistake, and says 3 for each mask: what the penalty loss teaches."""

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        logits = torch.zeros(*x.shape, MASK + 1)
        logits[..., 3] = 8.0
        logits[..., MASK] = torch.where((x != 3) & (x != MASK), 16.0, -16.0)
        return read(logits, rows, readout)


def test_erratum_13_a_sampler_masks_again_what_the_network_takes_for_wrong() -> None:
    wrong = Batch.of_tokens(torch.arange(LENGTH)[None] % WORDS, torch.arange(1))
    sampler = Unmasking(remask=Proofread(), tokens=Categorical(0.0))
    before, masked, mended = list(repair(Corrector(WORDS), PROCESS, sampler, wrong, Key(2), passes=1))
    assert torch.equal(masked.masked, wrong.x != 3) and (masked.x[masked.masked] == MASK).all()
    assert (mended.x == 3).all() and not mended.masked.any()
    # also while a text is generated: hot draws are taken back until the last step, which reveals all
    hot = {"order": "random", "tokens": Categorical(20.0)}
    plain, read_again = (
        sample(Corrector(WORDS), PROCESS, Unmasking(remask=rule, **hot), UniformGrid(30), blank(40), Key(2)).x
        for rule in (None, Proofread())
    )
    assert float((read_again == 3).double().mean()) > float((plain == 3).double().mean()) + 0.15


def test_erratum_14_temperature_0_divides_by_nothing_and_sampling_leaves_the_global_noise_alone() -> None:
    torch.manual_seed(4)
    state = torch.get_rng_state()
    for sampler in (Unmasking(tokens=Categorical(0.0)), Unmasking(remask=Cap(0.3))):
        out = sample(HashDenoiser(WORDS), PROCESS, sampler, UniformGrid(4), blank(3), Key(8))
        assert (out.x < WORDS).all() and out.confidence.isfinite().all()
    by_row = Knobs(temperature=torch.tensor([0.0, 1.0, 0.0]))
    greedy = sample(HashDenoiser(WORDS), PROCESS, Unmasking(), UniformGrid(4), blank(3), Key(8), by_row)
    all_greedy = sample(
        HashDenoiser(WORDS), PROCESS, Unmasking(tokens=Categorical(0.0)), UniformGrid(4), blank(3), Key(8)
    )
    assert torch.equal(greedy.x[[0, 2]], all_greedy.x[[0, 2]])
    assert torch.equal(torch.get_rng_state(), state)


def test_erratum_15_the_network_hears_the_masked_fraction_of_its_input() -> None:
    given = torch.arange(LENGTH).expand(5, -1) < torch.arange(5)[:, None]
    batch = Batch.of_tokens(torch.zeros(5, LENGTH, dtype=torch.int64), torch.arange(5), given=given)
    network = HashDenoiser(WORDS, with_mask=True)
    for sampler in list(SAMPLERS.values())[::4]:
        sample(network, PROCESS, sampler, UniformGrid(6), batch, Key(6))
    num_sampling = len(network.forwards)
    for make in OBJECTIVES.values():
        make(PROCESS)(Nets(network), batch, Key(6), 0)
    assert len(network.forwards) > num_sampling > 50
    free = LENGTH - torch.arange(5)
    for x, t, _ in network.forwards:
        shares = (x == MASK).sum(1)[:, None] / free
        assert ((shares - t[:, None]).abs().amin(1) < 1e-6).all()
    # a sampler's first forward sees 1, not the share after the step
    first = HashDenoiser(WORDS)
    sample(first, PROCESS, Unmasking(), UniformGrid(4), batch, Key(6))
    assert (first.forwards[0][1] == 1.0).all()


def test_erratum_16_temperature_samples() -> None:
    def tokens(temperature: float) -> Tensor:
        network = HashDenoiser(WORDS, spread=0.5)
        sampler = Unmasking(tokens=Categorical(temperature))
        return sample(network, PROCESS, sampler, UniformGrid(1), blank(300), Key(7)).x

    assert (tokens(0.0) == tokens(0.0)[0]).all()  # greedy: every row alike
    variety = [int(tokens(t)[:, 0].unique().numel()) for t in (0.01, 1.0, 5.0)]
    assert variety[0] < variety[1] <= variety[2] == WORDS
    # and the argmax is not taken of what was drawn: the likeliest word is not always chosen at temperature 1
    likeliest = float((tokens(1.0) == tokens(0.0)).float().mean())
    assert 0.15 < likeliest < 0.6


def test_erratum_17_the_end_is_masked_and_supervised_like_any_action() -> None:
    source = FourRoomsExpert()
    batch = source.examples(torch.arange(64))
    spec, process = source.spec(), Masking(CosineSchedule(), source.spec().mask_id)
    lengths = (batch.x != source.end_id).sum(1)
    assert batch.padding is None and lengths.unique().numel() > 5
    assert all((batch.x[row, int(n) :] == source.end_id).all() for row, n in enumerate(lengths))
    assert source.end_id < spec.num_words  # it may be emitted
    # the state from which generation starts says nothing of the length, nor does training on it
    assert (process.prior(batch).x == spec.mask_id).all()
    rows: list[Tensor] = []

    class Words(HashDenoiser):
        def __call__(self, x: Tensor, t: Tensor, memo: Any, **options: Any) -> Any:
            rows.append(options["rows"])
            return read(torch.zeros(*x.shape, spec.num_words), options["rows"], options["readout"])

        def encode(self, **cond: Tensor) -> None:
            return None

    ContinuousNELBO(process)(Nets(Words(1)), batch, Key(8), 0)
    scored = batch.x.repeat(2, 1).flatten()[rows[0]]
    assert len(scored) == batch.x.numel()  # a pair masks each position once
    assert int((scored == source.end_id).sum()) == int((batch.x == source.end_id).sum()) > 0


def test_erratum_18_validation_masks_are_seeded_and_the_true_fraction_is_passed() -> None:
    source = FourRoomsExpert()
    spec = source.spec()
    process = Masking(LinearSchedule(), spec.mask_id)
    torch.manual_seed(0)
    network = PlanMLP(spec, width=32, hidden=32, depth=1)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    job = Job(network, ContinuousNELBO(process), source, source.at_split("validation"))
    trainer = Trainer(steps=10, batch_size=64, validation_examples=128)
    torch.manual_seed(1)
    first = trainer.validate(network, job, 3)
    torch.manual_seed(2)
    assert trainer.validate(network, job, 3)["loss"] == first["loss"]
    recorded = HashDenoiser(WORDS)
    for _ in range(2):
        ContinuousNELBO(PROCESS)(Nets(recorded), blank(32), Key(9, "validation"), 0)
    (x, t, _), (again, _, _) = recorded.forwards
    assert torch.equal(x, again)
    assert torch.equal(t, (x == MASK).sum(1) / LENGTH) and t.unique().numel() > 5  # never a constant


SMALL = Spec(length=20, num_words=4, mask_id=4, cond={"image": (7, 7, 3), "direction": ()})


def one_gap_apart() -> Batch:
    """Two worlds with the same agent and goal, in adjoining rooms of which the wall has its gap high or low."""
    images = []
    for gap in (1, 5):
        walls = torch.zeros(1, 7, 7, dtype=torch.bool)
        walls[:, [0, -1]] = walls[:, :, [0, -1]] = walls[:, 3] = True
        walls[:, 3, gap] = False
        worlds = Worlds(walls, torch.tensor([[5, 3]]))
        agents = Agents(torch.tensor([[1, 3]]), torch.tensor([0]))
        plan = demonstrate(solve(worlds, 36), agents, length=20, end_id=3)
        images.append((gridworld.observe(worlds, agents), plan.actions))
    cond = {"image": torch.cat([i for i, _ in images]), "direction": torch.zeros(2, dtype=torch.int64)}
    return Batch.of_tokens(torch.cat([a for _, a in images]), torch.arange(2), cond=cond)


def test_erratum_19_the_grid_itself_conditions_the_plan() -> None:
    """Two grids that differ in one gap, all else equal, have different plans, and the network learns which is which."""
    batch = one_gap_apart()
    assert not torch.equal(batch.x[0], batch.x[1])
    assert int((batch.cond["image"][0] != batch.cond["image"][1]).any(-1).sum()) == 2
    torch.manual_seed(0)
    network = PlanMLP(SMALL, width=64, hidden=64, depth=1)
    network.calibrate(**batch.cond)
    objective = ContinuousNELBO(Masking(LinearSchedule(), SMALL.mask_id))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        objective(Nets(network), batch, Key(10, "train", step), step).mean.backward()
        optimizer.step()
    logits = network(torch.full((2, 20), SMALL.mask_id), torch.ones(2), network.encode(**batch.cond))
    assert torch.equal(logits.argmax(-1), batch.x)
    assert (logits[0] - logits[1]).abs().max() > 1.0


def test_erratum_20_a_mirror_swaps_left_and_right() -> None:
    worlds, agents = fourrooms.tasks("train", Key(11), torch.arange(64))
    plans = demonstrate(solve(worlds, 36), agents, length=40, end_id=3)
    for mirror in range(8):
        which = torch.full((64,), mirror)
        actions = symmetry.transform_actions(plans.actions, which)
        assert torch.equal(actions == LEFT, plans.actions == (RIGHT if mirror >= 4 else LEFT))
        moved, walker = symmetry.transform(worlds, agents, which)
        for step in range(40):
            walker = gridworld.step(moved, walker, torch.where(actions[:, step] < 3, actions[:, step], 6))
        assert gridworld.at_goal(moved, walker).all(), f"symmetry {mirror}"


def test_erratum_21_checks_take_batches_and_fail_without_training() -> None:
    batch = one_gap_apart()
    process = Masking(LinearSchedule(), 4)
    torch.manual_seed(0)
    network = PlanMLP(SMALL, width=64, hidden=64, depth=1)
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert not mask_is_learnt(network, start, process, batch).passed
    assert not states_differ(network, process, batch).passed
    assert overfits(network, ContinuousNELBO(process), batch, AdamW(learning_rate=1e-2), max_steps=200).passed
    assert mask_is_learnt(network, start, process, batch).passed
    assert states_differ(network, process, batch).passed


class Calls(TorchDispatchMode):
    """Counts the operations that reach torch."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def count(function: Any) -> int:
    with Calls() as calls:
        function()
    return calls.number


def ragged(size: int) -> Batch:
    """Rows with 3 to 8 free positions, mixed in the same way whatever the size."""
    given = torch.arange(LENGTH) < 2 + torch.arange(size)[:, None] % 6
    return Batch.of_tokens(torch.zeros(size, LENGTH, dtype=torch.int64), torch.arange(size), given=given)


@pytest.mark.parametrize("name", SAMPLERS)
def test_erratum_22_a_step_of_a_sampler_has_no_loop_over_the_batch(name: str) -> None:
    def steps(size: int) -> list[int]:
        sampler, network, batch = SAMPLERS[name], HashDenoiser(WORDS), ragged(size)
        state = replace(
            sampler.init(PROCESS, network, PROCESS.prior(batch), batch, Knobs()), num_steps=9
        )  # what a walk knows
        return [
            count(partial(sampler.step, PROCESS, network, state, times, Key(12), Knobs()))
            for times in ((1.0, 0.7), (1.0, 0.0))
        ]

    assert steps(12) == steps(600)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_erratum_22_an_objective_has_no_loop_over_the_batch(name: str) -> None:
    def loss(size: int) -> int:
        objective, batch = OBJECTIVES[name](PROCESS), ragged(size)
        nets = Nets(HashDenoiser(WORDS, with_mask=objective.predicts_mask))
        return count(lambda: objective(nets, batch, Key(13), 0))

    assert loss(12) == loss(600)


def test_erratum_22_corruption_has_no_loop_over_the_batch() -> None:
    def corrupt(size: int) -> list[int]:
        batch = ragged(size)
        return [
            count(lambda: PROCESS.prior(batch)),
            count(lambda: PROCESS.corrupt(batch, torch.full((size,), 0.5), Key(14))),
            count(lambda: PROCESS.corrupt_count(batch, batch.free_counts() // 2, Key(14))),
        ]

    assert corrupt(12) == corrupt(600)
    assert max(corrupt(600)) < 300


def test_errata_of_the_calls_counter() -> None:
    """The counter would notice: a loop over rows makes more calls for more rows."""
    x = torch.zeros(8, 3)
    assert count(lambda: [F.relu(row) for row in x]) > count(lambda: [F.relu(row) for row in x[:2]])


FLOW = Gaussian(LinearSchedule())


def pictures(size: int, mean: float = 0.0) -> Batch:
    """Images of one pixel, normal with variance .25."""
    generator = torch.Generator().manual_seed(2)
    return Batch(mean + 0.5 * torch.randn(size, 1, 1, 1, generator=generator, dtype=torch.float64), torch.arange(size))


def noised(process: Gaussian, batch: Batch, t: float) -> Noised:
    return process.corrupt(batch, torch.full((batch.size,), t, dtype=torch.float64), Key(15).fold("corrupt"))


def rolling(**settings: Any) -> ScheduledSampling:
    return ScheduledSampling(**{"max_step_offset": 10, "probability": 1.0, **settings})


def test_erratum_24_a_ramp_from_0_begins_at_0_and_a_start_step_holds_without_a_ramp() -> None:
    ramp = ScheduledSampling(max_step_offset=10, ramp_steps=100, prob_start=0.0, prob_end=0.5)
    assert [ramp.probability_at(step) for step in (0, 50, 100)] == pytest.approx([0.0, 0.25, 0.5])
    with pytest.raises(ValueError, match=r"probability is 1\.0, but ramp_steps is 100"):
        ScheduledSampling(max_step_offset=10, ramp_steps=100, probability=1.0)
    later = rolling(start_step=3)
    state = noised(FLOW, pictures(8), 0.5)
    joined = [
        draw_state(later, FLOW, Nets(Exact(FLOW)), pictures(8), state, Key(15), step).joined is not None
        for step in range(5)
    ]
    assert joined == [False, False, False, True, True]


def test_erratum_25_every_solver_rolls_out_a_flow() -> None:
    """They differ, they need what they say, and the better ones come nearer to the exact way."""
    batch, off, forwards = pictures(200), {}, {}
    state = noised(FLOW, batch, 0.3)
    source = noised(FLOW, batch, 0.7)
    exact = (0.3**2 + 0.7**2 * 0.25) ** 0.5 / (0.7**2 + 0.3**2 * 0.25) ** 0.5 * source.x
    for name in ("euler", "dpm", "unipc", "rk4"):
        rule = rolling(sampler=name, max_step_offset=4, min_step_offset=4, grid_steps=10)
        drawn = draw_state(rule, FLOW, Nets(Exact(FLOW, 0.0)), batch, state, Key(15), 0)
        off[name] = float((drawn.state.x - exact).square().mean().sqrt())
        forwards[name] = drawn.num_forwards
    assert off["rk4"] < off["unipc"] < off["dpm"] < off["euler"] and off["rk4"] < 1e-3 < off["euler"]
    assert forwards == {"euler": 800, "dpm": 800, "unipc": 800, "rk4": 3200}


def test_erratum_26_rollouts_are_batched_in_evaluation_mode_and_without_gradient() -> None:
    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line, self.dropout = torch.nn.Linear(1, 1).double(), torch.nn.Dropout(0.5)
            self.calls: list[tuple[int, bool, bool]] = []

        def encode(self, **cond: Tensor) -> None:
            return None

        def forward(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
            self.calls.append((len(x), self.training or self.dropout.training, torch.is_grad_enabled()))
            return self.dropout(self.line(x))

    network, batch = Spy().train(), pictures(64)
    drawn = draw_state(rolling(), FLOW, Nets(network), batch, noised(FLOW, batch, 0.3), Key(15), 0)
    assert len(network.calls) == 10 and sum(rows for rows, _, _ in network.calls) == drawn.num_forwards < 64 * 10
    assert not any(training or gradient for _, training, gradient in network.calls)
    assert network.training and network.dropout.training and not drawn.state.x.requires_grad


def test_erratum_27_an_offset_counts_steps_of_a_sampling_grid() -> None:
    """10 steps of the 50 of a sampler are a fifth of the way; of 1,000 training steps, a hundredth."""

    class Times(Wavy):
        seen: list[float] = []  # noqa: RUF012

        def __call__(self, x: Tensor, t: Tensor, memo: Any, **options: Any) -> Tensor:
            self.seen.append(float(t[0]))
            return super().__call__(x, t, memo)

    batch = pictures(1)
    for grid_steps, source in ((50, 0.5), (1000, 0.31)):
        Times.seen.clear()
        rule = rolling(min_step_offset=10, sampler="euler", **({} if grid_steps == 50 else {"grid_steps": grid_steps}))
        draw_state(rule, FLOW, Nets(Times()), batch, noised(FLOW, batch, 0.3), Key(15), 0)
        wanted = [source - step / grid_steps for step in range(10)]
        assert Times.seen == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_erratum_28_a_rollout_goes_from_noise_towards_data(prediction: Any) -> None:
    """With the perfect network the states reached have the law of those of the forward process, which a wrong
    direction misses."""
    process, size = Gaussian(BetasSchedule(), "vp", prediction), 4000
    batch = pictures(size, mean=1.0)
    state = noised(process, batch, 0.3)
    rule = rolling(min_step_offset=10)
    drawn = draw_state(rule, process, Nets(Exact(process, 1.0)), batch, state, Key(15), 0)
    assert isinstance(drawn.state, Noised)
    fresh = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    right, wrong = (
        (drawn.state.x - mean) / std
        for mean, std in (spread(process, torch.tensor([0.3]), 1.0), spread(process, torch.tensor([0.5]), 1.0))
    )
    assert kolmogorov_p(right, fresh) > 1e-3 and kolmogorov_p(wrong, fresh) < 1e-6


@pytest.mark.parametrize("size", [1, 8, 64])
def test_erratum_29_the_compensation_does_not_vanish_in_large_images(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, drifted = (torch.randn(4, 3, size, size, generator=generator) for _ in range(2))
    weights = compensation(clean, drifted, alpha=2.0)
    torch.testing.assert_close(weights.flatten(1).mean(1), torch.full((4,), 3.0))
    assert float((weights - 1).abs().mean()) == pytest.approx(2.0, rel=1e-4)


def test_erratum_30_the_target_belongs_to_the_state_that_was_reached() -> None:
    """From it the target leads back to the image; the one of the state that should be does not."""
    batch = pictures(50)
    objectives = [Denoising(FLOW, scheduled_sampling=rolling(target=target)) for target in ("restoring", "original")]

    class Restoring(Wavy):
        """Knows the image: what it says at any state leads back to it."""

        def __call__(self, x: Tensor, t: Tensor, memo: Any, **options: Any) -> Tensor:
            wavy = len(self.rows) < 10
            said = super().__call__(x, t, memo)
            return said if wavy else (x - batch.x) / t.double().view(-1, 1, 1, 1)

    losses = [float(objective(Nets(Restoring()), batch, Key(15), 0).mean) for objective in objectives]
    assert losses[0] < 1e-10 and losses[1] > 1e-3


def test_erratum_31_what_rolls_nothing_out_is_refused_and_costs_nothing() -> None:
    with pytest.raises(ValueError, match="the probability is 0 at every step, so nothing would be rolled out"):
        ScheduledSampling(max_step_offset=10)
    batch = pictures(16)
    # at a step at which a ramp is still 0, nothing is paid for: one forward, and the loss of plain training
    rule = ScheduledSampling(max_step_offset=10, ramp_steps=10, reflexflow=ReflexFlow())
    network, plain = Wavy(), Wavy()
    rolled = Denoising(FLOW, scheduled_sampling=rule)(Nets(network), batch, Key(15), 0)
    assert float(rolled.numerator) == float(Denoising(FLOW)(Nets(plain), batch, Key(15), 0).numerator)
    assert network.rows == plain.rows == [16]
    assert "anti_drift" not in rolled.metrics and rolled.metrics["rollout_forwards"][0] == 0.0
