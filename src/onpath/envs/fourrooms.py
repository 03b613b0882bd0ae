"""MiniGrid-FourRooms-v0 by number: 4,096 layouts, their split, and tasks drawn exactly uniformly.

The two inner walls x = 9 and y = 9 of a 19 x 19 grid have four gaps with eight places each. A layout's id is its
gaps in base eight, in the order in which the environment draws them: upper part of the wall x = 9, left and right
part of the wall y = 9, lower part of x = 9. Agent and goal may stand in gaps too.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from onpath.envs.gridworld import Agents, Worlds
from onpath.envs.splits import belongs
from onpath.rng import Key, bits

SIDE = 19
NUM_LAYOUTS = 4096
NUM_FREE = 260
MAX_STEPS = 100
LONGEST = 36  # actions of the longest shortest plan, over all 1,103,298,560 tasks
_MIDDLE = 9


def gaps_of(layout: Int64[Tensor, "B"]) -> Int64[Tensor, "B 4 2"]:
    """The cells (x, y) of the four gaps of each layout id (0 to 4095), in the order of its digits."""
    digits = torch.stack([layout >> shift & 7 for shift in (9, 6, 3, 0)], dim=-1)
    middle = torch.full_like(digits[:, 0], _MIDDLE)
    pairs = [
        (middle, digits[:, 0] + 1),
        (digits[:, 1] + 1, middle),
        (digits[:, 2] + _MIDDLE + 1, middle),
        (middle, digits[:, 3] + _MIDDLE + 1),
    ]
    return torch.stack([torch.stack(pair, dim=-1) for pair in pairs], dim=1)


def walls_of(layout: Int64[Tensor, "B"]) -> Bool[Tensor, "B 19 19"]:
    """The walls of each layout id (0 to 4095), indexed [x, y]."""
    return _tables(str(layout.device))[0].index_select(0, layout)


def layout_of(walls: Bool[Tensor, "B 19 19"]) -> Int64[Tensor, "B"]:
    """The layout ids of walls; ValueError, naming the row, where they are no layout of FourRooms."""
    free = ~walls
    parts = [
        free[:, _MIDDLE, 1:_MIDDLE],
        free[:, 1:_MIDDLE, _MIDDLE],
        free[:, _MIDDLE + 1 : -1, _MIDDLE],
        free[:, _MIDDLE, _MIDDLE + 1 : -1],
    ]
    digits = [part.long().argmax(1) << shift for part, shift in zip(parts, (9, 6, 3, 0), strict=True)]
    layout = torch.stack(digits).sum(0)
    wrong = (walls_of(layout) != walls).flatten(1).any(1)
    if bool(wrong.any()):
        raise ValueError(
            f"layout_of: the walls of row {int(wrong.long().argmax())} are not a layout of FourRooms; give the walls "
            f"of a 19 x 19 grid with the inner walls x = 9 and y = 9 and one gap in each of their four parts"
        )
    return layout


@lru_cache(maxsize=8)
def _tables(device: str) -> tuple[Bool[Tensor, "4096 19 19"], Int64[Tensor, "4096 260"]]:
    """The walls of all layouts, and their free cells as x * 19 + y in rising order."""
    layout = torch.arange(NUM_LAYOUTS)
    walls = torch.zeros(NUM_LAYOUTS, SIDE, SIDE, dtype=torch.bool)
    walls[:, [0, _MIDDLE, -1]] = True
    walls[:, :, [0, _MIDDLE, -1]] = True
    gaps = gaps_of(layout)
    walls[layout[:, None], gaps[..., 0], gaps[..., 1]] = False
    cells = (~walls).flatten(1).nonzero()[:, 1].view(NUM_LAYOUTS, NUM_FREE)
    return walls.to(device), cells.to(device)


def orbits() -> Int64[Tensor, "4096"]:
    """For each layout the smallest id among its eight rotations and reflections, which names its orbit."""
    walls = _tables("cpu")[0]
    images = [torch.rot90(w, turns, (1, 2)) for w in (walls, walls.flip(1)) for turns in range(4)]
    return torch.stack([layout_of(image) for image in images]).amin(0)


@lru_cache(maxsize=8)
def layouts(split: str, device: str = "cpu") -> Int64[Tensor, "N"]:
    """The layout ids of a split, rising: about 80 % train, 10 % validation, 10 % test.

    A layout is assigned by a hash of its orbit under rotations and reflections, so neither a layout nor the
    mirror image of one stands in two splits.
    """
    return belongs(split, orbits(), Key(purpose="fourrooms/split")).nonzero()[:, 0].to(device)


def tasks(split: str, key: Key, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> tuple[Worlds, Agents]:
    """Task number ``ids[b]`` of the stream `key`: uniform over the layouts of the split, the 260 cells for the goal,
    the other 259 for the agent, and its four directions.

    >>> worlds, agents = tasks("test", Key(seed=1), torch.arange(5))
    >>> worlds.walls.shape, agents.direction.shape
    (torch.Size([5, 19, 19]), torch.Size([5]))
    """
    ids = ids.to(device)
    layout, goal = goals(split, key, ids)
    return worlds_of(layout, goal), starts(layout, goal, key, ids)


def goals(split: str, key: Key, ids: Int64[Tensor, "B"]) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """The layouts of tasks, and which of the 260 free cells of each holds the goal; both (B,), on the ids' device."""
    choices = layouts(split, str(ids.device))
    pick, goal = _draw(key.fold("tasks/goals"), ids, (len(choices), NUM_FREE))
    return choices.index_select(0, pick), goal


def starts(layout: Int64[Tensor, "B"], goal: Int64[Tensor, "B"], key: Key, ids: Int64[Tensor, "B"]) -> Agents:
    """Agents uniform over the 259 free cells that are not the goal's, and over directions."""
    start, direction = _draw(key.fold("tasks/starts"), ids, (NUM_FREE - 1, 4))
    return Agents(_place(layout, start + (start >= goal).long()), direction)


def worlds_of(layout: Int64[Tensor, "B"], goal: Int64[Tensor, "B"]) -> Worlds:
    """Worlds with these layout ids and the goal on this one (0 to 259) of their free cells, counted along y, then x."""
    return Worlds(walls_of(layout), _place(layout, goal))


def _place(layout: Int64[Tensor, "B"], index: Int64[Tensor, "B"]) -> Int64[Tensor, "B 2"]:
    cell = _tables(str(layout.device))[1].take(layout * NUM_FREE + index)
    return torch.stack([cell // SIDE, cell % SIDE], dim=-1)


def _draw(key: Key, ids: Int64[Tensor, "B"], highs: tuple[int, int]) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Two integers for each id, below `highs`, for the price of one draw; the bias is below high / 2**32."""
    words = bits(key, ids, (2,))
    return words[:, 0] * highs[0] >> 32, words[:, 1] * highs[1] >> 32


def reward(num_steps: Int64[Tensor, "B"], max_steps: int = MAX_STEPS) -> Float64[Tensor, "B"]:
    """The reward for reaching the goal with the `num_steps`-th of `max_steps` actions. Source: MiniGrid's ``_reward``.

    >>> reward(torch.tensor([1, 100]))
    tensor([0.9910, 0.1000], dtype=torch.float64)
    """
    return 1 - 0.9 * (num_steps.double() / max_steps)
