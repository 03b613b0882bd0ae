"""A batched simulator of goal-reaching on grids of any size, with MiniGrid's actions and observations.

Cells are indexed [x, y] everywhere. Directions: 0 is +x, 1 is +y, 2 is -x, 3 is -y. Actions: 0 turns left,
1 turns right, 2 moves forward; every other action does nothing, and so does moving into a wall.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from onpath.codes import AGENT, DONE, EMPTY, FORWARD, GOAL, GREEN, GREY, LEFT, RIGHT, WALL


@dataclass(frozen=True)
class Worlds:
    """Mazes with one goal each. walls: (B, W, H), True where nobody can stand. goal: (B, 2) int64, x and y."""

    walls: Bool[Tensor, "B W H"]
    goal: Int64[Tensor, "B 2"]

    @property
    def size(self) -> int:
        return self.walls.shape[0]

    def rows(self, index: Int64[Tensor, "N"] | slice) -> Worlds:
        """The worlds at `index`."""
        return Worlds(self.walls[index], self.goal[index])

    def to(self, device: torch.device | str) -> Worlds:
        """The same worlds on `device`."""
        return Worlds(self.walls.to(device), self.goal.to(device))


@dataclass(frozen=True)
class Agents:
    """Where each agent stands and looks. position: (B, 2) int64, x and y. direction: (B,) int64, 0 to 3."""

    position: Int64[Tensor, "B 2"]
    direction: Int64[Tensor, "B"]

    @property
    def size(self) -> int:
        return self.direction.shape[0]

    def rows(self, index: Int64[Tensor, "N"] | slice) -> Agents:
        """The agents at `index`."""
        return Agents(self.position[index], self.direction[index])

    def to(self, device: torch.device | str) -> Agents:
        """The same agents on `device`."""
        return Agents(self.position.to(device), self.direction.to(device))


def step(worlds: Worlds, agents: Agents, action: Int64[Tensor, "B"]) -> Agents:
    """The agents after one action each; walls and the rim of the grid stop them.

    Nothing ends here: an agent on its goal that goes on acting moves on, so ask `at_goal` after every step.
    """
    turn = (action == RIGHT).long() - (action == LEFT).long()
    direction = (agents.direction + turn) % 4
    moves = (action == FORWARD).long()
    ahead = torch.stack(
        [(direction == 0).long() - (direction == 2).long(), (direction == 1).long() - (direction == 3).long()], dim=-1
    )
    width, height = worlds.walls.shape[1:]
    x, y = (agents.position + ahead * moves[:, None]).unbind(-1)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    free = ~worlds.walls[torch.arange(worlds.size, device=x.device), x, y]
    position = torch.where(free[:, None], torch.stack([x, y], dim=-1), agents.position)
    return Agents(position, direction)


def follow(worlds: Worlds, agents: Agents, actions: Int64[Tensor, "B L"], num_actions: Int64[Tensor, "B"]) -> Agents:
    """The agents after the first ``num_actions[b]`` actions of row b; nothing ends at the goal."""
    for t in range(int(num_actions.max()) if len(num_actions) else 0):
        idle = t >= num_actions
        agents = step(worlds, agents, actions[:, t].masked_fill(idle, DONE))
    return agents


def arrival(
    worlds: Worlds, agents: Agents, actions: Int64[Tensor, "B L"], num_actions: Int64[Tensor, "B"]
) -> Int64[Tensor, "B"]:
    """After how many of its first ``num_actions[b]`` actions each agent first stands on its goal; -1 if it never does.

    An agent that sets out from its goal has arrived after 0.
    """
    arrived = at_goal(worlds, agents).long() - 1
    for t in range(int(num_actions.max()) if len(num_actions) else 0):
        agents = step(worlds, agents, actions[:, t].masked_fill(t >= num_actions, DONE))
        arrived = torch.where((arrived < 0) & at_goal(worlds, agents), t + 1, arrived)
    return arrived


def at_goal(worlds: Worlds, agents: Agents) -> Bool[Tensor, "B"]:
    """(B,), True where the agent stands on its goal."""
    return (worlds.goal == agents.position).all(-1)


def observe(worlds: Worlds, agents: Agents) -> UInt8[Tensor, "B W H 3"]:
    """What MiniGrid's FullyObsWrapper shows, byte for byte: (object, colour, state) of every cell, uint8.

    The agent hides what lies under it, a goal included.
    """
    walls = worlds.walls.to(torch.uint8)
    image = torch.stack([walls + EMPTY, walls * GREY, torch.zeros_like(walls)], dim=-1)
    row = torch.arange(worlds.size, device=walls.device)
    goal, agent = image.new_zeros(2, worlds.size, 3)  # filled on the device: a tensor from the host would wait for it
    goal[:, 0] = GOAL
    goal[:, 1] = GREEN
    image[row, worlds.goal[:, 0], worlds.goal[:, 1]] = goal
    agent[:, 0] = AGENT
    agent[:, 2] = agents.direction.to(torch.uint8)
    image[row, agents.position[:, 0], agents.position[:, 1]] = agent
    return image


def read(image: UInt8[Tensor, "B W H 3"]) -> tuple[Worlds, Agents]:
    """The worlds and agents that `observe` would show as `image`; the only place where observations are converted.

    An image without a goal is one whose agent stands on it. Raises ValueError for other objects than floor,
    walls, one goal and one agent, naming the first such row.
    """
    kind = image[..., 0].long()
    height = image.shape[2]
    agent, goal = (kind == AGENT).flatten(1), (kind == GOAL).flatten(1)
    known = (kind == EMPTY) | (kind == WALL) | (kind == AGENT) | (kind == GOAL)
    _refuse(~known.flatten(1).all(1), image, "an object that the simulator does not know; allowed are 1, 2, 8, 10")
    _refuse(agent.sum(1) != 1, image, "not exactly one agent (object 10)")
    _refuse(goal.sum(1) > 1, image, "more than one goal (object 8)")
    cell = agent.long().argmax(1)
    direction = image[..., 2].flatten(1).gather(1, cell[:, None])[:, 0].long()
    _refuse(direction > 3, image, "an agent whose state, its direction, is not 0 to 3")
    goal_cell = torch.where(goal.any(1), goal.long().argmax(1), cell)

    def place(index: Int64[Tensor, "B"]) -> Int64[Tensor, "B 2"]:
        return torch.stack([index // height, index % height], dim=-1)

    return Worlds(kind == WALL, place(goal_cell)), Agents(place(cell), direction)


def _refuse(bad: Bool[Tensor, "B"], image: UInt8[Tensor, "B W H 3"], what: str) -> None:
    if bool(bad.any()):
        row = int(bad.long().argmax())
        kinds = sorted(set(image[row, ..., 0].flatten().tolist()))
        raise ValueError(
            f"read: image {row} holds {what}; its objects are {kinds}. Give images of MiniGrid's FullyObsWrapper, "
            f"indexed [x, y], with floor (1), walls (2), one goal (8) and one agent (10) only"
        )
