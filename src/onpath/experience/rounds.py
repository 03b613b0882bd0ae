"""Where policy optimisation has its batches from: rounds of prompts, groups of rollouts, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.data.source import Source
from onpath.experience.completions import kept
from onpath.experience.figures import likelihood, of_rollouts, of_round
from onpath.experience.generation import Generator, Rollouts
from onpath.experience.settings import GroupRollouts
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.rewards.scoring import Scores, score
from onpath.rollouts import evaluating
from onpath.types import Denoiser, Experience, Nets

T = TypeVar("T")
Sums = Mapping[str, tuple[float, float]]


@runtime_checkable
class Peers(Protocol):
    """The processes that make a round together: which one this is, and what all of them have.

    each: what an action gives in every process, by rank; where it fails in one, it fails in all.
    """

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def each(self, action: Callable[[], T]) -> list[T]: ...


@dataclass(frozen=True)
class Round:
    """A round of rollouts with rewards, as one process holds it.

    number: of the round. experience: its rollouts, batch after batch. sums: figures as (sum, count). completions: what
    is kept to be read.
    """

    number: int
    experience: Experience
    sums: Sums = field(default_factory=dict)
    completions: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Rounds:
    """Makes the rounds of a run: of its prompts, by its policy.

    Every draw depends on the seed, the round and the number of the rollout, and on nothing else. lockstep: whether all
    processes go through the network together, as they must where each holds a shard of it.
    """

    settings: GroupRollouts
    policy: PolicyGradient
    source: Source
    seed: int = 0
    lockstep: bool = False

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a round."""
        return self.settings.steps_per_round * self.settings.num_iterations

    @property
    def generator(self) -> Generator:
        policy = self.policy
        return Generator(
            policy.process,
            policy.walker,
            policy.grid,
            self.source,
            batch_size=self.settings.rollout_batch_size,
            lockstep=self.lockstep,
            keeps_proposals=policy.estimator.keeps_proposals,
            shares_orders=self.settings.shared_orders,
        )

    def collect(
        self, nets: Nets, number: int, batch_size: int, device: torch.device, peers: Peers, accumulation: int = 1
    ) -> Round:
        """Round `number` by the current weights: rollouts, rewards, advantages within each group.

        batch_size: rollouts of an optimizer step over all processes, of which each holds the part of its rank, and goes
        through it in `accumulation` pieces.
        ValueError that names the reward where one fails.
        """
        settings, size = self.settings, batch_size // peers.count
        own = torch.arange(settings.steps_per_round)[:, None] * batch_size + peers.rank * size + torch.arange(size)
        place = own.flatten()
        ids = number * settings.steps_per_round * batch_size + place
        key = rng.Key(self.seed, "experience")
        rollouts = self.generator.rollouts(nets.current, ids, ids // settings.num_generations, key, device)
        # groups may be spread over processes, so that all of them must know all rewards
        found = peers.each(lambda: self.judged(rollouts))
        scores = found[peers.rank]
        reward = torch.stack([one.total.view(own.shape) for one in found], dim=1).flatten()
        advantage = settings.advantages(reward)
        experience = replace(
            rollouts.experience,
            advantage=advantage.flatten()[place],
            peers=advantage[place // settings.num_generations],
            reward=scores.total,
            round=number,
            num_iterations=settings.num_iterations,
        )
        if settings.reuses:
            experience = replace(experience, old=self._old(nets.current, experience, size // accumulation, device))
        lengths = torch.cat(peers.each(lambda: rollouts.lengths))
        sums = {
            **of_rollouts(rollouts, scores, self.source.end_id),
            **of_round(reward.view(-1, settings.num_generations), found, lengths),
            **likelihood(self.policy, nets.current, experience, place, key.at(number), device),
        }
        group, most = (ids // settings.num_generations).tolist(), settings.log_completions
        shown = kept(self.generator, rollouts, scores, experience.advantage, group, most)
        return Round(number, experience, sums, shown)

    def part(self, held: Round, step: int, micro: int, accumulation: int) -> Experience:
        """The rollouts of micro-batch `micro` of an optimizer step, of those that this process holds."""
        iteration, batch = divmod(step % self.num_steps, self.settings.steps_per_round)
        size = len(held.experience.tokens) // (self.settings.steps_per_round * accumulation)
        first = (batch * accumulation + micro) * size
        return replace(held.experience.rows(slice(first, first + size)), iteration=iteration)

    def scored(
        self, denoiser: Denoiser, ids: Int64[Tensor, "N"], key: rng.Key, device: torch.device, peers: Peers
    ) -> Sums:
        """Figures of one rollout of each of the prompts `ids`, those of this process."""
        rollouts = self.generator.rollouts(denoiser, ids, ids, key, device)
        scores = peers.each(lambda: self.judged(rollouts))[peers.rank]
        return of_rollouts(rollouts, scores, self.source.end_id)

    def judged(self, rollouts: Rollouts) -> Scores:
        """What the rewards say of rollouts."""
        settings, tokens = self.settings, rollouts.experience.tokens
        given = (rollouts.prompts, rollouts.completions, rollouts.completion_ids, rollouts.columns)
        found = score(settings.rewards, settings.weights, *given, settings.time_limit_s)
        end_id = self.source.end_id
        if not settings.mask_truncated_completions or end_id is None:
            return found
        ended = ((tokens == end_id) & rollouts.experience.free).any(1)
        return replace(found, total=found.total * ended)

    def _old(self, denoiser: Denoiser, experience: Experience, size: int, device: torch.device) -> Tensor:
        """(N, I, C, L): what the policy reads in each pass, by the weights that made the rollouts."""
        passes = []
        for iteration in range(self.settings.num_iterations):
            parts = []
            with evaluating(denoiser):
                for first in range(0, len(experience.tokens), size):
                    part = replace(experience.rows(slice(first, first + size)), iteration=iteration)
                    parts.append(self.policy.old_scores(denoiser, part.to(device), rng.Key(self.seed)))
            passes.append(_stacked(parts))
        copies = max(one.shape[1] for one in passes)
        return torch.stack([_widened(one, copies) for one in passes], dim=1)


def _stacked(parts: list[Float[Tensor, "N C L"]]) -> Float[Tensor, "M C L"]:
    copies = max(part.shape[1] for part in parts)
    return torch.cat([_widened(part, copies) for part in parts])


def _widened(part: Float[Tensor, "N C L"], copies: int) -> Tensor:
    """With copies of 0 behind, so that there are so many."""
    return torch.nn.functional.pad(part, (0, 0, 0, copies - part.shape[1]))
