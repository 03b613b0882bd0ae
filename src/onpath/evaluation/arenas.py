"""Tasks, and the two places where they are solved: our simulator and the real MiniGrid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from onpath.codes import FORWARD
from onpath.envs import expert, fourrooms, gridworld, mazes, minigrid
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key

LONG = 22  # actions of the shortest plan of a long task on FourRooms, at least
_SETS = ("train", "test", "long", "mazes")
_CHUNK = 512


@dataclass(frozen=True)
class TaskSet:
    """Tasks to solve. ids: (B,) int64, they key the policy's draws. shortest: (B,) actions of a shortest plan.

    max_steps: actions of an episode; None where it is the real FourRooms, which sets them itself.
    """

    name: str
    worlds: Worlds
    agents: Agents
    ids: Int64[Tensor, "B"]
    shortest: Int64[Tensor, "B"]
    max_steps: int | None = None

    def rows(self, index: Int64[Tensor, "N"]) -> TaskSet:
        """The tasks at `index`."""
        worlds, agents = self.worlds.rows(index), self.agents.rows(index)
        return replace(self, worlds=worlds, agents=agents, ids=self.ids[index], shortest=self.shortest[index])

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def limit(self) -> int:
        """Actions of an episode."""
        return fourrooms.MAX_STEPS if self.max_steps is None else self.max_steps


def task_set(
    name: str, num_tasks: int = 2000, seed: int = 0, *, side: int | None = None, braid: float = mazes.BRAID
) -> TaskSet:
    """Tasks on the CPU: on FourRooms, or in mazes where a `side` is given, of any size that a network reads.

    name: `train` layouts, `test` for those never trained on, `long` for test layouts and 22 actions or more, in mazes
    one and a half sides or more. `mazes`: test mazes, of the size of FourRooms unless `side` says otherwise.
    braid: of mazes. The same arguments give the same tasks, a smaller number the first of them.
    """
    if name not in _SETS:
        raise ValueError(f"task set: name is {name!r}; allowed are {', '.join(_SETS)}")
    split, key, parts = "train" if name == "train" else "test", Key(seed, "evaluation"), []
    side = mazes.SIDE if name == "mazes" and side is None else side
    least = 1 if name != "long" else LONG if side is None else 3 * side // 2
    while sum(part.size for part in parts) < num_tasks:
        ids = torch.arange(len(parts) * _CHUNK, (len(parts) + 1) * _CHUNK)
        if side is None:
            worlds, agents = fourrooms.tasks(split, key, ids)
            field, limit = expert.solve(worlds, bound=fourrooms.LONGEST), None
        else:
            worlds, agents = mazes.tasks(split, key, ids, side, braid)
            field, limit = expert.solve(worlds), mazes.max_steps(side)
        part = TaskSet(name, worlds, agents, ids, expert.distance(field, agents), limit)
        parts.append(part.rows((part.shortest >= least).nonzero()[:, 0]))
    return _joined(parts).rows(torch.arange(num_tasks))


def _joined(parts: Sequence[TaskSet]) -> TaskSet:
    return replace(
        parts[0],
        worlds=Worlds(torch.cat([p.worlds.walls for p in parts]), torch.cat([p.worlds.goal for p in parts])),
        agents=Agents(torch.cat([p.agents.position for p in parts]), torch.cat([p.agents.direction for p in parts])),
        ids=torch.cat([p.ids for p in parts]),
        shortest=torch.cat([p.shortest for p in parts]),
    )


@dataclass(frozen=True)
class Outcome:
    """What one action did in each of N episodes: the goal was reached, a wall was hit, the reward."""

    reached: Bool[Tensor, "N"]
    bumped: Bool[Tensor, "N"]
    reward: Float64[Tensor, "N"]


@runtime_checkable
class Arena(Protocol):
    """Episodes in progress, by row; what a policy acts in."""

    def observe(self, rows: Int64[Tensor, "N"]) -> Mapping[str, Tensor]: ...

    def act(self, rows: Int64[Tensor, "N"], action: Int64[Tensor, "N"]) -> Outcome: ...


class Simulation:
    """The batched simulator; observations on `device`. Every row that is not over must act at every step."""

    def __init__(self, worlds: Worlds, agents: Agents, max_steps: int, device: torch.device | str = "cpu") -> None:
        self.worlds, self.agents, self.max_steps, self.device = worlds, agents, max_steps, device
        self.num_steps = 0

    def observe(self, rows: Int64[Tensor, "N"]) -> Mapping[str, Tensor]:
        worlds, agents = self.worlds.rows(rows).to(self.device), self.agents.rows(rows).to(self.device)
        return {"image": gridworld.observe(worlds, agents), "direction": agents.direction}

    def act(self, rows: Int64[Tensor, "N"], action: Int64[Tensor, "N"]) -> Outcome:
        self.num_steps += 1
        worlds, before = self.worlds.rows(rows), self.agents.rows(rows)
        after = gridworld.step(worlds, before, action)
        self.agents = Agents(
            self.agents.position.index_copy(0, rows, after.position),
            self.agents.direction.index_copy(0, rows, after.direction),
        )
        reached = gridworld.at_goal(worlds, after)
        bumped = (action == FORWARD) & (before.position == after.position).all(-1)
        reward = fourrooms.reward(torch.full_like(action, self.num_steps), self.max_steps)
        return Outcome(reached, bumped, reward * reached)


class RealMiniGrid:
    """One MiniGrid environment for each row, stepped one by one; observations and rewards are its own.

    max_steps: actions of an episode, None for FourRooms itself, see `minigrid.make`.
    """

    def __init__(
        self, worlds: Worlds, agents: Agents, max_steps: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        made = [minigrid.make(worlds, agents, row, max_steps) for row in range(worlds.size)]
        self.envs, self.seen = [env for env, _ in made], [first for _, first in made]
        self.device = device

    def observe(self, rows: Int64[Tensor, "N"]) -> Mapping[str, Tensor]:
        seen = [self.seen[row] for row in rows.tolist()]
        image = torch.from_numpy(np.stack([one["image"] for one in seen]))
        direction = torch.tensor([int(one["direction"]) for one in seen])
        return {"image": image.to(self.device), "direction": direction.to(self.device)}

    def act(self, rows: Int64[Tensor, "N"], action: Int64[Tensor, "N"]) -> Outcome:
        done = [self._act(row, choice) for row, choice in zip(rows.tolist(), action.tolist(), strict=True)]
        reached, bumped, reward = zip(*done, strict=True)
        return Outcome(torch.tensor(reached), torch.tensor(bumped), torch.tensor(reward, dtype=torch.float64))

    def _act(self, row: int, action: int) -> tuple[bool, bool, float]:
        base: Any = self.envs[row].unwrapped
        before = tuple(base.agent_pos)
        self.seen[row], reward, terminated, _, _ = self.envs[row].step(action)
        bumped = action == FORWARD and tuple(base.agent_pos) == before
        return bool(terminated), bumped, float(reward)
