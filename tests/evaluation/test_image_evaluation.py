"""Images are measured: a model that knows its data by heart, one that knows nothing, and floors beside both."""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch import Tensor

from onpath.data.images import Digits
from onpath.data.source import ImageSource
from onpath.data.trajectories import FourRoomsExpert
from onpath.evaluation.image_samples import generation, requested
from onpath.evaluation.images import ImageEvaluation, alike
from onpath.evaluation.settings import Row, Subject
from onpath.processes.gaussian import Gaussian
from onpath.records import Trace
from onpath.sampling.grids import UniformGrid
from onpath.sampling.solvers import DPMSolver, Euler, RungeKutta
from onpath.schedules import LinearSchedule
from onpath.types import Batch, ImageSpec

TRAINING = Digits().examples(torch.arange(1197))
SETTINGS = ImageEvaluation(num_samples=100, steps=(5,))


class ByHeart(nn.Module):
    """The exact flow towards the training images of the class that is asked for; every sample is one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.images = TRAINING.x.flatten(1)
        self.labels = TRAINING.cond["label"]

    def encode(self, label: Tensor | None = None, drop: Tensor | None = None) -> Tensor | None:
        return label

    def forward(self, x: Tensor, t: Tensor, memo: Tensor | None) -> Tensor:
        flat, time = x.flatten(1), t[:, None].clamp_min(1e-4)
        near = 2 * flat @ self.images.T - (1 - time) * self.images.square().sum(1)
        scores = (1 - time) * near / (2 * time.square())
        if memo is not None:
            scores = scores.masked_fill(self.labels != memo[:, None], -torch.inf)
        return ((flat - scores.softmax(1) @ self.images) / time).view_as(x)


class Nothing(nn.Module):
    """Predicts a grey image, whatever it sees."""

    def encode(self, label: Tensor | None = None, drop: Tensor | None = None) -> Tensor | None:
        return label

    def forward(self, x: Tensor, t: Tensor, memo: Tensor | None) -> Tensor:
        return x / t.clamp_min(1e-4)[:, None, None, None]


def subject(network: Any, source: Any = None, **changes: Any) -> Subject:
    source = source or Digits()
    parts = (network, Gaussian(LinearSchedule()), DPMSolver(), UniformGrid(20), source, source.spec())
    return replace(Subject(*parts), **changes)


def figures(rows: list[Row], mode: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["mode"] == mode}


@pytest.fixture(scope="module")
def by_heart() -> list[Row]:
    return SETTINGS.measure(subject(ByHeart()))


def test_a_model_that_knows_its_data_by_heart_is_caught(by_heart: list[Row]) -> None:
    """Its images are as good as training images are, and all of them copies."""
    made, floor, held = (figures(by_heart, mode) for mode in ("samples@5", "train", "held-out"))
    assert made["class_agreement"] >= 0.99 and made["frechet"] < 2 * floor["frechet"]
    assert made["copied"] == 1.0 and made["nearest_ratio"] < 0.05
    assert held["copied"] < 0.25 and held["nearest_ratio"] > 0.5 and held["class_agreement"] >= 0.97


def test_a_model_that_knows_nothing_is_far_off(by_heart: list[Row]) -> None:
    made = figures(SETTINGS.measure(subject(Nothing())), "samples@5")
    floor = figures(by_heart, "train")
    assert made["frechet"] > 20 * floor["frechet"] and made["kernel"] > 1.0
    assert made["class_agreement"] < 0.3 and made["recall"] == 0.0 and made["copied"] == 0.0


def test_the_floor_is_of_training_images_of_the_same_classes() -> None:
    held = Digits(split="test").examples(torch.arange(300))
    index = alike(TRAINING, held)
    assert torch.equal(TRAINING.cond["label"][index], held.cond["label"]) and len(index.unique()) == 300
    few = TRAINING.rows(torch.arange(60))
    again = alike(few, held)
    assert torch.equal(few.cond["label"][again], held.cond["label"]) and len(again.unique()) == 60
    without = Batch(held.x, held.ids)
    assert torch.equal(alike(TRAINING, without), torch.arange(300))
    one_class = TRAINING.rows((TRAINING.cond["label"] == 3).nonzero()[:, 0])
    assert torch.equal(alike(one_class, held), torch.arange(one_class.size))


def test_every_row_says_how_it_came_about(by_heart: list[Row]) -> None:
    assert {row["mode"] for row in by_heart} == {"held-out", "train", "samples@5"}
    for row in by_heart:
        assert row["set"] == row["reference"] == "test" and row["n"] == 100
        looked_up = row["metric"] in ("copied", "nearest_ratio")
        assert (row.get("features") == "digits") == (not looked_up)
        assert ("checksum" in row) == (not looked_up)
        assert row.get("nfe") == (5 if row["mode"] == "samples@5" else None)
    assert set(figures(by_heart, "train")) == {"frechet", "kernel", "precision", "recall", "class_agreement"}
    assert set(figures(by_heart, "held-out")) == {"class_agreement", "copied", "nearest_ratio"}


def test_forwards_are_counted_with_guidance_and_inner_steps() -> None:
    for sampler, wanted in ((DPMSolver(guidance=1.0), 6.0), (RungeKutta(), 12.0)):
        rows = replace(SETTINGS, steps=(3,), num_samples=20).measure(subject(ByHeart(), sampler=sampler))
        assert {row["nfe"] for row in rows if row["mode"] == "samples@3"} == {wanted}


def test_figures_do_not_depend_on_the_batches(by_heart: list[Row]) -> None:
    rows = replace(SETTINGS, batch_size=33).measure(subject(ByHeart()))
    for one, other in zip(by_heart, rows, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-3, abs=1e-3)


def test_the_seed_changes_the_samples_and_nothing_else(by_heart: list[Row]) -> None:
    rows = SETTINGS.measure(subject(ByHeart(), seed=5))
    assert figures(rows, "held-out") == figures(by_heart, "held-out")
    assert figures(rows, "samples@5")["frechet"] != figures(by_heart, "samples@5")["frechet"]


def test_without_labels_classes_are_not_judged() -> None:
    rows = replace(SETTINGS, num_samples=50).measure(subject(ByHeart(), Digits(labels=False)))
    assert set(figures(rows, "samples@5")) == {"frechet", "kernel", "precision", "recall", "copied", "nearest_ratio"}


@dataclass(frozen=True)
class Bare(ImageSource):
    """Sixteen-pixel images of noise for which no feature network is meant."""

    size: int = 60

    def spec(self) -> ImageSpec:
        return ImageSpec((1, 4, 4))

    def at_split(self, split: str) -> ImageSource:
        return self

    @property
    def num_examples(self) -> int | None:
        return self.size or None

    def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
        noise = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        return Batch(noise[ids % 60], ids)


class Latents(Bare):
    """Images that cannot be looked at."""

    def pixels(self, x: Tensor) -> Tensor:
        raise ValueError("latents")


def test_data_without_a_feature_network_are_looked_up_only() -> None:
    rows = replace(SETTINGS, num_samples=0).measure(subject(Nothing(), Bare()))
    assert {row["metric"] for row in rows} == {"copied", "nearest_ratio"} and {row["n"] for row in rows} == {60}
    assert figures(rows, "held-out")["copied"] == 1.0  # every split of this source is the same


def test_settings_that_cannot_be_measured_are_refused() -> None:
    def refused(settings: ImageEvaluation, source: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            settings.require(subject(Nothing(), source))

    refused(ImageEvaluation(num_samples=501), Digits(), "test split holds 500 images")
    refused(ImageEvaluation(sets=("validation",), num_samples=101), Digits(), "validation split holds 100")
    refused(ImageEvaluation(features="digits"), Bare(), r"network of images \(1, 8, 8\), and the data are \(1, 4, 4\)")
    refused(ImageEvaluation(copies=False), Bare(), "nothing is left to measure")
    refused(ImageEvaluation(), Bare(size=0), "set evaluation.num_samples")
    with pytest.raises(ValueError, match="kind images measures images"):
        ImageEvaluation().require(replace(subject(Nothing()), source=FourRoomsExpert()))
    for wrong in ({"sets": ()}, {"steps": ()}, {"steps": (0,)}, {"num_samples": 5}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="needed are"):
            ImageEvaluation(**wrong)


def shown(trace: Trace) -> Tensor:
    """The pictures of a trace from top to bottom, as the decoder of another package reads them."""
    image = pytest.importorskip("PIL.Image")
    files = [base64.b64decode(one["png"]) for one in trace.pictures]
    return torch.cat([torch.from_numpy(np.array(image.open(BytesIO(data)))) for data in files])


def test_the_report_shows_samples_that_were_measured() -> None:
    one = subject(ByHeart())
    settings = replace(SETTINGS, steps=(3, 5))
    traces = settings.traces(one, 2)
    grids = [trace for trace in traces if not trace.length]
    assert [trace.mode for trace in grids] == ["held-out", "samples@3", "samples@5"]
    held = Digits(split="test").examples(torch.arange(500))
    places = torch.cat([(held.cond["label"] == digit).nonzero()[:2, 0] for digit in range(10)])
    for trace in grids:
        assert [picture["label"] for picture in trace.pictures] == list("0123456789")
    assert torch.equal(shown(grids[0])[:8, :8], Digits().pixels(held.x[places[:1]])[0, :, :, 0])
    # the same id, condition and key as in an evaluation of all: the fourth row, second place
    grid = UniformGrid(5)
    *_, state = generation(replace(one, grid=grid), requested(held, torch.arange(500)))
    assert torch.equal(shown(grids[2])[24:32, 9:17], Digits().pixels(state.x[places[7:8]].cpu())[0, :, :, 0])


def test_strips_begin_with_noise_and_end_with_the_sample() -> None:
    one = subject(ByHeart(), grid=UniformGrid(6))
    strips = [trace for trace in replace(SETTINGS, steps=(6,)).traces(one, 3) if trace.length]
    assert [(trace.mode, trace.task, trace.length) for trace in strips] == [("denoising@6", i, 6) for i in range(3)]
    (grid,) = [trace for trace in replace(SETTINGS, steps=(6,)).traces(one, 1) if trace.mode == "samples@6"]
    strip = shown(strips[0])
    assert strip.shape == (17, 7 * 9 - 1)  # states above, what was expected behind them below
    assert torch.equal(strip[:8, -8:], shown(grid)[:8, :8]) and torch.equal(strip[9:, -8:], strip[:8, -8:])
    assert strip[9:, :8].float().std() < strip[:8, :8].float().std()  # noise above a mean image
    euler = replace(SETTINGS, steps=(6,)).traces(replace(one, sampler=Euler()), 1)[-1]
    assert shown(euler).shape == (8, 62)


def test_pictures_without_classes_and_of_latents() -> None:
    traces = replace(SETTINGS, num_samples=0).traces(subject(Nothing(), Bare()), 2)
    assert [(trace.mode, len(trace.pictures)) for trace in traces] == [
        ("held-out", 1),
        ("samples@5", 1),
        ("denoising@20", 1),
        ("denoising@20", 1),
    ]
    assert SETTINGS.traces(subject(Nothing(), Latents()), 2) == []
