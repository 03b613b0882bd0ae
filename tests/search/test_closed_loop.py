"""A search that goes on while its plan is carried out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from games import LENGTH, Unsure, mazes, planner

from onpath.search.base import Progress
from onpath.search.baselines import BestOfN
from onpath.search.closed_loop import carry_out
from onpath.search.maze import MazeProblem
from onpath.search.mctd import MCTD
from onpath.search.planner import Meta
from onpath.search.sudoku import SudokuProblem
from onpath.search.tree import every_node

METAS = (Meta(temperature=0.0), Meta(), Meta(temperature=2.0))


def outcome(problem: MazeProblem, progress: Progress) -> tuple[bool, int]:
    """What the actions do, one at a time."""
    assert progress.best is not None
    place = problem.start(progress.task)
    goal = tuple(problem.worlds.goal[progress.task].tolist())
    for number, action in enumerate(progress.best.plan):
        place = dict(problem.moves(place)).get(action, place)
        if problem.cell(place.state) == goal:
            return True, number + 1
    return False, len(progress.best.plan)


@pytest.mark.parametrize(("replan_every", "keeps_tree"), [(1, True), (2, False), (3, True)])
def test_what_was_carried_out_is_what_the_simulator_makes_of_it(replan_every: int, keeps_tree: bool) -> None:
    problem = mazes()
    found = carry_out(MCTD(metas=METAS), planner(problem), 8, replan_every, keeps_tree=keeps_tree)
    solved = 0
    for progress in found:
        assert progress.best is not None
        reached, actions = outcome(problem, progress)
        assert reached == progress.best.solved
        if reached:
            assert actions == progress.best.cost
            solved += 1
        assert len(progress.best.plan) <= problem.horizon and progress.spent <= 8 * problem.horizon
    assert solved >= 2


def test_the_root_is_where_the_actions_led_and_all_below_goes_on_from_there() -> None:
    problem = mazes()
    for progress in carry_out(MCTD(metas=METAS), planner(problem), 40, 2, most_decisions=2):
        root = progress.root
        assert root is not None and len(root.way) in (0, 2, 4)
        for node, _, _ in every_node(root):
            place = problem.start(progress.task)
            for action in node.way:
                place = dict(problem.moves(place)).get(action, place)
            assert node.way[: len(root.way)] == root.way
            assert place.state == node.place.state and node.place.spent == len(node.way)


def test_a_kept_tree_begins_with_what_is_known() -> None:
    problem = mazes()
    visits: dict[bool, Any] = {}
    for keeps_tree in (True, False):
        found = carry_out(MCTD(metas=METAS), planner(problem), 40, 2, keeps_tree=keeps_tree, most_decisions=1)
        visits[keeps_tree] = [progress.root.visits for progress in found if progress.root]
    assert sum(visits[False]) == 0 < sum(visits[True])


def test_only_a_tree_of_states_goes_on() -> None:
    for method in (BestOfN(), MCTD(mode="tokens", segment=4)):
        with pytest.raises(ValueError, match="tree of mctd"):
            carry_out(method, planner(mazes()), 10)
    puzzle = SudokuProblem(torch.full((1, 16), -1))
    with pytest.raises(ValueError, match="actions to carry out"):
        carry_out(MCTD(), planner(puzzle, Unsure([0.25] * 4)), 10)
    with pytest.raises(ValueError, match="replan_every 0"):
        carry_out(MCTD(), planner(mazes()), 10, 0)


def test_a_plan_that_ends_early_is_no_end() -> None:
    problem = mazes()
    only_end = planner(problem)
    stuck = carry_out(MCTD(metas=(Meta(temperature=0.0),)), only_end, 4, LENGTH, most_decisions=6)
    assert all(progress.spent <= 24 for progress in stuck) and max(progress.spent for progress in stuck) > 1
    network = Unsure([0.001, 0.001, 0.001, 0.997])  # which ends every plan at once
    idle = carry_out(MCTD(metas=(Meta(temperature=0.0),)), planner(problem, network), 4)
    assert all(progress.best and not progress.best.solved and not progress.best.plan for progress in idle)
