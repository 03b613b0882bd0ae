"""The exact expert: shortest plans of turns and moves, by breadth-first search backward from the goal.

The search runs over (x, y, direction) on bitboards: one integer word holds a column of a grid, one bit a cell,
so that a layer of the search is a handful of shifts and ors for the whole batch. One implementation serves CPU
and GPU; with a bound the search never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor

from onpath.codes import FORWARD, LEFT, RIGHT
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key, integers

Ties = Literal["canonical", "uniform"]
_MAX_HEIGHT = 62  # bits of a word that stay clear of the sign when shifted by one
_STAY = 3  # the row of `_tables` that changes nothing


@dataclass(frozen=True)
class Field:
    """From where each goal can be reached within k actions, for k = 0 … bound.

    reached: (K, 4, W, B) int32 or int64 with K = bound + 1; bit y of reached[k, d, x, b] is set where an agent of
    world b at (x, y) that looks along d needs at most k actions. height: H.
    world: (N,) int64, the world of each agent that will be asked about; None where agent n lives in world n.
    """

    reached: Int[Tensor, "K 4 W B"]
    height: int
    world: Int64[Tensor, "N"] | None = None

    @property
    def bound(self) -> int:
        return self.reached.shape[0] - 1

    def serving(self, world: Int64[Tensor, "N"]) -> Field:
        """The same search for agents whose n-th lives in world ``world[n]``: several starts share a search."""
        return replace(self, world=world)


@dataclass(frozen=True)
class Plans:
    """Shortest plans.

    actions: (N, L) int64, `end_id` after the last action. num_actions: (N,) int64, actions before that.
    optimal: (N, L) uint8; bit a is set where action a is optimal in the state that the plan has reached, so
    several bits are set at ties, and none after the end.
    path: (N, L + 1) int64, the states passed, packed; read it through `agents`. end_id: the filler.
    """

    actions: Int64[Tensor, "N L"]
    num_actions: Int64[Tensor, "N"]
    optimal: UInt8[Tensor, "N L"]
    path: Int64[Tensor, "N L+1"]
    end_id: int
    shape: tuple[int, int]

    def agents(self, step: Int64[Tensor, "N"]) -> Agents:
        """The agents after the first ``step[n]`` actions of plan n (0 to L)."""
        return unpack(self.path.gather(1, step[:, None])[:, 0], self.shape)

    def suffix(self, first: Int64[Tensor, "N"]) -> Plans:
        """The plans without their first ``first[n]`` actions; the rest of a shortest plan is a shortest plan."""
        length = self.actions.shape[1]
        index = first[:, None] + torch.arange(length + 1, device=first.device)
        beyond = index[:, :length] >= length
        inside = index[:, :length].clamp(max=length - 1)
        return replace(
            self,
            actions=self.actions.gather(1, inside).masked_fill(beyond, self.end_id),
            num_actions=(self.num_actions - first).clamp(min=0),
            optimal=self.optimal.gather(1, inside).masked_fill(beyond, 0),
            path=self.path.gather(1, index.clamp(max=length)),
        )


def solve(worlds: Worlds, bound: int | None = None) -> Field:
    """Backward breadth-first search from every goal over (x, y, direction); a turn and a move cost one each.

    With `bound` it makes exactly that many layers and never waits for a GPU; without, it goes on until nothing
    new is reached. Memory: 16 or 32 bytes x (bound + 1) x W per world. Raises ValueError for H above 62.

    >>> walls = torch.zeros(1, 3, 3, dtype=torch.bool)
    >>> field = solve(Worlds(walls, torch.tensor([[2, 0]])))
    >>> distance(field, Agents(torch.tensor([[0, 0]]), torch.tensor([2])))
    tensor([4])
    """
    size, width, height = worlds.walls.shape
    if height > _MAX_HEIGHT:
        raise ValueError(f"solve: the grid is {width} x {height}; H may be at most {_MAX_HEIGHT}. Turn or crop it")
    dtype = torch.int32 if height <= 30 else torch.int64
    bits = torch.ones(height, dtype=dtype, device=worlds.walls.device) << torch.arange(
        height, dtype=dtype, device=worlds.walls.device
    )
    # sum() of int32 would widen to int64: name the dtype
    free = ((~worlds.walls).to(dtype) * bits).sum(-1, dtype=dtype).T.contiguous()
    start = torch.zeros(width, size, dtype=dtype, device=free.device)
    start.scatter_(0, worlds.goal[None, :, 0], bits[worlds.goal[:, 1]][None])
    layer = start.expand(4, width, size).contiguous()
    if bound is None:
        return Field(torch.stack(_layers_until_done(layer, free)), height)
    reached = torch.empty(bound + 1, 4, width, size, dtype=dtype, device=free.device)
    reached[0] = layer
    spare = torch.empty_like(start)
    for k in range(bound):
        _grow(reached[k], free, reached[k + 1], spare)
    return Field(reached, height)


def _layers_until_done(layer: Int[Tensor, "4 W B"], free: Int[Tensor, "W B"]) -> list[Int[Tensor, "4 W B"]]:
    layers, spare = [layer], torch.empty_like(free)
    while len(layers) < 2 or not torch.equal(layers[-1], layers[-2]):
        for _ in range(8):  # comparing waits for the device, so rarely
            layers.append(_grow(layers[-1], free, torch.empty_like(layer), spare))
    while len(layers) > 1 and torch.equal(layers[-1], layers[-2]):
        layers.pop()
    return layers


def _grow(
    old: Int[Tensor, "4 W B"], free: Int[Tensor, "W B"], new: Int[Tensor, "4 W B"], spare: Int[Tensor, "W B"]
) -> Int[Tensor, "4 W B"]:
    """Writes to `new` the states from which one action leads into `old`, and `old` itself."""
    # a turn changes the parity of the direction: both even directions are reached from both odd ones
    old_pairs, new_pairs = old.unflatten(0, (2, 2)), new.unflatten(0, (2, 2))
    torch.bitwise_or(old_pairs[:, 0], torch.bitwise_or(old[1], old[3], out=spare), out=new_pairs[:, 0])
    torch.bitwise_or(old_pairs[:, 1], torch.bitwise_or(old[0], old[2], out=spare), out=new_pairs[:, 1])
    new[0, :-1] |= old[0, 1:]
    new[2, 1:] |= old[2, :-1]
    new[1] |= torch.bitwise_right_shift(old[1], 1, out=spare)
    new[3] |= torch.bitwise_left_shift(old[3], 1, out=spare)
    new &= free
    return new


def distance(field: Field, agents: Agents) -> Int64[Tensor, "N"]:
    """(N,) actions of a shortest plan; ``field.bound + 1`` where the bound does not suffice or no way leads there."""
    bound, _, width, size = field.reached.shape
    column = (agents.direction * width + agents.position[:, 0]) * size + _world(field, agents)
    words = field.reached.reshape(bound, -1).index_select(1, column)
    return bound - ((words >> agents.position[:, 1].to(words.dtype)) & 1).sum(0)


def within(field: Field) -> Bool[Tensor, "B 4 W H"]:
    """The states (direction, x, y) of each world from which its goal is reached within the bound; not the goal's own.

    >>> walls = torch.zeros(1, 3, 3, dtype=torch.bool)
    >>> within(solve(Worlds(walls, torch.tensor([[2, 0]])), bound=2))[0].sum((1, 2))
    tensor([3, 1, 1, 3])
    """
    shift = torch.arange(field.height, dtype=field.reached.dtype, device=field.reached.device)
    words = (field.reached[-1] & ~field.reached[0]).permute(2, 0, 1)
    return (words[..., None] >> shift & 1).bool()


def _world(field: Field, agents: Agents) -> Int64[Tensor, "N"]:
    if field.world is not None:
        return field.world
    return torch.arange(agents.size, device=agents.direction.device)


def demonstrate(
    field: Field,
    agents: Agents,
    *,
    length: int,
    end_id: int,
    ties: Ties = "canonical",
    key: Key | None = None,
    ids: Int64[Tensor, "N"] | None = None,
) -> Plans:
    """A shortest plan for every agent, on a canvas of `length` actions.

    ties: "canonical" takes forward before left before right; "uniform" draws, in every state, uniformly among the
    optimal actions (not among the plans), from `key` and `ids`. Raises ValueError where a goal cannot be reached,
    or not within `length` or the bound of the field.
    """
    if ties not in ("canonical", "uniform"):
        raise ValueError(f'demonstrate: ties is {ties!r}; allowed are "canonical" and "uniform"')
    if ties == "uniform" and (key is None or ids is None):
        raise ValueError("demonstrate: uniform ties are drawn; give `key` and `ids`")
    remaining = distance(field, agents)
    steps = _longest(field, remaining, length)
    coins = None
    if ties == "uniform" and key is not None and ids is not None:
        coins = integers(key.fold("ties"), ids.to(remaining.device), (length,), 6)
    return _walk(field, agents, remaining, _Canvas(length, steps, end_id), coins)


def _longest(field: Field, remaining: Int64[Tensor, "N"], length: int) -> int:
    longest = int(remaining.max()) if len(remaining) else 0
    if longest <= min(length, field.bound):
        return longest
    row = int(remaining.argmax())
    if longest <= field.bound:
        raise ValueError(
            f"demonstrate: the shortest plan of agent {row} takes {longest} actions and `length` is {length}; "
            f"raise `length` to {longest} or more, or cut the plan after"
        )
    raise ValueError(
        f"demonstrate: agent {row} has no plan within the {field.bound} layers of the search; "
        f"its goal is walled off, or `bound` is too small: solve without a bound to tell which"
    )


@dataclass(frozen=True)
class _Canvas:
    length: int
    steps: int
    end_id: int


def _walk(
    field: Field,
    agents: Agents,
    remaining: Int64[Tensor, "N"],
    canvas: _Canvas,
    coins: Int64[Tensor, "N L"] | None,
) -> Plans:
    """Goes down the layers: an action is optimal where it leads to a state that needs one action less."""
    width, size = field.reached.shape[2:]
    device, shape = remaining.device, (width, field.height)
    words, successors, weights = field.reached.view(-1), *_tables(shape, str(device))
    picks = _picks(drawn=coins is not None, device=str(device))
    shift, world, state = _row_bits(field.height), _world(field, agents), pack(agents, shape)
    actions = torch.full((canvas.length, len(state)), _STAY, device=device)
    optimal = torch.zeros(canvas.length, len(state), dtype=torch.uint8, device=device)
    path = torch.empty(canvas.length + 1, len(state), dtype=torch.int64, device=device)
    left = remaining - torch.arange(canvas.steps, device=device)[:, None]
    layers, going = (left - 1).clamp_(min=0).mul_(4 * width * size).add_(world), left > 0
    for t in range(canvas.steps):
        path[t] = state
        after = successors.index_select(1, state)
        word = words.take((after[:3] >> shift) * size + layers[t])
        mask = ((word >> (after[:3] & (1 << shift) - 1) & 1) * weights).sum(0) * going[t]
        optimal[t] = mask
        actions[t] = picks.take(mask if coins is None else mask * 6 + coins[:, t])
        state = after.gather(0, actions[t : t + 1])[0]
    path[canvas.steps :] = state
    ended = torch.arange(canvas.length, device=device)[:, None] >= remaining
    return Plans(actions.masked_fill_(ended, canvas.end_id).T, remaining, optimal.T, path.T, canvas.end_id, shape)


def _row_bits(height: int) -> int:
    return max(1, (height - 1).bit_length())


def pack(agents: Agents, shape: tuple[int, int]) -> Int64[Tensor, "N"]:
    """One integer for each state (x, y, direction) of a grid of shape (W, H); y in the low bits."""
    x, y = agents.position.unbind(-1)
    return ((agents.direction * shape[0] + x) << _row_bits(shape[1])) + y


def unpack(state: Int64[Tensor, "N"], shape: tuple[int, int]) -> Agents:
    """The inverse of `pack`."""
    shift = _row_bits(shape[1])
    column = state >> shift
    position = torch.stack([column % shape[0], state & (1 << shift) - 1], dim=-1)
    return Agents(position, column // shape[0])


@lru_cache(maxsize=32)
def _tables(shape: tuple[int, int], device: str) -> tuple[Int64[Tensor, "4 S"], Int64[Tensor, "3 1"]]:
    """Packed states after left, right, forward (the rim stops it, walls are for the caller) and nothing; the bits."""
    width, height = shape
    state = torch.arange(4 * width << _row_bits(height))
    agents = unpack(state, shape)
    ahead = torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]])[agents.direction]
    moved = (agents.position + ahead).clamp(min=torch.tensor([0, 0]), max=torch.tensor([width - 1, height - 1]))
    left = pack(Agents(agents.position, (agents.direction - 1) % 4), shape)
    right = pack(Agents(agents.position, (agents.direction + 1) % 4), shape)
    after = torch.stack([left, right, pack(Agents(moved, agents.direction), shape), state])
    return after.to(device), torch.tensor([[1 << LEFT], [1 << RIGHT], [1 << FORWARD]], device=device)


@lru_cache(maxsize=8)
def _picks(drawn: bool, device: str) -> Int64[Tensor, "S"]:
    """The action for each mask of optimal ones: canonical, or by a coin of six sides, as 1, 2 and 3 divide six."""
    options = [[a for a in (FORWARD, LEFT, RIGHT) if mask >> a & 1] or [_STAY] for mask in range(8)]
    if not drawn:
        return torch.tensor([row[0] for row in options], device=device)
    return torch.tensor([row[coin % len(row)] for row in options for coin in range(6)], device=device)
