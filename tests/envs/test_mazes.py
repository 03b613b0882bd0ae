from __future__ import annotations

from collections import Counter, deque
from itertools import product

import networkx
import pytest
import torch
from jaxtyping import TypeCheckError

from onpath.envs import fourrooms, mazes, symmetry
from onpath.envs.expert import demonstrate, distance, solve
from onpath.envs.gridworld import Agents, Worlds, at_goal, follow, observe, read
from onpath.envs.minigrid import make, place, replay
from onpath.rng import Key

IDS = torch.arange(60)
SIDES = (5, 7, 9, 19, 25)


def rooms(walls: torch.Tensor) -> networkx.Graph:
    """The cells at odd coordinates, and an edge for each opening between two of them."""
    side, graph = len(walls), networkx.Graph()
    cells = list(product(range(1, side, 2), repeat=2))
    graph.add_nodes_from(cells)
    for x, y in cells:
        for dx, dy in ((1, 0), (0, 1)):
            if x + dx < side - 1 and y + dy < side - 1 and not walls[x + dx, y + dy]:
                graph.add_edge((x, y), (x + 2 * dx, y + 2 * dy))
    return graph


@pytest.mark.parametrize("side", SIDES)
def test_a_perfect_maze_is_a_spanning_tree(side: int) -> None:
    walls = mazes.walls_of(Key(1), IDS, side, braid=0.0)
    num_cells = ((side - 1) // 2) ** 2
    assert walls.shape == (60, side, side)
    assert walls[:, ::2, ::2].all() and walls[:, [0, -1]].all() and walls[:, :, [0, -1]].all()
    assert not walls[:, 1::2, 1::2].any()
    for maze in walls:
        assert networkx.is_tree(rooms(maze))
        assert int((~maze).sum()) == 2 * num_cells - 1
    assert len(walls.flatten(1).unique(dim=0)) > (3 if side == 5 else 40)


@pytest.mark.parametrize("side", SIDES)
def test_a_braided_maze_has_no_dead_ends_and_only_adds_to_the_tree(side: int) -> None:
    tree, half, braided = (mazes.walls_of(Key(1), IDS, side, braid) for braid in (0.0, 0.5, 1.0))
    ends = [sum(degree == 1 for _, degree in rooms(maze).degree) for maze in braided]
    assert ends == [0] * 60
    assert not (half & ~tree).any() and not (braided & ~half).any()
    assert braided[:, ::2, ::2].all() and braided[:, [0, -1]].all() and braided[:, :, [0, -1]].all()


def test_the_share_of_dead_ends_that_are_opened() -> None:
    opened = []
    for braid in (0.0, 0.25, 0.5):
        walls = mazes.walls_of(Key(7), torch.arange(400), 19, braid)
        opened.append([rooms(maze) for maze in walls])
    dead = [[{cell for cell, degree in graph.degree if degree == 1} for graph in graphs] for graphs in opened]
    total = sum(len(cells) for cells in dead[0])
    assert 0.25 < total / (400 * 81) < 0.35
    for share, graphs, left in zip((0.25, 0.5), opened[1:], dead[1:], strict=True):
        more = sum(graph.number_of_edges() - 80 for graph in graphs)
        # two neighbours may open the same wall, or a wall may open a dead end that would not have opened one itself
        assert 0.8 * share < more / total <= share + 0.02
        assert 0.6 * (1 - share) < sum(len(cells) for cells in left) / total < 1 - share


def test_the_smallest_perfect_mazes_are_equally_likely() -> None:
    walls = mazes.walls_of(Key(3), torch.arange(8000), 5, braid=0.0)
    counts = Counter(tuple(maze.flatten().tolist()) for maze in walls)
    assert len(counts) == 4
    assert list(counts.values()) == pytest.approx([2000] * 4, abs=5 * (8000 * 3 / 16) ** 0.5)


def test_every_spanning_tree_of_nine_cells_is_a_maze() -> None:
    walls = mazes.walls_of(Key(3), torch.arange(8000), 7, braid=0.0)
    grid = networkx.grid_2d_graph(3, 3)
    links = torch.tensor(networkx.to_numpy_array(grid))
    trees = torch.linalg.det((torch.diag(links.sum(1)) - links)[1:, 1:])  # Kirchhoff's theorem
    assert len(walls.flatten(1).unique(dim=0)) == round(float(trees)) == 192


def test_a_task_depends_on_key_and_id_alone() -> None:
    for split in ("train", "test"):
        worlds, agents = mazes.tasks(split, Key(4), IDS, 9, 0.5)
        for rows in (IDS[7:8], IDS.flip(0), IDS[::3]):
            again, who = mazes.tasks(split, Key(4), rows, 9, 0.5)
            assert torch.equal(again.walls, worlds.walls[rows]) and torch.equal(again.goal, worlds.goal[rows])
            assert torch.equal(who.position, agents.position[rows])
            assert torch.equal(who.direction, agents.direction[rows])
        other, _ = mazes.tasks(split, Key(5), IDS, 9, 0.5)
        assert not torch.equal(other.walls, worlds.walls)


def images(walls: torch.Tensor) -> list[torch.Tensor]:
    return [torch.rot90(w, turns, (1, 2)) for w in (walls, walls.flip(1)) for turns in range(4)]


def test_no_mirror_image_of_a_maze_is_in_another_split() -> None:
    ids, seen = torch.arange(3000), {}
    for split in ("train", "validation", "test"):
        # of side 7 there are so few mazes that every one of them is drawn
        walls = torch.cat([mazes.mazes(split, Key(seed), ids, 7, braid=0.0) for seed in range(2)])
        seen[split] = {tuple(maze.flatten().tolist()) for image in images(walls) for maze in image.unique(dim=0)}
    assert sum(len(part) for part in seen.values()) == len(set.union(*seen.values())) == 192
    assert len(seen["train"]) > 100 and min(len(seen["validation"]), len(seen["test"])) >= 8
    large = mazes.mazes("test", Key(0), IDS, 19, 0.5)
    for image in images(large):
        assert torch.equal(symmetry.orbit(image.long(), Key()), symmetry.orbit(large.long(), Key()))
    assert len(symmetry.orbit(large.long(), Key()).unique()) == 60


def test_goals_and_starts_are_uniform_over_free_cells() -> None:
    ids = torch.arange(20_000)
    worlds, agents = mazes.tasks("train", Key(6), ids, 7, 0.5)
    assert (worlds.goal != agents.position).any(1).all()
    share = (~worlds.walls).flatten(1).double()
    expected = (share / share.sum(1, keepdim=True)).sum(0)
    for cell in (worlds.goal, agents.position):
        assert not worlds.walls[ids, cell[:, 0], cell[:, 1]].any()
        counts = torch.bincount(cell[:, 0] * 7 + cell[:, 1], minlength=49).double()
        free = expected > 0
        assert (counts[~free] == 0).all()
        # two dimensions of cells that are free in some mazes only: chi-square, 5 sigma
        assert float(((counts - expected)[free] ** 2 / expected[free]).sum()) < 33 + 5 * (2 * 33) ** 0.5
    assert torch.bincount(agents.direction).tolist() == pytest.approx([5000] * 4, abs=310)


def by_queue(walls: torch.Tensor, goal: tuple[int, int], start: tuple[int, int, int]) -> int:
    """Actions of a shortest plan, by a queue over (x, y, direction) forward from the start."""
    steps, queue = {start: 0}, deque([start])
    while queue:
        x, y, heading = queue.popleft()
        if (x, y) == goal:
            return steps[x, y, heading]
        dx, dy = ((1, 0), (0, 1), (-1, 0), (0, -1))[heading]
        ahead = (x, y, heading) if walls[x + dx][y + dy] else (x + dx, y + dy, heading)
        for state in (ahead, (x, y, (heading + 1) % 4), (x, y, (heading - 1) % 4)):
            if state not in steps:
                steps[state] = steps[x, y, heading] + 1
                queue.append(state)
    raise AssertionError("the goal is walled off")


@pytest.mark.parametrize(("side", "braid"), [(7, 0.0), (9, 1.0), (19, 0.0), (19, 0.5), (25, 0.5)])
def test_the_expert_s_plans_are_shortest(side: int, braid: float) -> None:
    worlds, agents = mazes.tasks("validation", Key(8), IDS, side, braid)
    field = solve(worlds)
    lengths = distance(field, agents)
    for row in range(len(IDS)):
        start = (*agents.position[row].tolist(), int(agents.direction[row]))
        goal = (int(worlds.goal[row, 0]), int(worlds.goal[row, 1]))
        assert by_queue(worlds.walls[row].tolist(), goal, start) == int(lengths[row])
    plans = demonstrate(field, agents, length=field.bound, end_id=3, ties="uniform", key=Key(9), ids=IDS)
    assert torch.equal(plans.num_actions, lengths)
    assert at_goal(worlds, follow(worlds, agents, plans.actions, lengths)).all()
    assert field.bound <= mazes.max_steps(side)


def check_replays(count: int, side: int, braid: float) -> None:
    ids = torch.arange(count)
    worlds, agents = mazes.tasks("test", Key(33), ids, side, braid)
    field, limit = solve(worlds), mazes.max_steps(side)
    plans = demonstrate(field, agents, length=field.bound, end_id=3, ties="uniform", key=Key(34), ids=ids)
    played = replay(worlds, agents, plans.actions, plans.num_actions, max_steps=limit)
    assert played.reached.all()
    assert torch.equal(played.num_steps, plans.num_actions)
    expected = fourrooms.reward(plans.num_actions, limit)
    torch.testing.assert_close(played.returns, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("side", "braid"), [(9, 0.5), (19, 0.5)])
def test_plans_end_exactly_at_their_length_in_the_real_environment(side: int, braid: float) -> None:
    check_replays(60, side, braid)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "braid"), [(9, 1.0), (19, 0.0), (19, 0.5), (25, 0.5)])
def test_five_hundred_plans_end_exactly_at_their_length_in_the_real_environment(side: int, braid: float) -> None:
    check_replays(500, side, braid)


def test_the_real_environment_shows_what_the_simulator_shows() -> None:
    worlds, agents = mazes.tasks("train", Key(10), torch.arange(3), 9, 0.5)
    env, first = make(worlds, agents, 0, max_steps=81)
    shown = torch.stack([torch.from_numpy(first["image"]), torch.from_numpy(place(env, worlds, agents, 1)["image"])])
    assert torch.equal(shown, observe(worlds, agents)[:2])
    again, who = read(shown)
    assert torch.equal(again.walls, worlds.walls[:2]) and torch.equal(who.position, agents.position[:2])
    for step in range(81):
        _, reward, terminated, truncated, _ = env.step(0)
        assert (reward, terminated, truncated) == (0, False, step == 80)
    larger = Worlds(torch.zeros(1, 11, 11, dtype=torch.bool), torch.tensor([[1, 1]]))
    with pytest.raises(ValueError, match="9 x 9; the worlds are"):
        place(env, larger, Agents(torch.tensor([[2, 2]]), torch.tensor([0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 8}, "side is 8; allowed are odd"),
        ({"side": 3}, "side is 3"),
        ({"braid": 1.5}, "braid is 1.5; allowed are 0"),
        ({"side": 5, "split": "test"}, "none of 1000 mazes of side 5 with braid 0.5 is in the split test"),
        ({"split": "dev"}, "split is 'dev'; allowed are test, train, validation"),
    ],
)
def test_mazes_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeCheckError), match=message):
        mazes.tasks(**{"split": "train", "key": Key(), "ids": IDS, **options})
