"""Mazes as a problem of search: states of the exact simulator, looked up in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath.codes import FORWARD
from onpath.envs import gridworld
from onpath.envs.gridworld import Agents, Worlds
from onpath.search.problems import Judged, Place, Problem
from onpath.types import Batch

_CHUNK = 64  # worlds whose tables are made at a time
_NUM_MOVES = FORWARD + 1  # left, right, forward; everything else stays


@dataclass(frozen=True)
class MazeProblem(Problem):
    """Reach the goal of each maze: a state is (x, y, direction) as one number, a token is an action.

    worlds, agents: (B, …) on the CPU. num_positions: L of a plan. end_id: the token behind the last action, None where
    plans have none. horizon: actions that a whole episode may take; a solution beyond it is none.
    value: .5 + .5·(horizon - actions)/horizon where the goal is reached, else .4·(1 - distance/most), the Manhattan
    distance of where the plan ends to the goal: it looks at no shortest path.
    """

    worlds: Worlds
    agents: Agents
    num_positions: int
    end_id: int | None
    horizon: int = 100

    @property
    def size(self) -> int:
        return self.worlds.size

    @property
    def length(self) -> int:
        return self.num_positions

    @property
    def segment(self) -> int:
        return 4

    @property
    def steps(self) -> int:
        return 1

    @property
    def most_actions(self) -> int:
        return self.horizon

    @cached_property
    def table(self) -> Int64[Tensor, "B S 4"]:
        """The state after each move from each state, and in the last column the state itself."""
        starts = range(0, self.size, _CHUNK)
        return torch.cat([self._moved(self.worlds.rows(slice(start, start + _CHUNK))) for start in starts])

    def _moved(self, worlds: Worlds) -> Int64[Tensor, "C S 4"]:
        number, states = worlds.size, torch.arange(self.num_states)
        repeated = worlds.rows(torch.arange(number).repeat_interleave(self.num_states))
        agents = self._agents(states.repeat(number))
        moves = [
            self._states(gridworld.step(repeated, agents, torch.full((agents.size,), action)))
            for action in range(_NUM_MOVES)
        ]
        return torch.stack([*moves, states.repeat(number)], dim=1).view(number, self.num_states, -1)

    @property
    def num_states(self) -> int:
        width, height = self.worlds.walls.shape[1:]
        return width * height * 4

    def _agents(self, states: Int64[Tensor, "N"]) -> Agents:
        height = self.worlds.walls.shape[2]
        cell = states // 4
        return Agents(torch.stack([cell // height, cell % height], dim=-1), states % 4)

    def _states(self, agents: Agents) -> Int64[Tensor, "N"]:
        x, y = agents.position.unbind(-1)
        return (x * self.worlds.walls.shape[2] + y) * 4 + agents.direction

    def cell(self, state: int) -> tuple[int, int]:
        """x and y of a state."""
        return divmod(state // 4, self.worlds.walls.shape[2])

    def cells(self, task: int, plan: Sequence[int]) -> list[tuple[int, int]]:
        """x and y of where each action of a plan leads from the start, which is the first."""
        place = self.start(task)
        found = [self.cell(place.state)]
        for action in plan:
            place = dict(self.moves(place)).get(action, place)
            found.append(self.cell(place.state))
        return found

    def start(self, task: int) -> Place:
        return Place(task, int(self._states(self.agents.rows(slice(task, task + 1)))[0]))

    def request(self, places: Sequence[Place], ids: Int64[Tensor, "N"]) -> Batch:
        worlds = self.worlds.rows(torch.tensor([place.task for place in places]))
        agents = self._agents(torch.tensor([place.state for place in places]))
        cond = {"image": gridworld.observe(worlds, agents), "direction": agents.direction}
        return Batch.of_tokens(torch.zeros(len(places), self.length, dtype=torch.int64), ids, cond=cond)

    def judge(
        self, places: Sequence[Place], plans: Int64[Tensor, "N L"], sure: Float[Tensor, "N L"], segment: int
    ) -> list[Judged]:
        task = torch.tensor([place.task for place in places])
        spent = torch.tensor([place.spent for place in places])
        path, used = self._walked(task, torch.tensor([place.state for place in places]), plans)
        goal = self.worlds.goal[task]
        cells = path // 4
        height = self.worlds.walls.shape[2]
        x, y = cells // height, cells % height
        there = ((x == goal[:, :1]) & (y == goal[:, 1:])) & (
            spent[:, None] + torch.arange(path.shape[1]) <= self.horizon
        )
        there &= torch.arange(path.shape[1]) <= used[:, None]
        solved, first = there.any(1), there.long().argmax(1)
        used = torch.where(solved, first, used)
        cost = spent + used
        last = used[:, None]
        distance = (x.gather(1, last) - goal[:, :1]).abs() + (y.gather(1, last) - goal[:, 1:]).abs()
        most = sum(self.worlds.walls.shape[1:])
        value = torch.where(
            solved,
            0.5 + 0.5 * (self.horizon - cost) / self.horizon,
            0.4 * (1.0 - distance[:, 0] / most),
        )
        return self._judged(
            places, path.tolist(), used.tolist(), (value.tolist(), solved.tolist(), cost.tolist()), segment
        )

    def _judged(
        self,
        places: Sequence[Place],
        paths: list[list[int]],
        used: list[int],
        figures: tuple[list[float], list[bool], list[int]],
        segment: int,
    ) -> list[Judged]:
        return [
            Judged(
                value,
                solved,
                cost,
                count,
                tuple(
                    (Place(place.task, path[at], place.spent + at), at)
                    for at in range(segment, count if solved else count + 1, segment)
                ),
            )
            for place, path, count, value, solved, cost in zip(places, paths, used, *figures, strict=True)
        ]

    def _walked(
        self, task: Int64[Tensor, "N"], state: Int64[Tensor, "N"], plans: Int64[Tensor, "N L"]
    ) -> tuple[Int64[Tensor, "N T"], Int64[Tensor, "N"]]:
        """The states of each plan, the first one included, and its actions before its end."""
        ended = torch.zeros_like(plans, dtype=torch.bool) if self.end_id is None else plans == self.end_id
        over = ended.cumsum(1) > 0
        moves = plans.masked_fill((plans >= _NUM_MOVES) | over, _NUM_MOVES)
        flat = self.table.view(-1)
        base = task * (self.num_states * (_NUM_MOVES + 1))
        path = [state]
        for step in range(plans.shape[1]):
            path.append(flat[base + path[-1] * (_NUM_MOVES + 1) + moves[:, step]])
        return torch.stack(path, dim=1), (~over).sum(1)

    def moves(self, place: Place) -> list[tuple[int, Place]]:
        after = self.table[place.task, place.state, :_NUM_MOVES].tolist()
        return [(action, Place(place.task, state, place.spent + 1)) for action, state in enumerate(after)]

    def best_cost(self, task: int) -> int:
        """Manhattan distance of start and goal: every move takes one action at least."""
        return int((self.agents.position[task] - self.worlds.goal[task]).abs().sum())
