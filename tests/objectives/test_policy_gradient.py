"""Policy gradients against enumeration: every trajectory of a small world, its probability and its reward."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import OneStep, Sandwiched, SequenceELBO, Weighted
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.objectives.trajectory_estimators import Trajectory
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import EvenGrid
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule
from onpath.types import Batch, Experience, Nets
from tables import ESTIMATORS
from worlds import TableDenoiser, World

WORLD = World.random(0)  # word 1 is the end token
END, STEPS, LENGTH = 1, 2, 3
PROCESS = Masking(CosineSchedule(), WORLD.mask_id)
SAMPLER = Unmasking(count=AncestralCount(), end_id=END)
RATIOS = [name for name in ESTIMATORS if name not in ("spg", "wd1")]


def policy(estimator: Estimator, **settings: Any) -> PolicyGradient:
    return PolicyGradient(PROCESS, estimator, sampler=SAMPLER, grid=EvenGrid(STEPS), **settings)


def table(seed: int, scale: float = 1.0) -> TableDenoiser:
    """A network that is a table of logits, which can be trained."""
    network = TableDenoiser(WORLD.wrong(seed))
    network.logits = (scale * network.logits).float().requires_grad_()
    return network


def chances() -> Tensor:
    """(K,) the probability of a position to be revealed in each step, by the schedule alone."""
    times = torch.tensor(EvenGrid(STEPS).times(PROCESS.schedule), dtype=torch.float64)
    ratio = PROCESS.schedule.mask_ratio(times)
    return ratio[:-1] - ratio[1:]


def trajectories() -> Experience:
    """Every trajectory: at which step each position is revealed, and with what word."""
    maps = torch.tensor(list(product(range(STEPS), repeat=LENGTH)))
    words = WORLD.sequences
    revealed_at = maps.repeat_interleave(len(words), 0)
    tokens = words.repeat(len(maps), 1)
    number = len(tokens)
    ratio = PROCESS.schedule.mask_ratio(torch.tensor(EvenGrid(STEPS).times(PROCESS.schedule), dtype=torch.float64))
    return Experience(
        batch=Batch.of_tokens(tokens, torch.arange(number)),
        tokens=tokens,
        revealed_at=revealed_at,
        num_steps=STEPS,
        log_prob=torch.zeros(number, LENGTH),
        advantage=torch.zeros(number),
        peers=torch.zeros(number, 1),
        reward=torch.zeros(number),
        group=torch.zeros(number, dtype=torch.int64),
        chance=((ratio[:-1] - ratio[1:]) / ratio[:-1]).float(),
    )


def log_probability(network: TableDenoiser, experience: Experience) -> Tensor:
    """(N,) log of the probability of each trajectory, with gradient, computed word by word."""
    words = network.logits.double().log_softmax(-1)
    total = chances().log()[experience.revealed_at].sum(1)
    for step in range(STEPS):
        masked = experience.revealed_at >= step
        state = torch.where(masked, WORLD.mask_id, experience.tokens)
        drawn = words[WORLD.code(state)].gather(2, experience.tokens[:, :, None])[..., 0]
        total = total + (drawn * (experience.revealed_at == step)).sum(1)
    return total


def rewards(tokens: Tensor) -> Tensor:
    """(N,) of what stands before the first end token, whatever follows: here its length and a bonus."""
    alive = ((tokens == END).long().cumsum(1) == 0).double()
    return alive.sum(1) + 0.7 * (alive.sum(1) == 2)


def true_gradient(network: TableDenoiser, experience: Experience) -> Tensor:
    expected = (log_probability(network, experience).exp() * rewards(experience.tokens)).sum()
    return torch.autograd.grad(expected, network.logits)[0]


def estimated(network: TableDenoiser, experience: Experience, estimator: Estimator, round: int = 0) -> Tensor:
    """The estimator's expected gradient: each trajectory weighs its probability."""
    weight = log_probability(network, experience).detach().exp() * rewards(experience.tokens)
    judged = replace(experience, advantage=(LENGTH * weight).float(), round=round)
    loss = policy(estimator)(Nets(network), judged, Key(0), 0)
    return -torch.autograd.grad(loss.numerator, network.logits)[0]


def test_all_trajectories_have_probability_one() -> None:
    total = log_probability(table(1), trajectories()).detach().exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_trajectory_estimator_is_the_gradient_of_the_expected_reward(seed: int) -> None:
    network, experience = table(seed), trajectories()
    true = true_gradient(network, experience)
    assert (estimated(network, experience, Trajectory()) - true).abs().max() < 1e-6
    assert true.abs().max() > 0.01


def test_leaving_out_what_follows_the_end_token_is_biased() -> None:
    network, experience = table(1), trajectories()
    true = true_gradient(network, experience)
    assert (estimated(network, experience, Trajectory(normalizer="completion")) - true).abs().max() > 0.01


def test_drawing_steps_is_unbiased() -> None:
    network, experience = table(1), trajectories()
    true = true_gradient(network, experience)
    drawn = [estimated(network, experience, Trajectory(trajectory_samples=1), round) for round in range(400)]
    mean, error = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / 20
    assert ((mean - true).abs() < 4.5 * error + 1e-6).all()
    assert error.max() > 1e-4


def test_leaving_out_steps_by_how_far_they_would_move_the_weights_is_unbiased() -> None:
    network, experience = table(1), trajectories()
    read = policy(Trajectory()).scores(network, experience, policy(Trajectory()).views(experience, Key(0)))
    recorded = replace(experience, log_prob=read.log_prob.detach().sum(0))
    true = true_gradient(network, experience)
    drawn = [estimated(network, recorded, Trajectory(thinning=0.02), round) for round in range(400)]
    mean, error = torch.stack(drawn).mean(0), torch.stack(drawn).std(0) / 20
    assert ((mean - true).abs() < 4.5 * error + 1e-6).all()
    assert error.max() > 1e-4


def test_leaving_out_steps_reads_less_where_tokens_were_sure() -> None:
    experience = trajectories()
    number = len(experience.tokens)
    experience = replace(experience, advantage=torch.ones(number), group=torch.arange(number))
    for log_prob, share in ((-1e-3, 0.0), (-0.1, 0.5), (-3.0, 1.0)):
        sure = replace(experience, log_prob=torch.full_like(experience.log_prob, log_prob))
        scored, everything = (
            Trajectory(thinning=level).views(PROCESS, sure, END, Key(0)).scored.sum() for level in (0.4, 0.0)
        )
        assert float(scored / everything) == pytest.approx(share, abs=0.1)


def test_a_kl_of_rollouts_that_are_left_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"set estimator\.thinning=0, or beta=0"):
        policy(Trajectory(thinning=0.5), beta=0.1)
    with pytest.raises(ValueError, match=r"thinning is 0\.5 with trajectory_samples 2"):
        Trajectory(thinning=0.5, trajectory_samples=2)


@pytest.mark.parametrize("name", RATIOS)
def test_equal_weights_have_a_ratio_of_one_and_no_kl(name: str) -> None:
    network, experience = table(1), trajectories()
    experience = replace(experience, advantage=torch.linspace(-1, 1, len(experience.tokens)))
    objective = policy(ESTIMATORS[name], beta=0.5)
    passes = [replace(experience, iteration=i, num_iterations=2) for i in range(2)]
    old = torch.stack([objective.old_scores(network, one, Key(0)) for one in passes], 1)
    for one in passes:
        again = replace(one, old=old)
        loss = objective(Nets(network, reference=network), again, Key(0), 3)
        for metric, expected in (("sampling/importance_sampling_ratio/mean", 1.0), ("kl", 0.0)):
            total, count = loss.metrics[metric]
            assert float(total) / float(count) == expected, metric


@pytest.mark.parametrize("name", ["traj", "traj_nelbo", "diffu", "uni", "coupled", "espo", "trace"])
def test_other_weights_have_another_ratio(name: str) -> None:
    network, other, experience = table(1), table(2), trajectories()
    objective = policy(ESTIMATORS[name], beta=0.5)
    experience = replace(experience, old=objective.old_scores(other, experience, Key(0))[:, None])
    metrics = objective(Nets(network, reference=other), experience, Key(0), 3).metrics
    ratio, kl = (metrics[key] for key in ("sampling/importance_sampling_ratio/mean", "kl"))
    assert abs(float(ratio[0]) / float(ratio[1]) - 1.0) > 0.005
    assert float(kl[0]) > 0.01


def test_the_path_kl_is_that_of_the_two_samplers() -> None:
    network, other, experience = table(1), table(2), trajectories()
    own, reference = (log_probability(one, experience).detach() for one in (network, other))
    exact = float((own.exp() * (own - reference)).sum())
    objective = policy(Trajectory(), beta=1.0)
    scores = objective.scores(network, experience, objective.views(experience, Key(0)), other)
    assert scores.kl is not None
    assert float((own.exp() * scores.kl.detach().sum((0, 2))).sum()) == pytest.approx(exact, abs=1e-6)
    assert exact > 0.1


def test_the_sequence_bound_is_the_any_order_bound_on_average() -> None:
    network, experience = table(1), trajectories()
    words = network.logits.detach().double().log_softmax(-1)
    sequence = WORLD.sequences[3]
    bound = 0.0
    for size in range(1, LENGTH + 1):  # E over sizes and subsets of L/k times the masked tokens' log-probabilities
        subsets = [s for s in product((False, True), repeat=LENGTH) if sum(s) == size]
        for subset in subsets:
            masked = torch.tensor(subset)
            state = WORLD.code(torch.where(masked, WORLD.mask_id, sequence))
            found = words[state].gather(1, sequence[:, None])[:, 0]
            bound += float((found * masked).sum()) / size / len(subsets)
    row = int((experience.tokens == sequence).all(1).nonzero()[0])
    one = experience.rows(slice(row, row + 1))
    many = replace(
        one,
        **{
            name: getattr(one, name).repeat(4000, *[1] * (getattr(one, name).dim() - 1))
            for name in ("tokens", "revealed_at", "log_prob", "advantage", "peers", "reward", "group")
        },
        batch=Batch.of_tokens(one.tokens.repeat(4000, 1), torch.arange(4000)),
    )
    objective = policy(SequenceELBO())
    views = objective.views(many, Key(0))
    values = (views.by_copy(views.weight) * objective.scores(network, many, views).log_prob.detach()).sum((0, 2))
    assert float(values.mean()) == pytest.approx(bound, abs=4 * float(values.std()) / 4000**0.5)


def test_draws_do_not_depend_on_who_else_is_in_the_batch() -> None:
    network, experience = table(1), trajectories()
    for estimator in ESTIMATORS.values():
        objective = policy(estimator)
        whole = objective.old_scores(network, experience, Key(0))
        part = objective.old_scores(network, experience.rows(slice(11, 29)), Key(0))
        assert torch.equal(part, whole[11:29, : part.shape[1]]), estimator
        assert not whole[11:29, part.shape[1] :].any()


@pytest.mark.parametrize("estimator", [Sandwiched(), Weighted()])
def test_forms_without_a_ratio_raise_what_is_better_than_its_group(estimator: Estimator) -> None:
    network, experience = table(1), trajectories()
    gain = torch.where(rewards(experience.tokens) > 1, 1.0, -1.0)
    judged = replace(experience, advantage=gain, peers=gain[:, None].expand(-1, 4))
    if isinstance(estimator, Weighted):
        judged = replace(judged, peers=torch.tensor([[-1.0, -1.0, 1.0, 1.0]]).expand(len(gain), -1))
    loss = policy(estimator)(Nets(network), judged, Key(0), 0)
    (gradient,) = torch.autograd.grad(loss.numerator, network.logits)
    with torch.no_grad():
        before = float((log_probability(network, experience).exp() * rewards(experience.tokens)).sum())
        network.logits -= 0.01 * gradient
        after = float((log_probability(network, experience).exp() * rewards(experience.tokens)).sum())
    assert after > before


@pytest.mark.parametrize("moved", [False, True], ids=["weights of the rollouts", "older weights"])
@pytest.mark.parametrize("kl", ["path", "k3"])
def test_the_gradient_is_that_of_the_surrogate_written_out(kl: Any, moved: bool) -> None:
    """In double precision, from the table: mean over |o| of min(r·A, clip(r)·A), less beta times a KL."""
    network, other, experience = table(1), table(2), trajectories()
    experience = replace(experience, advantage=torch.linspace(-1, 1, len(experience.tokens)))
    objective = policy(OneStep(p_mask_prompt=0.0), beta=0.3, kl=kl, epsilon=0.1)
    if moved:
        experience = replace(experience, old=objective.old_scores(other, experience, Key(0))[:, None])
    loss = objective(Nets(network, reference=other), experience, Key(0), 0).numerator
    (gradient,) = torch.autograd.grad(loss, network.logits)

    words, words_of_other = (one.logits.double().log_softmax(-1) for one in (network, other))
    state = WORLD.code(torch.full_like(experience.tokens, WORLD.mask_id))
    place = experience.tokens[:, :, None]
    now, before = (table_of[state].gather(2, place)[..., 0] for table_of in (words, words_of_other.detach()))
    ratio = (now - (before if moved else now.detach())).exp()
    advantage = experience.advantage.double()[:, None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
    if kl == "path":
        penalty = (words.exp() * (words - words_of_other.detach()))[state].sum(-1)
    else:
        penalty = (before - now).exp() - 1 - (before - now)
    ended = (experience.tokens == END).long()
    kept = (ended.cumsum(1) - ended == 0).double()
    exact = (((0.3 * penalty - gain) * kept).sum(1) / kept.sum(1)).sum()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), abs=2e-4)
    torch.testing.assert_close(
        gradient.double(), torch.autograd.grad(exact, network.logits)[0].double(), atol=1e-4, rtol=1e-4
    )
