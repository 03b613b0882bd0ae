"""A trained planner as a policy: plan from an observation, execute a few actions, plan again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath import rng
from onpath.codes import DONE
from onpath.processes.masking import Masking
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Sampler, sample
from onpath.types import Batch, Denoiser, Spec

_STEPS_PER_TASK = 1 << 16


@dataclass(frozen=True)
class PlanState:
    """Where B episodes stand, all on the CPU.

    task: (B,) int64 ids that key the draws. step: (B,) actions chosen so far. plan: (B, L) the current plans.
    used: (B,) actions of the plan that were executed, L where nothing is left of it.
    num_plans, num_forwards: (B,) plans made, and rows sent through the network for them.
    """

    task: Int64[Tensor, "B"]
    step: Int64[Tensor, "B"]
    plan: Int64[Tensor, "B L"]
    used: Int64[Tensor, "B"]
    num_plans: Int64[Tensor, "B"]
    num_forwards: Int64[Tensor, "B"]

    def rows(self, index: Int64[Tensor, "N"]) -> PlanState:
        """The episodes at `index`."""
        return PlanState(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@runtime_checkable
class Policy(Protocol):
    """Anything that chooses actions for a batch of episodes; all memory is in the state.

    A state has ``rows(index)`` and counts ``num_plans`` and ``num_forwards``, (B,) int64 each.
    """

    def start(self, tasks: Int64[Tensor, "B"]) -> Any: ...

    def decide(self, state: Any, cond: Mapping[str, Tensor]) -> tuple[Int64[Tensor, "B"], Any]: ...

    def finished(self, state: Any) -> Bool[Tensor, "B"]: ...


@dataclass(frozen=True)
class PlanPolicy:
    """Plans with the ordinary sampler and executes in a receding horizon, for a batch of episodes.

    end_id: the token after the last action of a plan, None for models without one. key: the stream of all draws.
    replan_every: plan anew after so many actions; 1 is closed loop, None is open loop: one plan, executed until its
      end token or the end of the canvas.
    warm_start: share in [0, 1] of the rest of the previous plan that is given to the next one; each position is
      kept by its own coin, the others are planned anew. 0 plans from scratch. A plan that ran into its end token is
      never kept.
    An end token away from the goal: where a plan is used up it is replaced at once; where a fresh plan *begins* with
    the end token, `done` (6, which does nothing) is executed, the step counts, and the next step plans anew.
    A row draws from (key, its task, its step) alone, whatever its batch.
    """

    denoiser: Denoiser
    process: Masking
    sampler: Sampler
    grid: Grid
    spec: Spec
    end_id: int | None
    key: rng.Key = rng.Key(purpose="policy")
    replan_every: int | None = 1
    warm_start: float = 0.0

    def __post_init__(self) -> None:
        length = self.spec.length
        if self.replan_every is not None and not 1 <= self.replan_every <= length:
            raise ValueError(
                f"policy: replan_every is {self.replan_every}; allowed are 1 (every action) to {length}, the length "
                "of a plan, and None for open loop"
            )
        if not 0.0 <= self.warm_start <= 1.0:
            raise ValueError(f"policy: warm_start is {self.warm_start}; it is a share, 0 (from scratch) to 1")
        if self.warm_start and self.replan_every is None:
            raise ValueError("policy: warm_start is set in open loop, which plans once; set replan_every, or 0")
        if self.end_id is not None and not 0 <= self.end_id < self.spec.num_words:
            raise ValueError(
                f"policy: end_id is {self.end_id}; the model emits 0 to {self.spec.num_words - 1}. Give the source's "
                "end token, or None where plans have none"
            )

    def start(self, tasks: Int64[Tensor, "B"]) -> PlanState:
        """The state before the first action; `tasks` are example ids on the CPU."""
        zeros = torch.zeros_like(tasks)
        plan = torch.zeros(len(tasks), self.spec.length, dtype=torch.int64)
        return PlanState(tasks, zeros, plan, zeros + self.spec.length, zeros, zeros)

    def plan(
        self, cond: Mapping[str, Tensor], ids: Int64[Tensor, "B"], kept: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B"]]:
        """(plans, forwards of each) on the CPU, from conditions (B, …) and draw ids; kept: (tokens, where given)."""
        return self._sampled(self._batch(cond, ids, kept))

    def requests(self, state: PlanState, cond: Mapping[str, Tensor]) -> tuple[Int64[Tensor, "N"], Batch | None]:
        """The episodes that plan anew before their next action, and what the sampler is asked for them, if any."""
        due = self._due(state).nonzero()[:, 0]
        if not len(due):
            return due, None
        part = state.rows(due)
        ids = part.task * _STEPS_PER_TASK + part.step
        kept = self._kept(part, ids) if self.warm_start else None
        return due, self._batch({name: value[due.to(value.device)] for name, value in cond.items()}, ids, kept)

    @property
    def plan_key(self) -> rng.Key:
        """The stream from which plans are drawn."""
        return self.key.fold("plan")

    def _batch(self, cond: Mapping[str, Tensor], ids: Int64[Tensor, "B"], kept: tuple[Tensor, Tensor] | None) -> Batch:
        device = next(iter(cond.values())).device
        blank = torch.zeros(len(ids), self.spec.length, dtype=torch.int64)
        tokens, given = (blank, None) if kept is None else kept
        return Batch.of_tokens(tokens, ids, given=given, cond=cond).to(device)

    def _sampled(self, batch: Batch) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B"]]:
        end = sample(self.denoiser, self.process, self.sampler, self.grid, batch, self.plan_key)
        return end.x.cpu(), end.num_forwards

    def decide(self, state: PlanState, cond: Mapping[str, Tensor]) -> tuple[Int64[Tensor, "B"], PlanState]:
        """The next action of every episode (on the CPU) and the state after it; `cond` is what is observed now."""
        due, batch = self.requests(state, cond)
        if batch is not None:
            state = self._replan(state, due, batch)
        token, ended = self._front(state)
        used = torch.where(ended, self.spec.length, state.used + 1)
        return torch.where(ended, DONE, token), replace(state, step=state.step + 1, used=used)

    def finished(self, state: PlanState) -> Bool[Tensor, "B"]:
        """(B,), True where an open-loop plan has nothing more to execute; never in a receding horizon."""
        if self.replan_every is not None:
            return torch.zeros_like(state.step, dtype=torch.bool)
        return (state.step > 0) & self._front(state)[1]

    def _front(self, state: PlanState) -> tuple[Int64[Tensor, "B"], Bool[Tensor, "B"]]:
        """The next token of each plan, and whether the plan is at its end."""
        over = state.used >= self.spec.length
        token = state.plan.gather(1, state.used.clamp_max(self.spec.length - 1)[:, None])[:, 0]
        return token, over if self.end_id is None else over | (token == self.end_id)

    def _due(self, state: PlanState) -> Bool[Tensor, "B"]:
        unplanned = state.num_plans == 0
        if self.replan_every is None:
            return unplanned
        return unplanned | (state.used >= self.replan_every) | self._front(state)[1]

    def _replan(self, state: PlanState, due: Int64[Tensor, "N"], batch: Batch) -> PlanState:
        plans, num_forwards = self._sampled(batch)
        return replace(
            state,
            plan=state.plan.index_copy(0, due, plans),
            used=state.used.index_fill(0, due, 0),
            num_plans=state.num_plans.index_add(0, due, torch.ones_like(due)),
            num_forwards=state.num_forwards.index_add(0, due, num_forwards),
        )

    def _kept(self, state: PlanState, ids: Int64[Tensor, "B"]) -> tuple[Int64[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The rest of each plan moved to the front, and which of its positions the next plan is given."""
        length = self.spec.length
        place = torch.arange(length) + state.used[:, None]
        usable = (place < length) & ~self._front(state)[1][:, None] & (state.num_plans > 0)[:, None]
        coins = rng.uniform(self.key.fold("warm_start"), ids, (length,))
        return state.plan.gather(1, place.clamp_max(length - 1)), usable & (coins < self.warm_start)


class Actor:
    """A policy for one Gymnasium environment at a time: ``action = actor.act(observation)`` until the episode ends.

    policy: any `Policy`. device: where the network is.
    """

    def __init__(self, policy: Policy, device: torch.device | str = "cpu") -> None:
        self.policy, self.device = policy, device
        self._state: Any = None
        self._next_task = 0

    def reset(self, task: int | None = None) -> None:
        """Starts a new episode; `task` keys its draws and is, by default, one more than the last."""
        number = self._next_task if task is None else task
        self._next_task = number + 1
        self._state = self.policy.start(torch.tensor([number]))

    def act(self, observation: Mapping[str, np.ndarray | SupportsInt | str]) -> int:
        """The action for one observation of MiniGrid's FullyObsWrapper: `image` uint8 (W, H, 3) and `direction`.

        Other entries, such as the mission, are not read. The first call starts the first episode by itself.
        """
        if self._state is None:
            self.reset()
        action, self._state = self.policy.decide(self._state, self._conditions(observation))
        return int(action[0])

    def _conditions(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        missing = {"image", "direction"} - set(observation)
        if missing:
            raise ValueError(
                f"act: the observation has {sorted(observation)} and lacks {sorted(missing)}; wrap the environment in "
                "minigrid.wrappers.FullyObsWrapper"
            )
        image = torch.as_tensor(np.asarray(observation["image"], dtype=np.uint8))
        direction = torch.tensor([int(observation["direction"])])
        return {"image": image[None].to(self.device), "direction": direction.to(self.device)}
