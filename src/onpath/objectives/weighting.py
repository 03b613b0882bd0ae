"""At which times images are trained, and how much each time weighs: two separate choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from onpath.processes.gaussian import Gaussian

Times = Float[Tensor, "B"]


class TimeDensity(ABC):
    """From which density the time of an example is drawn; a density is not a weight: it also spends the compute."""

    @abstractmethod
    def times(self, draws: Times) -> Times:
        """Times in [0, 1], fp64, for uniform draws in [0, 1): the quantile function of the density."""


@dataclass(frozen=True)
class UniformTimes(TimeDensity):
    """Every time alike."""

    def times(self, draws: Times) -> Times:
        return draws.double()


@dataclass(frozen=True)
class LogitNormalTimes(TimeDensity):
    """logit(t) is normal with this mean and standard deviation, std > 0; a mean above 0 leans towards noise.

    Source: arXiv:2403.03206, Eq. 19.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"logit-normal times: std is {self.std}; it must be above 0, 1 is usual")

    def times(self, draws: Times) -> Times:
        inside = draws.double().clamp(1e-9, 1 - 1e-9)
        return (self.mean + self.std * torch.special.ndtri(inside)).sigmoid()


@dataclass(frozen=True)
class ShiftedTimes(TimeDensity):
    """Uniform times moved towards noise, t' = shift·t/(1 + (shift - 1)·t), shift > 0; 1 changes nothing.

    The states are those of the run's schedule as it is. To walk on a shifted schedule too, set the schedule `shifted`.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shifted times: shift is {self.shift}; it must be above 0 (1 changes nothing)")

    def times(self, draws: Times) -> Times:
        draws = draws.double()
        return self.shift * draws / (1.0 + (self.shift - 1.0) * draws)


class LossWeight(ABC):
    """How much the squared error of a prediction weighs at a time."""

    @abstractmethod
    def weights(self, process: Gaussian, t: Times) -> Times:
        """Weights, fp64, of the mean squared error of what the network predicts."""


@dataclass(frozen=True)
class Unweighted(LossWeight):
    """1 everywhere, in the space of the prediction: an error of the image weighs 1/s² with `flow` and `v`, 1 with `x0`
    and the signal-to-noise ratio with `eps`."""

    def weights(self, process: Gaussian, t: Times) -> Times:
        return torch.ones_like(t, dtype=torch.float64)


@dataclass(frozen=True)
class MinSNR(LossWeight):
    """An error of the image weighs min(SNR, gamma), whatever is predicted; gamma > 0.

    Source: arXiv:2303.09556, Section 3.4; for eps it is min(SNR, gamma)/SNR, for v min(SNR, gamma)/(SNR + 1).
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"min-SNR: gamma is {self.gamma}; it must be above 0, 5 is usual")

    def weights(self, process: Gaussian, t: Times) -> Times:
        a, s = process.coefficients(t.double())
        # min(SNR, gamma)·gain², written without a quotient that overflows at s = 0
        gain, ratio = process.gain(t), a / torch.maximum(s, a / self.gamma**0.5)
        return (ratio * gain) ** 2
