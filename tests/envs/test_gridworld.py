from __future__ import annotations

import pytest
import torch

from onpath.envs import fourrooms
from onpath.envs.gridworld import Agents, Worlds, at_goal, follow, observe, read, step
from onpath.rng import Key, integers


def some_worlds(count: int, width: int, height: int, seed: int = 0) -> tuple[Worlds, Agents]:
    """Random mazes without a rim, a goal and an agent on free cells."""
    key, ids = Key(seed, "test"), torch.arange(count)
    walls = integers(key.fold("walls"), ids, (width, height), 10) < 3
    walls[:, 0, 0] = walls[:, -1, -1] = False
    order = torch.where(walls.flatten(1), 2.0, 0.0) + torch.rand(
        count, width * height, generator=torch.Generator().manual_seed(seed)
    )
    cells = order.argsort(1)[:, :2]  # two free cells
    places = torch.stack([cells // height, cells % height], dim=-1)
    return Worlds(walls, places[:, 0]), Agents(places[:, 1], integers(key.fold("direction"), ids, (), 4))


def test_turns_moves_bumps_and_idle_actions() -> None:
    walls = torch.zeros(1, 3, 2, dtype=torch.bool)
    walls[0, 2, 0] = True
    world = Worlds(walls, torch.tensor([[1, 1]]))

    def after(*actions: int) -> list[int]:
        agents = Agents(torch.tensor([[0, 0]]), torch.tensor([0]))
        for action in actions:
            agents = step(world, agents, torch.tensor([action]))
        return [*agents.position[0].tolist(), int(agents.direction)]

    assert after(2) == [1, 0, 0]
    assert after(2, 2) == [1, 0, 0]  # a wall
    assert after(0) == [0, 0, 3]
    assert after(0, 2) == [0, 0, 3]  # the rim
    assert after(1, 2) == [0, 1, 1]
    assert after(1, 1, 1, 1) == [0, 0, 0]
    assert after(3, 4, 5, 6, 99) == [0, 0, 0]
    assert after(2, 1, 2) == [1, 1, 1]


@pytest.mark.parametrize(("width", "height"), [(2, 3), (9, 5), (5, 9), (19, 19)])
def test_observations_are_read_back(width: int, height: int) -> None:
    worlds, agents = some_worlds(200, width, height)
    image = observe(worlds, agents)
    assert image.dtype == torch.uint8
    again, who = read(image)
    assert torch.equal(again.walls, worlds.walls)
    assert torch.equal(again.goal, worlds.goal)
    assert torch.equal(who.position, agents.position)
    assert torch.equal(who.direction, agents.direction)
    assert torch.equal(observe(again, who), image)


def test_an_agent_on_its_goal_is_read_as_such() -> None:
    worlds, agents = some_worlds(10, 6, 4)
    image = observe(worlds, Agents(worlds.goal, agents.direction))
    assert not (image[..., 0] == 8).any()
    again, who = read(image)
    assert torch.equal(again.goal, worlds.goal)
    assert at_goal(again, who).all()


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        ((0, 0), 4, "image 2 holds an object that the simulator does not know"),
        ((1, 1), 10, "image 2 holds not exactly one agent"),
        ((1, 1), 8, "image 2 holds more than one goal"),
    ],
)
def test_images_that_cannot_be_read(cell: tuple[int, int], value: int, message: str) -> None:
    walls = torch.zeros(4, 4, 4, dtype=torch.bool)
    worlds = Worlds(walls, torch.tensor([[3, 3]]).expand(4, 2))
    image = observe(worlds, Agents(torch.tensor([[2, 3]]).expand(4, 2), torch.zeros(4, dtype=torch.int64)))
    image[2, cell[0], cell[1], 0] = value
    with pytest.raises(ValueError, match=message):
        read(image)


def test_an_image_whose_agent_has_no_direction() -> None:
    worlds, agents = some_worlds(3, 5, 5)
    image = observe(worlds, agents)
    image[..., 2] = 7
    with pytest.raises(ValueError, match="direction, is not 0 to 3"):
        read(image)


def test_follow_takes_each_row_as_far_as_it_asks() -> None:
    worlds, agents = fourrooms.tasks("train", Key(5), torch.arange(64))
    actions = integers(Key(6), torch.arange(64), (20,), 3)
    counts = torch.arange(64) % 21
    end = follow(worlds, agents, actions, counts)
    for row in range(64):
        one = slice(row, row + 1)
        alone, world = agents.rows(one), worlds.rows(one)
        for action in actions[row, : counts[row]]:
            alone = step(world, alone, action[None])
        assert torch.equal(alone.position, end.position[one])
        assert torch.equal(alone.direction, end.direction[one])


def random_policy(num_actions: int, tasks: int = 20_000) -> tuple[float, float]:
    """Success rate and mean return of uniform actions within 100 steps."""
    ids = torch.arange(tasks)
    worlds, agents = fourrooms.tasks("test", Key(11), ids)
    actions = integers(Key(12), ids, (fourrooms.MAX_STEPS,), num_actions)
    first = torch.full((tasks,), 0)
    for t in range(fourrooms.MAX_STEPS):
        agents = step(worlds, agents, actions[:, t])
        first = torch.where((first == 0) & at_goal(worlds, agents), t + 1, first)
    returns = torch.where(first > 0, fourrooms.reward(first), 0.0)
    return float((first > 0).double().mean()), float(returns.mean())


def test_random_policies_do_as_badly_as_they_should() -> None:
    # measured independently in the real environment: .062 and .036 over three actions, .032 and .018 over seven
    success, returns = random_policy(3)
    assert success == pytest.approx(0.062, abs=0.007)
    assert returns == pytest.approx(0.036, abs=0.005)
    success, returns = random_policy(7)
    assert success == pytest.approx(0.032, abs=0.005)
    assert returns == pytest.approx(0.018, abs=0.004)
