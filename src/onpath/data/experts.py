"""What sources of the exact expert's plans have in common: from an example's id to a task, its shortest plan, a batch.

Tokens are the actions 0 … num_actions-1 and END = num_actions, which fills the canvas after the last action and
is corrupted and supervised like any action. Conditions: "image" uint8 (B, W, H, 3) and "direction" int64 (B,).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath.data.shuffle import shuffled
from onpath.data.source import ActionSource
from onpath.data.trajectory_files import Trajectories
from onpath.envs import expert, gridworld, symmetry
from onpath.envs.expert import Field, Plans, Ties
from onpath.envs.gridworld import Agents, Worlds
from onpath.envs.splits import Split
from onpath.rng import Key, integers, uniform
from onpath.types import Batch, Spec

PURPOSE = "trajectories"


@dataclass(frozen=True)
class PlanExpert(ActionSource):
    """Shortest plans, made when they are asked for; example n is a pure function of n.

    split: train, validation or test mazes. num_actions: 3 to 7, the actions that may be emitted (3 to 6 do nothing).
    ties: which shortest plan, see `expert.demonstrate`.
    suffixes: cut each plan at a uniform place, so that states met on the way are starts too.
    starts_per_goal: so many successive examples share a maze, a goal and its search.
    episodes: None for an endless stream; else only so many plans exist and every epoch shuffles them (other splits
    stay endless). rotate, reflect: turn or mirror an episode anew each time; needs `episodes`, because the endless
    stream holds every task's images already. Mirroring breaks the canonical order of ties, so it is refused there.
    padding: "end" as above, or "zero": action 0 after the plan, marked as padding and never scored, and plans cut
    at the end of the canvas; this is how the recipe to compare with pads.
    """

    split: Split = "train"
    num_actions: int = 3
    ties: Ties = "canonical"
    suffixes: bool = True
    starts_per_goal: int = 1
    seed: int = 0
    episodes: int | None = None
    rotate: bool = False
    reflect: bool = False
    padding: Literal["end", "zero"] = "end"

    def __post_init__(self) -> None:
        one_of("split", self.split, get_args(Split))
        one_of("ties", self.ties, get_args(Ties))
        one_of("padding", self.padding, ("end", "zero"))
        between("num_actions", self.num_actions, 3, 7)
        between("starts_per_goal", self.starts_per_goal, 1, None)
        if self.episodes is not None:
            between("episodes", self.episodes, 1, None)
        elif self.rotate or self.reflect:
            raise ValueError(
                "rotate or reflect is set without `episodes`: the endless stream draws a task and its images equally "
                "often, so neither can take effect; set `episodes`, or leave them out"
            )
        if self.reflect and self.ties == "canonical":
            raise ValueError(
                'reflect is set with ties "canonical": the mirror image of a plan that prefers left prefers right; '
                'choose ties "uniform", or `rotate` alone'
            )

    @property
    @abstractmethod
    def canvas(self) -> int:
        """L, the positions of a plan."""

    @property
    @abstractmethod
    def grid_side(self) -> int:
        """Cells along a side of the images."""

    @abstractmethod
    def drawn(
        self, key: Key, groups: Int64[Tensor, "G"], world: Int64[Tensor, "B"], rows: Int64[Tensor, "B"]
    ) -> tuple[Worlds, Agents, Field]:
        """G worlds by `groups`, the agent of each of `rows` in ``world[b]`` of them, and the search from each goal."""

    @property
    def num_examples(self) -> int | None:
        return self.episodes

    @property
    def end_id(self) -> int | None:
        return self.num_actions if self.padding == "end" else None

    def spec(self) -> Spec:
        num_words = self.num_actions + (self.padding == "end")
        cond = {"image": (self.grid_side, self.grid_side, 3), "direction": ()}
        return Spec(length=self.canvas, num_words=num_words, mask_id=num_words, cond=cond)

    def at_split(self, split: str) -> PlanExpert:
        if split == self.split:
            return self
        return replace(self, split=split, episodes=None, rotate=False, reflect=False)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        worlds, agents, plans = self.demonstrations(ids, device)
        cond = {"image": gridworld.observe(worlds, agents), "direction": agents.direction}
        x = plans.actions[:, : self.canvas].contiguous()
        if self.padding == "end":
            return Batch.of_tokens(x, ids, cond=cond)
        padding = torch.arange(self.canvas, device=x.device) >= plans.num_actions[:, None]
        return Batch.of_tokens(x.masked_fill(padding, 0), ids, padding=padding, cond=cond)

    def record(self, ids: Int64[Tensor, "B"]) -> Trajectories:
        """The examples with these ids as demonstrations to `save`; their images and plans, uncut."""
        worlds, agents, plans = self.demonstrations(ids)
        ended = plans.actions == plans.end_id
        actions = plans.actions.masked_fill(ended, 0).contiguous()
        return Trajectories(gridworld.observe(worlds, agents), agents.direction, actions, plans.num_actions)

    def demonstrations(
        self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu"
    ) -> tuple[Worlds, Agents, Plans]:
        """The examples as worlds, agents at the start, and plans on a canvas that holds the longest of them."""
        key = Key(seed=self.seed, purpose=f"{PURPOSE}/{self.split}")
        rows = ids if self.episodes is None else shuffled(ids, self.episodes, key)
        groups, world = _grouped(rows, self.starts_per_goal)
        rows, world, ids = rows.to(device), world.to(device), ids.to(device)
        worlds, agents, field = self.drawn(key, groups.to(device), world, rows)
        if self.starts_per_goal > 1:  # groups stand in order, whatever that of the rows
            worlds = worlds.rows(world)
        plans = expert.demonstrate(
            field.serving(world),
            agents,
            length=max(self.canvas, field.bound),
            end_id=self.num_actions,
            ties=self.ties,
            key=key,
            ids=rows,
        )
        if self.suffixes:
            cut = cuts(plans.num_actions, key, ids)
            agents, plans = plans.agents(cut), plans.suffix(cut)
        if self.rotate or self.reflect:
            image = drawn_symmetry(key, ids, self.rotate, self.reflect, square=True)
            worlds, agents = symmetry.transform(worlds, agents, image)
            plans = symmetry.transform_plans(plans, image)
        return worlds, agents, plans


def _grouped(rows: Int64[Tensor, "B"], size: int) -> tuple[Int64[Tensor, "G"], Int64[Tensor, "B"]]:
    """The different groups of `size` successive rows that occur, and which of them each row is in."""
    if size == 1:
        return rows, torch.arange(len(rows))
    return torch.unique(rows // size, return_inverse=True)


def cuts(num_actions: Int64[Tensor, "B"], key: Key, ids: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """How many actions to drop, uniform over 0 … num_actions-1, so that one at least remains."""
    return (uniform(key.fold("suffix"), ids) * num_actions).long()


def drawn_symmetry(key: Key, ids: Int64[Tensor, "B"], rotate: bool, reflect: bool, square: bool) -> Int64[Tensor, "B"]:
    """A symmetry for each id: quarter turns, or half turns where a grid is not square, and a mirror, where asked."""
    drawn = integers(key.fold("symmetry"), ids, (2,), 4)
    turns = drawn[:, 0] if square else drawn[:, 0] // 2 * 2
    return turns * rotate + drawn[:, 1] // 2 * 4 * reflect


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError for a word that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")


def between(name: str, value: int, low: int, high: int | None) -> None:
    """ValueError for a number below `low` or above `high`."""
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; allowed are {f'{low} or more' if high is None else f'{low} to {high}'}")
