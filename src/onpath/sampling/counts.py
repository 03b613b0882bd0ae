"""How many positions a step reveals: the second of the three choices of an unmasking sampler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Count(ABC):  # noqa: B024  (a family without a common method: two rules are plain choices, the others look)
    """A rule for the number of reveals."""


@dataclass(frozen=True)
class ScheduleCount(Count):
    """A fixed number: after the step to s, L·mask_ratio(s) positions are still masked, rounded."""


@dataclass(frozen=True)
class AncestralCount(Count):
    """A coin for each masked position, with the process's reveal probability between t and s. Random order only.

    This is the reverse process that the trajectory NELBO bounds. Source: MDLM, arXiv:2406.07524, Eq. 6.
    """


class AdaptiveCount(Count):
    """A rule that looks at how sure the network is; the last step reveals what is left."""

    @abstractmethod
    def admit(self, confidence: Float[Tensor, "B L"], entropy: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        """Which positions to reveal; columns are masked positions in the sampler's order, the others come last
        with confidence 0 and infinite entropy. The sampler always adds the first column."""


@dataclass(frozen=True)
class Threshold(AdaptiveCount):
    """Every position whose token has at least probability `tau`, 0 < tau <= 1.

    Source: Fast-dLLM, arXiv:2505.22618, Section 3.3.
    """

    tau: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.tau <= 1:
            raise ValueError(f"threshold: tau is {self.tau}; needed is 0 < tau <= 1")

    def admit(self, confidence: Float[Tensor, "B L"], entropy: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        return confidence >= self.tau


@dataclass(frozen=True)
class Factor(AdaptiveCount):
    """The largest n with (n + 1)·(1 - c_n) < factor, c_n the least confidence of the first n; factor > 0.

    Source: Fast-dLLM, arXiv:2505.22618, Section 3.3.
    """

    factor: float = 0.5

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor: factor is {self.factor}; it must be above 0")

    def admit(self, confidence: Float[Tensor, "B L"], entropy: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        number = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        holds = (number + 1) * (1.0 - confidence.cummin(1).values) < self.factor
        return number <= (holds * number).amax(1, keepdim=True)


@dataclass(frozen=True)
class EntropyBound(AdaptiveCount):
    """The longest run of positions with Σ H - max H <= gamma nats, gamma >= 0.

    It bounds the error of drawing them independently. Source: EB-Sampler, arXiv:2505.24857, Eq. 6.
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"entropy bound: gamma is {self.gamma}; it must be 0 or more")

    def admit(self, confidence: Float[Tensor, "B L"], entropy: Float[Tensor, "B L"]) -> Bool[Tensor, "B L"]:
        finite = entropy.isfinite()
        entropy = entropy.masked_fill(~finite, 0.0)
        return (entropy.cumsum(1) - entropy.cummax(1).values <= self.gamma) & finite


def shared_out(
    total: Int64[Tensor, "*b"], parts: Int64[Tensor, "*b"], done: Int64[Tensor, "*b"]
) -> Int64[Tensor, "*b"]:
    """How many of `total` things the first `done` of `parts` parts hold: total // parts each, the first ones one more.

    >>> shared_out(torch.tensor([10] * 5), torch.tensor([4] * 5), torch.arange(5)).tolist()
    [0, 3, 6, 8, 10]
    """
    return done * (total // parts) + torch.minimum(done, total % parts)
