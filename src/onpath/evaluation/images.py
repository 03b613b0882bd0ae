"""Measuring a model of images: how far its samples are from held-out images, and what they look like."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from onpath.data.source import ImageSource
from onpath.evaluation.distances import copies, frechet, kernel_distance, precision_recall
from onpath.evaluation.drift import BRIEF, Drift
from onpath.evaluation.features import Features, load_features
from onpath.evaluation.image_samples import generation, pictures, requested
from onpath.evaluation.settings import Evaluation, Row, Subject, row, source_of
from onpath.evaluation.statistics import Z95, mean_interval, wilson
from onpath.records import Trace
from onpath.sampling.loop import last
from onpath.types import Batch

_MOST_SAMPLES = 10_000
Images = Float[Tensor, "N C H W"]


@dataclass(frozen=True)
class ImageEvaluation(Evaluation):
    """Distances of samples to held-out images in a pinned feature space, classes that come out as asked, and copies.

    sets: `test` or `validation` images. num_samples: generated for each number of steps, with the conditions of the
    first so many held-out images, which they are compared with; 0 for as many as the set holds, at most 10,000.
    steps: numbers of denoising steps to generate in. features: `digits`, `fashion_mnist`, `cifar10`, or the path of a
    TorchScript module (see ``load_features``); by default the one that fits the data. Without any that fits, samples
    are only looked up among the training images. copies: whether they are. batch_size: images generated together,
    which changes no figure. drift: of own states, measured beside it; null leaves it out.
    """

    sets: tuple[Literal["validation", "test"], ...] = ("test",)
    num_samples: int = 0
    steps: tuple[int, ...] = (5, 10, 20, 50)
    features: str | None = None
    copies: bool = True
    batch_size: int = 250
    drift: Drift | None = BRIEF

    def __post_init__(self) -> None:
        if not self.sets or not self.steps or min(self.steps) < 1:
            raise ValueError(
                f"evaluation: sets is {self.sets} and steps is {self.steps}; needed are a set, and numbers of steps "
                "of 1 or more"
            )
        if 0 < self.num_samples < 10 or self.num_samples < 0 or self.batch_size < 1:
            raise ValueError(
                f"evaluation: num_samples is {self.num_samples} and batch_size is {self.batch_size}; needed are "
                "num_samples of 10 or more (0 for as many as the set holds) and a batch_size of 1 or more"
            )

    def require(self, subject: Subject) -> None:
        for steps in self.steps:
            subject.grid.with_steps(steps)  # refused here where their number is fixed
        features = self._features(subject)
        for name in self.sets:
            self._size(_split(subject, name), name)
        if features is None and not self.copies:
            raise ValueError(
                f"evaluation: no feature network of the package fits {type(subject.source).__name__}, and copies is "
                "false, so nothing is left to measure; set features to the path of a TorchScript module, or copies to "
                "true"
            )
        shape = tuple(subject.spec.shape)
        if features is not None and features.shape not in (None, shape):
            raise ValueError(
                f"evaluation: features is {features.name!r}, a network of images {features.shape}, and the data are "
                f"{shape}; leave it out, or give the path of a TorchScript module that takes such images"
            )

    def measure(self, subject: Subject) -> list[Row]:
        self.require(subject)
        rows: list[Row] = []
        for name in self.sets:
            rows += self._measured(subject, name)
        return rows

    def traces(self, subject: Subject, num: int) -> list[Trace]:
        """Sheets of `num` samples of each class in every number of steps, and how `num` samples come about."""
        return pictures(subject, self.sets[0], self.steps, num)

    def _measured(self, subject: Subject, name: str) -> list[Row]:
        held, training = _split(subject, name), _first(_split(subject, "train"))
        shown = held.examples(torch.arange(self._size(held, name)))
        judge = _Judge(self._features(subject), name, shown, training.x if self.copies else None, subject.device)
        rows = judge.rows("held-out", shown, distances=False)
        rows += judge.rows("train", training.rows(alike(training, shown)), copied=False)
        for steps in self.steps:
            made, nfe = self._generated(replace(subject, grid=subject.grid.with_steps(steps)), shown)
            rows += [{**one, "nfe": nfe, "ema": True} for one in judge.rows(f"samples@{steps}", made)]
        return rows

    def _generated(self, subject: Subject, held: Batch) -> tuple[Batch, float]:
        """As many samples as held-out images, on their conditions, and rows through the network for each."""
        parts, num_forwards = [], 0
        for ids in torch.arange(held.size).split(self.batch_size):
            state = last(generation(subject, requested(held, ids)))
            parts.append(state.x.cpu().float())
            num_forwards += int(state.num_forwards.sum())
        return replace(held, x=torch.cat(parts)), num_forwards / held.size

    def _size(self, held: ImageSource, name: str) -> int:
        """Samples, and held-out images that they are compared with."""
        size = held.num_examples
        if size is not None and self.num_samples > size:
            raise ValueError(
                f"evaluation: num_samples is {self.num_samples}, but the {name} split holds {size} images; samples are "
                f"compared with as many held-out images, so {size} is the most (0 takes them all)"
            )
        if size is None and not self.num_samples:
            raise ValueError("evaluation: the data never end and num_samples is 0; set evaluation.num_samples")
        return self.num_samples or min(size or 0, _MOST_SAMPLES)

    def _features(self, subject: Subject) -> Features | None:
        name = self.features or _image_source(subject).features
        return None if name is None else load_features(name, subject.device)


@dataclass(frozen=True)
class _Judge:
    """Scores sets of images against the held-out ones. training: what copies are looked up in, None for not at all."""

    features: Features | None
    name: str
    held: Batch
    training: Images | None
    device: torch.device

    def rows(self, mode: str, made: Batch, distances: bool = True, copied: bool = True) -> list[Row]:
        """Every figure of a set of images, by default; held-out ones are at no distance from themselves, and training
        images are copies."""
        figures: dict[str, tuple[float, tuple[float, float] | None]] = {}
        if self.features is not None:
            seen = self.features.of(made.x.clamp(-1.0, 1.0))
            if distances:
                figures |= _apart(self._real, seen)
            asked = made.cond.get("label")
            if self.features.num_classes and asked is not None:
                figures["class_agreement"] = _share(int((self.features.labels(seen) == asked).sum()), made.size)
        if self.training is not None and copied:
            found = copies(made.x.to(self.device), self.training.to(self.device))
            figures["copied"] = _share(int(found.copied.sum()), made.size)
            figures["nearest_ratio"] = float(found.ratio.mean()), mean_interval(found.ratio.cpu())
        return [self._row(mode, metric, value, ci95, made.size) for metric, (value, ci95) in figures.items()]

    @cached_property
    def _real(self) -> Float[Tensor, "N D"]:
        assert self.features is not None
        return self.features.of(self.held.x)

    def _row(self, mode: str, metric: str, value: float, ci95: tuple[float, float] | None, n: int) -> Row:
        facts: dict[str, Any] = {"reference": self.name}
        if self.features is not None and metric not in ("copied", "nearest_ratio"):
            facts |= {"features": self.features.name, "checksum": self.features.checksum}
        return {**row(self.name, mode, metric, value, ci95, n), **facts}


def alike(training: Batch, held: Batch) -> Int64[Tensor, "N"]:
    """Places of as many training images as held-out ones, of the same class each, as the samples are.

    Other shares of the classes would count as a distance, and the floor lie above what it is a floor of.
    """
    wanted, known = held.cond.get("label"), training.cond.get("label")
    if wanted is None or known is None or not torch.isin(wanted, known).all():
        return torch.arange(min(held.size, training.size))
    counts = torch.bincount(known, minlength=int(wanted.max()) + 1)
    order, begins = known.argsort(stable=True), counts.cumsum(0) - counts
    seen_before = F.one_hot(wanted, len(counts)).cumsum(0).gather(1, wanted[:, None])[:, 0] - 1
    return order[begins[wanted] + seen_before % counts[wanted]]


def _apart(real: Float[Tensor, "N D"], seen: Float[Tensor, "M D"]) -> dict[str, Any]:
    """The distances of two sets of features, each with its 95 % interval where it has one."""
    kernel, error = kernel_distance(real, seen)
    precision, recall = precision_recall(real, seen)
    return {
        "frechet": (frechet(real, seen), None),
        "kernel": (kernel, None if math.isnan(error) else (kernel - Z95 * error, kernel + Z95 * error)),
        "precision": _share(round(precision * len(seen)), len(seen)),
        "recall": _share(round(recall * len(real)), len(real)),
    }


def _share(count: int, n: int) -> tuple[float, tuple[float, float]]:
    return count / n, wilson(count, n)


def _split(subject: Subject, name: str) -> ImageSource:
    return cast(ImageSource, _image_source(subject).at_split(name))


def _first(source: ImageSource) -> Batch:
    """All images of a split, or some where it never ends."""
    return source.examples(torch.arange(source.num_examples or _MOST_SAMPLES))


def _image_source(subject: Subject) -> ImageSource:
    return source_of(subject, ImageSource, "images")
