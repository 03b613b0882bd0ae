"""What is measured of a policy: success on sets of tasks like its own, in the simulator and in the real environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onpath import rng
from onpath.data.mazes import MazeExpert
from onpath.data.source import ActionSource, Source
from onpath.envs import fourrooms, minigrid
from onpath.evaluation.arenas import TaskSet, task_set
from onpath.evaluation.drift import BRIEF, Drift
from onpath.evaluation.envs import Mode, evaluate, latency
from onpath.evaluation.policy import PlanPolicy
from onpath.evaluation.settings import Evaluation, Row, Subject
from onpath.evaluation.traces import trace
from onpath.records import Trace


@dataclass(frozen=True)
class PlanEvaluation(Evaluation):
    """Sets of tasks from fixed seeds, and the modes in which a policy runs on them.

    The tasks are those of FourRooms, or random mazes where a run was trained on them, of its own side and braid.
    sets: `train` layouts, `test` for layouts never trained on, `long` for the long ones among the latter (22 steps on
    FourRooms, one and a half sides in mazes), `mazes` for held-out mazes in any case.
    num_tasks: tasks of each set. modes: names as ``evaluation.envs.Mode`` reads them: open@40, closed@10,
    horizon8@10+warm0.5, with /minigrid for the real environment. latency: whether the planning of every mode in the
    simulator is timed as well. replay: whether the episodes of the simulator are walked again in the real environment,
    which must give the same outcome. drift: of own states, measured beside it; null leaves it out.
    """

    sets: tuple[Literal["train", "test", "long", "mazes"], ...] = ("test",)
    num_tasks: int = 500
    modes: tuple[str, ...] = ("open@1", "open@10", "open@40", "closed@10", "closed@10/minigrid")
    latency: bool = True
    replay: bool = False
    drift: Drift | None = BRIEF

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

    def require(self, subject: Subject) -> None:
        # modes that nobody has set are left alone: a grid of one's own may not take their steps
        if not isinstance(subject.source, ActionSource) or self.modes == PlanEvaluation.modes:
            return
        policy = planner(subject)
        for name in self.modes:
            try:
                Mode.parse(name).of(policy)
            except ValueError as error:
                raise ValueError(
                    f"config: evaluation.modes has {name!r}, which cannot run: {error}; change evaluation.modes"
                ) from error

    def measure(self, subject: Subject) -> list[Row]:
        policy, device = task_planner(subject), subject.device
        modes = [Mode.parse(name) for name in self.modes]
        # what would otherwise be refused after other modes have been measured
        _ = [mode.of(policy) for mode in modes]
        if self.replay or any(mode.real for mode in modes):
            minigrid.require()
        rows: list[Row] = []
        for name in self.sets:
            tasks = tasks_like(subject.source, name, self.num_tasks)
            rows += evaluate(policy, tasks, modes, device=device, replay=self.replay)
            if self.latency:
                simulated = [mode for mode in modes if not mode.real]
                rows += [row for mode in simulated for row in latency(policy, tasks, mode, device=device)]
        return rows

    def traces(self, subject: Subject, num: int) -> list[Trace]:
        policy = task_planner(subject)
        steps = len(subject.grid.inner(subject.process.schedule)) - 1
        tasks = tasks_like(subject.source, self.sets[0], num)
        made = [trace(policy, tasks, Mode(every, steps), subject.device) for every in (None, 1)]
        return [one for some in made for one in some]


def planner(subject: Subject) -> PlanPolicy:
    """A network as a planner of actions; ValueError where its tokens are none."""
    source = subject.source
    if not isinstance(source, ActionSource):
        raise ValueError(
            f"run: it was trained on {type(source).__name__}, whose tokens are not actions; it samples, but it is no "
            "policy"
        )
    key = rng.Key(subject.seed, "policy")
    parts = (subject.denoiser, subject.process, subject.sampler, subject.grid, subject.spec)
    return PlanPolicy(*parts, source.end_id, key=key)


def tasks_like(source: Source, name: str, num_tasks: int) -> TaskSet:
    """The first tasks of a set, in mazes like those of the source, or else on FourRooms."""
    if isinstance(source, MazeExpert):
        return task_set(name, num_tasks, side=source.side, braid=source.braid)
    return task_set(name, num_tasks)


def task_planner(subject: Subject) -> PlanPolicy:
    """The planner, where `tasks_like` look like what it was trained on; else ValueError."""
    return planner(subject) if isinstance(subject.source, MazeExpert) else _fourrooms_planner(subject)


def _fourrooms_planner(subject: Subject) -> PlanPolicy:
    """The planner, where FourRooms looks like what it was trained on."""
    trained, needed = subject.spec.cond.get("image"), (fourrooms.SIDE, fourrooms.SIDE, 3)
    policy = planner(subject)
    if trained != needed:
        raise ValueError(
            f"run: it was trained on images of shape {trained}, and an evaluation is on FourRooms, whose images are "
            f"{needed}: its figures would say nothing about this run. Act in your own environment instead, with "
            "actor = onpath.load(run).actor() and actor.act(observation)"
        )
    return policy
