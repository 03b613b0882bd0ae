"""The eight rotations and reflections of a grid world, and what they do to actions.

Symmetry g in 0 … 7: where g >= 4 the grid is first mirrored (x becomes W-1-x), then it makes ``g % 4`` quarter
turns from +x towards +y. A rotation keeps every action; a reflection swaps the left and the right turn.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor

from onpath.codes import AGENT, LEFT, RIGHT
from onpath.envs.expert import Plans, pack, unpack
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key, bits

NUM_SYMMETRIES = 8


def transform(worlds: Worlds, agents: Agents, symmetry: Int64[Tensor, "B"]) -> tuple[Worlds, Agents]:
    """World b and its agent under ``symmetry[b]``; see `transform_cells` for grids that are not square."""
    shape = _sides(worlds.walls)
    walls = transform_cells(worlds.walls, symmetry)
    goal = _points(worlds.goal, symmetry, shape)
    return Worlds(walls, goal), transform_agents(agents, symmetry, shape)


def transform_agents(agents: Agents, symmetry: Int64[Tensor, "B"], shape: tuple[int, int]) -> Agents:
    """Agents of grids of this shape (W, H) under ``symmetry[b]``."""
    return Agents(_points(agents.position, symmetry, shape), transform_directions(agents.direction, symmetry))


def transform_image(image: UInt8[Tensor, "B W H 3"], symmetry: Int64[Tensor, "B"]) -> UInt8[Tensor, "B V G 3"]:
    """Observations under ``symmetry[b]``: the cells move and the agent's state, its direction, turns with them."""
    moved = transform_cells(image, symmetry)
    turned = transform_directions(moved[..., 2].long(), symmetry[:, None, None]).to(torch.uint8)
    state = torch.where(moved[..., 0] == AGENT, turned, moved[..., 2])
    return torch.stack([moved[..., 0], moved[..., 1], state], dim=-1)


def transform_actions(actions: Int64[Tensor, "B *L"], symmetry: Int64[Tensor, "B"]) -> Int64[Tensor, "B *L"]:
    """Actions under ``symmetry[b]``: reflections swap left and right, every other token stays."""
    swapped = torch.where(actions == LEFT, RIGHT, torch.where(actions == RIGHT, LEFT, actions))
    mirrored = (symmetry >= 4).view(-1, *[1] * (actions.ndim - 1))
    return torch.where(mirrored, swapped, actions)


def transform_plans(plans: Plans, symmetry: Int64[Tensor, "B"]) -> Plans:
    """Plans under ``symmetry[b]``; shortest plans stay shortest, canonical ones stay canonical under rotations."""
    optimal = plans.optimal
    swapped = (optimal & 0b11111100) | (optimal & 1) << 1 | (optimal >> 1) & 1
    count, steps = plans.path.shape
    passed = unpack(plans.path.flatten(), plans.shape)
    passed = transform_agents(passed, symmetry.repeat_interleave(steps), plans.shape)
    shape = _turned(plans.shape, symmetry)
    return replace(
        plans,
        actions=transform_actions(plans.actions, symmetry),
        optimal=torch.where((symmetry >= 4)[:, None], swapped, optimal),
        path=pack(passed, shape).view(count, steps),
        shape=shape,
    )


def transform_cells(cells: Shaped[Tensor, "B W H *C"], symmetry: Int64[Tensor, "B"]) -> Shaped[Tensor, "B V G *C"]:
    """Whatever is stored per cell, under ``symmetry[b]``.

    An odd number of quarter turns makes a W x H grid H x W; then all rows must make one. Else ValueError.
    """
    shape = _sides(cells)
    sources = _sources(shape, str(cells.device)).index_select(0, symmetry)
    row = torch.arange(len(cells), device=cells.device)[:, None]
    return cells.flatten(1, 2)[row, sources].unflatten(1, _turned(shape, symmetry))


def _sides(cells: Shaped[Tensor, "B W H *C"]) -> tuple[int, int]:
    return cells.shape[1], cells.shape[2]


def _turned(shape: tuple[int, int], symmetry: Int64[Tensor, "B"]) -> tuple[int, int]:
    width, height = shape
    if width == height or not len(symmetry):
        return shape
    odd = set((symmetry % 2).tolist())
    if len(odd) > 1:
        raise ValueError(
            f"symmetries of a {width} x {height} grid: some rows turn to {height} x {width} and some do not; "
            f"give even symmetries (0, 2, 4, 6) or odd ones (1, 3, 5, 7), not both"
        )
    return (height, width) if odd == {1} else shape


def _points(point: Int64[Tensor, "B 2"], symmetry: Int64[Tensor, "B"], shape: tuple[int, int]) -> Int64[Tensor, "B 2"]:
    width, height = shape
    x, y = point.unbind(-1)
    x = torch.where(symmetry >= 4, width - 1 - x, x)
    turns = symmetry % 4
    across, down = width - 1 - x, height - 1 - y
    new_x = torch.where(turns == 0, x, torch.where(turns == 1, down, torch.where(turns == 2, across, y)))
    new_y = torch.where(turns == 0, y, torch.where(turns == 1, x, torch.where(turns == 2, down, across)))
    return torch.stack([new_x, new_y], dim=-1)


def transform_directions(direction: Int64[Tensor, "..."], symmetry: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """Directions (0 to 3) under symmetries, elementwise."""
    return (torch.where(symmetry >= 4, 2 - direction, direction) + symmetry % 4) % 4


@lru_cache(maxsize=32)
def _sources(shape: tuple[int, int], device: str) -> Int64[Tensor, "8 S"]:
    """For every cell of the transformed grid, flat, the flat cell of the grid it comes from."""
    width, height = shape
    table = torch.empty(NUM_SYMMETRIES, width * height, dtype=torch.int64)
    for g, image in enumerate(_images(shape)):
        new_height = width if g % 2 else height
        table[g, image[:, 0] * new_height + image[:, 1]] = torch.arange(width * height)
    return table.to(device)


def orbit(cells: Int64[Tensor, "N W H"], key: Key) -> Int64[Tensor, "N"]:
    """A number for what the cells of each grid hold: equal for equal grids, and for their rotations and reflections.

    Different ones agree with probability 2**-60 or so. `key` names the numbering.
    """
    weights = _weights((cells.shape[1], cells.shape[2]), key, str(cells.device))
    parts = cells.flatten(1).split(4096)
    return torch.cat([torch.stack([(part * weight).sum(1) for weight in weights]).amin(0) for part in parts])


@lru_cache(maxsize=32)
def _weights(shape: tuple[int, int], key: Key, device: str) -> Int64[Tensor, "8 S"]:
    """A random word for each cell, and what it is at the cell's images."""
    side = max(shape)
    words = bits(key, torch.arange(side * side), (2,))
    return cell_images((words[:, 0] << 32 | words[:, 1]).view(side, side), shape).to(device)


def cell_images(values: Shaped[Tensor, "V V"], shape: tuple[int, int]) -> Shaped[Tensor, "8 S"]:
    """(8, W * H): what `values` holds at the image of each cell of a grid of this shape (W, H) under each symmetry.

    V is the longer side. A sum over cells of a function of (content, value) is then the same set of eight numbers
    for a grid and for all its images.
    """
    return torch.stack([values[image[:, 0], image[:, 1]] for image in _images(shape)])


def _images(shape: tuple[int, int]) -> Int64[Tensor, "8 S 2"]:
    cells = torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1]))
    return torch.stack([_points(cells, torch.full((len(cells),), g), shape) for g in range(NUM_SYMMETRIES)])
