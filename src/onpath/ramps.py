"""Ramps: a number over optimizer steps. A float is accepted wherever a ramp is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise


class Ramp(ABC):
    """A number that changes over training; ``ramp.value(step)`` with step counted in optimizer steps from 0."""

    @abstractmethod
    def value(self, step: int) -> float:
        """The number at `step` (0 is the first optimizer step)."""

    @property
    def bends(self) -> tuple[int, ...]:
        """Steps between which the number only rises or only falls; after the last one it stays as it is."""
        return (0,)


@dataclass(frozen=True)
class Constant(Ramp):
    """The same number at every step."""

    number: float

    def value(self, step: int) -> float:
        return self.number


@dataclass(frozen=True)
class _Between(Ramp):
    """From `start` to `end` over `steps` steps after `start_step`; exactly `end` from then on."""

    start: float
    end: float
    steps: int
    start_step: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.start_step < 0:
            raise ValueError(
                f"ramp: steps is {self.steps} and start_step is {self.start_step}; both must be 0 or more "
                "(steps: 0 is the end value at once)"
            )

    @abstractmethod
    def _progress(self, share: float) -> float:
        """Progress in [0, 1] after this share of the steps."""

    @property
    def bends(self) -> tuple[int, ...]:
        return self.start_step, self.start_step + self.steps

    def value(self, step: int) -> float:
        if step >= self.start_step + self.steps:
            return self.end
        if step <= self.start_step:
            return self.start
        return self.start + self._progress((step - self.start_step) / self.steps) * (self.end - self.start)


@dataclass(frozen=True)
class LinearRamp(_Between):
    """Linear from `start` to `end`.

    >>> LinearRamp(start=1.0, end=0.25, steps=1000).value(500)
    0.625
    """

    def _progress(self, share: float) -> float:
        return share


@dataclass(frozen=True)
class CosineRamp(_Between):
    """Half a cosine wave from `start` to `end`, flat at both ends."""

    def _progress(self, share: float) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * share)


@dataclass(frozen=True)
class Piecewise(Ramp):
    """Linear between knots (step, value); constant before the first and after the last.

    >>> Piecewise(knots=((0, 0.0), (10, 1.0), (20, 0.5))).value(15)
    0.75
    """

    knots: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.knots]
        if not steps or any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"piecewise ramp: knots at steps {steps}; needed is at least one, with rising steps")

    @property
    def bends(self) -> tuple[int, ...]:
        return tuple(step for step, _ in self.knots)

    def value(self, step: int) -> float:
        before = [knot for knot in self.knots if knot[0] <= step]
        after = [knot for knot in self.knots if knot[0] > step]
        if not before or not after:
            return (before[-1] if before else after[0])[1]
        (left, low), (right, high) = before[-1], after[0]
        return low + (step - left) / (right - left) * (high - low)


def as_ramp(number: float | Ramp) -> Ramp:
    """A ramp as it is, a number as a constant ramp."""
    return number if isinstance(number, Ramp) else Constant(float(number))
