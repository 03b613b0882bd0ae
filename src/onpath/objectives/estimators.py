"""What a policy gradient reads of a finished rollout: at which states, which tokens, and with what weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.masking import Masking
from onpath.sampling.unmasking import Unmasking
from onpath.types import Experience

Unit = Literal["score", "position", "sequence"]
"""What has a probability ratio of its own: a token at a state, a position over all states, or a whole rollout."""


@dataclass(frozen=True)
class Views:
    """The states at which N rollouts of L positions are read again, C copies of them under each other; on the CPU.

    x: (C·N, L) the state. masked: (C·N, L) its masked positions. scored: (C·N, L) those of them whose token is scored.
    targets: (C·N, L) these tokens. weight: (C·N, L) of each score, 0 elsewhere.
    scale: (N,) what the weighed terms of a rollout are multiplied by.
    """

    x: Int64[Tensor, "M L"]
    masked: Bool[Tensor, "M L"]
    scored: Bool[Tensor, "M L"]
    targets: Int64[Tensor, "M L"]
    weight: Float[Tensor, "M L"]
    scale: Float[Tensor, "N"]

    @property
    def num_copies(self) -> int:
        return self.x.shape[0] // len(self.scale)

    def by_copy(self, values: Tensor) -> Tensor:
        """(C·N, L) as (C, N, L)."""
        return values.unflatten(0, (self.num_copies, -1))


class Estimator(ABC):
    """How the policy gradient of a rollout is estimated.

    exact: whether its expectation is the true policy gradient. has_ratio: whether it compares the weights with those
    that made the rollouts, without which these can be trained on once alone.
    """

    exact: ClassVar[bool] = False
    has_ratio: ClassVar[bool] = True

    @property
    def unit(self) -> Unit:
        """What has a ratio of its own."""
        return "score"

    @property
    def keeps_proposals(self) -> bool:
        """Whether it needs what each step of the rollout drew and did not reveal."""
        return False

    @property
    def weighs_by_advantage(self) -> bool:
        """Whether what is read depends on the advantage, so that a rollout that is worth nothing is read nowhere."""
        return False

    @abstractmethod
    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        """The states that this pass reads. The same key gives the same states for new, old and reference weights."""

    def refusal(self, sampler: Unmasking) -> str | None:
        """Why rollouts of this sampler cannot be estimated so, and what to do; None where they can."""
        return None

    def surrogate(
        self, log_prob: Float[Tensor, "C N L"], views: Views, experience: Experience
    ) -> Float[Tensor, "N"] | None:
        """What is maximised in place of clipped ratios, by an estimator of its own form; None for those with ratios."""
        return None


def through_end(experience: Experience, end_id: int | None) -> Bool[Tensor, "N L"]:
    """The positions of a completion through its first end token; all that was free where there is none."""
    free = experience.free
    if end_id is None:
        return free
    ended = ((experience.tokens == end_id) & free).long()
    return free & (ended.cumsum(1) - ended == 0)


def at_steps(process: Masking, experience: Experience, steps: Int64[Tensor, "C N"]) -> tuple[Tensor, Tensor]:
    """(x, masked), each (C·N, L): the states of the rollouts before the steps at `steps`, copy after copy."""
    masked = (experience.revealed_at >= steps[:, :, None]) & experience.free
    x = torch.where(masked, process.mask_id, experience.tokens)
    return x.flatten(0, 1), masked.flatten(0, 1)


def drawn_steps(
    experience: Experience, num_samples: int, key: rng.Key, *, revealing: bool
) -> tuple[Int64[Tensor, "C N"], Float[Tensor, "C N"]]:
    """Steps of each rollout's walk to read it at, and the weight of each; unbiased for a sum over all steps.

    num_samples: so many steps, stratified, each standing for its share of them; 0 takes all.
    revealing: among the steps that revealed something, else among all before which something was masked.
    """
    steps, revealed_at = torch.arange(experience.num_steps), experience.revealed_at[:, None, :]
    counted = (revealed_at == steps[:, None] if revealing else revealed_at >= steps[:, None]).any(-1)
    number = counted.sum(1)
    in_time = counted.int().argsort(dim=1, descending=True, stable=True)  # those that count first
    if num_samples == 0 or num_samples >= experience.num_steps:
        most = int(number.max())  # no rollout of the batch has more
        return in_time[:, :most].T, (torch.arange(most)[:, None] < number).float()
    shift = rng.uniform(key, experience.batch.ids).double()
    place = ((torch.arange(num_samples)[:, None] + shift) * number / num_samples).long()
    place = torch.minimum(place, (number - 1).clamp_min(0))
    return in_time.gather(1, place.T).T, (number / num_samples).float().expand(num_samples, -1)


def reading(
    experience: Experience,
    states: tuple[Int64[Tensor, "M L"], Bool[Tensor, "M L"]],
    scored: Bool[Tensor, "M L"],
    weight: Float[Tensor, "M L"] | Float[Tensor, "M 1"],
    scale: Float[Tensor, "N"],
) -> Views:
    """Views of the rollouts' own tokens; `states` are (x, masked)."""
    targets = experience.tokens.repeat(scored.shape[0] // len(experience.tokens), 1)
    return Views(*states, scored, targets, scored * weight, scale)


def per_token(counted: Bool[Tensor, "N L"]) -> Float[Tensor, "N"]:
    """One over the number of positions that count."""
    return 1.0 / counted.sum(1).clamp_min(1).float()


def masked_prompt(
    process: Masking, experience: Experience, x: Int64[Tensor, "M L"], probability: float, key: rng.Key
) -> Int64[Tensor, "M L"]:
    """`x` with each token of the prompt masked with a probability; they are not scored.

    The draws are of the prompt, not of the rollout: rollouts of a prompt are compared with each other, so they are read
    under the same masked prompt, and where all of their completions are masked they are one state, which goes through
    the network once.
    """
    if probability == 0.0:
        return x
    batch, num_copies = experience.batch, x.shape[0] // len(experience.tokens)
    given = ~experience.free
    if batch.padding is not None:
        given = given & ~batch.padding.cpu()
    draws = rng.uniform(key.fold("prompt"), experience.group, (x.shape[1],))
    hidden = (draws < probability) & given
    return x.masked_fill(hidden.repeat(num_copies, 1), process.mask_id)


def require_share(name: str, value: float) -> None:
    """ValueError unless it is a probability."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}; it is a probability, 0 to 1")
