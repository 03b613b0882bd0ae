"""Small problems of search, and a network that knows nothing of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onpath.envs.gridworld import Agents, Worlds
from onpath.models.blocks import read_rows
from onpath.processes.masking import Masking
from onpath.sampling.grids import EvenGrid
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.search.maze import MazeProblem
from onpath.search.planner import Planner
from onpath.search.problems import Problem

LENGTH, END = 12, 3


class Unsure:
    """Every word as likely as it always is; counts the rows that it reads."""

    def __init__(self, weights: list[float]) -> None:
        self.logits, self.num_rows = torch.tensor(weights).log(), 0

    def encode(self, **cond: Tensor) -> Tensor | None:
        return next((value for value in cond.values()), None)

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Tensor | None = None, readout: Any = None) -> Any:
        self.num_rows += len(x)
        hidden = torch.zeros(*x.shape, 1)
        return read_rows(lambda h: self.logits.expand(*h.shape[:-1], -1), hidden, rows, readout, len(self.logits))


def mazes(number: int = 4, side: int = 7) -> MazeProblem:
    """Rooms of a random wall with a gap, start and goal on its two sides."""
    generator = torch.Generator().manual_seed(1)
    walls = torch.zeros(number, side, side, dtype=torch.bool)
    walls[:, [0, -1]] = walls[:, :, [0, -1]] = True
    walls[:, side // 2, :] = True
    gap = torch.randint(1, side - 1, (number,), generator=generator)
    walls[torch.arange(number), side // 2, gap] = False

    def place(low: int, high: int) -> Tensor:
        x = torch.randint(low, high, (number,), generator=generator)
        return torch.stack([x, torch.randint(1, side - 1, (number,), generator=generator)], dim=-1)

    direction = torch.randint(0, 4, (number,), generator=generator)
    agents = Agents(place(1, side // 2), direction)
    return MazeProblem(Worlds(walls, place(side // 2 + 1, side - 1)), agents, LENGTH, END, horizon=40)


def planner(problem: Problem, denoiser: Any = None, segment: int = 2) -> Planner:
    network = denoiser or Unsure([0.2, 0.2, 0.55, 0.05])
    return Planner(network, Masking(LinearSchedule(), 4), Unmasking(), EvenGrid(4), problem, segment)
