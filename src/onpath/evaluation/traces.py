"""How plans come about, step by step, and what becomes of them when they are walked: what reports replay."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.codes import DONE
from onpath.envs import gridworld
from onpath.envs.gridworld import Agents, Worlds
from onpath.evaluation.arenas import Simulation, TaskSet
from onpath.evaluation.envs import Episodes, Mode, play
from onpath.evaluation.policy import PlanPolicy, PlanState
from onpath.records import Event, Trace
from onpath.sampling.loop import walk
from onpath.sampling.states import TokenState

# Source of the order: MiniGrid's ``Actions``.
_ACTIONS = ("left", "right", "forward", "pick up", "drop", "toggle", "done")
_END = "end"


def trace(policy: PlanPolicy, tasks: TaskSet, mode: Mode, device: torch.device | str = "cpu") -> list[Trace]:
    """One trace of each task, in the simulator; its plans are exactly those of an evaluation in the same mode."""
    watched = Watched(mode.of(policy))
    outcome = play(watched, Simulation(tasks.worlds, tasks.agents, tasks.limit, device), tasks)
    places = _poses(tasks.worlds, tasks.agents, outcome.actions)
    return [
        Trace(
            kind="plan",
            set=tasks.name,
            mode=mode.name,
            task=int(task),
            length=policy.spec.length,
            generations=watched.generations[int(task)],
            maze=maze_lines(tasks.worlds.walls[row]),
            goal=tasks.worlds.goal[row].tolist(),
            actions=[_ACTIONS[action] for action in _taken(outcome, row)],
            poses=places[row][: int(outcome.num_steps[row]) + 1],
            reached=bool(outcome.reached[row]),
            shortest=int(outcome.shortest[row]),
        )
        for row, task in enumerate(tasks.ids.tolist())
    ]


def maze_lines(walls: Bool[Tensor, "W H"]) -> list[str]:
    """A maze from above as ``records.Trace`` has it."""
    return ["".join("#" if wall else "." for wall in line) for line in walls.T.tolist()]


class Watched:
    """A planner that notes how each of its plans comes about; it decides as the planner alone does.

    generations: for each task, one entry a plan, as ``records.Trace`` has it. A plan is drawn twice, once to be looked
    at: its draws depend on the task and the step alone.
    """

    def __init__(self, policy: PlanPolicy) -> None:
        self.policy = policy
        self.generations: dict[int, list[dict[str, Any]]] = {}

    def start(self, tasks: Int64[Tensor, "B"]) -> PlanState:
        return self.policy.start(tasks)

    def decide(self, state: PlanState, cond: Mapping[str, Tensor]) -> tuple[Int64[Tensor, "B"], PlanState]:
        planner = self.policy
        due, batch = planner.requests(state, cond)
        if batch is not None:
            made = walk(planner.denoiser, planner.process, planner.sampler, planner.grid, batch, planner.plan_key)
            states = list(made)
            for row, (task, step) in enumerate(zip(state.task[due].tolist(), state.step[due].tolist(), strict=True)):
                generation = {"after": step, "steps": len(states) - 1, "events": events(states, row, self._word)}
                self.generations.setdefault(task, []).append(generation)
        return planner.decide(state, cond)

    def finished(self, state: PlanState) -> Bool[Tensor, "B"]:
        return self.policy.finished(state)

    def _word(self, token: int) -> str:
        return _END if token == self.policy.end_id else _ACTIONS[token]


def events(states: list[TokenState], row: int, word: Any) -> list[Event]:
    """Every change of a token of one row between successive states, the prior first: (step, position, word, share).

    Step 0 holds what was given. The word is None where a position is masked again; `share` is the probability that
    the network gave to the token, None where it was not the network's choice.
    """
    found: list[Event] = []
    shown = [(state.x[row].tolist(), state.masked[row].tolist(), state.confidence[row].tolist()) for state in states]
    tokens, masked, _ = shown[0]
    found += [(0, place, word(tokens[place]), None) for place, hidden in enumerate(masked) if not hidden]
    for step, (before, after) in enumerate(pairwise(shown), start=1):
        for place, hidden in enumerate(after[1]):
            if hidden and not before[1][place]:
                found.append((step, place, None, None))
            elif not hidden and (before[1][place] or before[0][place] != after[0][place]):
                found.append((step, place, word(after[0][place]), round(after[2][place], 4)))
    return found


def _taken(outcome: Episodes, row: int) -> list[int]:
    return [min(action, DONE) for action in outcome.actions[row, : int(outcome.num_steps[row])].tolist()]


def _poses(worlds: Worlds, agents: Agents, actions: Int64[Tensor, "B T"]) -> list[list[list[int]]]:
    """[x, y, direction] of each agent at the start and after every action; beyond the end of an episode it rests."""
    stops = [agents]
    for action in actions.unbind(1):
        stops.append(gridworld.step(worlds, stops[-1], action))
    stacked = torch.stack([torch.cat([a.position, a.direction[:, None]], dim=1) for a in stops], dim=1)
    return stacked.tolist()
