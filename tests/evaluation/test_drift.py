"""Drift against closed forms: Gaussian data with the exact network, and a world that is enumerated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from onpath import rng
from onpath.data.source import ImageSource, Source
from onpath.evaluation.drift import Drift
from onpath.evaluation.drift_probes import ImageProbe
from onpath.evaluation.settings import Row, Subject
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import UniformGrid
from onpath.sampling.solvers import DPMSolver, Euler
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch, DataSpec, ImageSpec, Spec
from worlds import TableDenoiser, World

MEAN, VARIANCE = 0.3, 0.25
WORLD = World.random(seed=1, num_words=2, length=4)
# one sequence is frequent, and whoever leaves it may go anywhere
MODAL = World(2, 4, torch.tensor([0.6] + [0.4 / 15] * 15, dtype=torch.float64))


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
    """Sequences of a world, drawn from its joint distribution."""

    world: World = WORLD

    def spec(self) -> DataSpec:
        return Spec(self.world.length, self.world.num_words, self.world.mask_id)

    def examples(self, ids: Tensor, device: Any = "cpu") -> Batch:
        draws = rng.uniform(Key(7), ids).double()
        index = torch.searchsorted(self.world.joint.cumsum(0), draws).clamp_max(len(self.world.joint) - 1)
        return Batch.of_tokens(self.world.sequences[index], ids)

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


@pytest.mark.parametrize("process", [PATHS["flow"], PATHS["eps"]], ids=["flow", "eps"])
def test_a_perfect_model_of_images_has_no_bias_and_stands_on_the_floor(process: Gaussian) -> None:
    rows = Drift(times=(0.1, 0.3, 0.5, 0.8), num_examples=512, offsets=(1, 10, 40, "all")).measure(
        of_images(process, 80)
    )
    for metric in ("bias", "excess"):
        found = values(rows, metric)
        assert len(found) == 16
        for place, row in found.items():
            assert abs(z(row, 0.0)) < 3.5 or abs(row["value"]) < 1e-3, (metric, place, row)


def test_a_network_that_predicts_too_little_noise_leaves_too_much_of_it_behind() -> None:
    """Of data about 0 every Euler step multiplies the state by a number: the power of what is left is known."""
    process, steps, scale = PATHS["eps"], 10, 0.9
    source = GaussianImages(mean=0.0)
    subject = of_images(process, steps, source=source, sampler=Euler())
    subject = replace(subject, denoiser=Exact(process, mean=0.0, scale=scale))
    rows = Drift(times=(0.5,), offsets=(1, 3), num_examples=512, batch_size=512).measure(subject)
    a, s = (c.tolist() for c in process.coefficients(torch.tensor(UniformGrid(steps).inner(process.schedule))))
    power = [a[i] ** 2 * VARIANCE + s[i] ** 2 for i in range(steps + 1)]
    for offset in (1, 3):
        factor = 1.0
        for i in range(5 - offset, 5):  # from grid place i to i + 1: noise s/power·x, `scale` of which is taken out
            noise = scale * s[i] / power[i]
            factor *= a[i + 1] * (1 - s[i] * noise) / a[i] + s[i + 1] * noise
        wanted = factor**2 * power[5 - offset] / power[5] - 1
        row = values(rows, "bias")[0.5, offset]
        assert wanted > 0.01 and row["ci95"][0] > 0
        assert abs(z(row, wanted)) < 3.5, (offset, wanted, row)


def test_the_loss_ratio_of_a_perfect_model_is_that_of_the_closed_form() -> None:
    """The state at t is an affine function of the source, so the loss is that of a regression on the source."""
    process, steps = PATHS["flow"], 40
    settings = Drift(times=(0.5,), offsets=(4, 12), num_examples=1024, batch_size=1024)
    rows = settings.measure(of_images(process, steps))

    def power(t: float) -> float:
        return (1 - t) ** 2 * VARIANCE + t**2

    for offset in (4, 12):
        t, u = 0.5, 0.5 + offset / steps
        forward = VARIANCE - (1 - t) ** 2 * VARIANCE**2 / power(t)
        both = (1 - t) * (1 - u) * VARIANCE**2 / (power(t) * power(u)) ** 0.5
        own = VARIANCE + (1 - t) ** 2 * VARIANCE**2 / power(t) - 2 * both
        assert own / forward > 1.005  # of a perfect model
        for metric, wanted in (("loss", own), ("loss_ratio", own / forward), ("floor", own / forward)):
            row = values(rows, metric)[t, offset]
            assert abs(z(row, wanted)) < 3.5 and row["value"] == pytest.approx(wanted, rel=0.03), (metric, wanted, row)
    assert values(rows, "loss")[0.5, 0]["value"] == pytest.approx(forward, rel=0.03)


def test_the_loss_of_predicted_noise_is_bounded_by_the_range_of_the_images() -> None:
    """At t = 1 a predicted noise that is a tenth too small stands for an image that is off by ten times the noise."""
    process, grid = PATHS["eps"], UniformGrid(20)
    subject = of_images(process, 20, scale=0.9)
    settings = Drift(times=(0.5, 1.0), offsets=(1, "all"), num_examples=32)
    rows, batch = settings.measure(subject), GaussianImages().examples(torch.arange(32))
    span = float(batch.x.max() - batch.x.min()) ** 2
    losses = values(rows, "loss")
    assert {t for t, _ in losses} == {0.5, 0.95}
    for (t, offset), row in losses.items():
        assert 0 < row["value"] < span, (t, offset, row)
        if offset:
            assert values(rows, "floor")[t, offset]["value"] * losses[t, 0]["value"] < 2 * span, (t, offset)
    # where predictions stay within the range it is the error of the image as it is predicted
    probe = ImageProbe(subject, batch, grid.inner(process.schedule), Key(0).fold("drift"), (-99.0, 99.0))
    for place, share in ((10, 0.01), (1, 0.9)):
        plain = float(probe.plain(place)["forward_loss"].mean()) / 16
        assert (1 - share) * plain < losses[round(1 - place / 20, 6), 0]["value"] <= plain


def test_a_calibrated_network_stands_on_the_floor_with_coarse_steps_too() -> None:
    rows = Drift(times=(0.5,), offsets=("all",), num_examples=1024, batch_size=1024).measure(
        of_images(PATHS["flow"], 4, sampler=Euler())
    )
    (bias,), (excess,) = (values(rows, metric).values() for metric in ("bias", "excess"))
    assert abs(z(bias, 0.0)) > 6 and abs(z(excess, 0.0)) < 3.5, (bias, excess)


def cost(num_masked: int) -> float:
    """Expected cross-entropy by masked position of the exact network at uniform sets of so many, by enumeration."""
    total, sets = 0.0, list(combinations(range(WORLD.length), num_masked))
    x, posterior = WORLD.sequences, WORLD.posterior()
    for hidden in sets:
        state = x.clone()
        state[:, list(hidden)] = WORLD.mask_id
        chances = posterior[WORLD.code(state)].gather(-1, x[..., None])[..., 0]
        total += float((-(chances.log()[:, list(hidden)]).sum(-1) * WORLD.joint).sum()) / num_masked
    return total / len(sets)


def test_a_perfect_model_of_tokens_has_no_bias_and_forward_states_cost_their_entropy() -> None:
    """One token at a time in random order, so the sampler is exact: own states are those of the process."""
    settings = Drift(times=(0.25, 0.5, 0.75), offsets=(1, 2, "all"), num_examples=4096, batch_size=4096)
    rows = settings.measure(of_tokens(Unmasking()))
    for metric in ("bias", "excess"):
        found = values(rows, metric)
        assert len(found) == 9
        for place, row in found.items():
            assert abs(z(row, 0.0)) < 3.8, (metric, place, row)
    for t in (0.25, 0.5, 0.75):
        row = values(rows, "loss")[t, 0]
        assert abs(z(row, cost(round(t * WORLD.length)))) < 3.5, (t, row)
    wrong = [values(rows, "wrong")[t, "all"]["value"] for t in (0.25, 0.5, 0.75)]
    assert all(0.1 < share < 0.9 for share in wrong)


def test_coins_for_each_position_have_no_bias_either() -> None:
    sampler = Unmasking(count=AncestralCount())
    settings = Drift(times=(0.5,), offsets=(1, "all"), num_examples=4096, batch_size=4096)
    rows = settings.measure(of_tokens(sampler, grid=UniformGrid(24)))
    for row in values(rows, "bias").values():
        assert abs(z(row, 0.0)) < 3.8 or abs(row["value"]) < 0.02, row


def test_greedy_tokens_narrow_the_predictions_and_a_calibrated_network_still_stands_on_the_floor() -> None:
    """Greedy tokens stay in the frequent sequence, behind which the exact network is sure of itself."""
    subject = of_tokens(Unmasking(tokens=Categorical(temperature=0.0)), MODAL.posterior(), source=Words(MODAL))
    rows = Drift(times=(0.25, 0.5), offsets=("all",), num_examples=2048, batch_size=2048).measure(subject)
    for row in values(rows, "bias").values():
        assert row["ci95"][1] < -0.05, row
    for row in values(rows, "excess").values():
        assert abs(z(row, 0.0)) < 3.8, row


def test_a_network_that_is_not_calibrated_is_above_the_floor() -> None:
    """A network that is surer than it may be: the truth costs more than what it believes."""
    sharp = WORLD.posterior().pow(2.0)
    rows = Drift(times=(0.5,), offsets=(1, "all"), num_examples=2048, batch_size=2048).measure(
        of_tokens(Unmasking(), sharp / sharp.sum(-1, keepdim=True))
    )
    for row in values(rows, "excess").values():
        assert row["ci95"][0] > 0, row


def test_times_stand_on_the_grid_and_no_walk_begins_beyond_noise() -> None:
    rows = Drift(times=(0.0, 0.26, 1.0), offsets=(2, 9, "all"), num_examples=8).measure(of_images(PATHS["flow"], 4))
    assert {row["t"] for row in rows} == {0.25, 0.75}
    assert {row["mode"] for row in rows if row["t"] == 0.25} == {f"drift t=.25 {o}" for o in ("+0", "+2", "+9", "all")}
    assert {(row["metric"]) for row in rows} == {"loss", "loss_ratio", "floor", "excess", "bias"}
    alone = {row["metric"]: row["value"] for row in rows if row["t"] == 0.25 and row["offset"] == "all"}
    clamped = {row["metric"]: row["value"] for row in rows if row["t"] == 0.25 and row["offset"] == 9}
    assert alone == pytest.approx(clamped, rel=1e-5)  # of an ODE there is one way from the noise
    assert all(row["n"] == 8 and row["set"] == "validation" for row in rows)
    assert Drift().measure(of_images(PATHS["flow"], 1)) == []


def test_figures_do_not_depend_on_the_batches() -> None:
    settings = Drift(times=(0.5,), offsets=(1, "all"), num_examples=30)
    for subject in (of_images(PATHS["flow"], 6), of_tokens(Unmasking())):
        whole, parts = (replace(settings, batch_size=size).measure(subject) for size in (30, 7))
        for one, other in zip(whole, parts, strict=True):
            assert one | {"value": 0, "ci95": 0} == other | {"value": 0, "ci95": 0}
            assert one["value"] == pytest.approx(other["value"], rel=1e-5, abs=1e-6)


def test_blocks_are_walked_from_the_prior_only() -> None:
    rows = Drift(times=(0.5,), num_examples=8).measure(of_tokens(Unmasking(blocks=Blocks(2))))
    assert {row["offset"] for row in rows} == {0, "all"}


def test_settings_without_sense_are_refused() -> None:
    for wrong, told in (
        ({"times": (1.5,)}, "times"),
        ({"offsets": (0,)}, "offsets"),
        ({"offsets": ()}, "offsets"),
        ({"num_examples": 1}, "num_examples"),
    ):
        with pytest.raises(ValueError, match=told):
            Drift(**cast(Any, wrong))
