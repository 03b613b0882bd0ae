"""ODE solvers for Gaussian diffusion, as pure steps: each row of a batch goes from a time to a time of its own.

All but `rk4` write a step as x' = (s'/s)·x + (a' - a·s'/s)·D, where D is an estimate of x0 over the step: exact for a
constant D, so its quality alone decides the order. No step divides by a or takes the logarithm of 0: a step from
a = 0 or to s = 0 is of first order by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.processes.gaussian import Gaussian
from onpath.sampling.grids import Grid
from onpath.sampling.guidance import encoded
from onpath.sampling.loop import Knobs, Sampler
from onpath.sampling.states import ImageState
from onpath.schedules import DATA, Schedule
from onpath.types import Batch, Denoiser, Noised

Images = Float[Tensor, "B *rest"]
Times = Float[Tensor, "B"]
Interval = tuple[Times, Times]


@dataclass(frozen=True)
class ODESolver(Sampler):
    """What all solvers share.

    guidance: weight w of (1 + w)·cond - w·uncond; 0 runs one branch only.
    epsilon_scale: divides the predicted noise; a little above 1 (1.005) shortens the steps of a network that meets
      states of its own (arXiv:2308.15321, Section 4). 1 changes nothing.
    clip: greatest absolute value of a predicted image, 0 for none; 1 for pixels, which lie in [-1, 1].
    """

    guidance: float = 0.0
    epsilon_scale: float = 1.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.epsilon_scale <= 0 or self.clip < 0:
            raise ValueError(
                f"solver: epsilon_scale is {self.epsilon_scale} and clip is {self.clip}; needed are epsilon_scale "
                "above 0 (1 changes nothing) and clip of 0 (none) or more"
            )

    @property
    def forwards_per_step(self) -> int:
        """Rows through the network that a step of one row costs, without guidance."""
        return 1

    def times(self, grid: Grid, schedule: Schedule) -> tuple[float, ...]:
        """From t = 1 to pure data: where alpha(0) < 1 the last step goes past t = 0, to s = 0."""
        points = grid.inner(schedule)
        return points if schedule.end_points()[0] >= 1.0 else (*points[:-1], DATA)

    def init(self, process: Gaussian, denoiser: Denoiser, start: Noised, batch: Batch, knobs: Knobs) -> ImageState:
        if knobs.temperature is not None or knobs.reveal is not None:
            raise ValueError("knobs: temperature and reveal are of tokens; a solver takes guidance only")
        is_guided = self.guidance != 0.0 or knobs.guidance is not None
        return ImageState(
            x=start.x,
            num_forwards=torch.zeros(batch.size, dtype=torch.int64),
            step=0,
            batch=batch,
            memo=encoded(process, denoiser, batch, is_guided),
            num_branches=2 if is_guided else 1,
        )

    def step(
        self,
        process: Gaussian,
        denoiser: Denoiser,
        state: ImageState,
        times: tuple[Any, Any],
        key: rng.Key,
        knobs: Knobs,
    ) -> ImageState:
        t, s = (torch.as_tensor(time, dtype=torch.float64).expand(state.batch.size) for time in times)
        predict = _Predictor(self, process, denoiser, state, knobs)
        after = self.advance(process, predict, state, (t, s))
        spent = self.forwards_per_step * state.num_branches
        return replace(after, step=state.step + 1, num_forwards=state.num_forwards + spent)

    @abstractmethod
    def advance(self, process: Gaussian, predict: _Predictor, state: ImageState, interval: Interval) -> ImageState:
        """The state at the end of the interval; `predict(x, t)` is the network's estimate of x0."""


@dataclass(frozen=True)
class _Predictor:
    """The network's estimate of the image behind a state, guided, scaled and clipped as the solver says."""

    solver: ODESolver
    process: Gaussian
    denoiser: Denoiser
    state: ImageState
    knobs: Knobs

    def __call__(self, x: Images, t: Times) -> Images:
        process, solver = self.process, self.solver
        t = t.clamp(0.0, 1.0)
        seen = t.to(x.device, x.dtype, non_blocking=True)
        if self.state.num_branches == 2:
            both = self.denoiser(torch.cat([x, x]), torch.cat([seen, seen]), self.state.memo)
            weight = self.knobs.guidance
            weight = solver.guidance if weight is None else process.over(weight, x)
            cond, uncond = both.to(x.dtype).chunk(2)
            output = cond + weight * (cond - uncond)
        else:
            output = self.denoiser(x, seen, self.state.memo).to(x.dtype)
        image = process.image_of(output, x, t)
        if solver.epsilon_scale != 1.0:
            image = _scaled(process, image, x, t, solver.epsilon_scale)
        return image.clamp(-solver.clip, solver.clip) if solver.clip else image


def _scaled(process: Gaussian, image: Images, x: Images, t: Times, scale: float) -> Images:
    """The image that goes with the predicted noise divided by `scale`; as it is where a is 0, which says nothing."""
    a, _ = (process.over(c, x) for c in process.coefficients(t))
    noise_part = (x - a * image) / scale
    return torch.where(a > 0, (x - noise_part) / a.clamp_min(1e-12), image)


def exact(process: Gaussian, x: Images, image: Images, interval: Interval) -> Images:
    """The state at the end of an interval over which the estimate of x0 stays `image`.

    x' = (s'/s)·x + (a' - a·s'/s)·image: the Euler step of flow matching, and DDIM, arXiv:2010.02502, Eq. 12 with
    sigma = 0.
    """
    now, after = (process.coefficients(time) for time in interval)
    return _between(process, x, image, (now, after))


def _between(process: Gaussian, x: Images, image: Images, levels: tuple[Interval, Interval]) -> Images:
    """`exact` for (a, s) at both ends."""
    (a, s), (a2, s2) = levels
    ratio = s2 / s
    return process.over(ratio, x) * x + process.over(a2 - a * ratio, x) * image


@dataclass(frozen=True)
class Euler(ODESolver):
    """One forward a step, order 1: Euler on a flow, DDIM on vp."""

    def advance(self, process: Gaussian, predict: _Predictor, state: ImageState, interval: Interval) -> ImageState:
        return replace(state, x=exact(process, state.x, predict(state.x, interval[0]), interval))


@dataclass(frozen=True)
class DPMSolver(ODESolver):
    """DPM-Solver++(2M): one forward a step, the estimate of x0 carried on in a straight line over ln(a/s).

    order: 2, or 1, which is Euler. Source: arXiv:2211.01095, Algorithm 2, Eq. 9.
    """

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_order("dpm", self.order, 2)

    def advance(self, process: Gaussian, predict: _Predictor, state: ImageState, interval: Interval) -> ImageState:
        t = interval[0]
        image = predict(state.x, t)
        estimate = image
        if self.order == 2 and state.images:
            # h/(2·(lambda - lambda_1)): 0 behind a = 0, and not wanted on the way to s = 0
            now, after, before = (process.log_ratio(time) for time in (t, interval[1], state.times[0]))
            slope = torch.where(after.isinf() | before.isinf(), 0.0, 0.5 * (after - now) / (now - before))
            estimate = image + process.over(slope, image) * (image - state.images[0])
        x = exact(process, state.x, estimate, interval)
        return replace(state, x=x, images=(image,), times=(t,))


@dataclass(frozen=True)
class UniPC(ODESolver):
    """UniPC in its B2(h) form on predictions of x0: a multistep predictor, corrected once the next point is known.

    order: points that the predictor looks at, 1 to 3; the corrector takes one more, so order 2 converges with order 3.
    The state is corrected by the forward that the next step needs anyway; the last point is not corrected.
    Source: arXiv:2302.04867, Algorithms 5 to 8 and Eq. 7.
    """

    order: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_order("unipc", self.order, 3)

    def advance(self, process: Gaussian, predict: _Predictor, state: ImageState, interval: Interval) -> ImageState:
        t = interval[0]
        image = predict(state.x, t)
        x = state.x
        if state.before is not None:
            last = (state.times[0], t)
            x = self._multistep(process, state.before, state.images[: self.order], state.times, last, image)
        images, times = (image, *state.images)[: self.order], (t, *state.times)[: self.order]
        after = self._multistep(process, x, images, times, interval, None)
        return replace(state, x=after, images=images, times=times, before=x)

    def _multistep(
        self,
        process: Gaussian,
        x: Images,
        images: tuple[Images, ...],
        times: tuple[Times, ...],
        interval: Interval,
        reached: Images | None,
    ) -> Images:
        """The state at the end of the interval from x at its start.

        images, times: estimates of x0 at the start of the interval and before it, the latest first. reached: the
        estimate at its end, for the corrector.
        """
        a, s = process.coefficients(torch.stack([*interval, *times[1 : len(images)]]))
        now, after, *before = a.log() - s.log()
        h = after - now
        points = [(earlier - now) / h for earlier in before]
        others = [other - images[0] for other in images[1:]]
        if reached is not None:
            points.append(torch.ones_like(h))
            others.append(reached - images[0])
        # where an end of the interval, or a point before it, has no signal or no noise, the step is of first order
        usable = h.isfinite() & torch.stack([torch.ones_like(h), *points]).isfinite().all(0)
        weights = _unipc_weights([torch.where(usable, p, -1.0 - i) for i, p in enumerate(points)], h, usable)
        estimate = images[0]
        for weight, point, other in zip(weights, points, others, strict=True):
            share = torch.where(usable, weight / torch.where(usable, point, 1.0), 0.0)
            estimate = estimate + process.over(share, x) * other
        return _between(process, x, estimate, ((a[0], s[0]), (a[1], s[1])))


def _unipc_weights(points: list[Float[Tensor, "B"]], h: Float[Tensor, "B"], usable: Tensor) -> list[Float[Tensor, "B"]]:
    """The weights of the differences quotients: R·rho = b with R_kj = r_j^(k-1), b_k = k!·phi_{k+1}(-h)/B(-h).

    With one point that is not reached (`points` has one entry that is not 1), and with the end of the interval alone,
    the weight is 1/2, as Eq. 11 of the paper simplifies it.
    """
    if not points:
        return []
    if len(points) == 1:
        return [torch.full_like(h, 0.5)]
    minus_h = torch.where(usable, -h, -1.0)
    denominator = torch.expm1(minus_h)
    phi = denominator / minus_h - 1.0
    right, factorial = [], 1
    for k in range(1, len(points) + 1):
        right.append(phi * factorial / denominator)
        factorial *= k + 1
        phi = phi / minus_h - 1.0 / factorial
    rows = torch.stack([torch.stack(points, 1) ** k for k in range(len(points))], 1)
    return list(torch.linalg.solve(rows, torch.stack(right, 1)).unbind(1))


@dataclass(frozen=True)
class RungeKutta(ODESolver):
    """The classic method of order 4, four forwards a step.

    On a flow dx/ds = noise - x0 is integrated over s, on vp dx/dphi = v over phi = atan2(s, a). Near the data the slope
    (x - x0)/s is stiff: a step takes the coordinate to a tenth at most, and the schedule's own first time bounds it;
    what is left of the way is taken by the last estimate of x0.
    """

    @property
    def forwards_per_step(self) -> int:
        return 4

    def advance(self, process: Gaussian, predict: _Predictor, state: ImageState, interval: Interval) -> ImageState:
        begin, end = (_angle(process, time) for time in interval)
        least = torch.maximum(0.1 * begin, _angle(process, torch.zeros_like(begin)))
        inside = torch.minimum(torch.maximum(end, least), begin)
        h, x = process.over(inside - begin, state.x), state.x
        middle = (begin + inside) / 2
        first, _ = _slope(process, predict, begin, x)
        second, _ = _slope(process, predict, middle, x + h / 2 * first)
        third, _ = _slope(process, predict, middle, x + h / 2 * second)
        fourth, image = _slope(process, predict, inside, x + h * third)
        x = x + h / 6 * (first + 2 * second + 2 * third + fourth)
        return replace(state, x=_between(process, x, image, (_levels(process, inside), _levels(process, end))))


def _angle(process: Gaussian, t: Times) -> Float[Tensor, "B"]:
    """The coordinate that runge-kutta integrates over: s of a flow, atan2(s, a) of vp."""
    a, s = process.coefficients(t)
    return s if process.path == "flow" else torch.atan2(s, a)


def _levels(process: Gaussian, angle: Float[Tensor, "B"]) -> Interval:
    """(a, s) at this coordinate."""
    return (1.0 - angle, angle) if process.path == "flow" else (angle.cos(), angle.sin())


def _slope(process: Gaussian, predict: _Predictor, angle: Float[Tensor, "B"], x: Images) -> tuple[Images, Images]:
    """dx/ds = (x - x0)/s of a flow, dx/dphi = v = (a·x - x0)/s of vp, and the estimate of x0 that it is made from."""
    a, s = _levels(process, angle)
    ends = process.schedule.end_points()
    image = predict(x, process.schedule.t_of((a if process.path == "flow" else a * a).clamp(ends[1], ends[0])))
    scale = torch.ones_like(a) if process.path == "flow" else a
    return (process.over(scale, x) * x - image) / process.over(s, x), image


def _check_order(name: str, order: int, most: int) -> None:
    if not 1 <= order <= most:
        raise ValueError(f"{name}: order is {order}; allowed are 1 to {most}, 2 is usual")
