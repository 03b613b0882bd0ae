"""Remasking: which revealed positions a step masks again, so that an early mistake can still be mended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onpath.schedules import Schedule

Times = tuple[Float[Tensor, "B"], Float[Tensor, "B"]]


class Remask(ABC):  # noqa: B024  (a family of two kinds: by chance, and by what the network reads)
    """A rule for masking again what was revealed. Given positions and padding never are."""


class RandomRemask(Remask):
    """A rule by chance, ReMDM: revealed positions are masked again with probability sigma, and as many more revealed.

    In a step from t to s, sigma is at most ``remask_limit``, (1 - alpha_s)/alpha_t; each masked position is revealed
    with probability (alpha_s - (1 - sigma)·alpha_t)/(1 - alpha_t), which keeps the marginal of the forward process at
    every time. A sampler with counts fixed ahead masks sigma times the revealed positions again, rounded up or down by
    a draw, and reveals so many more that the schedule's number stays masked. The step that reveals everything masks
    nothing again. Source: ReMDM, arXiv:2503.00307, Section 3.1.
    """

    def mask_ratio(self, schedule: Schedule, time: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """The mask ratio at a time of the walk."""
        return schedule.mask_ratio(time)

    @abstractmethod
    def sigma(self, limit: Float[Tensor, "B"], num_revealed: Float[Tensor, "B"], times: Times) -> Float[Tensor, "B"]:
        """The mean share of the revealed positions to mask again.

        limit: the largest share allowed. num_revealed: their number, or the mean of it. times: (t, s).
        """

    def weights(self, confidence: Float[Tensor, "B L"], revealed: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        """Each revealed position's sigma in parts of the mean; their mean in a row is 1, and 0 stands elsewhere."""
        return revealed.float()


@dataclass(frozen=True)
class Cap(RandomRemask):
    """sigma = eta, or its limit where that is less; 0 <= eta <= 1. Source: ReMDM, arXiv:2503.00307, Section 4.1."""

    eta: float = 0.008

    def __post_init__(self) -> None:
        _check_share("cap", "eta", self.eta)

    def sigma(self, limit: Float[Tensor, "B"], num_revealed: Float[Tensor, "B"], times: Times) -> Float[Tensor, "B"]:
        return limit.clamp_max(self.eta)


@dataclass(frozen=True)
class Rescale(RandomRemask):
    """sigma = eta times its limit; 0 <= eta <= 1. Source: ReMDM, arXiv:2503.00307, Section 4.1."""

    eta: float = 0.015

    def __post_init__(self) -> None:
        _check_share("rescale", "eta", self.eta)

    def sigma(self, limit: Float[Tensor, "B"], num_revealed: Float[Tensor, "B"], times: Times) -> Float[Tensor, "B"]:
        return self.eta * limit


@dataclass(frozen=True)
class ByConfidence(RandomRemask):
    """sigma_i = limit·softmax(-psi)_i over the revealed positions, psi the probability of the token at its last reveal.

    One position a step in the mean at most. Since sigma differs from position to position, the marginal is kept only
    approximately; as many more masked positions are revealed in the mean as are masked again, which keeps the expected
    number of masks. Source: ReMDM, arXiv:2503.00307, Section 4.1 (there masked positions count as sigma = 0).
    """

    def sigma(self, limit: Float[Tensor, "B"], num_revealed: Float[Tensor, "B"], times: Times) -> Float[Tensor, "B"]:
        return torch.where(num_revealed > 0, limit / num_revealed.clamp_min(1), 0.0)

    def weights(self, confidence: Float[Tensor, "B L"], revealed: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        doubt = torch.where(revealed, (-confidence).exp(), 0.0)
        return doubt * revealed.sum(1, keepdim=True) / doubt.sum(1, keepdim=True).clamp_min(1e-30)


@dataclass(frozen=True)
class Loop(RandomRemask):
    """Reveals until alpha is `alpha` at time `start`, goes round there with sigma = `hold` until `stop`, then finishes.

    Before and after, the time of the schedule runs faster and nothing is masked again. 0 < stop < start < 1;
    0 < alpha < 1 must be a value that the schedule takes. Source: ReMDM, arXiv:2503.00307, Section 4.2.
    """

    alpha: float = 0.9
    start: float = 0.55
    stop: float = 0.05
    hold: float = 0.02

    def __post_init__(self) -> None:
        _check_share("loop", "hold", self.hold)
        if not (0 < self.stop < self.start < 1 and 0 < self.alpha < 1):
            raise ValueError(
                f"loop: alpha {self.alpha}, start {self.start}, stop {self.stop}; needed are 0 < alpha < 1 and "
                "0 < stop < start < 1, since time runs from 1 to 0"
            )

    def mask_ratio(self, schedule: Schedule, time: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        at_data, at_noise = schedule.end_points()
        if not at_noise < self.alpha < at_data:
            raise ValueError(
                f"loop: alpha is {self.alpha}, but the schedule has {at_noise} to {at_data}; choose a value between"
            )
        held = schedule.t_of(torch.full_like(time, self.alpha))
        early = held + (1.0 - held) * (time - self.start) / (1.0 - self.start)
        late = held * time / self.stop
        inner = torch.where(time > self.start, early, torch.where(time < self.stop, late, held))
        return schedule.mask_ratio(torch.where((time >= 0) & (time <= 1), inner, time))

    def sigma(self, limit: Float[Tensor, "B"], num_revealed: Float[Tensor, "B"], times: Times) -> Float[Tensor, "B"]:
        t, s = times
        holds = (t <= self.start) & (s >= self.stop)
        return torch.where(holds.to(limit.device), limit.clamp_max(self.hold), 0.0)


@dataclass(frozen=True)
class Proofread(Remask):
    """Masks again where the network itself gives [MASK] a probability above `threshold`, reading the revealed text.

    It needs a network that was trained to predict [MASK] for a wrong token and has a logit for it, as the penalty
    objective does; its head then runs at the revealed positions too. With the schedule's counts at most so many
    positions are masked again as the schedule leaves masked, the most doubtful first; with adaptive counts a row goes
    on until it was read without a doubt. ``sampling.loop.repair`` corrects an existing text by it. 0 < threshold < 1.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"proofread: threshold is {self.threshold}; needed is 0 < threshold < 1, 0.5 is usual")


def _check_share(rule: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{rule}: {name} is {value}; it is a probability, so 0 to 1 is allowed")
