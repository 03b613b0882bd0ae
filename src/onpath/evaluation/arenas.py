"""Tasks, and the two places where they are solved: our simulator and the real MiniGrid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from onpath.codes import FORWARD
from onpath.envs import expert, fourrooms, gridworld, minigrid
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key

LONG = 22  # actions of the shortest plan of a long task, at least


@dataclass(frozen=True)
class TaskSet:
    """Tasks to solve. ids: (B,) int64, they key the policy's draws. shortest: (B,) actions of a shortest plan."""

    name: str
    worlds: Worlds
    agents: Agents
    ids: Int64[Tensor, "B"]
    shortest: Int64[Tensor, "B"]

    def rows(self, index: Int64[Tensor, "N"]) -> TaskSet:
        """The tasks at `index`."""
        return TaskSet(
            self.name, self.worlds.rows(index), self.agents.rows(index), self.ids[index], self.shortest[index]
        )

    @property
    def size(self) -> int:
        return len(self.ids)


def task_set(name: str, num_tasks: int = 2000, seed: int = 0) -> TaskSet:
    """FourRooms tasks on the CPU: `train` layouts, `test` layouts, or `long` (test layouts, 22 actions or more).

    The same name and seed give the same tasks, a smaller number the first of them.
    """
    if name not in ("train", "test", "long"):
        raise ValueError(f"task set: name is {name!r}; allowed are train, test, long")
    split, key = "train" if name == "train" else "test", Key(seed, "evaluation")
    parts: list[TaskSet] = []
    least = LONG if name == "long" else 1
    while sum(part.size for part in parts) < num_tasks:
        ids = torch.arange(len(parts) * 2048, (len(parts) + 1) * 2048)
        worlds, agents = fourrooms.tasks(split, key, ids)
        shortest = expert.distance(expert.solve(worlds, bound=fourrooms.LONGEST), agents)
        part = TaskSet(name, worlds, agents, ids, shortest)
        parts.append(part.rows((shortest >= least).nonzero()[:, 0]))
    whole = TaskSet(
        name,
        Worlds(torch.cat([p.worlds.walls for p in parts]), torch.cat([p.worlds.goal for p in parts])),
        Agents(torch.cat([p.agents.position for p in parts]), torch.cat([p.agents.direction for p in parts])),
        torch.cat([p.ids for p in parts]),
        torch.cat([p.shortest for p in parts]),
    )
    return whole.rows(torch.arange(num_tasks))


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


class RealFourRooms:
    """One MiniGrid environment for each row, stepped one by one; observations and rewards are its own."""

    def __init__(self, worlds: Worlds, agents: Agents, device: torch.device | str = "cpu") -> None:
        made = [minigrid.make(worlds, agents, row) for row in range(worlds.size)]
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
