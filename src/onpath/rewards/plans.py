"""Rewards of plans: whether one reaches its goal in the simulator, and how much of the way it has done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from onpath.codes import DONE
from onpath.envs import expert, gridworld
from onpath.envs.expert import Field
from onpath.rewards.base import Reward


@dataclass(frozen=True)
class PlanSuccess(Reward):
    """1 where a plan reaches its goal, 0 where it does not; the episode ends there, so what follows does not matter.

    Column: `task`, the image (W, H, 3) of MiniGrid's FullyObsWrapper from which each plan sets out, as the sources of
    actions hand it on; all of one size. A completion's token ids are its actions, up to the end token; ids other than
    0, 1 and 2 do nothing, but take a step.
    per_step: taken off for each action more than a shortest plan has, down to 0 at most.
    ValueError for an image that the simulator cannot walk in.

    >>> from onpath.data.trajectories import FourRoomsExpert
    >>> source, ids = FourRoomsExpert(), torch.arange(2)
    >>> plans = [plan[: plan.index(source.end_id)] for plan in source.examples(ids).x.tolist()]
    >>> PlanSuccess()(prompts=["", ""], completions=["", ""], completion_ids=[plans[0], []], **source.columns(ids))
    [1.0, 0.0]
    """

    per_step: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.per_step) and self.per_step >= 0):
            raise ValueError(f"{self.name}: per_step is {self.per_step}; a finite number, 0 or more, is needed")

    def __call__(
        self, *, completion_ids: Sequence[Sequence[int]], task: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        if not len(task):
            return []
        images, (actions, sizes) = _images(self.name, task), _padded(completion_ids)
        worlds, agents = gridworld.read(images)
        num_actions = gridworld.arrival(worlds, agents, actions, sizes)
        reached = num_actions >= 0
        worth = torch.ones(len(sizes), dtype=torch.float64)
        if self.per_step and bool(reached.any()):
            arrived = reached.nonzero()[:, 0]
            more = (num_actions[arrived] - _shortest(images[arrived])).double()
            worth[arrived] = (1.0 - self.per_step * more).clamp(min=0.0)
        return (worth * reached).tolist()


@dataclass(frozen=True)
class PlanProgress(Reward):
    """The share of the way to its goal that a plan has done where it is nearest: 1 where it arrives, 0 at the start.

    The way is counted in actions of a shortest plan, turns among them, so a wall between agent and goal is no progress;
    what follows the nearest state costs nothing. It tells plans of a group apart where none arrives.
    Column: `task`, as that of ``PlanSuccess``, and completions likewise.

    >>> from onpath.data.trajectories import FourRoomsExpert
    >>> source, ids = FourRoomsExpert(), torch.arange(2)
    >>> plans = [plan[: plan.index(source.end_id)] for plan in source.examples(ids).x.tolist()]
    >>> PlanProgress()(prompts=["", ""], completions=["", ""], completion_ids=[plans[0], []], **source.columns(ids))
    [1.0, 0.0]
    """

    def __call__(
        self, *, completion_ids: Sequence[Sequence[int]], task: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        if not len(task):
            return []
        images, (actions, sizes) = _images(self.name, task), _padded(completion_ids)
        worlds, agents = gridworld.read(images)
        field = _field(images)
        whole = nearest = expert.distance(field, agents)
        for t in range(actions.shape[1]):
            agents = gridworld.step(worlds, agents, actions[:, t].masked_fill(t >= sizes, DONE))
            nearest = torch.minimum(nearest, expert.distance(field, agents))
        # an agent that sets out from its goal has no way to go
        return torch.where(whole > 0, 1.0 - nearest.double() / whole.clamp_min(1), 1.0).tolist()


def _images(reward: str, task: Sequence[Any]) -> UInt8[Tensor, "N W H 3"]:
    images = [torch.as_tensor(image) for image in task]
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1 or len(images[0].shape) != 3 or images[0].shape[2] != 3:
        raise ValueError(
            f"{reward}: the column `task` holds images of the shapes {sorted(shapes)}; all must be of one shape "
            "(W, H, 3)"
        )
    return torch.stack(images).to(torch.uint8)


def _padded(completion_ids: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "N T"], Int64[Tensor, "N"]]:
    """Plans as one tensor, whatever stands behind their ends, and how many actions each has."""
    sizes = torch.tensor([len(ids) for ids in completion_ids])
    longest = int(sizes.max())
    return torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in completion_ids], dtype=torch.int64), sizes


def _field(images: UInt8[Tensor, "N W H 3"]) -> Field:
    """The search for shortest plans from each image; the rollouts of a group share it."""
    different, which = torch.unique(images, dim=0, return_inverse=True)
    worlds, _ = gridworld.read(different)
    return expert.solve(worlds).serving(which)


def _shortest(images: UInt8[Tensor, "N W H 3"]) -> Int64[Tensor, "N"]:
    """Actions of a shortest plan from each image."""
    _, agents = gridworld.read(images)
    return expert.distance(_field(images), agents)
