"""The exact expert: demonstrations per second against breadth-first search through the gym environment.

    python -m benchmarks.expert

Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}. A demonstration is a task, its search, its
plan and the mask of optimal actions in every state of it; with "example", also its observation, as in training.
The baseline searches forward with the environment's own `step`, from a state set before each action; two more
rows leave out the observation, and the whole step.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from onpath.data.trajectories import FourRoomsExpert
from onpath.envs import expert, fourrooms, minigrid
from onpath.rng import Key
from onpath.types import Batch

CPU_BATCHES = (512, 1024, 2048, 4096)
CUDA_BATCHES = (8192, 32768, 131072)
BASELINE_TASKS = 8
REPLAYED_PLANS = 2000


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None = None) -> None:
    ratio = value / baseline if baseline else None
    row = {"benchmark": "expert", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": ratio}), flush=True)


State = tuple[int, int, int]
Expand = Callable[[State, int], tuple[State, bool]]


def stepping(env: Any) -> Expand:
    """Successors by the environment's own step; with its observation where `env` is the wrapped one."""
    base = env.unwrapped

    def expand(state: State, action: int) -> tuple[State, bool]:
        base.agent_pos, base.agent_dir, base.step_count = state[:2], state[2], 0
        reached = env.step(action)[2]
        return (int(base.agent_pos[0]), int(base.agent_pos[1]), int(base.agent_dir)), reached

    return expand


def looking(env: Any) -> Expand:
    """Successors by asking MiniGrid's grid for the cell ahead; neither step nor observation."""
    grid = env.unwrapped.grid

    def expand(state: State, action: int) -> tuple[State, bool]:
        x, y, direction = state
        if action < 2:
            return (x, y, (direction + 2 * action - 1) % 4), False
        ahead = (x + (direction == 0) - (direction == 2), y + (direction == 1) - (direction == 3))
        cell = grid.get(*ahead)
        if cell is not None and not cell.can_overlap():
            return state, False
        return (*ahead, direction), cell is not None and cell.type == "goal"

    return expand


def search(expand: Expand, start: State) -> list[int]:
    """The first shortest plan that a forward breadth-first search over (x, y, direction) meets."""
    before: dict[State, tuple[State, int]] = {start: (start, -1)}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        for action in range(3):
            after, reached = expand(state, action)
            if after in before:
                continue
            before[after] = (state, action)
            if reached:
                return unwind(before, after)
            queue.append(after)
    raise ValueError("the goal cannot be reached")


def unwind(before: dict[State, tuple[State, int]], state: State) -> list[int]:
    actions: list[int] = []
    while before[state][1] >= 0:
        state, action = before[state]
        actions.append(action)
    return actions[::-1]


def baselines() -> float:
    """Demonstrations per second of the searches through gym; returns the faster of those that step it."""
    worlds, agents = fourrooms.tasks("train", Key(5), torch.arange(BASELINE_TASKS))
    lengths = expert.distance(expert.solve(worlds), agents).tolist()
    env, _ = minigrid.make(worlds, agents)
    rates = {}
    for name in ("env.step", "env.unwrapped.step", "env.unwrapped.grid.get"):
        elapsed = 0.0
        for row, length in enumerate(lengths):
            minigrid.place(env, worlds, agents, row)
            start = (*agents.position[row].tolist(), int(agents.direction[row]))
            expand = {"env.step": stepping(env), "env.unwrapped.step": stepping(env.unwrapped)}.get(name, looking(env))
            began = time.perf_counter()
            assert len(search(expand, start)) == length, "both searches are exact"
            elapsed += time.perf_counter() - began
        rates[name] = len(lengths) / elapsed
        emit(f"breadth-first search by {name}", "demonstrations", rates[name], "1/s")
    return max(rates["env.step"], rates["env.unwrapped.step"])


def rate(work: Callable[[int], object], batch: int, device: str, seconds: float = 2.0) -> float:
    """Units per second of `work(first id)`, over at least `seconds`, after a warm-up."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for first in range(3):
        work(first * batch)
    wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        work((3 + count) * batch)
        wait()
        count += 1
    return count * batch / (time.perf_counter() - began)


def demonstrate(first: int, batch: int, device: str, ties: expert.Ties = "canonical") -> expert.Plans:
    ids = torch.arange(first, first + batch, device=device)
    worlds, agents = fourrooms.tasks("train", Key(1), ids, device)
    field = expert.solve(worlds, fourrooms.LONGEST)
    return expert.demonstrate(field, agents, length=40, end_id=3, ties=ties, key=Key(2), ids=ids)


def examples(first: int, batch: int, device: str, starts_per_goal: int = 1) -> Batch:
    return FourRoomsExpert(starts_per_goal=starts_per_goal).examples(torch.arange(first, first + batch), device)


def ours(device: str, batches: tuple[int, ...], baseline: float) -> None:
    where = "1 CPU thread" if device == "cpu" else torch.cuda.get_device_name()
    for batch in batches:
        for ties in ("canonical", "uniform"):
            value = rate(lambda first, b=batch, t=ties: demonstrate(first, b, device, t), batch, device)
            emit(f"{where}, batch {batch}, {ties} ties", "demonstrations", value, "1/s", baseline)
        value = rate(lambda first, b=batch: examples(first, b, device), batch, device)
        emit(f"{where}, batch {batch}", "training examples", value, "1/s", baseline)
    batch = batches[-1]
    value = rate(lambda first: examples(first, batch, device, starts_per_goal=8), batch, device)
    emit(f"{where}, batch {batch}, 8 starts a goal", "training examples", value, "1/s", baseline)


def replay() -> None:
    ids = torch.arange(REPLAYED_PLANS)
    worlds, agents = fourrooms.tasks("test", Key(3), ids)
    plans = expert.demonstrate(expert.solve(worlds), agents, length=40, end_id=3, ties="uniform", key=Key(4), ids=ids)
    played = minigrid.replay(worlds, agents, plans.actions, plans.num_actions)
    exact = played.reached & (played.num_steps == plans.num_actions)
    emit(f"{REPLAYED_PLANS} plans in MiniGrid-FourRooms-v0", "end exactly at their length", int(exact.sum()), "plans")
    emit("the same plans", "mean length", float(plans.num_actions.double().mean()), "actions")


def main() -> None:
    torch.set_num_threads(1)
    baseline = baselines()
    ours("cpu", CPU_BATCHES, baseline)
    if torch.cuda.is_available():
        ours("cuda", CUDA_BATCHES, baseline)
    replay()


if __name__ == "__main__":
    main()
