"""What an evaluation measures, as a section of the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskSet = Literal["train", "test", "long"]


@dataclass(frozen=True)
class Evaluation:
    """Sets of tasks from fixed seeds, and the modes in which a policy runs on them.

    sets: `train` layouts, `test` for layouts never trained on, `long` for those of 22 steps or more among the latter.
    num_tasks: tasks of each set. open_loop: numbers of forwards of plans that are executed to their end.
    closed_loop: numbers of forwards of a plan where the policy plans again. replan_every: after so many actions.
    keep_plan: start a new plan from the tail of the last one. real: MiniGrid's own environment, not the simulator.
    """

    sets: tuple[TaskSet, ...] = ("test",)
    num_tasks: int = 500
    open_loop: tuple[int, ...] = (1, 10, 40)
    closed_loop: tuple[int, ...] = (10,)
    replan_every: tuple[int, ...] = (1,)
    keep_plan: bool = False
    real: bool = False

    def __post_init__(self) -> None:
        if self.num_tasks < 1 or not self.sets:
            raise ValueError(
                f"evaluation: num_tasks is {self.num_tasks} and sets is {self.sets}; at least one task of one set "
                "is needed"
            )
        if any(n < 1 for n in (*self.open_loop, *self.closed_loop, *self.replan_every)):
            raise ValueError(
                f"evaluation: open_loop {self.open_loop}, closed_loop {self.closed_loop} and replan_every "
                f"{self.replan_every} are counts; each must be 1 or more"
            )
