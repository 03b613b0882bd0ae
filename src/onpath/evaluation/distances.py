"""How far two sets of images are apart in a feature space, and how many of one were copied from the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onpath import rng

_ROWS, _COLUMNS = 512, 8192  # of a matrix of pairs that exist at a time
_BLOCKS = 10  # in which the error of the kernel distance is seen
_NEIGHBOURS = 50
_COPY = 0.5

Set = Float[Tensor, "_ _"]
"""(N, D): one row an image. Two sets may differ in N."""


def frechet(one: Set, other: Set) -> float:
    """Fréchet distance of the Gaussians with the moments of two sets, N of 2 or more each; in fp64, 0 or more.

    |m1 - m2|² + tr(S1 + S2 - 2·(S1^½ S2 S1^½)^½), whose root is taken of a symmetric matrix. It is biased upwards by
    an amount that falls with N: compare only figures of the same N. Source: arXiv:1706.08500, Eq. 6.

    >>> points = torch.tensor([[0.0], [2.0]])
    >>> frechet(points, points + 3.0)
    9.0
    """
    (mean1, cov1), (mean2, cov2) = _moments(one), _moments(other)
    root = _root(cov1)
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0.0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2.0 * cross
    return max(0.0, float(distance))


def _moments(features: Set) -> tuple[Float[Tensor, "D"], Float[Tensor, "D D"]]:
    if len(features) < 2:
        raise ValueError(f"frechet: a set of {len(features)} has no covariance; 2 or more are needed, 500 are usual")
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _root(matrix: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0.0).sqrt() @ vectors.T


def kernel_distance(one: Set, other: Set) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (x·y/D + 1)³, and its standard error.

    Unbiased at every N, so that it may fall below 0. The error is that of a mean over disjoint blocks, a little more
    than that of the whole; nan below two images a block. Source: KID, arXiv:1801.01401, Section 4.

    >>> points = torch.tensor([[1.0], [-1.0]])
    >>> kernel_distance(points, points)[0]
    -8.0
    """
    one, other = one.double(), other.double()
    size = min(len(one), len(other)) // _BLOCKS
    if size < 2:
        return _discrepancy(one, other), math.nan
    blocks = zip(_mixed(one).split(size)[:_BLOCKS], _mixed(other).split(size)[:_BLOCKS], strict=True)
    parts = torch.tensor([_discrepancy(*block) for block in blocks], dtype=torch.float64)
    return _discrepancy(one, other), float(parts.std()) / math.sqrt(_BLOCKS)


def _mixed(features: Set) -> Set:
    """The rows in an order that has nothing to do with their labels."""
    order = rng.bits(rng.Key(purpose="kernel distance"), torch.arange(len(features))).argsort()
    return features[order.to(features.device)]


def _discrepancy(one: Set, other: Set) -> float:
    n, m = len(one), len(other)
    if n < 2 or m < 2:
        raise ValueError(f"kernel distance: sets of {n} and {m}; 2 or more are needed in each, 500 are usual")
    within = sum(
        (_kernel_sum(x, x) - float(_cubic(x.square().sum(1) / x.shape[1]).sum())) / (len(x) * (len(x) - 1))
        for x in (one, other)
    )
    return float(within - 2.0 * _kernel_sum(one, other) / (n * m))


def _kernel_sum(one: Set, other: Set) -> float:
    return sum(float(_cubic(part @ other.T / other.shape[1]).sum()) for part in one.split(_ROWS))


def _cubic(product: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return (product + 1.0) ** 3


def precision_recall(real: Set, made: Set, neighbours: int = 3) -> tuple[float, float]:
    """(precision, recall): share of `made` within the real ones, and share of `real` within the made ones.

    A point is within a set if it lies no farther from one of its points than that point's k-th nearest neighbour in
    the set. Both shares fall with N. Source: arXiv:1904.06991, Eq. 1 and 2.
    """
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(
            f"precision and recall: sets of {len(real)} and {len(made)}; more than neighbours = {neighbours} are "
            "needed in each"
        )
    within = [_within(points, cloud, neighbours).double().mean() for points, cloud in ((made, real), (real, made))]
    return float(within[0]), float(within[1])


def _within(points: Set, cloud: Set, neighbours: int) -> Bool[Tensor, "N"]:
    # the nearest point of a set to one of its own is that point itself
    radii = nearest(cloud, cloud, neighbours + 1)[:, -1]
    parts = []
    for part in points.split(_ROWS):
        pieces = zip(cloud.split(_COLUMNS), radii.split(_COLUMNS), strict=True)
        parts.append(torch.stack([(_distances(part, piece) <= reach).any(1) for piece, reach in pieces]).any(0))
    return torch.cat(parts)


def nearest(points: Set, cloud: Set, count: int) -> Float[Tensor, "N K"]:
    """(N, count): Euclidean distances of each point to its nearest points of `cloud`, rising; fp64."""
    parts = []
    for part in points.split(_ROWS):
        best = part.new_zeros(len(part), 0, dtype=torch.float64)
        for piece in cloud.split(_COLUMNS):
            both = torch.cat([best, _distances(part, piece)], dim=1)
            best = both.topk(min(count, both.shape[1]), largest=False).values
        parts.append(best)
    return torch.cat(parts)


def _distances(points: Set, cloud: Set) -> Float[Tensor, "N M"]:
    """Through one matrix product; in fp64 its rounding is about 1e-8 of the lengths."""
    points, cloud = points.double(), cloud.double()
    squares = points.square().sum(1)[:, None] + cloud.square().sum(1) - 2.0 * points @ cloud.T
    return squares.clamp_min(0.0).sqrt()


@dataclass(frozen=True)
class Copies:
    """Copies among N images. copied: (N,) bool. ratio: (N,) distance to the nearest training image over the usual."""

    copied: Bool[Tensor, "N"]
    ratio: Float[Tensor, "N"]


def copies(images: Float[Tensor, "N *image"], training: Float[Tensor, "M *image"]) -> Copies:
    """Which images were copied from the training images, by their pixels.

    The ratio is that of the distance to the nearest training image to the mean of the distances to the 50 nearest
    (all, where there are fewer); below a half the image counts as copied. Measured against its own neighbourhood, a
    plain image that lies close to many is no copy of any. Source: arXiv:2301.13188, Section 5, with alpha = 0.5.

    >>> bool(copies(torch.eye(3)[:1], torch.eye(3)).copied[0])
    True
    """
    if len(training) < 2:
        raise ValueError(f"copies: {len(training)} training images; 2 or more are needed to know a usual distance")
    flat, known = images.flatten(1), training.flatten(1)
    found = nearest(flat, known, min(_NEIGHBOURS, len(known)))
    usual = found.mean(1)
    # among training images that are all the same, which is at a distance of 0 from all, an image is a copy
    ratio = torch.where(usual > 0, found[:, 0] / usual.clamp_min(1e-300), 0.0)
    return Copies(ratio < _COPY, ratio)
