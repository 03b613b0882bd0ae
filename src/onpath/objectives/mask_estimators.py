"""Estimators that mask a finished completion anew, and read it there."""

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
    masked_prompt,
    per_token,
    reading,
    require_share,
    through_end,
)
from onpath.processes.masking import Masking
from onpath.types import Experience


@dataclass(frozen=True)
class OneStep(Estimator):
    """Every token of the completion at once, from the state in which all of it is masked; one forward.

    p_mask_prompt: chance of each token of the prompt to be masked as well; each inner pass has masks of its own, the
    same for new, old and reference weights and for all rollouts of a prompt. masking: `probability` masks each token of
    the completion with `p_mask` and scores the masked ones, for maskings that know no time.
    Source: diffu-GRPO of d1, arXiv:2504.12216, Section 3.
    """

    p_mask_prompt: float = 0.15
    masking: Literal["full", "probability"] = "full"
    p_mask: float = 1.0

    def __post_init__(self) -> None:
        require_share("p_mask_prompt", self.p_mask_prompt)
        require_share("p_mask", self.p_mask)
        if self.p_mask == 0.0:
            raise ValueError(
                "p_mask is 0.0, which masks nothing, so nothing would be trained; allowed is 0 < p_mask <= 1"
            )
        if self.masking == "full" and self.p_mask != 1.0:
            raise ValueError(
                f"p_mask is {self.p_mask}, but masking is full, which masks all of the completion; set "
                "masking: probability, or leave p_mask out"
            )

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        masked = experience.free
        if self.masking == "probability":
            masked = masked & (_draws(experience, key.fold("mask")) < self.p_mask)
        x = masked_prompt(process, experience, _hidden(process, experience, masked), self.p_mask_prompt, key)
        scored = masked & through_end(experience, end_id)
        return reading(experience, (x, masked), scored, scored.float(), per_token(scored))


@dataclass(frozen=True)
class UniformTime(Estimator):
    """The masked tokens at a time of the schedule; the passes over a round go through the times evenly.

    The first pass has t ~ U(0, 1), the others follow at even distances (mod 1); the mean over masked tokens.
    masking: `probability` masks with probability t, whatever the schedule.
    Source: UniGRPO of MMaDA, arXiv:2505.15809, Section 3.3.
    """

    masking: Literal["schedule", "probability"] = "schedule"

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        # the shift is of the round, so that its passes cover the times; masks are of the pass
        shift = rng.uniform(key.fold("time").at(experience.round), experience.batch.ids).double()
        t = (shift + experience.iteration / experience.num_iterations) % 1.0
        ratio = process.schedule.mask_ratio(t) if self.masking == "schedule" else t
        masked = experience.free & (_draws(experience, key.fold("mask")) < ratio.float()[:, None])
        scored = masked & through_end(experience, end_id)
        x = _hidden(process, experience, masked)
        return reading(experience, (x, masked), scored, scored.float(), per_token(scored))


@dataclass(frozen=True)
class Coupled(Estimator):
    """A mask, its complement and the full mask, so that each token is scored twice.

    The log-probability of a token is the mean of the two. weights: `reference` weighs the partial masks by 1/rho and
    1/(1 - rho), rho the share that is masked, as the published code does, which inflates the exponent of the ratio;
    `normalized` weighs them by 1.
    Source: coupled-GRPO of DiffuCoder, arXiv:2506.20639, Section 4.
    """

    weights: Literal["reference", "normalized"] = "normalized"

    @property
    def unit(self) -> Unit:
        return "position"

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        free, counted = experience.free, through_end(experience, end_id)
        t = rng.uniform(key.fold("time"), experience.batch.ids).double()
        ratio = process.schedule.mask_ratio(0.2 + 0.6 * t).float()
        first = free & (_draws(experience, key.fold("mask")) < ratio[:, None])
        masks = torch.cat([first, free & ~first, free])
        weight = torch.ones(len(masks))
        if self.weights == "reference":
            weight = torch.cat([1.0 / ratio, 1.0 / (1.0 - ratio), torch.ones_like(ratio)])
        scored = masks & counted.repeat(3, 1)
        x = _hidden(process, experience, masks)
        return reading(experience, (x, masks), scored, 0.5 * weight[:, None], per_token(counted))


@dataclass(frozen=True)
class SequenceELBO(Estimator):
    """One ratio for a rollout, exp((ELBO - ELBO_old)/|o|), the bound by k masks of L and by their complement.

    k ~ U{0..L}; the masked tokens weigh (L + 1)/k, those of the complement (L + 1)/(L - k), and the two are averaged.
    Its mean over masks is the any-order bound on log p.
    Source: ESPO, arXiv:2512.03759; the coupled draws arXiv:2506.20639.
    """

    @property
    def unit(self) -> Unit:
        return "sequence"

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        states, scored, weight = _pair(process, experience, key)
        return reading(experience, states, scored, weight, per_token(through_end(experience, end_id)))


@dataclass(frozen=True)
class Sandwiched(Estimator):
    """A lower bound on log p where the advantage is positive, and a mixture with an upper bound where it is negative.

    The upper bound is (1/beta)·Σ_i log E[w·1(i masked)·p_i^beta], its mean over `num_masks` pairs of masks inside the
    logarithm; omega is its share in the mixture. There is no ratio and no clipping, so rounds are used once.
    Source: SPG, arXiv:2510.09541, Eq. 5, 7 and 10.
    """

    beta: float = 1.5
    omega: float = 0.5
    num_masks: int = 2
    has_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_share("omega", self.omega)
        if self.beta < 1 or self.num_masks < 1:
            raise ValueError(f"beta is {self.beta} and num_masks is {self.num_masks}; both must be 1 or more")

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        pairs = [_pair(process, experience, key.fold(f"pair {index}")) for index in range(self.num_masks)]
        x, masked = (torch.cat(parts) for parts in zip(*(states for states, _, _ in pairs), strict=True))
        scored, weight = torch.cat([p[1] for p in pairs]), torch.cat([p[2] for p in pairs]) / self.num_masks
        return reading(experience, (x, masked), scored, weight, per_token(through_end(experience, end_id)))

    def surrogate(
        self, log_prob: Float[Tensor, "C N L"], views: Views, experience: Experience
    ) -> Float[Tensor, "N"] | None:
        weight = views.by_copy(views.weight).to(log_prob.device)
        scale, advantage = (v.to(log_prob.device) for v in (views.scale, experience.advantage))
        lower = (weight * log_prob).sum((0, 2))
        asked = weight > 0
        # where a position was never masked its mean is not known, and it is left out
        energy = torch.where(asked, weight.clamp_min(1e-30).log() + self.beta * log_prob, -torch.inf)
        seen = asked.any(0)
        upper = torch.where(seen, energy.masked_fill(~seen, 0.0).logsumexp(0), 0.0).sum(1) / self.beta
        mixed = self.omega * upper + (1.0 - self.omega) * lower
        return advantage * torch.where(advantage >= 0, lower, mixed) * scale


@dataclass(frozen=True)
class Weighted(Estimator):
    """Weighted likelihood: log p weighed by the softmax of the advantages over the group, less that of their negatives.

    psi: sharpness. The log-probability is that of ``OneStep``, per token; there is no ratio, so rounds are used once.
    Source: wd1, arXiv:2507.08838, Eq. 9 and 10.
    """

    psi: float = 1.0
    p_mask_prompt: float = 0.15
    has_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_share("p_mask_prompt", self.p_mask_prompt)
        if not 0 < self.psi < math.inf:
            raise ValueError(f"psi is {self.psi}; it must be above 0")

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        return OneStep(self.p_mask_prompt).views(process, experience, end_id, key)

    def surrogate(
        self, log_prob: Float[Tensor, "C N L"], views: Views, experience: Experience
    ) -> Float[Tensor, "N"] | None:
        own, peers = self.psi * experience.advantage, self.psi * experience.peers
        gain = (own - peers.logsumexp(1)).exp() - (-own - (-peers).logsumexp(1)).exp()
        # the group's weights sum to 1; the mean over rollouts is over their number
        gain = (gain * peers.shape[1] * views.scale).to(log_prob.device)
        return gain * (views.by_copy(views.weight).to(log_prob.device) * log_prob).sum((0, 2))


def _draws(experience: Experience, key: rng.Key) -> Float[Tensor, "N L"]:
    return rng.uniform(key, experience.batch.ids, (experience.tokens.shape[1],))


def _hidden(process: Masking, experience: Experience, masked: Bool[Tensor, "M L"]) -> Int64[Tensor, "M L"]:
    tokens = experience.tokens.repeat(len(masked) // len(experience.tokens), 1)
    return torch.where(masked, process.mask_id, tokens)


def _pair(
    process: Masking, experience: Experience, key: rng.Key
) -> tuple[tuple[Tensor, Tensor], Bool[Tensor, "M L"], Float[Tensor, "M 1"]]:
    """((x, masked), scored, weights) of k masked positions, k ~ U{0..L}, and of their complement."""
    free = experience.free
    length = free.sum(1)
    count = (rng.uniform(key.fold("count"), experience.batch.ids).double() * (length + 1)).long()
    rank = torch.where(free, _draws(experience, key.fold("mask")), 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    first = rank < count[:, None]
    masked = torch.cat([first, free & ~first])
    sizes = torch.cat([count, length - count])
    weight = torch.where(sizes > 0, 0.5 * (length + 1).repeat(2) / sizes.clamp_min(1), 0.0).float()
    return (_hidden(process, experience, masked), masked), masked, weight[:, None]
