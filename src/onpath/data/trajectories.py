"""Action sequences as training examples: an endless exact expert on FourRooms, and a user's own files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from onpath.data.source import Source, Spec
from onpath.envs import expert, fourrooms, gridworld
from onpath.envs.expert import Plans, Ties
from onpath.envs.fourrooms import Split
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key, uniform
from onpath.types import Batch


@dataclass(frozen=True)
class FourRoomsExpert(Source):
    """Endless shortest plans on FourRooms, made when asked for; example n is a pure function of n.

    Tokens are the actions 0 … num_actions-1 and END = num_actions, which fills the canvas after the plan and is
    corrupted and supervised like any action. Conditions: "image" uint8 (B, 19, 19, 3) and "direction" int64 (B,).
    """

    split: Split = "train"
    num_actions: int = 3
    length: int = 40
    ties: Ties = "canonical"
    suffixes: bool = True
    starts_per_goal: int = 1
    seed: int = 0
    padding: Literal["end", "zero"] = "end"

    def spec(self) -> Spec:
        num_words = self.num_actions + (self.padding == "end")
        cond = {"image": (fourrooms.SIDE, fourrooms.SIDE, 3), "direction": ()}
        return Spec(length=self.length, num_words=num_words, mask_id=num_words, cond=cond)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        worlds, agents, plans = self.demonstrations(ids, device)
        cond = {"image": gridworld.observe(worlds, agents), "direction": agents.direction}
        x = plans.actions[:, : self.length].contiguous()
        if self.padding == "end":
            return Batch.of_tokens(x, ids, cond=cond)
        padding = x == plans.end_id
        return Batch.of_tokens(x.masked_fill(padding, 0), ids, padding=padding, cond=cond)

    def at_split(self, split: str) -> FourRoomsExpert:
        return replace(self, split=split)

    def optimal_actions(
        self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu"
    ) -> UInt8[Tensor, "B L"]:
        """(B, L) uint8: bit a is set where action a is optimal after the plan's actions so far; 0 after the end."""
        return self.demonstrations(ids, device)[2].optimal[:, : self.length].contiguous()

    def demonstrations(
        self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu"
    ) -> tuple[Worlds, Agents, Plans]:
        """The worlds, the agents at the start, and their plans on a canvas that holds the longest of them."""
        key = Key(seed=self.seed, purpose=f"fourrooms/{self.split}")
        groups, world = torch.unique(ids // self.starts_per_goal, return_inverse=True)
        worlds, _ = fourrooms.tasks(self.split, key, groups, device)
        world, ids = world.to(device), ids.to(device)
        field = expert.solve(worlds, bound=fourrooms.LONGEST).serving(world)
        worlds = worlds.rows(world)
        agents = fourrooms.starts(worlds, key, ids)
        plans = expert.demonstrate(
            field,
            agents,
            length=max(self.length, fourrooms.LONGEST),
            end_id=self.num_actions,
            ties=self.ties,
            key=key,
            ids=ids,
        )
        if not self.suffixes:
            return worlds, agents, plans
        cut = (uniform(key.fold("suffix"), ids) * plans.num_actions).long()
        return worlds, plans.agents(cut), plans.suffix(cut)
