"""Time grids: from all noise to data, on which a sampler walks and which a trajectory bound sums over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch

from onpath.schedules import DATA, PRIOR, Schedule

MAX_STEPS = 100_000


class Grid(ABC):
    """Falling times 1 = t_0 > … > t_K = 0; ``times`` adds the pure states where the schedule is bounded."""

    @abstractmethod
    def inner(self, schedule: Schedule) -> tuple[float, ...]:
        """The K + 1 times in [0, 1], from 1 down to 0."""

    def times(self, schedule: Schedule) -> tuple[float, ...]:
        """Times for a sampler or a bound: PRIOR first where alpha(1) > 0, DATA last where alpha(0) < 1."""
        at_data, at_noise = schedule.end_points()
        before = (PRIOR,) if at_noise > 0 else ()
        after = (DATA,) if at_data < 1 else ()
        return (*before, *self.inner(schedule), *after)

    def with_steps(self, steps: int) -> Grid:
        """The same kind of grid with so many steps; ValueError where their number is fixed."""
        raise ValueError(
            f"grid: {type(self).__name__} has a fixed number of steps and cannot take {steps}; use the uniform or the "
            "even grid"
        )


@dataclass(frozen=True)
class UniformGrid(Grid):
    """`steps` equal steps of time.

    >>> from onpath.schedules import LinearSchedule
    >>> UniformGrid(4).times(LinearSchedule())
    (1.0, 0.75, 0.5, 0.25, 0.0)
    """

    steps: int = 10

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def inner(self, schedule: Schedule) -> tuple[float, ...]:
        return (*(1.0 - step / self.steps for step in range(self.steps)), 0.0)

    def with_steps(self, steps: int) -> UniformGrid:
        return UniformGrid(steps)


@dataclass(frozen=True)
class EvenGrid(Grid):
    """`steps` equal steps of alpha: the same expected number of reveals at every step, whatever the schedule."""

    steps: int = 10

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def inner(self, schedule: Schedule) -> tuple[float, ...]:
        at_data, at_noise = schedule.end_points()
        alphas = torch.linspace(at_noise, at_data, self.steps + 1, dtype=torch.float64)
        return (1.0, *schedule.t_of(alphas[1:-1]).tolist(), 0.0)

    def with_steps(self, steps: int) -> EvenGrid:
        return EvenGrid(steps)


@dataclass(frozen=True)
class ExplicitGrid(Grid):
    """The times as given: falling from 1 to 0."""

    points: tuple[float, ...]

    def __post_init__(self) -> None:
        falling = all(later < earlier for earlier, later in pairwise(self.points))
        if len(self.points) < 2 or self.points[0] != 1.0 or self.points[-1] != 0.0 or not falling:
            raise ValueError(f"explicit grid: points are {self.points}; they must fall strictly from 1.0 to 0.0")

    def inner(self, schedule: Schedule) -> tuple[float, ...]:
        return self.points


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"grid: steps is {steps}; allowed are 1 to {MAX_STEPS}; take 10 or so")
