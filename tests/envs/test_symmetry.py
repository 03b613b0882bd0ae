from __future__ import annotations

import pytest
import torch

from onpath.envs import fourrooms, symmetry
from onpath.envs.expert import demonstrate, distance, solve
from onpath.envs.gridworld import Agents, Worlds, observe, step
from onpath.rng import Key, integers

IDS = torch.arange(256)
EIGHT = IDS % 8


@pytest.fixture(scope="module")
def tasks() -> tuple[Worlds, Agents]:
    return fourrooms.tasks("train", Key(21), IDS)


def test_walls_move_as_numpy_would_move_them(tasks: tuple[Worlds, Agents]) -> None:
    walls = tasks[0].walls
    moved = symmetry.transform_cells(walls, EIGHT)
    for row in range(16):
        expected = walls[row].flip(0) if EIGHT[row] >= 4 else walls[row]
        # a quarter turn from +x (first axis) towards +y (second axis)
        assert torch.equal(moved[row], torch.rot90(expected, int(EIGHT[row]) % 4, (0, 1)))


def test_acting_and_transforming_commute(tasks: tuple[Worlds, Agents]) -> None:
    worlds, agents = tasks
    moved_worlds, moved_agents = symmetry.transform(worlds, agents, EIGHT)
    actions = integers(Key(22), IDS, (40,), 7)
    for t in range(40):
        agents = step(worlds, agents, actions[:, t])
        moved_agents = step(moved_worlds, moved_agents, symmetry.transform_actions(actions[:, t], EIGHT))
        expected_worlds, expected = symmetry.transform(worlds, agents, EIGHT)
        assert torch.equal(moved_agents.position, expected.position)
        assert torch.equal(moved_agents.direction, expected.direction)
        image = symmetry.transform_image(observe(worlds, agents), EIGHT)
        assert torch.equal(image, observe(expected_worlds, expected))


def test_only_reflections_swap_turns() -> None:
    actions = torch.tensor([[0, 1, 2, 3, 6]]).expand(8, 5)
    swapped = symmetry.transform_actions(actions, torch.arange(8))
    assert swapped[:4].tolist() == [[0, 1, 2, 3, 6]] * 4
    assert swapped[4:].tolist() == [[1, 0, 2, 3, 6]] * 4


def test_the_plan_of_the_turned_world_is_the_turned_plan(tasks: tuple[Worlds, Agents]) -> None:
    worlds, agents = tasks
    plans = demonstrate(solve(worlds, 36), agents, length=40, end_id=3)
    turned = symmetry.transform_plans(plans, EIGHT)
    moved_worlds, moved_agents = symmetry.transform(worlds, agents, EIGHT)
    again = demonstrate(solve(moved_worlds, 36), moved_agents, length=40, end_id=3)
    assert torch.equal(turned.num_actions, again.num_actions)
    # canonical ties survive rotations; under reflections the plan is one of the optimal ones
    kept = EIGHT < 4
    for name in ("actions", "optimal", "path"):
        assert torch.equal(getattr(turned, name)[kept], getattr(again, name)[kept]), name
    alone = (plans.optimal & (plans.optimal.long() - 1).to(torch.uint8) == 0).all(1)  # one optimal plan
    assert 0.5 < float(alone.double().mean()) < 0.85
    assert torch.equal(turned.actions[alone], again.actions[alone])
    assert torch.equal(turned.optimal[alone], again.optimal[alone])
    field = solve(moved_worlds, 36)
    for t in range(36):
        assert torch.equal(distance(field, moved_agents), (plans.num_actions - t).clamp(min=0))
        action = turned.actions[:, t]
        assert ((turned.optimal[:, t].long() >> action & 1 == 1) | (action == 3)).all()
        moved_agents = step(moved_worlds, moved_agents, action)


def test_a_grid_that_is_not_square_turns_on_its_side() -> None:
    walls = torch.zeros(2, 4, 3, dtype=torch.bool)
    walls[:, 3, 0] = True
    worlds = Worlds(walls, torch.tensor([[0, 2], [0, 2]]))
    agents = Agents(torch.tensor([[2, 0], [2, 0]]), torch.tensor([0, 0]))
    turned, who = symmetry.transform(worlds, agents, torch.tensor([1, 5]))
    assert turned.walls.shape == (2, 3, 4)
    assert turned.walls.nonzero().tolist() == [[0, 2, 3], [1, 2, 0]]
    assert who.position.tolist() == [[2, 2], [2, 1]]
    assert who.direction.tolist() == [1, 3]
    half, _ = symmetry.transform(worlds, agents, torch.tensor([2, 4]))
    assert half.walls.nonzero().tolist() == [[0, 0, 2], [1, 0, 0]]
    with pytest.raises(ValueError, match="give even symmetries"):
        symmetry.transform(worlds, agents, torch.tensor([0, 1]))
