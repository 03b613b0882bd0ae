"""Networks of images whose answers are known, and the laws that their samples follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onpath.processes.gaussian import Gaussian
from onpath.types import Batch

MEAN, VARIANCE = 0.3, 0.25


def flat(process: Gaussian, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(a, s) at t, as wide as images."""
    a, s = (c.view(-1, 1, 1, 1).to(like.dtype) for c in process.coefficients(t.double()))
    return a, s


def blank(size: int, shape: tuple[int, ...] = (1, 2, 2), **cond: Tensor) -> Batch:
    return Batch(x=torch.zeros(size, *shape), ids=torch.arange(size), cond=cond)


class Known:
    """A network without weights: `image` is its estimate of x0, which it says in the words of the process."""

    process: Gaussian

    def encode(self, **cond: Tensor) -> Any:
        return None

    def image(self, x: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = flat(self.process, t, x)
        return (x - a * self.image(x, t)) / s.clamp_min(1e-12)

    def __call__(self, x: Tensor, t: Tensor, memo: Any, **options: Any) -> Tensor:
        a, s = flat(self.process, t, x)
        image, noise = self.image(x, t), self.noise(x, t)
        said = {"x0": image, "eps": noise, "v": a * noise - s * image, "flow": noise - image}
        return said[self.process.prediction]


@dataclass(frozen=True)
class Exact(Known):
    """The perfect network for data N(mean, variance)."""

    process: Gaussian
    mean: float = MEAN
    variance: float = VARIANCE

    def image(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = flat(self.process, t, x)
        return self.mean + a * self.variance / (a * a * self.variance + s * s) * (x - a * self.mean)

    def noise(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = flat(self.process, t, x)
        return s / (a * a * self.variance + s * s) * (x - a * self.mean)


@dataclass(frozen=True)
class Point(Known):
    """The perfect network for data that are one image, all of the same value."""

    process: Gaussian
    value: float = 0.7

    def image(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@dataclass(frozen=True)
class Wavy:
    """Some smooth function of the pixel and of the time, and a shift by row where the memo has one; counts its rows."""

    rows: list[int] = field(default_factory=list)

    def encode(self, shift: Tensor | None = None, drop: Tensor | None = None) -> Any:
        if shift is None:
            return None
        return shift if drop is None else torch.where(drop, 0.0, shift)

    def __call__(self, x: Tensor, t: Tensor, memo: Any, **options: Any) -> Tensor:
        self.rows.append(len(x))
        t = t.view(-1, 1, 1, 1)
        said = 0.8 * torch.tanh(1.3 * x - t) + 0.3 * torch.cos(4.0 * t)
        return said if memo is None else said + memo.repeat(len(x) // len(memo)).view(-1, 1, 1, 1).to(x.dtype)


def spread(process: Gaussian, t: Tensor, mean: float = MEAN, variance: float = VARIANCE) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, 1, 1, 1) of the states at t of data N(mean, variance)."""
    a, s = process.coefficients(t.double())
    return (a * mean).view(-1, 1, 1, 1), (a * a * variance + s * s).sqrt().view(-1, 1, 1, 1)


def moved(process: Gaussian, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The exact solution for Gaussian data: quantiles stay quantiles."""
    (mean, std), (mean2, std2) = spread(process, t), spread(process, s)
    return mean2 + std2 / std * (x - mean)


def kolmogorov_p(one: Tensor, two: Tensor) -> float:
    """p value of the two-sample test of Kolmogorov and Smirnov, by its limit law, for samples without ties."""
    one, two = one.double().flatten().sort().values, two.double().flatten().sort().values
    places = torch.cat([one, two])
    shares = [torch.searchsorted(part, places, right=True).double() / len(part) for part in (one, two)]
    distance = float((shares[0] - shares[1]).abs().max())
    scaled = distance * math.sqrt(len(one) * len(two) / (len(one) + len(two)))
    if scaled < 0.2:
        return 1.0
    return min(1.0, 2.0 * sum((-1) ** (k - 1) * math.exp(-2.0 * (k * scaled) ** 2) for k in range(1, 101)))
