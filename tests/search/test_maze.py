"""Mazes as a problem of search: the table against the simulator, judgements against an episode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from games import END, LENGTH, mazes

from onpath.envs import fourrooms, gridworld, minigrid
from onpath.envs.gridworld import Agents
from onpath.rng import Key
from onpath.search.maze import MazeProblem
from onpath.search.problems import Place

PLANS = torch.randint(0, 4, (200, LENGTH), generator=torch.Generator().manual_seed(2))


def test_the_table_is_the_simulator() -> None:
    problem = mazes()
    for task in range(problem.size):
        for state in range(problem.num_states):
            x, y = state // 4 // 7, state // 4 % 7
            if problem.worlds.walls[task, x, y]:
                continue
            world = problem.worlds.rows(slice(task, task + 1))
            agent = Agents(torch.tensor([[x, y]]), torch.tensor([state % 4]))
            for action, place in problem.moves(Place(task, state, 5)):
                after = gridworld.step(world, agent, torch.tensor([action]))
                (px, py), direction = after.position[0].tolist(), int(after.direction[0])
                assert (place.state, place.spent) == ((px * 7 + py) * 4 + direction, 6)
            assert problem.table[task, state, 3] == state


def test_a_plan_is_worth_what_an_episode_makes_of_it() -> None:
    problem = mazes()
    tasks = torch.arange(200) % problem.size
    ended = (PLANS == END).long()
    before = (ended.cumsum(1) == 0).sum(1)
    worlds, agents = problem.worlds.rows(tasks), problem.agents.rows(tasks)
    arrived = gridworld.arrival(worlds, agents, PLANS, before)
    judged = problem.judge([problem.start(task) for task in tasks.tolist()], PLANS, torch.ones(200, LENGTH), 3)
    assert [one.solved for one in judged] == (arrived >= 0).tolist() and (arrived >= 0).any()
    stopped = gridworld.follow(worlds, agents, PLANS, before)
    for row, one in enumerate(judged):
        if one.solved:
            assert one.cost == one.used == int(arrived[row])
            assert one.value == pytest.approx(0.5 + 0.5 * (40 - one.cost) / 40)
        else:
            away = int((stopped.position[row] - worlds.goal[row]).abs().sum())
            assert one.value == pytest.approx(0.4 * (1 - away / 14)) and one.used == int(before[row])
        for place, used in one.ends:
            count = torch.tensor([used])
            at = gridworld.follow(
                worlds.rows(slice(row, row + 1)), agents.rows(slice(row, row + 1)), PLANS[row : row + 1], count
            )
            x, y = at.position[0].tolist()
            assert place.state == (x * 7 + y) * 4 + int(at.direction[0]) and place.spent == used and used % 3 == 0


def test_what_is_spent_already_counts() -> None:
    problem, sure = mazes(), torch.ones(200, LENGTH)
    places = [problem.start(number % problem.size) for number in range(200)]
    fresh = problem.judge(places, PLANS, sure, 3)
    spent = 40 - min(one.cost for one in fresh if one.solved)
    late = problem.judge([replace(place, spent=spent) for place in places], PLANS, sure, 3)
    solved = [(one, other) for one, other in zip(fresh, late, strict=True) if one.solved]
    assert {other.solved for _, other in solved} == {True, False}
    assert all(other.solved == (one.cost + spent <= 40) for one, other in solved)
    assert all(other.cost == one.cost + spent for one, other in solved if other.solved)


def test_plans_end_in_the_real_environment_where_they_end_here() -> None:
    pytest.importorskip("minigrid")
    worlds, agents = fourrooms.tasks("test", Key(3), torch.arange(500))
    problem = MazeProblem(worlds, agents, 40, END)
    plans = torch.randint(0, 3, (500, 40), generator=torch.Generator().manual_seed(5))
    plans[:, 1::2] = 2  # walks, rather than turning on the spot
    judged = problem.judge([problem.start(task) for task in range(500)], plans, torch.ones(500, 40), 4)
    num_steps = torch.tensor([one.used for one in judged])
    replayed = minigrid.replay(worlds, agents, plans, num_steps)
    assert replayed.reached.tolist() == [one.solved for one in judged] and replayed.reached.sum() > 10
    assert torch.equal(replayed.num_steps, num_steps)
