"""Time grids: exact ends, and the pure states where a schedule is bounded."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from onpath.sampling.grids import EvenGrid, ExplicitGrid, Grid, UniformGrid
from onpath.schedules import DATA, PRIOR, CosineSchedule, LinearSchedule, Schedule
from tables import GRIDS, SCHEDULES


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_times_fall_from_all_noise_to_data(grid: Grid, schedule: Schedule) -> None:
    times, inner = grid.times(schedule), grid.inner(schedule)
    assert inner[0] == 1.0 and inner[-1] == 0.0
    assert all(later < earlier for earlier, later in pairwise(times))
    exact = torch.tensor(times, dtype=torch.float64)
    assert float(schedule.mask_ratio(exact)[0]) == 1.0 and float(schedule.mask_ratio(exact)[-1]) == 0.0
    at_data, at_noise = schedule.end_points()
    assert (times[0] == PRIOR) == (at_noise > 0) and (times[-1] == DATA) == (at_data < 1)
    assert len(times) == len(inner) + (at_noise > 0) + (at_data < 1)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 128])
def test_uniform_steps(steps: int) -> None:
    inner = UniformGrid(steps).inner(LinearSchedule())
    assert len(inner) == steps + 1
    assert inner == pytest.approx([1 - k / steps for k in range(steps + 1)], abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("steps", [1, 4, 64])
def test_even_steps_reveal_the_same_share_each(schedule: Schedule, steps: int) -> None:
    inner = torch.tensor(EvenGrid(steps).inner(schedule), dtype=torch.float64)
    assert len(inner) == steps + 1
    shares = schedule.alpha(inner).diff()
    torch.testing.assert_close(shares, torch.full_like(shares, float(shares.sum()) / steps), rtol=1e-6, atol=1e-9)


def test_explicit_points_are_kept() -> None:
    points = (1.0, 0.7, 0.1, 0.0)
    assert ExplicitGrid(points).times(CosineSchedule()) == points


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformGrid(0),
        lambda: EvenGrid(-1),
        lambda: ExplicitGrid((1.0,)),
        lambda: ExplicitGrid((0.9, 0.0)),
        lambda: ExplicitGrid((1.0, 0.1)),
        lambda: ExplicitGrid((1.0, 0.5, 0.5, 0.0)),
    ],
)
def test_refusals(make) -> None:
    with pytest.raises(ValueError, match="grid"):
        make()
