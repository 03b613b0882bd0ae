"""The loss of images by hand, weights and densities against their closed forms, and draws that stay what they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussians import Wavy, blank
from onpath.objectives.base import stratified
from onpath.objectives.denoising import Denoising
from onpath.objectives.weighting import LogitNormalTimes, MinSNR, ShiftedTimes, TimeDensity, UniformTimes, Unweighted
from onpath.processes.gaussian import Gaussian, Path, Prediction
from onpath.rng import Key
from onpath.schedules import BetasSchedule, CosineSchedule, LinearSchedule
from onpath.types import Batch, Nets

KEY = Key(3, "train", 11)
WAYS: dict[str, Gaussian] = {"flow": Gaussian(LinearSchedule()), "vp": Gaussian(BetasSchedule(), "vp", "eps")}


@dataclass(frozen=True)
class At(TimeDensity):
    """One time for all."""

    time: float

    def times(self, draws: Tensor) -> Tensor:
        return torch.full_like(draws, self.time, dtype=torch.float64)


def images(size: int = 6, **cond: Tensor) -> Batch:
    x = torch.randn(size, 2, 3, 3, generator=torch.Generator().manual_seed(4)).double()
    return Batch(x, torch.arange(40, 40 + size), cond=cond)


def value(objective: Denoising, batch: Batch, network: Any = None) -> float:
    return float(objective(Nets(network or Wavy()), batch, KEY, 0).mean)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
@pytest.mark.parametrize("time", [0.15, 0.5, 0.8])
def test_the_loss_by_hand(way: str, prediction: Prediction, time: float) -> None:
    schedule = BetasSchedule()
    path: Path = "flow" if way == "flow" else "vp"
    process, batch = Gaussian(schedule, path, prediction), images()
    # the noise of the objective is that of the process by its key
    noise = process.draw(batch, KEY.fold("corrupt")).double()
    share = float(schedule.alpha(torch.tensor(time, dtype=torch.float64)))
    a, s = (share, 1 - share) if way == "flow" else (math.sqrt(share), math.sqrt(1 - share))
    x = a * batch.x + s * noise
    aim = {"eps": noise, "v": a * noise - s * batch.x, "x0": batch.x, "flow": noise - batch.x}[prediction]
    said = Wavy()(x, torch.full((6,), time), None)
    wanted = float((said - aim).square().mean())
    assert value(Denoising(process, At(time)), batch) == pytest.approx(wanted, rel=1e-5)
    # the error of the image that this prediction stands for
    image = {
        "eps": (x - s * said) / a,
        "v": (a * x - s * said) / (a * a + s * s),
        "x0": said,
        "flow": (x - s * said) / (a + s),
    }[prediction]
    total, count = Denoising(process, At(time))(Nets(Wavy()), batch, KEY, 0).metrics["image_error"]
    share = min(1.0, a / s) ** 2 if prediction == "eps" else 1.0
    assert float(total) / float(count) == pytest.approx(share * float((image - batch.x).square().mean()), rel=1e-4)


def test_the_error_of_the_image_is_bounded_by_that_of_the_noise() -> None:
    """Near t = 1 a predicted noise that is off by a little stands for an image that is off by thousands."""
    process, batch = Gaussian(BetasSchedule(), "vp", "eps"), images()
    for time in (0.1, 0.9, 1.0):
        loss = Denoising(process, At(time))(Nets(Wavy()), batch, KEY, 0)
        total, count = loss.metrics["image_error"]
        assert 0 < float(total) / float(count) <= float(loss.mean) * (1 + 1e-5)


@pytest.mark.parametrize("gamma", [1.0, 5.0, 20.0])
def test_min_snr_is_that_of_the_paper(gamma: float) -> None:
    """min(SNR, gamma) for x0, over SNR for eps, over SNR + 1 for v; s²·min(SNR, gamma) for a flow."""
    t = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)
    schedule = BetasSchedule()
    snr = schedule.alpha(t) / schedule.mask_ratio(t)
    least = snr.clamp(max=gamma)
    closed = {"x0": least, "eps": least / snr, "v": least / (snr + 1)}
    for prediction, wanted in closed.items():
        process = Gaussian(schedule, "vp", prediction)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(MinSNR(gamma).weights(process, t), wanted, rtol=1e-9, atol=1e-12)
    ratio = ((1 - t) / t) ** 2
    wanted = ratio.clamp(max=gamma) * t**2
    torch.testing.assert_close(MinSNR(gamma).weights(WAYS["flow"], t), wanted, rtol=1e-9, atol=1e-12)


def test_min_snr_is_finite_at_both_ends() -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for prediction, wanted in {"flow": [0.0, 0.0], "x0": [5.0, 0.0], "v": [0.0, 0.0]}.items():
        process = Gaussian(CosineSchedule(), "vp", prediction)  # pyright: ignore[reportArgumentType]
        assert MinSNR().weights(process, ends).tolist() == pytest.approx(wanted, abs=1e-12)
    assert Unweighted().weights(WAYS["flow"], ends).tolist() == [1.0, 1.0]


def test_a_weight_multiplies_the_loss_of_its_row() -> None:
    batch, process = images(1), WAYS["flow"]
    for time in (0.2, 0.7):
        weight = float(MinSNR().weights(process, torch.tensor([time])))
        weighed, plain = (value(Denoising(process, At(time), w), batch) for w in (MinSNR(), Unweighted()))
        assert weighed == pytest.approx(weight * plain, rel=1e-6)


def normal_below(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


DENSITIES: list[Any] = [
    pytest.param(UniformTimes(), lambda t: t, id="uniform"),
    pytest.param(LogitNormalTimes(), lambda t: normal_below(math.log(t / (1 - t))), id="logit normal"),
    pytest.param(
        LogitNormalTimes(0.5, 1.2),
        lambda t: normal_below((math.log(t / (1 - t)) - 0.5) / 1.2),
        id="logit normal, moved",
    ),
    pytest.param(ShiftedTimes(3.0), lambda t: t / (3.0 - 2.0 * t), id="shifted"),
]


@pytest.mark.parametrize(("density", "below"), DENSITIES)
def test_a_density_has_its_distribution_function(density: TimeDensity, below: Any) -> None:
    """The quantile function undone by the closed form; and the draws of a training are spread by it."""
    draws = torch.linspace(0.001, 0.999, 199, dtype=torch.float64)
    times = density.times(draws)
    assert times.dtype == torch.float64 and (times.diff() > 0).all()
    assert [below(float(t)) for t in times] == pytest.approx(draws.tolist(), abs=1e-9)
    many = density.times(stratified(KEY, torch.arange(1000))).sort().values
    gap = max(abs(below(float(t)) - (rank + 0.5) / 1000) for rank, t in enumerate(many.clamp(1e-12, 1 - 1e-12)))
    assert gap < 0.01
    ends = density.times(torch.tensor([0.0, 1.0 - 2.0**-32], dtype=torch.float64))
    assert ends.isfinite().all() and float(ends.min()) >= 0.0 and float(ends.max()) <= 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitNormalTimes(std=0.0), "std is 0.0"),
        (lambda: ShiftedTimes(0.0), "shift is 0.0"),
        (lambda: MinSNR(-1.0), "gamma is -1.0"),
        (lambda: Denoising(WAYS["flow"], input_perturbation=-0.1), "input_perturbation is -0.1"),
        (lambda: Denoising(WAYS["flow"], condition_dropout=1.1), "condition_dropout is 1.1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_perturbed_states_keep_the_target() -> None:
    """The state has noise + gamma·(other noise), the target has the noise alone."""
    process, batch = WAYS["vp"], images()
    noise, other = (process.draw(batch, KEY.fold(name)).double() for name in ("corrupt", "perturbation"))
    a, s = (float(c) for c in process.coefficients(torch.tensor(0.5, dtype=torch.float64)))
    said = Wavy()(a * batch.x + s * (noise + 0.3 * other), torch.full((6,), 0.5), None)
    wanted = float((said - noise).square().mean())
    assert value(Denoising(process, At(0.5), input_perturbation=0.3), batch) == pytest.approx(wanted, rel=1e-5)
    assert abs(float((noise * other).mean())) < 4 / math.sqrt(noise.numel())
    quiet = Denoising(process, At(0.5), input_perturbation=0.3).conditional()
    assert value(quiet, batch) == value(Denoising(process, At(0.5)), batch)


def test_condition_dropout_by_example() -> None:
    """A share of the rows hears of no condition, the same ones whatever the batch; no other draw changes."""
    dropped: list[Tensor] = []

    class Spy(Wavy):
        def encode(self, shift: Tensor | None = None, drop: Tensor | None = None) -> Any:
            if drop is not None:
                dropped.append(drop)
            return super().encode(shift, drop)

    size = 400
    batch = blank(size, shift=torch.linspace(-1, 1, size))
    objective = Denoising(WAYS["flow"], condition_dropout=0.3)
    value(objective, batch, Spy())
    assert 0.2 < float(dropped[0].float().mean()) < 0.4
    value(objective, batch.rows(slice(100, 200)), Spy())
    assert torch.equal(dropped[1], dropped[0][100:200])
    bare = blank(size, shift=torch.where(dropped[0], 0.0, batch.cond["shift"]))
    assert value(objective, batch) == pytest.approx(value(Denoising(WAYS["flow"]), bare), rel=1e-6)
    assert objective.conditional().condition_dropout == 0.0


def test_conditions_that_are_not_there_cannot_be_dropped() -> None:
    with pytest.raises(ValueError, match="neither conditions nor given"):
        value(Denoising(WAYS["flow"], condition_dropout=0.1), images())
