"""Schedules: alpha(t), the share of signal (or of unmasked tokens) left at time t in [0, 1].

t = 0 is data and t = 1 is noise. Each schedule writes alpha and the mask ratio 1 - alpha separately, so that both
ends are exact and neither loses its digits to a subtraction. Times outside [0, 1] stand for the two pure states:
``PRIOR`` (all noise, alpha = 0) and ``DATA`` (no noise, alpha = 1). They differ from t = 1 and t = 0 only where a
schedule is bounded away from 0 and 1; there a sampler and a bound have one more step at each end.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

PRIOR = 2.0
DATA = -1.0

Times = Float[Tensor, "*shape"]


class Schedule(ABC):
    """How much signal is left at time t. Immutable; arithmetic in the dtype of t, fp32 or better.

    >>> CosineSchedule().mask_ratio(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """

    @abstractmethod
    def inside(self, t: Times) -> tuple[Times, Times]:
        """alpha and 1 - alpha for t in [0, 1]."""

    @abstractmethod
    def dalpha(self, t: Times) -> Times:
        """d alpha / dt, at most 0, for t in [0, 1]."""

    @abstractmethod
    def t_of(self, alpha: Times) -> Times:
        """The time at which the signal share is `alpha`; alpha in [alpha(1), alpha(0)] is required."""

    def alpha(self, t: Times) -> Times:
        """Share of signal at t; 0 for t > 1 and 1 for t < 0."""
        alpha, _ = self.inside(t.clamp(0.0, 1.0))
        return torch.where(t > 1.0, 0.0, torch.where(t < 0.0, 1.0, alpha))

    def mask_ratio(self, t: Times) -> Times:
        """1 - alpha(t) without cancellation: the probability that a position is masked at t."""
        _, ratio = self.inside(t.clamp(0.0, 1.0))
        return torch.where(t > 1.0, 1.0, torch.where(t < 0.0, 0.0, ratio))

    def end_points(self) -> tuple[float, float]:
        """(alpha(0), alpha(1)); (1.0, 0.0) for a schedule without bounds."""
        ends = self.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64))
        return float(ends[0]), float(ends[1])


@dataclass(frozen=True)
class BoundedSchedule(Schedule):
    """A base curve from 1 to 0, rescaled to run from alpha_max to alpha_min.

    The bounds must satisfy 0 <= alpha_min < alpha_max <= 1. The defaults are exact: alpha(0) = 1, alpha(1) = 0.
    """

    alpha_min: float = 0.0
    alpha_max: float = 1.0

    def __post_init__(self) -> None:
        _check_bounds(self.alpha_min, self.alpha_max)

    @abstractmethod
    def _base(self, t: Times) -> tuple[Times, Times]:
        """The unbounded alpha and its complement."""

    @abstractmethod
    def _base_slope(self, t: Times) -> Times:
        """d/dt of the unbounded alpha."""

    @abstractmethod
    def _base_t_of(self, alpha: Times, ratio: Times) -> Times:
        """The inverse of the unbounded alpha; `ratio` is 1 - alpha without cancellation."""

    def inside(self, t: Times) -> tuple[Times, Times]:
        alpha, ratio = self._base(t)
        span = self.alpha_max - self.alpha_min
        return self.alpha_min + span * alpha, (1.0 - self.alpha_max) + span * ratio

    def dalpha(self, t: Times) -> Times:
        return (self.alpha_max - self.alpha_min) * self._base_slope(t)

    def t_of(self, alpha: Times) -> Times:
        span = self.alpha_max - self.alpha_min
        base = ((alpha - self.alpha_min) / span).clamp(0.0, 1.0)
        ratio = ((self.alpha_max - alpha) / span).clamp(0.0, 1.0)
        return self._base_t_of(base, ratio)


@dataclass(frozen=True)
class LinearSchedule(BoundedSchedule):
    """alpha = 1 - t. Source: LLaDA, arXiv:2502.09992; the usual path of flow matching."""

    def _base(self, t: Times) -> tuple[Times, Times]:
        return 1.0 - t, t

    def _base_slope(self, t: Times) -> Times:
        return -torch.ones_like(t)

    def _base_t_of(self, alpha: Times, ratio: Times) -> Times:
        return ratio


@dataclass(frozen=True)
class CosineSchedule(BoundedSchedule):
    """alpha = cos²(πt/2). Source: Nichol and Dhariwal, arXiv:2102.09672, Eq. 17 without its offset."""

    def _base(self, t: Times) -> tuple[Times, Times]:
        return (math.pi / 2 * (1.0 - t)).sin() ** 2, (math.pi / 2 * t).sin() ** 2

    def _base_slope(self, t: Times) -> Times:
        return -math.pi / 2 * (math.pi * torch.minimum(t, 1.0 - t)).sin()

    def _base_t_of(self, alpha: Times, ratio: Times) -> Times:
        return 2 / math.pi * torch.atan2(ratio.sqrt(), alpha.sqrt())


@dataclass(frozen=True)
class MaskGITCosineSchedule(BoundedSchedule):
    """alpha = 1 - sin(πt/2), mask ratio cos(π/2·(1 - t)). Source: MaskGIT, arXiv:2202.04200, Section 3.3."""

    def _base(self, t: Times) -> tuple[Times, Times]:
        ratio = (math.pi / 2 * t).sin()
        near_noise = 2.0 * (math.pi / 4 * (1.0 - t)).sin() ** 2
        return torch.where(t > 0.5, near_noise, 1.0 - ratio), ratio

    def _base_slope(self, t: Times) -> Times:
        return -math.pi / 2 * (math.pi / 2 * (1.0 - t)).sin()

    def _base_t_of(self, alpha: Times, ratio: Times) -> Times:
        # asin loses digits near 1, where alpha = 2 sin²(π/4·(1-t)) still has them
        near_noise = 1.0 - 4 / math.pi * (alpha / 2).sqrt().asin()
        return torch.where(alpha < 0.25, near_noise, 2 / math.pi * ratio.asin())


@dataclass(frozen=True)
class HalfCosineSchedule(BoundedSchedule):
    """alpha = cos(πt/2). Source: the cosine schedule of MDLM, arXiv:2406.07524, Appendix E.1."""

    def _base(self, t: Times) -> tuple[Times, Times]:
        alpha = (math.pi / 2 * (1.0 - t)).sin()
        near_data = 2.0 * (math.pi / 4 * t).sin() ** 2
        return alpha, torch.where(t < 0.5, near_data, 1.0 - alpha)

    def _base_slope(self, t: Times) -> Times:
        return -math.pi / 2 * (math.pi / 2 * t).sin()

    def _base_t_of(self, alpha: Times, ratio: Times) -> Times:
        near_data = 4 / math.pi * (ratio / 2).sqrt().asin()
        return torch.where(ratio < 0.25, near_data, 1.0 - 2 / math.pi * alpha.asin())


@dataclass(frozen=True)
class PolynomialSchedule(BoundedSchedule):
    """alpha = 1 - t^power, power > 0. Source: MD4, arXiv:2406.04329, Table 4."""

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power > 0:
            raise ValueError(f"polynomial schedule: power is {self.power}; it must be above 0 (1 is linear)")

    def _base(self, t: Times) -> tuple[Times, Times]:
        return -torch.expm1(self.power * t.log()), t**self.power

    def _base_slope(self, t: Times) -> Times:
        return -self.power * t ** (self.power - 1.0)

    def _base_t_of(self, alpha: Times, ratio: Times) -> Times:
        return ratio ** (1.0 / self.power)


@dataclass(frozen=True)
class ExponentialSchedule(Schedule):
    """alpha = alpha_max·(alpha_min/alpha_max)^t; reaches both bounds exactly and needs alpha_min > 0."""

    alpha_min: float = 0.01
    alpha_max: float = 1.0

    def __post_init__(self) -> None:
        _check_bounds(self.alpha_min, self.alpha_max)
        if self.alpha_min <= 0:
            raise ValueError(
                f"exponential schedule: alpha_min is {self.alpha_min}; it must be above 0, since the curve never "
                "reaches 0. Take alpha_min: 0.01, or another schedule"
            )

    def inside(self, t: Times) -> tuple[Times, Times]:
        alpha = self.alpha_max ** (1.0 - t) * self.alpha_min**t
        return alpha, (1.0 - self.alpha_max) - self.alpha_max * torch.expm1(
            t * math.log(self.alpha_min / self.alpha_max)
        )

    def dalpha(self, t: Times) -> Times:
        return self.inside(t)[0] * math.log(self.alpha_min / self.alpha_max)

    def t_of(self, alpha: Times) -> Times:
        return ((alpha / self.alpha_max).log() / math.log(self.alpha_min / self.alpha_max)).clamp(0.0, 1.0)


@lru_cache(maxsize=32)
def _table(alphas_cumprod: tuple[float, ...]) -> Float[Tensor, "K"]:
    return torch.tensor(alphas_cumprod, dtype=torch.float64).logit()


class _LogitTable(Schedule):
    """Linear interpolation of logit(alpha) between the steps of a trained discrete schedule."""

    @abstractmethod
    def table(self) -> Float[Tensor, "K"]:
        """logit(alpha) at t = 0, 1/(K-1), …, 1, strictly falling, fp64."""

    def _segment(self, t: Times) -> tuple[Times, Times]:
        table = self.table().to(t.device)
        last = len(table) - 1
        low = (t.double() * last).long().clamp(0, last - 1)
        slope = table[low + 1] - table[low]
        return table[low] + slope * (t.double() * last - low), slope * last

    def inside(self, t: Times) -> tuple[Times, Times]:
        logit, _ = self._segment(t)
        return logit.sigmoid().to(t.dtype), (-logit).sigmoid().to(t.dtype)

    def dalpha(self, t: Times) -> Times:
        logit, slope = self._segment(t)
        return (slope * logit.sigmoid() * (-logit).sigmoid()).to(t.dtype)

    def t_of(self, alpha: Times) -> Times:
        rising = self.table().to(alpha.device).flip(0).contiguous()
        last = len(rising) - 1
        logit = alpha.double().logit()
        low = (torch.searchsorted(rising, logit) - 1).clamp(0, last - 1)
        share = (logit - rising[low]) / (rising[low + 1] - rising[low])
        return (1.0 - (low + share) / last).clamp(0.0, 1.0).to(alpha.dtype)


@dataclass(frozen=True)
class TabulatedSchedule(_LogitTable):
    """The schedule of a trained model, from its ``alphas_cumprod``: K >= 2 values in (0, 1), strictly falling."""

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        values = self.alphas_cumprod
        falling = all(later < earlier for earlier, later in pairwise(values))
        if len(values) < 2 or not falling or not (values[0] < 1.0 and values[-1] > 0.0):
            raise ValueError(
                f"tabulated schedule: alphas_cumprod has {len(values)} values from {values[:1]} to {values[-1:]}; "
                "it needs at least 2, strictly falling, all inside (0, 1)"
            )

    def table(self) -> Float[Tensor, "K"]:
        return _table(self.alphas_cumprod)


@lru_cache(maxsize=32)
def _beta_table(kind: str, beta_start: float, beta_end: float, num_steps: int) -> Float[Tensor, "K"]:
    if kind == "linear":
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
    else:
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float64) ** 2
    return (1.0 - betas).cumprod(0).logit()


@dataclass(frozen=True)
class BetasSchedule(_LogitTable):
    """alpha = ∏(1 - beta): the `linear` and `scaled_linear` schedules of DDPM and latent diffusion models.

    Source: Ho et al., arXiv:2006.11239, Eq. 4; `scaled_linear` interpolates the square roots of beta.
    """

    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if self.beta_schedule not in ("linear", "scaled_linear"):
            raise ValueError(
                f"betas schedule: beta_schedule is {self.beta_schedule!r}; allowed are linear, scaled_linear"
            )
        if not (0.0 < self.beta_start < self.beta_end < 1.0 and self.num_steps >= 2):
            raise ValueError(
                f"betas schedule: beta_start {self.beta_start}, beta_end {self.beta_end}, num_steps "
                f"{self.num_steps}; needed are 0 < beta_start < beta_end < 1 and num_steps >= 2"
            )

    def table(self) -> Float[Tensor, "K"]:
        return _beta_table(self.beta_schedule, self.beta_start, self.beta_end, self.num_steps)


@dataclass(frozen=True)
class ShiftedSchedule(Schedule):
    """A base schedule moved towards noise: ratio' = shift·ratio / (1 + (shift - 1)·ratio), shift > 0.

    Source: Esser et al., arXiv:2403.03206, Eq. 23, with ratio = 1 - alpha as its sigma.
    """

    base: Schedule
    shift: float = 3.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shifted schedule: shift is {self.shift}; it must be above 0 (1 changes nothing)")

    def inside(self, t: Times) -> tuple[Times, Times]:
        alpha, ratio = self.base.inside(t)
        scale = alpha + self.shift * ratio
        return alpha / scale, self.shift * ratio / scale

    def dalpha(self, t: Times) -> Times:
        alpha, ratio = self.base.inside(t)
        return self.shift * self.base.dalpha(t) / (alpha + self.shift * ratio) ** 2

    def t_of(self, alpha: Times) -> Times:
        base = self.shift * alpha / (1.0 + (self.shift - 1.0) * alpha)
        return self.base.t_of(base)


def _check_bounds(alpha_min: float, alpha_max: float) -> None:
    if not 0.0 <= alpha_min < alpha_max <= 1.0:
        raise ValueError(
            f"schedule: alpha_min is {alpha_min} and alpha_max is {alpha_max}; needed is "
            "0 <= alpha_min < alpha_max <= 1 (0 and 1 are the exact defaults)"
        )
