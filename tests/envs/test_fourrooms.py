from __future__ import annotations

import numpy as np
import pytest
import torch

from onpath.envs import fourrooms
from onpath.envs.expert import distance, solve
from onpath.envs.gridworld import Worlds
from onpath.rng import Key

EVERY = torch.arange(fourrooms.NUM_LAYOUTS)


def test_there_are_4096_different_layouts_of_260_free_cells() -> None:
    walls = fourrooms.walls_of(EVERY)
    assert len(walls.flatten(1).unique(dim=0)) == 4096
    assert ((~walls).flatten(1).sum(1) == 260).all()
    assert torch.equal(fourrooms.layout_of(walls), EVERY)
    gaps = fourrooms.gaps_of(EVERY)
    assert not walls[EVERY[:, None], gaps[..., 0], gaps[..., 1]].any()


def test_walls_of_another_kind_are_no_layout() -> None:
    walls = fourrooms.walls_of(torch.arange(3))
    walls[1, 5, 5] = True
    with pytest.raises(ValueError, match="row 1 are not a layout"):
        fourrooms.layout_of(walls)


def test_the_splits_cut_the_layouts_and_no_mirror_image_crosses() -> None:
    parts = {split: set(fourrooms.layouts(split).tolist()) for split in ("train", "validation", "test")}
    assert sorted([layout for part in parts.values() for layout in part]) == EVERY.tolist()
    assert len(parts["train"]) / 4096 == pytest.approx(0.8, abs=0.02)
    assert len(parts["validation"]) / 4096 == pytest.approx(0.1, abs=0.025)
    assert len(parts["test"]) / 4096 == pytest.approx(0.1, abs=0.025)
    walls = fourrooms.walls_of(EVERY)
    for mirrored in (walls, walls.flip(1)):
        for turns in range(4):
            image = fourrooms.layout_of(torch.rot90(mirrored, turns, (1, 2))).tolist()
            for part in parts.values():
                assert {image[layout] for layout in part} == part
    with pytest.raises(ValueError, match="allowed are test, train, validation"):
        fourrooms.layouts("dev")


def test_tasks_are_uniform_and_keyed_by_their_id() -> None:
    ids = torch.arange(40_000)
    worlds, agents = fourrooms.tasks("train", Key(3), ids)
    row = torch.arange(len(ids))
    for place in (worlds.goal, agents.position):
        assert not worlds.walls[row, place[:, 0], place[:, 1]].any()
    assert (worlds.goal != agents.position).any(1).all()
    layouts = fourrooms.layout_of(worlds.walls)
    assert set(layouts.tolist()) == set(fourrooms.layouts("train").tolist())
    # cells outside the inner walls are free in every layout; chi-square with 255 degrees of freedom, 5 sigma
    for place in (worlds.goal, agents.position):
        cells = torch.bincount(place[:, 0] * 19 + place[:, 1], minlength=361).view(19, 19)
        always = cells[~fourrooms.walls_of(EVERY).any(0)]
        expected = len(ids) / 260
        assert len(always) == 256
        assert float(((always - expected) ** 2 / expected).sum()) < 256 + 5 * (2 * 256) ** 0.5
        assert float(cells.sum() - always.sum()) == pytest.approx(4 * expected, abs=5 * (4 * expected) ** 0.5)
    assert torch.bincount(agents.direction).tolist() == pytest.approx([10_000] * 4, abs=450)
    some = torch.tensor([39_999, 5])
    again, who = fourrooms.tasks("train", Key(3), some)
    assert torch.equal(again.walls, worlds.walls[some])
    assert torch.equal(again.goal, worlds.goal[some])
    assert torch.equal(who.position, agents.position[some])
    other, _ = fourrooms.tasks("train", Key(4), some)
    assert not torch.equal(other.goal, again.goal)


def test_the_mean_length_of_a_large_sample() -> None:
    worlds, agents = fourrooms.tasks("train", Key(8), torch.arange(20_000))
    lengths = distance(solve(worlds, fourrooms.LONGEST), agents)
    assert float(lengths.double().mean()) == pytest.approx(16.128, abs=0.25)
    assert int(lengths.max()) <= 36
    assert float(fourrooms.reward(lengths).mean()) == pytest.approx(0.8548, abs=0.0025)


@pytest.mark.slow
def test_every_task_there_is() -> None:
    counts = np.zeros(fourrooms.LONGEST + 1, dtype=np.int64)
    for layouts in EVERY.split(4):
        layout = layouts.repeat_interleave(260)
        walls = fourrooms.walls_of(layout)
        goals = (~walls[::260]).nonzero()[:, 1:]
        reached = solve(Worlds(walls, goals), fourrooms.LONGEST).reached.numpy()
        within = np.bitwise_count(reached).reshape(len(reached), -1).sum(1, dtype=np.int64)
        counts += np.diff(within, prepend=0)
    tasks, length = counts[1:], np.arange(1, 37)
    assert counts[0] == 4096 * 260 * 4  # the agent stands on the goal: no task
    assert tasks.sum() == 1_103_298_560  # so every task is solvable within 36 actions
    assert (tasks > 0).all()
    assert (tasks * length).sum() / tasks.sum() == pytest.approx(16.128, abs=5e-4)
    assert (tasks * (1 - 0.9 * length / 100)).sum() / tasks.sum() == pytest.approx(0.85484, abs=5e-6)
    shares = np.cumsum(tasks) / tasks.sum()
    assert shares[[15, 23, 31]] == pytest.approx([0.496, 0.861, 0.99645], abs=5e-4)
