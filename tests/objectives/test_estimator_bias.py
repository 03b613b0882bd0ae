"""How far the expected gradients of estimators point away from the policy gradient, on worlds that are enumerated."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import pytest
import torch
from torch import Tensor

from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import Coupled, OneStep, SequenceELBO, UniformTime
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.objectives.trajectory_estimators import TraceEstimator, Trajectory, TrajectoryNELBOEstimator
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import EvenGrid
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Experience, Nets
from worlds import TableDenoiser, World

LENGTH, STEPS = 3, 3
PROCESS = Masking(LinearSchedule(), 2)


def world(seed: int, scale: float) -> tuple[World, TableDenoiser, Tensor]:
    """A world of two words, a table of random logits, and a random reward of each sequence."""
    found = World.random(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    network = TableDenoiser(found.wrong(seed))
    network.logits = (scale * torch.randn(network.logits.shape, generator=generator)).requires_grad_()
    return found, network, torch.randn(2**LENGTH, generator=generator, dtype=torch.float64)


def experience(
    tokens: Tensor, revealed_at: Tensor, chance: Tensor | None, proposed: Tensor | None = None
) -> Experience:
    number = len(tokens)
    nothing = torch.zeros(number)
    return Experience(
        batch=Batch.of_tokens(tokens, torch.arange(number)),
        tokens=tokens,
        revealed_at=revealed_at,
        num_steps=STEPS,
        log_prob=torch.zeros(number, LENGTH),
        advantage=nothing,
        peers=nothing[:, None],
        reward=nothing,
        group=torch.zeros(number, dtype=torch.int64),
        chance=chance,
        proposed=proposed,
    )


def by_coins(found: World, network: TableDenoiser) -> tuple[Experience, Tensor]:
    """Every trajectory of the ancestral sampler, and the log of its probability, with gradient."""
    maps = torch.tensor(list(product(range(STEPS), repeat=LENGTH)))
    revealed_at = maps.repeat_interleave(2**LENGTH, 0)
    tokens = found.sequences.repeat(len(maps), 1)
    words = network.logits.double().log_softmax(-1)
    total = torch.full((len(tokens),), -LENGTH * torch.tensor(float(STEPS)).log(), dtype=torch.float64)
    for step in range(STEPS):
        state = torch.where(revealed_at >= step, 2, tokens)
        drawn = words[found.code(state)].gather(2, tokens[:, :, None])[..., 0]
        total = total + (drawn * (revealed_at == step)).sum(1)
    return experience(tokens, revealed_at, 1.0 / torch.arange(STEPS, 0, -1).float()), total


def by_confidence(found: World, network: TableDenoiser) -> tuple[Experience, Tensor]:
    """Every trajectory of the sampler that reveals the likeliest of what it has drawn, one position a step."""
    words = network.logits.double().log_softmax(-1)
    done = []

    def go(x: list[int], revealed_at: list[int], proposed: list[list[int]], total: Tensor, step: int) -> None:
        if step == STEPS:
            done.append((x, revealed_at, proposed, total))
            return
        masked = [i for i in range(LENGTH) if x[i] == 2]
        table = words[found.code(torch.tensor(x))]
        for drawn in product(range(2), repeat=len(masked)):
            chosen = max(zip(masked, drawn, strict=True), key=lambda pair: float(table[pair].detach()))
            after, when = list(x), list(revealed_at)
            after[chosen[0]], when[chosen[0]] = chosen[1], step
            row = [0] * LENGTH
            for place, word in zip(masked, drawn, strict=True):
                row[place] = word
            grown = total + torch.stack([table[i, w] for i, w in zip(masked, drawn, strict=True)]).sum()
            go(after, when, [*proposed, row], grown, step + 1)

    go([2] * LENGTH, [-1] * LENGTH, [], torch.zeros((), dtype=torch.float64), 0)
    tokens, revealed_at, proposed = (torch.tensor([row[i] for row in done]) for i in range(3))
    return experience(tokens, revealed_at, None, proposed), torch.stack([row[3] for row in done])


def _copied(rollouts: Experience, copies: int) -> Experience:
    """The rollouts so many times, each with draws of its own."""
    own = {f.name: getattr(rollouts, f.name) for f in fields(rollouts) if f.name not in ("batch", "chance")}
    parts = {name: torch.cat([value] * copies) for name, value in own.items() if isinstance(value, Tensor)}
    return replace(rollouts, batch=Batch.of_tokens(parts["tokens"], torch.arange(len(parts["tokens"]))), **parts)


def cosine(
    estimator: Estimator,
    sampler: Unmasking,
    made: tuple[Experience, Tensor],
    world_of: tuple[World, TableDenoiser, Tensor],
) -> float:
    """Of the estimator's gradient, averaged over its own draws, with the gradient of the expected reward."""
    (rollouts, log_probability), (found, network, reward) = made, world_of
    gain = reward[(rollouts.tokens * 2 ** torch.arange(LENGTH - 1, -1, -1)).sum(1)]
    gain = gain - (log_probability.detach().exp() * gain).sum()
    (true,) = torch.autograd.grad((log_probability.exp() * gain).sum(), network.logits, retain_graph=True)
    objective = PolicyGradient(PROCESS, estimator, sampler=sampler, grid=EvenGrid(STEPS))
    weight = (log_probability.detach().exp() * gain).float()
    mean = torch.zeros_like(true)
    many = _copied(replace(rollouts, advantage=weight), 1 if estimator.exact else 100)
    for round in range(1 if estimator.exact else 8):
        judged = replace(many, round=round)
        loss = objective(Nets(network), judged, Key(0), 0)
        mean -= torch.autograd.grad(loss.numerator, network.logits)[0]
    assert found.num_words == 2
    return float(torch.nn.functional.cosine_similarity(mean.flatten(), true.flatten(), dim=0))


def mean_cosine(estimator: Estimator, scale: float, *, sure: bool = False) -> float:
    """Over several worlds."""
    total = 0.0
    for seed in range(6):
        one = world(seed, scale)
        sampler = Unmasking(order="confidence") if sure else Unmasking(count=AncestralCount())
        made = (by_confidence if sure else by_coins)(one[0], one[1])
        total += cosine(estimator, sampler, made, one) / 6
    return total


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_scoring_all_candidates_makes_a_confidence_order_exact(scale: float) -> None:
    one = world(0, scale)
    made = by_confidence(one[0], one[1])
    assert float(made[1].detach().exp().sum()) == pytest.approx(1.0, abs=1e-9)
    sampler = Unmasking(order="confidence")
    assert cosine(TraceEstimator(score_candidates=True), sampler, made, one) > 1 - 1e-5
    assert cosine(TraceEstimator(), sampler, made, one) < 0.99


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_the_order_of_the_estimators(scale: float) -> None:
    found = {
        "traj": mean_cosine(Trajectory(), scale),
        "traj_nelbo": mean_cosine(TrajectoryNELBOEstimator(trajectory_samples=0), scale),
        "coupled": mean_cosine(Coupled(weights="reference"), scale),
        "espo": mean_cosine(SequenceELBO(), scale),
        "uni": mean_cosine(UniformTime(), scale),
        "diffu": mean_cosine(OneStep(p_mask_prompt=0.0), scale),
        "trace": mean_cosine(TraceEstimator(), scale, sure=True),
    }
    assert found["traj"] > 1 - 1e-5, found
    assert found["traj_nelbo"] > found["coupled"] > max(found["espo"], found["uni"], found["diffu"]), found
    assert found["traj_nelbo"] < 0.995 and min(found["espo"], found["uni"], found["diffu"]) > 0.7, found
    assert found["trace"] < 0.95, found
