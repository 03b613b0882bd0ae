"""Plans of the exact expert in random mazes as training examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath.data.experts import PlanExpert, between
from onpath.envs import expert, mazes
from onpath.envs.expert import Field
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key

_LARGEST = 61  # odd, and within the words of the search
_LOOKED_AT = 4096  # tasks by which a canvas is chosen
_ENOUGH = 0.99
_MULTIPLE = 8


@dataclass(frozen=True)
class MazeExpert(PlanExpert):
    """Shortest plans in random mazes, endless or so many `episodes`; the fields are those of `PlanExpert`.

    side: cells and walls along a side, odd, 7 to 61. braid: each dead end of a perfect maze is opened with this
    probability; 0 leaves one way between two cells, 1 leaves no dead ends.
    length: the canvas. Where the shortest plan is longer, another start is drawn in the same maze, for the same goal:
    starts are uniform over those from which `length` actions suffice. None takes what 99 % of tasks need, as a multiple
    of 8; `remarks` counts the others.

    >>> batch = MazeExpert(side=9).examples(torch.arange(4))
    >>> batch.x.shape, batch.cond["image"].shape
    (torch.Size([4, 24]), torch.Size([4, 9, 9, 3]))
    """

    side: int = mazes.SIDE
    braid: float = mazes.BRAID
    length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        mazes.require(self.side, self.braid)
        between("side", self.side, 7, _LARGEST)
        if self.length is not None:
            between("length", self.length, 1, None)

    @property
    def canvas(self) -> int:
        if self.length is not None:
            return self.length
        longest = int(_lengths(self.side, self.braid).double().quantile(_ENOUGH, interpolation="higher"))
        return -(-longest // _MULTIPLE) * _MULTIPLE

    @property
    def grid_side(self) -> int:
        return self.side

    @property
    def remarks(self) -> tuple[str, ...]:
        longer = int((_lengths(self.side, self.braid) > self.canvas).sum())
        return (
            f"of {_LOOKED_AT:,} tasks in mazes of side {self.side} with braid {self.braid:g}, {longer:,} need more "
            f"than {self.canvas} actions, the canvas: training draws their starts anew, an evaluation keeps them",
        )

    def settled(self) -> Mapping[str, Any]:
        return {"length": self.canvas}

    def drawn(
        self, key: Key, groups: Int64[Tensor, "G"], world: Int64[Tensor, "B"], rows: Int64[Tensor, "B"]
    ) -> tuple[Worlds, Agents, Field]:
        worlds = mazes.goals(self.split, key, groups, self.side, self.braid)
        field = expert.solve(worlds, bound=self.canvas)
        return worlds, mazes.starts(expert.within(field), key, rows, world), field


@lru_cache(maxsize=16)
def _lengths(side: int, braid: float) -> Int64[Tensor, "N"]:
    """Actions of the shortest plans of some training tasks."""
    parts = []
    for ids in torch.arange(_LOOKED_AT).split(512):  # layers of a search that ends by itself are many
        worlds, agents = mazes.tasks("train", Key(purpose="mazes/lengths"), ids, side, braid)
        parts.append(expert.distance(expert.solve(worlds), agents))
    return torch.cat(parts)
