"""A schedule as people read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from onpath.schedules import Schedule


@dataclass(frozen=True)
class ScheduleRow:
    """A line of the schedule as a table: time, share of signal, share of masked positions."""

    t: float
    alpha: float
    mask_share: float


def schedule_table(schedule: Schedule, num_rows: int = 9) -> tuple[ScheduleRow, ...]:
    """The schedule at `num_rows` even times from 0 to 1.

    >>> from onpath.schedules import LinearSchedule
    >>> schedule_table(LinearSchedule(), 3)[1]
    ScheduleRow(t=0.5, alpha=0.5, mask_share=0.5)
    """
    t = torch.linspace(0, 1, num_rows, dtype=torch.float64)
    columns = t.tolist(), schedule.alpha(t).tolist(), schedule.mask_ratio(t).tolist()
    return tuple(ScheduleRow(*row) for row in zip(*columns, strict=True))
