"""Estimators that read a rollout at the states that it went through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.objectives.estimators import (
    Estimator,
    Unit,
    Views,
    at_steps,
    drawn_steps,
    masked_prompt,
    per_token,
    reading,
    require_share,
    through_end,
)
from onpath.processes.masking import Masking
from onpath.sampling.counts import AdaptiveCount
from onpath.sampling.distinct import digest
from onpath.sampling.orders import BLIND
from onpath.sampling.unmasking import Unmasking
from onpath.types import Experience


@dataclass(frozen=True)
class Trajectory(Estimator):
    """The exact policy gradient of a sampler whose order does not look at the network: Σ_k Σ_{i in U_k} C(r_{k,i}, A).

    U_k are the positions that step k revealed, r_{k,i} the ratio of the probabilities of the token at the state before
    it. All of them count, those behind an end token too, as earlier ones were drawn with them in sight; the sum is
    divided by the free positions of the canvas, whose number is the same for every rollout.
    trajectory_samples: steps read of each rollout, drawn evenly among those that revealed something, which is unbiased;
    0 reads all. thinning: a step that hardly moves the weights is left out by chance, and weighs more where it is read:
    its chance is min(1, |A|·Σ_i (1 - p_i) / thinning), p_i those with which its tokens were drawn, as the gradient of
    log p_i is about as long as 1 - p_i; unbiased, 0 is off. The draw is of the state, so that rollouts of a prompt that
    share it are read there together.
    normalizer: `completion` divides by the length through the end token and leaves out what follows, which is biased.
    Source: the chain rule over the steps; the trajectory of d2, arXiv:2509.21474, with a blind order.
    """

    trajectory_samples: int = 0
    thinning: float = 0.0
    normalizer: Literal["canvas", "completion"] = "canvas"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_samples(self.trajectory_samples)
        if not 0.0 <= self.thinning < math.inf or (self.thinning and self.trajectory_samples):
            raise ValueError(
                f"thinning is {self.thinning} with trajectory_samples {self.trajectory_samples}; allowed are 0 (off) "
                "and more, .5 is usual, and one of the two; leave trajectory_samples out"
            )

    @property
    def weighs_by_advantage(self) -> bool:
        return self.thinning > 0

    def refusal(self, sampler: Unmasking) -> str | None:
        if isinstance(sampler.count, AdaptiveCount):
            return (
                f"sampler.count is {type(sampler.count).__name__}, which looks at the network, so the ratio of the "
                "revealed tokens is not that of the policy; allowed are schedule and ancestral; set "
                "sampler.count=schedule, or take the estimator trace with score_candidates"
            )
        if sampler.order in BLIND:
            return None
        return (
            f"sampler.order is {sampler.order}, which looks at the network, so the ratio of the revealed tokens is not "
            f"that of the policy; allowed are {' and '.join(BLIND)}; set sampler.order=random, or take the estimator "
            "trace with score_candidates"
        )

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        steps, weight = drawn_steps(experience, self.trajectory_samples, key.fold("steps"), revealing=True)
        states, scored = at_steps(process, experience, steps), _revealed(experience, steps)
        counted = experience.free
        if self.normalizer == "completion":
            counted = through_end(experience, end_id)
            scored = scored & counted.repeat(len(steps), 1)
        weight = weight.flatten()
        if self.thinning:
            weight = weight * _kept(experience, states[0], scored, self.thinning, key.fold("thinning"))
        scored = scored & (weight > 0)[:, None]
        return reading(experience, states, scored, weight[:, None], per_token(counted))


@dataclass(frozen=True)
class TrajectoryNELBOEstimator(Estimator):
    """The trajectory's states with every masked token scored, weighed by the chance u_k that step k reveals it.

    Less variance than ``Trajectory``, and a bias: a token is scored at states that did not draw it.
    trajectory_samples: steps read of each rollout; 0 reads all. level: `token` has a ratio for each score, divided by
    the free positions of the canvas; `sequence` has one, exp((Q - Q_old)/|o|), Q the weighed sum and |o| the length
    through the end token. p_mask_prompt: chance of each token of the prompt to be masked, the same for new, old and
    reference weights and for all rollouts of a prompt.
    Q is no bound on log p: the states are the rollout's, not those of the forward process; ``logp/nelbo`` is logged
    with fresh masks.
    """

    trajectory_samples: int = 4
    level: Literal["token", "sequence"] = "token"
    p_mask_prompt: float = 0.0

    def __post_init__(self) -> None:
        _require_samples(self.trajectory_samples)
        require_share("p_mask_prompt", self.p_mask_prompt)

    @property
    def unit(self) -> Unit:
        return "score" if self.level == "token" else "sequence"

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        steps, weight = drawn_steps(experience, self.trajectory_samples, key.fold("steps"), revealing=False)
        x, masked = at_steps(process, experience, steps)
        if experience.chance is None:
            share = _revealed(experience, steps).sum(1) / masked.sum(1).clamp_min(1)
        else:
            share = experience.chance[steps.flatten()]
        scored = masked & (weight.flatten() > 0)[:, None]
        counted = experience.free if self.level == "token" else through_end(experience, end_id)
        x = masked_prompt(process, experience, x, self.p_mask_prompt, key)
        return reading(experience, (x, masked), scored, (weight.flatten() * share)[:, None], per_token(counted))


@dataclass(frozen=True)
class TraceEstimator(Estimator):
    """The tokens that a sampler of any order revealed, each at the state that it was revealed at.

    Where the order looks at the network this is biased: the network chose the positions as well. score_candidates:
    score every token that a step drew, revealed or not; as the choice of the positions is a function of these draws,
    this is exact again where the order goes by the drawn tokens alone. merge: so many steps of the sampler are read at
    one state, the first of them, which costs less and is biased.
    Source: TraceRL, arXiv:2509.06949; CJ-GRPO, arXiv:2509.23924.
    """

    merge: int = 1
    score_candidates: bool = False

    def __post_init__(self) -> None:
        if self.merge < 1 or (self.merge > 1 and self.score_candidates):
            raise ValueError(
                f"merge is {self.merge} with score_candidates {self.score_candidates}; allowed are 1 and more, and 1 "
                "alone with score_candidates, as the draws of later steps were made at other states"
            )

    @property
    def keeps_proposals(self) -> bool:
        return self.score_candidates

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        firsts = torch.arange(0, experience.num_steps, self.merge)[:, None].expand(-1, len(experience.tokens))
        x, masked = at_steps(process, experience, firsts)
        soon = (experience.revealed_at < firsts[:, :, None] + self.merge).flatten(0, 1)
        revealed, scale = masked & soon, per_token(experience.free)
        if not self.score_candidates:
            return reading(experience, (x, masked), revealed, revealed.float(), scale)
        assert experience.proposed is not None
        scored = masked & revealed.any(1, keepdim=True)  # a step that revealed nothing asked for nothing
        return Views(x, masked, scored, experience.proposed.transpose(0, 1).flatten(0, 1), scored.float(), scale)


def _revealed(experience: Experience, steps: Int64[Tensor, "C N"]) -> Bool[Tensor, "M L"]:
    """The positions that each step revealed."""
    return (experience.revealed_at == steps[:, :, None]).flatten(0, 1)


def _kept(
    experience: Experience, x: Int64[Tensor, "M L"], scored: Bool[Tensor, "M L"], level: float, key: rng.Key
) -> Float[Tensor, "M"]:
    """For each state 0, or one over the chance with which it is read."""
    num_copies = len(x) // len(experience.tokens)
    doubt = (1.0 - experience.log_prob.exp()).repeat(num_copies, 1)
    length = experience.advantage.abs().repeat(num_copies) * (doubt * scored).sum(1)
    chance = (length / level).clamp_max(1.0)
    state = digest(torch.cat([experience.group.repeat(num_copies)[:, None], x], dim=1))
    return torch.where(rng.uniform(key, state) < chance, 1.0 / chance.clamp_min(1e-6), 0.0)


def _require_samples(number: int) -> None:
    if number < 0:
        raise ValueError(f"trajectory_samples is {number}; allowed are 0 (all steps) and more")
