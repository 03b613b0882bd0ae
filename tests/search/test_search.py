"""Searches of all kinds: within their budget, repeatable, alone or in company, and right in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from games import Unsure, mazes, planner

from onpath.envs import expert
from onpath.rng import Key
from onpath.search.base import Progress, Search, search
from onpath.search.baselines import MCTS, Beam, BestOfN, Greedy, Remask
from onpath.search.mctd import MCTD
from onpath.search.planner import Meta
from onpath.search.sudoku import SudokuProblem
from onpath.search.tree import UCT

SHORT = (Meta(steps=1), Meta(temperature=0.5, steps=2, order="random"))
METHODS: dict[str, Search] = {
    "mctd": MCTD(metas=SHORT),
    "mctd, two leaves, mean": MCTD(metas=(Meta(temperature=0.0, steps=1), *SHORT), leaves=2, uct=UCT(backup="mean")),
    "mctd, tokens": MCTD(mode="tokens", metas=SHORT, segment=4, finish=2),
    "greedy": Greedy(steps=3),
    "best of n": BestOfN(SHORT),
    "remask": Remask(SHORT),
    "beam": Beam(SHORT),
    "mcts": MCTS(),
}


def told(progress: Progress) -> list[tuple[Any, ...]]:
    return [(one.forwards, one.value, one.plan) for one in progress.found]


@pytest.mark.parametrize("budget", [1, 7, 40])
@pytest.mark.parametrize("name", METHODS)
def test_the_budget_is_never_exceeded_and_is_what_the_network_reads(name: str, budget: int) -> None:
    network = Unsure([0.2, 0.2, 0.55, 0.05])
    found = search(METHODS[name], planner(mazes(), network), budget)
    assert all(progress.spent <= budget for progress in found)
    assert network.num_rows <= sum(progress.spent for progress in found)
    if name not in ("mctd, tokens",):  # which may have nothing to finish
        assert network.num_rows == sum(progress.spent for progress in found)
    assert all(one.forwards <= progress.spent for progress in found for one in progress.found)


@pytest.mark.parametrize("name", METHODS)
def test_a_search_is_the_same_again_and_in_any_company(name: str) -> None:
    problem = mazes()
    together = search(METHODS[name], planner(problem), 16)
    again = search(METHODS[name], planner(problem), 16)
    assert [told(one) for one in together] == [told(one) for one in again]
    for task in (0, 3):
        (alone,) = search(METHODS[name], planner(problem), 16, tasks=[task])
        assert told(alone) == told(together[task])
    other = search(METHODS[name], replace(planner(problem), key=Key(9, "search")), 16)
    if name not in ("greedy", "mcts"):  # which draw nothing
        assert [told(one) for one in other] != [told(one) for one in together]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.anytime and name != "greedy"])
def test_a_smaller_budget_is_the_beginning_of_a_larger_one(name: str) -> None:
    problem = mazes()
    large = search(METHODS[name], planner(problem), 40)
    for budget in (6, 24):
        small = search(METHODS[name], planner(problem), budget)
        for one, other in zip(small, large, strict=True):
            assert told(one) == [row for row in told(other) if row[0] <= budget][: len(told(one))]


@pytest.mark.parametrize(
    ("method", "tasks"), [(MCTD(metas=SHORT[:1], widening=1.5), range(4)), (MCTS(leaves=16), [0, 1])]
)
def test_with_an_exact_evaluator_and_a_large_budget_the_optimum_is_found(method: Search, tasks: Sequence[int]) -> None:
    problem = mazes()
    shortest = expert.distance(expert.solve(problem.worlds), problem.agents)
    found = search(method, planner(problem, segment=1), 1200, tasks=tasks)
    assert [one.best.cost for one in found if one.best] == shortest[list(tasks)].tolist()
    assert shortest.tolist()[1] >= 8


def test_a_search_stops_where_it_is_told_to() -> None:
    problem = mazes()
    everything = search(MCTD(metas=SHORT), planner(problem), 150)
    first = search(MCTD(metas=SHORT, stop="first"), planner(problem), 150)
    stopped = 0
    for one, other in zip(first, everything, strict=True):
        assert other.spent >= 149
        if other.best is not None and other.best.solved:
            solutions = [row for row in told(other) if row[1] > 0.5]
            assert one.best is not None and one.best.solved and one.spent < other.spent
            assert told(one)[: len(told(one)) - 1] == told(other)[: len(told(one)) - 1]
            assert one.found[-1].forwards >= solutions[0][0]
            stopped += 1
    assert stopped >= 2
    assert search(MCTD(metas=SHORT), planner(problem), 10**6, seconds=0.2)[0].spent < 10**6


def test_metas_without_draws_are_asked_once_at_a_place() -> None:
    problem = mazes()
    found = search(MCTD(metas=(Meta(temperature=0.0, steps=1),)), planner(problem), 500)
    assert all(progress.spent < 60 for progress in found)  # the greedy plans of all places that they lead to


def test_the_tree_of_a_search_adds_up() -> None:
    problem = mazes()
    for progress in search(MCTD(metas=SHORT, leaves=3), planner(problem), 80):
        nodes, left = {}, [progress.root]
        while left:
            node = left.pop()
            assert node is not None
            if id(node) not in nodes:
                nodes[id(node)] = node
                left += node.children.values()
        assert all(node.waiting == 0 for node in nodes.values())
        assert progress.root is not None and progress.best is not None
        assert progress.root.best == pytest.approx(progress.best.value)
        states = [node.place.state for node in nodes.values()]
        assert len(states) == len(set(states))


def test_a_sudoku_is_solved_by_its_rules() -> None:
    solution = torch.tensor([0, 1, 2, 3, 2, 3, 0, 1, 1, 0, 3, 2, 3, 2, 1, 0])
    puzzles = solution.repeat(3, 1)
    for row, blanks in enumerate(([0, 5], [1, 6, 11], [0, 3, 12, 15, 6])):
        puzzles[row, blanks] = -1
    problem = SudokuProblem(puzzles)
    network = Unsure([0.25] * 4)
    for method in (MCTD(metas=SHORT[:1]), MCTS(leaves=1), BestOfN(SHORT[:1]), Beam(SHORT[:1])):
        found = search(method, planner(problem, network, segment=1), 300)
        assert all(one.best is not None and one.best.solved for one in found[:2])
        for one in found:
            if one.best is not None and one.best.solved:
                grid = torch.tensor(one.best.plan)
                assert (grid[problem.units].sort(-1).values == torch.arange(4)).all()
                assert ((puzzles[one.task] == -1) | (grid == puzzles[one.task])).all()


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="budget is 0"):
        search(Greedy(), planner(mazes()), 0)
    with pytest.raises(ValueError, match="metas is empty"):
        MCTD(metas=())
    with pytest.raises(ValueError, match="steps is 0"):
        Meta(steps=0)
    with pytest.raises(ValueError, match="9 cells"):
        SudokuProblem(torch.zeros(1, 9, dtype=torch.int64))


def test_a_problem_says_how_its_plans_are_sampled_where_nothing_else_does() -> None:
    sudoku, network = SudokuProblem(torch.full((1, 16), -1)), Unsure([0.25] * 4)
    for method in (BestOfN(), MCTD(), Remask(), Beam()):
        assert [one.asked for one in search(method, planner(sudoku, network, segment=1), 8)] == [2]  # of four steps
        assert all(one.asked == 8 for one in search(method, planner(mazes()), 8))
    asked = replace(BestOfN(), metas=(Meta(steps=2),))
    assert [one.asked for one in search(asked, planner(sudoku, network), 8)] == [4]
    settled = MCTD().settled(sudoku)
    assert settled.segment == sudoku.segment == 1 and MCTD(segment=3).settled(sudoku).segment == 3
