"""Intervals for shares and means, and the score of a path against the shortest one."""

from __future__ import annotations

import math

from jaxtyping import Bool, Float, Int64
from torch import Tensor

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The interval of a share whose `successes` of `n` were seen; [0, 1] at n = 0. Source: Wilson 1927, score method.

    >>> low, high = wilson(10, 10)
    >>> round(low, 4), high
    (0.7225, 1.0)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}; needed is 0 <= successes <= n")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    scale = 1.0 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / n + z * z / (4 * n * n))
    # at the two ends the formula is exact up to rounding
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mean_interval(values: Float[Tensor, "B"], z: float = Z95) -> tuple[float, float] | None:
    """mean ± z·s/√n, s the sample's standard deviation; None below two values."""
    n = len(values)
    if n < 2:
        return None
    mean, half = float(values.mean()), z * float(values.std()) / math.sqrt(n)
    return mean - half, mean + half


def score_interval(values: Float[Tensor, "B"]) -> tuple[float, float] | None:
    """That of the mean of scores: Wilson's where every score is 0 or one and the same positive number, such as 1; else
    ``mean_interval``.

    >>> import torch
    >>> low, high = score_interval(torch.tensor([2.0] * 10))
    >>> round(low, 4), high
    (1.4449, 2.0)
    """
    different = values[values != 0].unique().tolist()
    if len(different) > 1 or (different and different[0] < 0):
        return mean_interval(values)
    scale = different[0] if different else 1.0
    low, high = wilson(int((values != 0).sum()), len(values))
    return scale * low, scale * high


def ratio(above: Float[Tensor, "B"], below: Float[Tensor, "B"]) -> tuple[float, float]:
    """A ratio of sums over examples of unequal size and its standard error, that of the residuals above - ratio·below
    (delta method)."""
    above, below, n = above.double(), below.double(), len(above)
    value = float(above.sum() / below.sum())
    error = (above - value * below).square().sum().sqrt() * math.sqrt(n / max(1, n - 1)) / below.sum()
    return value, float(error.abs())


def path_scores(
    reached: Bool[Tensor, "B"], shortest: Int64[Tensor, "B"], taken: Int64[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """success·shortest/max(shortest, taken) in [0, 1], fp64; its mean is SPL. Source: arXiv:1807.06757, Eq. 1."""
    return reached.double() * shortest.double() / taken.maximum(shortest).clamp_min(1).double()
