from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from onpath.envs import fourrooms, symmetry
from onpath.envs.expert import demonstrate, solve
from onpath.envs.gridworld import Agents, Worlds, at_goal, observe, read, step
from onpath.envs.minigrid import make, place, replay
from onpath.rng import Key, integers


def shown(observation: dict[str, object]) -> torch.Tensor:
    return torch.from_numpy(np.asarray(observation["image"]))[None]


def test_the_package_does_not_load_minigrid() -> None:
    code = (
        "import sys, onpath, onpath.envs.minigrid, onpath.data.trajectories; "
        "sys.exit(any(m.split('.')[0] in ('minigrid', 'gymnasium', 'pygame') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_observations_along_random_walks_are_equal_byte_for_byte() -> None:
    ids = torch.arange(12)
    worlds, agents = fourrooms.tasks("validation", Key(31), ids)
    actions = torch.minimum(integers(Key(32), ids, (60,), 9), torch.tensor(6)) % 7
    actions = torch.where(actions > 4, 2, actions)  # mostly forward, so that the walk goes somewhere
    for row in range(len(ids)):
        env, observation = make(worlds, agents, row)
        world, agent = worlds.rows(slice(row, row + 1)), agents.rows(slice(row, row + 1))
        for action in actions[row]:
            assert torch.equal(shown(observation), observe(world, agent))
            assert int(observation["direction"]) == int(agent.direction)
            observation, reward, terminated, _, _ = env.step(int(action))
            agent = step(world, agent, action[None])
            assert terminated == bool(at_goal(world, agent))
            if terminated:
                break
            assert reward == 0


def test_resets_of_the_real_environment_are_among_our_layouts() -> None:
    worlds, agents = fourrooms.tasks("train", Key(0), torch.arange(1))
    env, _ = make(worlds, agents)
    seen = {split: set(fourrooms.layouts(split).tolist()) for split in ("train", "validation", "test")}
    hits = dict.fromkeys(seen, 0)
    for seed in range(200):
        observation, _ = env.reset(seed=seed)
        world, agent = read(shown(observation))
        assert torch.equal(observe(world, agent), shown(observation))
        layout = int(fourrooms.layout_of(world.walls))
        for split, layouts in seen.items():
            hits[split] += layout in layouts
    assert sum(hits.values()) == 200
    assert hits["train"] > 130 and hits["validation"] and hits["test"]


def check_replays(count: int) -> None:
    ids = torch.arange(count)
    worlds, agents = fourrooms.tasks("test", Key(33), ids)
    plans = demonstrate(solve(worlds, 36), agents, length=40, end_id=3, ties="uniform", key=Key(34), ids=ids)
    # every other task is turned or mirrored first
    image = torch.where(ids % 2 == 0, 0, ids // 2 % 8)
    worlds, agents = symmetry.transform(worlds, agents, image)
    plans = symmetry.transform_plans(plans, image)
    played = replay(worlds, agents, plans.actions, plans.num_actions)
    assert played.reached.all()
    assert torch.equal(played.num_steps, plans.num_actions)
    torch.testing.assert_close(played.returns, fourrooms.reward(plans.num_actions), rtol=0, atol=1e-12)


def test_a_hundred_plans_end_exactly_at_their_length() -> None:
    check_replays(100)


@pytest.mark.slow
def test_two_thousand_plans_end_exactly_at_their_length() -> None:
    check_replays(2000)


def test_a_replay_stops_at_the_goal_at_the_limit_and_at_its_count() -> None:
    worlds, agents = fourrooms.tasks("test", Key(35), torch.arange(3))
    plans = demonstrate(solve(worlds, 36), agents, length=36, end_id=6)
    beyond = torch.cat([plans.actions, torch.zeros(3, 10, dtype=torch.int64)], dim=1)
    assert torch.equal(replay(worlds, agents, beyond).num_steps, plans.num_actions)
    short = replay(worlds, agents, plans.actions, plans.num_actions - 1)
    assert torch.equal(short.num_steps, plans.num_actions - 1)
    assert not short.reached.any() and not short.returns.any()
    turning = replay(worlds, agents, torch.zeros(3, 120, dtype=torch.int64))
    assert turning.num_steps.tolist() == [fourrooms.MAX_STEPS] * 3
    nothing = replay(worlds, agents, plans.actions, torch.zeros(3, dtype=torch.int64))
    assert nothing.num_steps.tolist() == [0] * 3


def test_an_environment_is_reused_and_other_sizes_are_refused() -> None:
    worlds, agents = fourrooms.tasks("test", Key(36), torch.arange(2))
    env, _ = make(worlds, agents, 0)
    for _ in range(3):
        env.step(0)
    assert torch.equal(shown(place(env, worlds, agents, 1)), observe(worlds, agents)[1:])
    assert env.unwrapped.step_count == 0
    small = Worlds(torch.zeros(1, 5, 5, dtype=torch.bool), torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="19 x 19"):
        make(small, Agents(torch.tensor([[2, 2]]), torch.tensor([0])))
