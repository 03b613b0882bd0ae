"""How well a policy reaches goals: in our simulator and in the real MiniGrid, by the same loop."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from onpath.envs import minigrid
from onpath.evaluation.arenas import Arena, RealMiniGrid, Simulation, TaskSet
from onpath.evaluation.policy import PlanPolicy, Policy
from onpath.evaluation.settings import Row, row
from onpath.evaluation.statistics import mean_interval, path_scores, wilson


@dataclass(frozen=True)
class Episodes:
    """What became of B episodes.

    actions: (B, T) int64, -1 after the end. num_steps: (B,) actions taken. reached: (B,). returns: (B,) fp64.
    bumps, num_plans, num_forwards: (B,) int64. shortest: (B,) int64, actions of a shortest plan.
    """

    actions: Int64[Tensor, "B T"]
    num_steps: Int64[Tensor, "B"]
    reached: Bool[Tensor, "B"]
    returns: Float64[Tensor, "B"]
    bumps: Int64[Tensor, "B"]
    num_plans: Int64[Tensor, "B"]
    num_forwards: Int64[Tensor, "B"]
    shortest: Int64[Tensor, "B"]

    @property
    def size(self) -> int:
        return len(self.num_steps)


def play(policy: Policy, arena: Arena, tasks: TaskSet) -> Episodes:
    """All tasks as one batch in an arena that stands at their starts; finished episodes leave the batch."""
    max_steps = tasks.limit
    count = torch.zeros(tasks.size, dtype=torch.int64)
    actions = torch.full((tasks.size, max_steps), -1)
    num_steps, bumps, num_plans, num_forwards = (count.clone() for _ in range(4))
    reached, returns = count.bool(), count.double()
    live, state = torch.arange(tasks.size), policy.start(tasks.ids)
    for step in range(max_steps):
        if not len(live):
            break
        action, state = policy.decide(state, arena.observe(live))
        outcome = arena.act(live, action)
        actions[live, step] = action
        num_steps[live] += 1
        bumps[live] += outcome.bumped.long()
        returns[live] += outcome.reward
        reached[live] = outcome.reached
        num_plans[live], num_forwards[live] = state.num_plans, state.num_forwards
        going = (~(outcome.reached | policy.finished(state))).nonzero()[:, 0]
        live, state = live[going], state.rows(going)
    return Episodes(actions, num_steps, reached, returns, bumps, num_plans, num_forwards, tasks.shortest)


@dataclass(frozen=True)
class Mode:
    """How plans are executed: re-planned after `replan_every` actions (None: never), `steps` denoising steps each.

    real: in the real environment instead of the simulator. Its name, such as open@40, closed@10, horizon8@10+warm0.5
    or closed@10/minigrid, is what reports and the command line show.
    """

    replan_every: int | None = 1
    steps: int = 10
    warm_start: float = 0.0
    real: bool = False

    @classmethod
    def parse(cls, name: str) -> Mode:
        """The mode of that name.

        >>> Mode.parse("horizon8@10/minigrid")
        Mode(replan_every=8, steps=10, warm_start=0.0, real=True)
        """
        match = re.fullmatch(r"(open|closed|horizon([1-9]\d*))@([1-9]\d*)(?:\+warm(\d*\.?\d+))?(/minigrid)?", name)
        if match is None:
            near = difflib.get_close_matches(name, ("open@10", "closed@10", "horizon8@10"), n=1)
            raise ValueError(
                f"mode: {name!r} is not one; write open@40, closed@10 or horizon8@10 (denoising steps of a plan after "
                "the @), then +warm0.5 for a warm start, then /minigrid for the real environment"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        kind, horizon, steps, warm, real = match.groups()
        replan_every = {"open": None, "closed": 1}.get(kind, int(horizon or 1))
        return cls(replan_every, int(steps), float(warm or 0.0), bool(real))

    @property
    def name(self) -> str:
        kind = {None: "open", 1: "closed"}.get(self.replan_every, f"horizon{self.replan_every}")
        warm = f"+warm{self.warm_start:g}" if self.warm_start else ""
        return f"{kind}@{self.steps}{warm}{'/minigrid' if self.real else ''}"

    def of(self, policy: PlanPolicy) -> PlanPolicy:
        """`policy` in this mode; ValueError where its grid has a fixed number of steps."""
        return replace(
            policy,
            grid=policy.grid.with_steps(self.steps),
            replan_every=self.replan_every,
            warm_start=self.warm_start,
        )


def episodes(
    policy: Policy, tasks: TaskSet, *, real: bool = False, device: torch.device | str = "cpu", chunk: int = 512
) -> Episodes:
    """Every task of the set, `chunk` at a time, in the simulator or in the real environment."""
    parts = []
    for index in torch.arange(tasks.size).split(chunk):
        part = tasks.rows(index)
        arena: Arena
        if real:
            arena = RealMiniGrid(part.worlds, part.agents, part.max_steps, device)
        else:
            arena = Simulation(part.worlds, part.agents, part.limit, device)
        parts.append(play(policy, arena, part))
    return Episodes(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Episodes)))


def evaluate(
    policy: PlanPolicy,
    tasks: TaskSet,
    modes: Sequence[Mode],
    *,
    device: torch.device | str = "cpu",
    chunk: int = 512,
    replay: bool = False,
) -> list[Row]:
    """Result rows {set, mode, metric, value, ci95, n} of a policy on a task set in each mode.

    replay: also walk each simulated episode in the real environment and report the share that agrees.
    """
    rows = []
    for mode in modes:
        outcome = episodes(mode.of(policy), tasks, real=mode.real, device=device, chunk=chunk)
        rows += summarise(outcome, tasks.name, mode.name)
        if replay and not mode.real:
            rows.append(agreement(outcome, tasks, mode.name))
    return rows


def summarise(outcome: Episodes, set_name: str, mode: str) -> list[Row]:
    """The rows of some episodes: shares with Wilson's interval, means with the normal one."""
    n = outcome.size
    optimal = outcome.reached & (outcome.num_steps == outcome.shortest)
    shares = {"success": outcome.reached, "optimal": optimal}
    means = {
        "spl": path_scores(outcome.reached, outcome.shortest, outcome.num_steps),
        "return": outcome.returns,
        "bumps": outcome.bumps.double(),
        "forwards_per_episode": outcome.num_forwards.double(),
        "forwards_per_decision": outcome.num_forwards.double() / outcome.num_plans.clamp_min(1).double(),
    }
    rows = []
    for metric, hit in shares.items():
        count = int(hit.sum())
        rows.append(row(set_name, mode, metric, count / n, wilson(count, n), n))
    for metric, values in means.items():
        rows.append(row(set_name, mode, metric, float(values.mean()), mean_interval(values), n))
    return rows


def agreement(outcome: Episodes, tasks: TaskSet, mode: str) -> Row:
    """The share of simulated episodes whose actions have the same length, outcome and return in the real MiniGrid."""
    replayed = minigrid.replay(tasks.worlds, tasks.agents, outcome.actions, outcome.num_steps, tasks.max_steps)
    same = (replayed.num_steps == outcome.num_steps) & (replayed.reached == outcome.reached)
    same &= (replayed.returns - outcome.returns).abs() < 1e-9
    count = int(same.sum())
    return row(tasks.name, mode, "agreement", count / tasks.size, wilson(count, tasks.size), tasks.size)


def latency(
    policy: PlanPolicy,
    tasks: TaskSet,
    mode: Mode,
    *,
    batch_sizes: Sequence[int] = (1, 256),
    repeats: int = 30,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Milliseconds of a decision that plans, after warm-up, by batch size: p50 and p95 over `repeats` calls.

    A larger batch, whose calls take longer and vary less, has fewer, but eight at least.
    It is the first decision of an episode, which plans in every mode. A call for B episodes counts as B decisions; a
    forward is one denoising step of the call, divided alike.
    """
    policy = mode.of(policy)
    rows = []
    for size in batch_sizes:
        num_calls = max(8, repeats // size)
        millis, num_forwards = _call_millis(policy, tasks.rows(torch.arange(size) % tasks.size), num_calls, device)
        for metric, divisor in (("ms_per_decision", size), ("ms_per_forward", size * num_forwards)):
            for quantile in (50, 95):
                value = millis[max(0, math.ceil(quantile / 100 * num_calls) - 1)] / divisor
                rows.append(row(tasks.name, mode.name, f"{metric}_batch{size}_p{quantile}", value, None, num_calls))
    return rows


def _call_millis(
    policy: PlanPolicy, tasks: TaskSet, repeats: int, device: torch.device | str
) -> tuple[list[float], int]:
    """Sorted times of a first decision for all tasks at once, and the forwards of each row."""
    seen = Simulation(tasks.worlds, tasks.agents, tasks.limit, device).observe(torch.arange(tasks.size))
    state = policy.start(tasks.ids)
    millis, after = [], state
    for _ in range(3 + repeats):
        begin = time.perf_counter()
        _, after = policy.decide(state, seen)  # its action is on the host, so the device has finished
        millis.append(1e3 * (time.perf_counter() - begin))
    return sorted(millis[3:]), int(after.num_forwards.max())
