"""What an evaluation measures, as a section of the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onpath.evaluation.envs import Mode


@dataclass(frozen=True)
class Evaluation:
    """Sets of tasks from fixed seeds, and the modes in which a policy runs on them.

    sets: `train` layouts, `test` for layouts never trained on, `long` for those of 22 steps or more among the latter.
    num_tasks: tasks of each set. modes: names as ``evaluation.envs.Mode`` reads them: open@40, closed@10,
    horizon8@10+warm0.5, with /minigrid for the real environment. latency: whether the planning of every mode in the
    simulator is timed as well. replay: whether the episodes of the simulator are walked again in the real environment,
    which must give the same outcome.
    """

    sets: tuple[Literal["train", "test", "long"], ...] = ("test",)
    num_tasks: int = 500
    modes: tuple[str, ...] = ("open@1", "open@10", "open@40", "closed@10", "closed@10/minigrid")
    latency: bool = True
    replay: bool = False

    def __post_init__(self) -> None:
        if self.num_tasks < 1 or not self.sets or not self.modes:
            raise ValueError(
                f"evaluation: num_tasks is {self.num_tasks}, sets is {self.sets} and modes is {self.modes}; at least "
                "one task of one set in one mode is needed"
            )
        for name in self.modes:
            Mode.parse(name)
        twice = [name for names in (self.sets, self.modes) for name in sorted(set(names)) if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"evaluation: sets is {self.sets} and modes is {self.modes}; {', '.join(twice)} stands there twice, "
                "and once is enough: remove the other"
            )
