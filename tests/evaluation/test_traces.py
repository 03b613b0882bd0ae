"""Traces tell exactly what an evaluation in the same mode does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planners import END, policy, shortest, unsure

from onpath.envs import gridworld, minigrid
from onpath.evaluation.arenas import TaskSet, task_set
from onpath.evaluation.envs import Mode, episodes
from onpath.evaluation.traces import trace
from onpath.records import RunFolder, Trace

WORDS = ("left", "right", "forward")


def last_tokens(one: Trace, index: int) -> list[Any]:
    """The canvas of a generation after its last event."""
    canvas: list[Any] = [None] * one.length
    for _, position, word, _ in one.generations[index]["events"]:
        canvas[position] = word
    return canvas


@pytest.mark.parametrize("name", ["open@3", "horizon9@2", "horizon5@2+warm0.5"])
def test_a_trace_is_the_episode_of_the_evaluation(name: str) -> None:
    tasks, mode = task_set("test", 2), Mode.parse(name)
    wanderer = policy(unsure(), temperature=1.0)
    outcome = episodes(mode.of(wanderer), tasks)
    for row, one in enumerate(trace(wanderer, tasks, mode)):
        taken = outcome.actions[row, : int(outcome.num_steps[row])].tolist()
        assert [WORDS.index(word) if word in WORDS else 6 for word in one.actions] == taken
        assert one.reached == bool(outcome.reached[row]) and one.shortest == int(outcome.shortest[row])
        assert one.mode == name and one.task == int(tasks.ids[row]) and one.length == 40
        assert len(one.generations) == int(outcome.num_plans[row])
        assert len(one.poses) == len(one.actions) + 1


def test_the_plans_are_those_that_are_executed() -> None:
    tasks = task_set("test", 1)
    for one in trace(policy(unsure(), temperature=1.0), tasks, Mode.parse("closed@1")):
        assert [generation["after"] for generation in one.generations] == list(range(len(one.actions)))
        for index, action in enumerate(one.actions):
            front = last_tokens(one, index)[0]
            assert action == ("done" if front == "end" else front)


def test_every_token_is_revealed_once_in_the_order_of_the_steps() -> None:
    (one,) = trace(policy(unsure(), temperature=1.0), task_set("test", 1), Mode.parse("open@4"))
    (generation,) = one.generations
    steps = [event[0] for event in generation["events"]]
    assert generation["steps"] == 4 and steps == sorted(steps)
    assert sorted(event[1] for event in generation["events"]) == list(range(40))
    assert [steps.count(step) for step in (1, 2, 3, 4)] == [10, 10, 10, 10]  # an even grid, fixed counts
    assert all(0 < event[3] <= 1 for event in generation["events"])


def test_what_was_given_stands_at_step_0() -> None:
    (one,) = trace(policy(unsure(), temperature=1.0), task_set("test", 1), Mode.parse("horizon5@2+warm1.0"))
    later = [event for generation in one.generations[1:] for event in generation["events"] if event[0] == 0]
    assert later and all(share is None for _, _, _, share in later)
    assert not [event for event in one.generations[0]["events"] if event[0] == 0]


def test_the_poses_are_those_of_the_real_environment() -> None:
    tasks: TaskSet = task_set("test", 3)
    for row, one in enumerate(trace(policy(shortest()), tasks, Mode.parse("open@2"))):
        env, _ = minigrid.make(tasks.worlds, tasks.agents, row)
        base: Any = env.unwrapped
        seen = [[*map(int, base.agent_pos), int(base.agent_dir)]]
        for word in one.actions:
            env.step(WORDS.index(word))
            seen.append([*map(int, base.agent_pos), int(base.agent_dir)])
        assert list(map(list, one.poses)) == seen
        assert one.reached and seen[-1][:2] == list(one.goal) and len(one.actions) == one.shortest
        assert last_tokens(one, 0)[len(one.actions)] == "end" and END == 3


def test_the_maze_is_drawn_from_above() -> None:
    tasks = task_set("test", 1)
    (one,) = trace(policy(shortest()), tasks, Mode.parse("open@1"))
    image = gridworld.observe(tasks.worlds, tasks.agents)[0, ..., 0]
    for y, line in enumerate(one.maze):
        for x, cell in enumerate(line):
            assert (cell == "#") == (int(image[x, y]) == gridworld.WALL)


def test_traces_are_merged_like_the_evaluation(tmp_path: Any) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    (one,) = trace(policy(shortest()), task_set("test", 1), Mode.parse("open@1"))
    assert folder.traces() == []
    folder.write_traces([one])
    (held,) = folder.traces()
    assert held["poses"] == [list(pose) for pose in one.poses] and held["maze"] == list(one.maze)
    assert torch.tensor(held["goal"]).tolist() == list(one.goal)
    folder.write_traces([Trace("plan", "test", "closed@1", 0, 40, ())])
    assert [row["mode"] for row in folder.traces()] == ["open@1", "closed@1"]
    folder.write_traces([Trace("plan", "test", "closed@1", 0, 40, (), step=9)])
    assert [(row["mode"], row["step"]) for row in folder.traces()] == [("closed@1", 9)]
