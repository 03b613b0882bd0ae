"""Erratum 23: the search layer ran on a method that was gone, and its reward peeked at the path of an expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from games import END, LENGTH, planner

from onpath.envs import expert
from onpath.envs.gridworld import Agents, Worlds
from onpath.sampling.unmasking import Unmasking
from onpath.search.base import search
from onpath.search.maze import MazeProblem
from onpath.search.mctd import MCTD


def detour(gap: int) -> MazeProblem:
    """A wall between start and goal, with its gap in this row: near or far, the goal looks as near."""
    walls = torch.zeros(1, 9, 9, dtype=torch.bool)
    walls[:, [0, -1]] = walls[:, :, [0, -1]] = True
    walls[:, 4] = True
    walls[:, 4, gap] = False
    agents = Agents(torch.tensor([[3, 2]]), torch.tensor([0]))
    return MazeProblem(Worlds(walls, torch.tensor([[5, 2]])), agents, LENGTH, END)


def test_erratum_23_what_judges_does_not_know_the_way() -> None:
    near, far = detour(2), detour(7)
    lengths = [int(expert.distance(expert.solve(one.worlds), one.agents)[0]) for one in (near, far)]
    assert lengths[0] + 8 < lengths[1]
    stands = torch.full((1, LENGTH), END)
    values = [one.judge([one.start(0)], stands, torch.ones(1, LENGTH), 2)[0].value for one in (near, far)]
    assert values[0] == values[1] == pytest.approx(0.4 * (1 - 2 / 18))


def test_erratum_23_a_search_asks_no_expert_and_steps_by_the_ordinary_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a search asked the expert")

    for name in ("solve", "distance", "demonstrate"):
        monkeypatch.setattr(expert, name, refuse)
    steps: list[Unmasking] = []
    ordinary = Unmasking.step

    def watched(self: Unmasking, *args: Any, **settings: Any) -> Any:
        steps.append(self)
        return ordinary(self, *args, **settings)

    monkeypatch.setattr(Unmasking, "step", watched)
    for mode in ("recondition", "tokens"):
        steps.clear()
        (found,) = search(MCTD(mode=mode), planner(detour(2)), 40)  # type: ignore[arg-type]
        assert found.best is not None and len(steps) > 4
