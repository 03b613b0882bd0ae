"""What searches make of a trained run at a budget of forwards: plans for tasks of held-out layouts, or puzzles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from onpath import rng
from onpath.data.sudoku import Sudoku
from onpath.evaluation.arenas import TaskSet
from onpath.evaluation.envs import Mode, episodes
from onpath.evaluation.plans import task_planner, tasks_like
from onpath.evaluation.settings import Row, Subject, row
from onpath.evaluation.statistics import mean_interval, path_scores, wilson
from onpath.evaluation.traces import maze_lines
from onpath.records import Trace
from onpath.sampling.unmasking import Unmasking
from onpath.search.base import Progress, Search, search
from onpath.search.baselines import MCTS, Beam, BestOfN, Greedy, Remask
from onpath.search.maze import MazeProblem
from onpath.search.mctd import MCTD
from onpath.search.planner import Planner
from onpath.search.problems import Problem
from onpath.search.sudoku import SudokuProblem
from onpath.search.tree import every_node

METHODS: Mapping[str, Search] = {
    "mctd": MCTD(),
    "tokens": MCTD(mode="tokens", segment=8),
    "mcts": MCTS(),
    "beam": Beam(),
    "remask": Remask(),
    "best_of_n": BestOfN(),
    "greedy": Greedy(),
}
"""Searches by the name that the command line gives them."""


@dataclass(frozen=True)
class Tasks:
    """Tasks to search: the problem, and for plans the set that it is of, whose shortest plans are known."""

    problem: Problem
    set: TaskSet | None = None

    @property
    def name(self) -> str:
        return "test" if self.set is None else self.set.name


def tasks_of(subject: Subject, num_tasks: int, *, name: str = "test", failed: Mode | None = None) -> Tasks:
    """The first tasks of a set for a policy, or held-out puzzles for a run on Sudoku.

    failed: only those that the policy fails in this mode; then as many as are found among 20 times as many.
    ValueError for a run that searches nothing.
    """
    source = subject.source
    if isinstance(source, Sudoku):
        if failed is not None:
            raise ValueError("search: puzzles have no modes of execution; leave out what they should have failed")
        batch = source.at_split("test").prompts(torch.arange(num_tasks))
        assert batch.given is not None
        return Tasks(SudokuProblem(batch.x.masked_fill(~batch.given, -1)))
    policy = task_planner(subject)
    tasks = tasks_like(source, name, num_tasks if failed is None else 20 * num_tasks)
    if failed is not None:
        outcome = episodes(failed.of(policy), tasks, device=subject.device)
        tasks = tasks.rows((~outcome.reached).nonzero()[:num_tasks, 0])
    length, end_id = subject.spec.length, policy.end_id
    return Tasks(MazeProblem(tasks.worlds, tasks.agents, length, end_id, tasks.limit), tasks)


def planner_of(subject: Subject, tasks: Tasks) -> Planner:
    """The network of a run as the planner of a search."""
    sampler = subject.sampler
    if not isinstance(sampler, Unmasking):
        raise ValueError(f"search: the run samples by {type(sampler).__name__}; a search is for masked plans")
    key = rng.Key(subject.seed, "search")
    parts = (subject.denoiser, subject.process, replace(sampler, remask=None, guidance=0.0, blocks=None), subject.grid)
    return Planner(*parts, tasks.problem, key=key, device=subject.device)


def measure(
    subject: Subject,
    methods: Mapping[str, Search],
    budgets: Sequence[int],
    num_tasks: int = 500,
    *,
    set_name: str = "test",
    failed: Mode | None = None,
    num_traces: int = 0,
) -> tuple[list[Row], list[Trace]]:
    """Rows {set, mode, metric, value, ci95, n, search, budget} of each search at each budget: success, SPL and forwards
    spent; and of the first `num_traces` tasks how their trees grew with the largest budget.

    An ``anytime`` search runs once, with the largest budget. failed: see ``tasks_of``.
    """
    tasks = tasks_of(subject, num_tasks, name=set_name, failed=failed)
    planner, rows, traces = planner_of(subject, tasks), [], []
    label = tasks.name if failed is None else f"{tasks.name}, failed {failed.name}"
    for name, method in methods.items():
        once = search(method, planner, max(budgets)) if method.anytime else None
        for budget in sorted(budgets):
            found = once or search(method, planner, budget)
            told = summarise(found, tasks, budget, label, f"{name}@{budget}")
            rows += [{**one, "search": name, "budget": budget} for one in told]
        if once and once[0].root is not None:
            traces += [grown(subject, one, tasks, label, name) for one in once[:num_traces]]
    return rows, traces


def summarise(found: Sequence[Progress], tasks: Tasks, budget: int, set_name: str, mode: str) -> list[Row]:
    """The rows of one search at one budget."""
    best = [progress.at(budget) for progress in found]
    solved = torch.tensor([one is not None and one.solved for one in best])
    count, n = int(solved.sum()), len(solved)
    rows = [row(set_name, mode, "success", count / n, wilson(count, n), n)]
    if tasks.set is not None:
        cost = torch.tensor([one.cost if one is not None else 0 for one in best])
        scores = path_scores(solved, tasks.set.shortest, cost)
        rows.append(row(set_name, mode, "spl", float(scores.mean()), mean_interval(scores), n))
    spent = torch.tensor([float(min(progress.spent, budget)) for progress in found])
    return [*rows, row(set_name, mode, "forwards", float(spent.mean()), mean_interval(spent), n)]


def paired(one: Sequence[Progress], other: Sequence[Progress], budget: int) -> tuple[float, tuple[float, float] | None]:
    """By how much more tasks the one solves at a budget, with its 95 % interval over tasks."""
    gains = []
    for first, second in zip(one, other, strict=True):
        at = [progress.at(budget) for progress in (first, second)]
        gains.append(float(sum((1 - 2 * place) * bool(found and found.solved) for place, found in enumerate(at))))
    values = torch.tensor(gains)
    return float(values.mean()), mean_interval(values)


def grown(subject: Subject, progress: Progress, tasks: Tasks, set_name: str, name: str) -> Trace:
    """How the tree of a search grew, for reports."""
    root, problem, task = progress.root, tasks.problem, progress.task
    assert root is not None
    nodes = every_node(root)
    numbers = {id(node): number for number, (node, _, _) in enumerate(nodes)}
    maze = problem if isinstance(problem, MazeProblem) else None
    words = getattr(subject.source, "words", lambda tokens: " ".join(map(str, tokens)))
    drawn = [
        {
            "born": node.born,
            "parent": None if parent is None else numbers[id(parent)],
            "depth": depth,
            "value": node.best,
            "visits": node.visits,
            "cell": None if maze is None else maze.cell(node.place.state),
        }
        for node, parent, depth in nodes
    ]
    found = [
        {**asdict(one), "plan": words(list(one.plan)), "cells": [] if maze is None else maze.cells(task, one.plan)}
        for one in progress.found
    ]
    best, world = progress.best, tasks.set
    start = (0, 0) if maze is None else maze.cells(task, ())[0]
    return Trace(
        kind="search",
        set=set_name,
        mode=f"{name}@{progress.budget}",
        task=task,
        length=problem.length,
        maze=[] if world is None else maze_lines(world.worlds.walls[task]),
        goal=[] if world is None else world.worlds.goal[task].tolist(),
        poses=[[*start, 0]],
        reached=bool(best and best.solved),
        shortest=None if world is None else int(world.shortest[task]),
        search={"spent": progress.spent, "nodes": drawn, "found": found},
    )


def written(subject: Subject, progress: Progress, tasks: Tasks) -> dict[str, Any]:
    """What a search has found for one task, as plain data."""
    best, source = progress.best, subject.source
    words = getattr(source, "words", None)
    shortest = None if tasks.set is None else int(tasks.set.shortest[progress.task])
    return {
        "task": progress.task,
        "solved": bool(best and best.solved),
        "cost": None if best is None or not best.solved or tasks.set is None else best.cost,
        "shortest": shortest,
        "forwards": progress.spent,
        "found_after": None if best is None else best.forwards,
        "plan": "" if best is None or words is None else words(list(best.plan)),
    }
