"""Order of convergence against the exact flow of Gaussian data, parity with diffusers, ends, and the contract."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.processes.gaussian import Gaussian
from onpath.rng import Key
from onpath.sampling.loop import Knobs, roll
from onpath.sampling.solvers import DPMSolver, Euler, ODESolver, RungeKutta, UniPC
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Batch, Noised

MEAN, VARIANCE = 0.3, 0.25


@dataclass(frozen=True)
class Exact:
    """The perfect network for data N(MEAN, VARIANCE), whatever it predicts."""

    process: Gaussian

    def encode(self, **cond: Tensor) -> Any:
        return None

    def image(self, x: Tensor, t: Tensor) -> Tensor:
        a, s = (c.view(-1, 1, 1, 1).to(x.dtype) for c in self.process.coefficients(t.double()))
        return MEAN + a * VARIANCE / (a * a * VARIANCE + s * s) * (x - a * MEAN)

    def __call__(self, x: Tensor, t: Tensor, memo: Any) -> Tensor:
        t = t.double()
        a, s = (c.view(-1, 1, 1, 1).to(x.dtype) for c in self.process.coefficients(t))
        image = self.image(x, t)
        # s·(x - a·image)/s: the noise part of the state, written for s = 0 too
        slope = 1.0 - a * a * VARIANCE / (a * a * VARIANCE + s * s)  # of s·noise, over x - a·MEAN
        noise = s / (a * a * VARIANCE + s * s) * (x - a * MEAN)
        assert slope.isfinite().all()
        return {
            "x0": image,
            "eps": noise,
            "v": a * noise - s * image,
            "flow": noise - image,
        }[self.process.prediction]


def moved(process: Gaussian, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The exact solution: quantiles stay quantiles of N(a·MEAN, a²·VARIANCE + s²)."""

    def of(time: Tensor) -> tuple[Tensor, Tensor]:
        a, noise = process.coefficients(time)
        return (a * MEAN).view(-1, 1, 1, 1), (a * a * VARIANCE + noise * noise).sqrt().view(-1, 1, 1, 1)

    (mean, std), (mean2, std2) = of(t), of(s)
    return mean2 + std2 / std * (x - mean)


PATHS = {
    "flow": Gaussian(LinearSchedule()),
    "vp": Gaussian(CosineSchedule(), path="vp", prediction="v"),
}


def rolled(solver: ODESolver, process: Gaussian, num_steps: int, size: int = 64) -> float:
    """Root mean square error of rows that walk from and to times of their own on uneven grids of their own, in fp64."""
    generator = torch.Generator().manual_seed(3)
    begin = 0.6 + 0.35 * torch.rand(size, generator=generator, dtype=torch.float64)
    end = 0.05 + 0.2 * torch.rand(size, generator=generator, dtype=torch.float64)
    bend = 0.8 * torch.rand(size, generator=generator, dtype=torch.float64) - 0.4
    share = (1.0 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)[:, None]
    share = share + bend * share * (1.0 - share)
    times = end + share * (begin - end)
    x = torch.randn(size, 1, 2, 2, generator=generator, dtype=torch.float64)
    batch = Batch(x=torch.zeros(size, 1, 2, 2), ids=torch.arange(size))
    network = Exact(process)
    state = solver.init(process, network, Noised(x, begin, x), batch, Knobs())
    walks = roll(network, process, solver, times, torch.full((size,), num_steps), state, Key(0))
    reached = torch.cat([part.x for part in walks][::-1])
    return float((reached - moved(process, x, begin, end)).square().mean().sqrt())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (Euler(), 0.9, 1.1),
        (DPMSolver(order=1), 0.9, 1.1),
        (DPMSolver(), 1.85, 2.15),
        (UniPC(order=1), 1.7, 2.2),
        (UniPC(), 2.8, 3.2),
        (UniPC(order=3), 3.5, 4.5),
        (RungeKutta(), 3.8, 4.2),
    ],
    ids=str,
)
def test_order_of_convergence(path: str, solver: ODESolver, least: float, most: float) -> None:
    fine, finer = (128, 256) if not isinstance(solver, RungeKutta) else (20, 40)
    errors = [rolled(solver, PATHS[path], count) for count in (fine, finer)]
    assert least <= math.log2(errors[0] / errors[1]) <= most, errors
