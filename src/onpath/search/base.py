"""What a search is: asks of one task, in batches, within a budget of forwards."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onpath.search.evaluators import Evaluator, Exact
from onpath.search.planner import Answer, Ask, Meta, Planner
from onpath.search.problems import Judged, Place, Problem
from onpath.search.tree import Node

METAS = tuple(Meta(temperature=temperature) for temperature in (0.0, 1.0, 2.0))
"""Greedily, as the network is, and warmer."""

Asks = Generator[Sequence[Any], list[Any], None]
"""What a search yields, and what it is sent for it: an answer for each ask."""


@dataclass(frozen=True)
class Look:
    """One forward of nothing but masks from a place, for a prior of the first token and the likeliest plan."""

    place: Place
    cost: int = 1


@dataclass(frozen=True)
class Seen:
    """What comes of a ``Look``: log-probabilities by token, and what the likeliest plan is worth."""

    log_prob: tuple[float, ...]
    plan: tuple[int, ...]
    judged: Judged


@dataclass(frozen=True)
class Found:
    """The best plan at some moment of a search. forwards: spent until then. plan: tokens from the start of the task."""

    forwards: int
    value: float
    solved: bool
    cost: int
    plan: tuple[int, ...]


@dataclass
class Progress:
    """Of one task: what it may spend still, and the best plans that it has found, each better than the one before.

    root: of the tree, where the search grows one. asked: asks answered so far, which number the following ones.
    """

    task: int
    budget: int
    spent: int = 0
    asked: int = 0
    found: list[Found] = field(default_factory=list)
    root: Node | None = None
    seconds: float = 0.0

    @property
    def left(self) -> int:
        return self.budget - self.spent

    @property
    def best(self) -> Found | None:
        return self.found[-1] if self.found else None

    def at(self, forwards: int) -> Found | None:
        """The best plan that so many forwards had found."""
        return next((one for one in reversed(self.found) if one.forwards <= forwards), None)

    def report(self, forwards: int, judged: Judged, plan: tuple[int, ...]) -> None:
        """Keeps a plan if it is better than the best."""
        if self.best is None or judged.value > self.best.value:
            self.found.append(Found(forwards, judged.value, judged.solved, judged.cost, plan))


@dataclass(frozen=True)
class Search(ABC):
    """How a budget of forwards is spent on a task.

    Frozen; all that changes is in the generator of a task, so that any number of searches run side by side and none
    knows of another.
    evaluator: by what plans are valued. segment: positions of a segment; None is what the problem has.
    """

    evaluator: Evaluator = field(default=Exact(), kw_only=True)
    segment: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment < 1:
            raise ValueError(f"search: segment is {self.segment}; it must be 1 position or more, 4 is usual")

    @property
    def anytime(self) -> bool:
        """Whether what it does with a smaller budget is the beginning of what it does with a larger one."""
        return True

    def settled(self, problem: Problem) -> Search:
        """The same search with what the problem decides where nothing else was said."""
        return replace(self, segment=self.segment or problem.segment)

    @abstractmethod
    def run(self, problem: Problem, progress: Progress) -> Asks:
        """Yields batches of asks, no dearer than what is left, and is sent their answers; ends when it is done."""


@dataclass(frozen=True)
class PlanSearch(Search):
    """A search that samples whole plans. metas: how, taken in turn."""

    metas: tuple[Meta, ...] = METAS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.metas:
            raise ValueError("search: metas is empty; one meta-action or more is needed")

    def settled(self, problem: Problem) -> Search:
        metas = tuple(replace(meta, steps=meta.steps or problem.steps) for meta in self.metas)
        return replace(self, segment=self.segment or problem.segment, metas=metas)


def search(
    method: Search,
    planner: Planner,
    budget: int,
    tasks: Sequence[int] | None = None,
    seconds: float | None = None,
    going: Sequence[Progress] | None = None,
) -> list[Progress]:
    """Searches every task (or those of `tasks`), side by side: the asks of all go through the network together.

    budget: forwards of each task; a forward is one row through the network, the first plan included, and a guided one
    counts twice. seconds: of the clock, for all together; None for as long as it takes. going: searches to go on with,
    each within its own budget, in place of new ones.
    The budget is never exceeded: a search that asked for more than it has left is a bug, and raises AssertionError.
    """
    if budget < 1:
        raise ValueError(f"search: budget is {budget}; it must be 1 forward or more, 160 is usual")
    if seconds is not None and seconds <= 0:
        raise ValueError(f"search: seconds is {seconds}; needed are more than 0, or None for as long as it takes")
    begun = time.perf_counter()
    problem = planner.problem
    method = replace(method, segment=method.segment or planner.segment).settled(problem)
    planner = replace(planner, evaluator=method.evaluator, segment=method.segment)
    every = list(going or [Progress(task, budget) for task in (range(problem.size) if tasks is None else tasks)])
    running = [(progress, method.run(problem, progress)) for progress in every]
    waiting = [(progress, run, next(run, None)) for progress, run in running]
    while waiting := [one for one in waiting if one[2]]:
        if seconds is not None and time.perf_counter() - begun >= seconds:
            break
        for progress, _, asks in waiting:
            assert asks is not None
            progress.spent += sum(ask.cost for ask in asks)
            assert progress.left >= 0, f"task {progress.task} has spent {progress.spent} of {progress.budget}"
        answers = iter(_answers(planner, [ask for _, _, asks in waiting for ask in asks or ()]))
        following = []
        for progress, run, asks in waiting:
            own = [next(answers) for _ in asks or ()]
            progress.asked += len(own)
            try:
                following.append((progress, run, run.send(own)))
            except StopIteration:
                progress.seconds = time.perf_counter() - begun
        waiting = following
    for progress, _, _ in waiting:
        progress.seconds = time.perf_counter() - begun
    return every


def _answers(planner: Planner, asks: Sequence[Ask | Look]) -> list[Answer | Seen]:
    """Of both kinds, in their order."""
    plans = iter(planner.answer([ask for ask in asks if isinstance(ask, Ask)]))
    looks = iter(_seen(planner, [ask.place for ask in asks if isinstance(ask, Look)]))
    return [next(plans) if isinstance(ask, Ask) else next(looks) for ask in asks]


def _seen(planner: Planner, places: list[Place]) -> list[Seen]:
    if not places:
        return []
    words, plans, sure = planner.look(places)
    judged = planner.judged(places, plans, sure)
    return [Seen(tuple(w), tuple(p), one) for w, p, one in zip(words.tolist(), plans.tolist(), judged, strict=True)]
