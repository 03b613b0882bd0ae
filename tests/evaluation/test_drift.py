"""Drift against closed forms: Gaussian data with the exact network, and a world that is enumerated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from onpath import rng
from onpath.data.source import ImageSource, Source
from onpath.evaluation.drift import Drift
from onpath.evaluation.settings import Row, Subject
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.grids import UniformGrid
from onpath.sampling.solvers import DPMSolver
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch, DataSpec, ImageSpec, Spec
from worlds import TableDenoiser, World

MEAN, VARIANCE = 0.3, 0.25
WORLD = World.random(seed=1, num_words=2, length=4)


@dataclass(frozen=True)
class GaussianImages(ImageSource):
    """Images whose values are independent, N(MEAN, VARIANCE)."""

    mean: float = MEAN

    def spec(self) -> ImageSpec:
        return ImageSpec((1, 4, 4))

    def examples(self, ids: Tensor, device: Any = "cpu") -> Batch:
        return Batch(x=self.mean + VARIANCE**0.5 * rng.normal(Key(9), ids, (1, 4, 4)), ids=ids)

    def at_split(self, split: str) -> GaussianImages:
        return self


@dataclass(frozen=True)
class Exact:
    """The perfect network for these images; its prediction times `scale`."""

    process: Gaussian
    mean: float = MEAN
    scale: float = 1.0

    def encode(self, **cond: Tensor) -> Any:
        return None

    def __call__(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
        a, s = (c.view(-1, 1, 1, 1) for c in self.process.coefficients(t.double()))
        apart = (x - a * self.mean) / (a * a * VARIANCE + s * s)
        image, noise = self.mean + a * VARIANCE * apart, s * apart
        told = {"x0": image, "eps": noise, "v": a * noise - s * image, "flow": noise - image}
        return (self.scale * told[self.process.prediction]).float()


@dataclass(frozen=True)
class Words(Source):
    """Sequences of the world, drawn from its joint distribution."""

    def spec(self) -> DataSpec:
        return Spec(WORLD.length, WORLD.num_words, WORLD.mask_id)

    def examples(self, ids: Tensor, device: Any = "cpu") -> Batch:
        draws = rng.uniform(Key(7), ids).double()
        index = torch.searchsorted(WORLD.joint.cumsum(0), draws).clamp_max(len(WORLD.joint) - 1)
        return Batch.of_tokens(WORLD.sequences[index], ids)

    def at_split(self, split: str) -> Words:
        return self


def of_images(process: Gaussian, steps: int, scale: float = 1.0, **changes: Any) -> Subject:
    source = GaussianImages()
    parts = (Exact(process, scale=scale), process, DPMSolver(), UniformGrid(steps), source, source.spec())
    return replace(Subject(*parts), **changes)


def of_tokens(sampler: Unmasking, table: Tensor | None = None, **changes: Any) -> Subject:
    process, source = Masking(LinearSchedule(), WORLD.mask_id), Words()
    network = TableDenoiser(WORLD.posterior() if table is None else table)
    return replace(Subject(cast(Any, network), process, sampler, UniformGrid(4), source, source.spec()), **changes)


def values(rows: list[Row], metric: str) -> dict[tuple[float, Any], Row]:
    return {(round(row["t"], 6), row["offset"]): row for row in rows if row["metric"] == metric}


def z(row: Row, wanted: float) -> float:
    """How many standard errors a row is off."""
    return (row["value"] - wanted) / ((row["ci95"][1] - row["ci95"][0]) / 3.92)


PATHS = {
    "flow": Gaussian(LinearSchedule()),
    "vp": Gaussian(CosineSchedule(), path="vp", prediction="v"),
    "eps": Gaussian(CosineSchedule(alpha_min=1e-4), path="vp", prediction="eps"),
}


@pytest.mark.parametrize("process", PATHS.values(), ids=PATHS)
def test_a_perfect_model_of_images_has_no_bias_and_stands_on_the_floor(process: Gaussian) -> None:
    rows = Drift(times=(0.1, 0.3, 0.5, 0.8), num_examples=512, offsets=(1, 10, 40, "all")).measure(
        of_images(process, 80)
    )
    for metric in ("bias", "excess"):
        found = values(rows, metric)
        assert len(found) == 16
        for place, row in found.items():
            assert abs(z(row, 0.0)) < 3.5 or abs(row["value"]) < 1e-3, (metric, place, row)
