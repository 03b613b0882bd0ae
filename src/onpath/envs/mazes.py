"""Random mazes of any odd side, their split, and tasks drawn uniformly.

Cells stand at odd coordinates, and a passage opens the wall between two of them. A perfect maze is the minimum
spanning tree of weights drawn for each wall, as Kruskal's algorithm makes it, so one way leads from a cell to another;
a braided one opens dead ends of it as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.envs import symmetry
from onpath.envs.gridworld import Agents, Worlds
from onpath.envs.splits import belongs
from onpath.rng import Key, bits, uniform

SIDE = 19
BRAID = 0.5
_SPLITS = Key(purpose="mazes/split")
_AT_ONCE = 4  # mazes drawn for each id whose first is of another split
_MOST_DRAWN = 1000  # a split that none of so many mazes is of has none
_NEVER = 2**62


def max_steps(side: int) -> int:
    """Actions of an episode: every task can be solved within them, as a shortest plan passes no cell twice.

    It has side²/2 moves and side²/4 turns at most.
    """
    return side * side


def require(side: int, braid: float) -> None:
    """ValueError for a side or a share of opened dead ends of which there are no mazes."""
    if side < 5 or side % 2 == 0:
        raise ValueError(f"side is {side}; allowed are odd numbers, 5 or more: cells and walls take turns")
    if not 0 <= braid <= 1:
        raise ValueError(f"braid is {braid}; allowed are 0 (one way between two cells) to 1 (no dead ends)")


@dataclass(frozen=True)
class _Lattice:
    """The cells of a maze and what lies between. cells, walls: flat places in the grid. ends: two cells of each wall.

    sides: the flat places around each cell. rim: those of them that are never opened.
    """

    cells: Int64[Tensor, "C"]
    walls: Int64[Tensor, "E"]
    ends: Int64[Tensor, "2 E"]
    sides: Int64[Tensor, "C 4"]
    rim: Bool[Tensor, "C 4"]


@lru_cache(maxsize=16)
def _lattice(side: int, device: str) -> _Lattice:
    x, y = torch.cartesian_prod(torch.arange(1, side, 2), torch.arange(1, side, 2)).unbind(1)
    cells, number, across = x * side + y, torch.arange(len(x)), (side - 1) // 2
    inner = [(x < side - 2, side, across), (y < side - 2, 1, 1)]
    walls = torch.cat([cells[inside] + step for inside, step, _ in inner])
    ends = torch.cat([torch.stack([number[inside], number[inside] + step]) for inside, _, step in inner], dim=1)
    sides = cells[:, None] + torch.tensor([side, 1, -side, -1])
    rim = torch.stack([x == side - 2, y == side - 2, x == 1, y == 1], dim=1)
    return _Lattice(*(part.to(device) for part in (cells, walls, ends, sides, rim)))


def walls_of(key: Key, ids: Int64[Tensor, "B"], side: int = SIDE, braid: float = BRAID) -> Bool[Tensor, "B W W"]:
    """The walls of maze number ``ids[b]`` of the stream `key`, indexed [x, y], of whatever split.

    braid: each dead end of a perfect maze opens, with this probability, one of its other walls, drawn uniformly.

    >>> for row in walls_of(Key(seed=2), torch.arange(1), side=7, braid=0.0)[0].T.tolist():
    ...     print("".join(".#"[wall] for wall in row))
    #######
    #...#.#
    #.#.#.#
    #.#...#
    #.###.#
    #...#.#
    #######
    """
    require(side, braid)
    lattice = _lattice(side, str(ids.device))
    order = torch.arange(len(lattice.walls), device=ids.device)
    weights = bits(key.fold("weights"), ids, (len(order),)) << 24 | order  # different ones within a row
    tree = _spanning_tree(weights, lattice)
    free = torch.zeros(len(ids), side * side, dtype=torch.bool, device=ids.device)
    free[:, lattice.cells] = True
    free[:, lattice.walls] = tree
    if braid:
        _open_dead_ends(free, lattice, braid, key.fold("braid"), ids)
    return ~free.view(-1, side, side)


def _spanning_tree(weights: Int64[Tensor, "B E"], lattice: _Lattice) -> Bool[Tensor, "B E"]:
    """The edges of the minimum spanning tree. Source: Borůvka 1926.

    All parts of the forest choose their lightest way out at once and are joined by it, until one is left.
    """
    number = torch.arange(len(lattice.cells), device=weights.device).expand(len(weights), -1)
    part, taken = number, torch.zeros_like(weights, dtype=torch.bool)
    doublings = (number.shape[1] - 1).bit_length()
    for _ in range(doublings):
        ends = [part[:, end] for end in lattice.ends]
        inside = ends[0] == ends[1]
        ways = weights.masked_fill(inside, _NEVER)
        lightest = torch.full_like(number, _NEVER)
        for end in ends:
            lightest = lightest.scatter_reduce(1, end, ways, "amin")
        joined = torch.cat([number, number[:, :1]], dim=1)  # the last column takes what no part has chosen
        for end, other in (ends, ends[::-1]):
            chosen = (lightest.gather(1, end) == ways) & ~inside
            taken |= chosen
            joined = joined.scatter(1, end.masked_fill(~chosen, number.shape[1]), other)
        joined = joined[:, :-1]
        # two parts that chose the same way point at each other
        joined = torch.where((joined.gather(1, joined) == number) & (number < joined), number, joined)
        for _ in range(doublings):
            joined = joined.gather(1, joined)
        part = joined.gather(1, part)
    return taken


def _open_dead_ends(
    free: Bool[Tensor, "B S"], lattice: _Lattice, braid: float, key: Key, ids: Int64[Tensor, "B"]
) -> None:
    """Opens a wall of dead ends, in place."""
    around = free[:, lattice.sides]
    opened = (around.sum(2) == 1) & (uniform(key.fold("ends"), ids, (len(lattice.cells),)) < braid)
    order = bits(key.fold("walls"), ids, tuple(lattice.sides.shape)).masked_fill(around | lattice.rim, -1)
    which = order.argmax(2, keepdim=True)
    place = lattice.sides.expand(len(ids), -1, -1).gather(2, which)[..., 0]
    # what stays shut writes into a cell, which is free already
    free.scatter_(1, torch.where(opened, place, lattice.cells), True)


def mazes(
    split: str, key: Key, ids: Int64[Tensor, "B"], side: int = SIDE, braid: float = BRAID
) -> Bool[Tensor, "B W W"]:
    """The walls of maze number ``ids[b]`` of the stream `key` within a split: the first of a row of mazes that is.

    A maze is assigned by a hash of its walls, the same for its rotations and reflections, so neither it nor a mirror
    image of it stands in two splits, whatever key, side and share of opened dead ends. ValueError where a split has no
    maze: of side 5 there are two up to symmetry, of side 7 four without dead ends; of side 9 there are enough.
    """
    walls = walls_of(key.fold("mazes").at(0), ids, side, braid)
    left = (~belongs(split, symmetry.orbit(walls.long(), _SPLITS), _SPLITS)).nonzero()[:, 0]
    first = 1
    while len(left):
        if first > _MOST_DRAWN:
            raise ValueError(
                f"mazes: none of {_MOST_DRAWN} mazes of side {side} with braid {braid} is in the split {split}, as "
                "there are so few up to symmetry; take side 9 or more"
            )
        parts = [walls_of(key.fold("mazes").at(first + n), ids[left], side, braid) for n in range(_AT_ONCE)]
        drawn = torch.stack(parts, dim=1)
        orbit = symmetry.orbit(drawn.flatten(0, 1).long(), _SPLITS)
        fits = belongs(split, orbit, _SPLITS).view(-1, _AT_ONCE)
        row = torch.arange(len(left), device=ids.device)
        walls[left] = drawn[row, fits.long().argmax(1)]
        left, first = left[~fits.any(1)], first + _AT_ONCE
    return walls


def tasks(
    split: str,
    key: Key,
    ids: Int64[Tensor, "B"],
    side: int = SIDE,
    braid: float = BRAID,
    device: torch.device | str = "cpu",
) -> tuple[Worlds, Agents]:
    """Task number ``ids[b]`` of the stream `key`: a maze of the split, its goal uniform over free cells, its agent over
    the others and over directions. Passages are free cells too.

    >>> worlds, agents = tasks("test", Key(seed=1), torch.arange(5), side=9)
    >>> worlds.walls.shape, agents.direction.shape
    (torch.Size([5, 9, 9]), torch.Size([5]))
    """
    ids = ids.to(device)
    worlds = goals(split, key, ids, side, braid)
    free = ~worlds.walls
    free[torch.arange(len(ids), device=ids.device), worlds.goal[:, 0], worlds.goal[:, 1]] = False
    return worlds, starts(free[:, None].expand(-1, 4, -1, -1), key, ids)


def goals(split: str, key: Key, ids: Int64[Tensor, "B"], side: int = SIDE, braid: float = BRAID) -> Worlds:
    """The mazes of tasks, with their goals."""
    walls = mazes(split, key, ids, side, braid)
    cell = _pick(~walls.flatten(1), key.fold("goals"), ids)
    return Worlds(walls, torch.stack([cell // side, cell % side], dim=-1))


def starts(
    allowed: Bool[Tensor, "G 4 W W"], key: Key, ids: Int64[Tensor, "B"], world: Int64[Tensor, "B"] | None = None
) -> Agents:
    """Agents uniform over the states (direction, x, y) that are allowed in ``world[b]`` (b where None)."""
    side = allowed.shape[-1]
    state = _pick(allowed.flatten(1), key.fold("starts"), ids, world)
    position = torch.stack([state // side % side, state % side], dim=-1)
    return Agents(position, state // (side * side))


def _pick(
    allowed: Bool[Tensor, "G S"], key: Key, ids: Int64[Tensor, "B"], row: Int64[Tensor, "B"] | None = None
) -> Int64[Tensor, "B"]:
    """For each id one of the places that are True in its row, uniformly; the bias is below S / 2**32."""
    upto = allowed.cumsum(1, dtype=torch.int32)
    upto = upto if row is None else upto.index_select(0, row)
    drawn = bits(key, ids) * upto[:, -1] >> 32
    return torch.searchsorted(upto, drawn[:, None].to(torch.int32), right=True)[:, 0]
