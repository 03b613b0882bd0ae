"""How rollouts are made and judged: the section `experience` of a config."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from onpath.rewards.base import Reward

_TINY = 1e-4


@dataclass(frozen=True)
class GroupRollouts:
    """How rollouts are made and judged. Names and meanings are those of TRL where it has them.

    rewards: what judges a completion; several are added with `reward_weights`, 1 each where none are given.
    num_generations: rollouts of each prompt, G. `training.batch_size` counts rollouts, so it is a multiple of G.
    steps_per_round: optimizer steps that one pass over a round takes: a round has so many batches of rollouts.
    num_iterations: passes over a round before the next one.
    baseline: what is taken off a reward: the `mean` of its group, or of the others in it (`leave_one_out`).
    scale_rewards: what that is divided by: the standard deviation of the `group` or of the `batch`, or `none`.
    shared_orders: whether the rollouts of a prompt reveal their places in the same order, drawn for the prompt; then
    they go through the same states for as long as they agree, and each of these goes through the network once.
    mask_truncated_completions: whether a completion without an end token counts as 0.
    rollout_batch_size: rollouts that go through the network together, 0 for all of a process.
    time_limit_s: for each reward and round. log_completions: completions of each logged round that are kept to be read,
    the best and the worst of each of its first prompts.
    """

    rewards: tuple[Reward, ...]
    reward_weights: tuple[float, ...] = ()
    num_generations: int = 8
    steps_per_round: int = 1
    num_iterations: int = 1
    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    shared_orders: bool = False
    mask_truncated_completions: bool = False
    rollout_batch_size: int = 0
    time_limit_s: float = 60.0
    log_completions: int = 8

    def __post_init__(self) -> None:
        if self.num_generations < 2:
            raise ValueError(
                f"experience: num_generations is {self.num_generations}; a rollout is judged by the others of its "
                "prompt, so 2 or more are needed; 8 is usual"
            )
        if not self.rewards:
            raise ValueError(
                "experience: rewards is []; one reward or more is needed, such as rewards=[sudoku_solved]; name what "
                "judges a completion"
            )
        for name in ("steps_per_round", "num_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"experience: {name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("rollout_batch_size", "log_completions"):
            if getattr(self, name) < 0:
                raise ValueError(f"experience: {name} is {getattr(self, name)}; it must be 0 or more")
        if not self.time_limit_s > 0:
            raise ValueError(f"experience: time_limit_s is {self.time_limit_s}; seconds above 0 are needed")
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            raise ValueError(
                f"experience: there are {len(self.rewards)} rewards and {len(self.reward_weights)} reward_weights; "
                "give a weight for each, or none"
            )
        if not all(map(math.isfinite, self.weights)) or not any(self.weights):
            raise ValueError(
                f"experience: reward_weights are {list(self.weights)}; allowed are finite numbers that are not all 0; "
                "leave reward_weights out for 1 each"
            )

    @property
    def weights(self) -> tuple[float, ...]:
        return self.reward_weights or (1.0,) * len(self.rewards)

    @property
    def reuses(self) -> bool:
        """Whether a rollout is trained on when the weights are no longer those that made it."""
        return self.steps_per_round * self.num_iterations > 1

    def advantages(self, reward: Float[Tensor, "N"]) -> Float[Tensor, "P G"]:
        """What each rollout is better than its group, G rollouts of a prompt standing together; exactly 0 where all of
        them have the same reward."""
        groups = reward.view(-1, self.num_generations)
        others = groups.mean(1, keepdim=True)
        if self.baseline == "leave_one_out":
            others = (groups.sum(1, keepdim=True) - groups) / (self.num_generations - 1)
        differs = groups.amax(1, keepdim=True) > groups.amin(1, keepdim=True)
        gain = torch.where(differs, groups - others, 0.0)  # the mean of equal numbers may be off by a rounding
        if self.scale_rewards == "group":
            return gain / (groups.std(1, keepdim=True) + _TINY)
        return gain / (reward.std() + _TINY) if self.scale_rewards == "batch" else gain
