from __future__ import annotations

from collections import deque

import pytest
import torch

from onpath.envs import fourrooms
from onpath.envs.expert import Plans, demonstrate, distance, pack, solve, unpack
from onpath.envs.gridworld import Agents, Worlds, at_goal, step
from onpath.rng import Key, integers

AHEAD = [(1, 0), (0, 1), (-1, 0), (0, -1)]
State = tuple[int, int, int]


def successors(walls: torch.Tensor, state: State) -> list[State]:
    x, y, d = state
    nx, ny = x + AHEAD[d][0], y + AHEAD[d][1]
    inside = 0 <= nx < walls.shape[0] and 0 <= ny < walls.shape[1]
    moved = (nx, ny, d) if inside and not walls[nx, ny] else state
    return [(x, y, (d - 1) % 4), (x, y, (d + 1) % 4), moved]


def search(walls: torch.Tensor, start: State, goal: list[int]) -> int | None:
    """Forward breadth-first search, one state at a time."""
    seen, queue = {start: 0}, deque([start])
    while queue:
        state = queue.popleft()
        if list(state[:2]) == goal:
            return seen[state]
        for after in successors(walls, state):
            if after not in seen:
                seen[after] = seen[state] + 1
                queue.append(after)
    return None


def mazes(count: int, width: int, height: int, walls_of_ten: int = 3) -> Worlds:
    walls = integers(Key(1, f"{width}x{height}"), torch.arange(count), (width, height), 10) < walls_of_ten
    goals = [(~wall).nonzero()[int(i) % int((~wall).sum())] for i, wall in enumerate(walls)]
    return Worlds(walls, torch.stack(goals))


def every_state(worlds: Worlds) -> tuple[torch.Tensor, Agents]:
    """World index and agent of every free cell and direction."""
    index = (~worlds.walls).nonzero().repeat_interleave(4, 0)
    return index[:, 0], Agents(index[:, 1:], torch.arange(len(index)) % 4)


@pytest.mark.parametrize(
    ("width", "height", "count"), [(1, 1, 2), (1, 7, 4), (7, 1, 4), (4, 6, 20), (8, 5, 12), (3, 40, 3), (40, 3, 3)]
)
@pytest.mark.parametrize("bounded", [False, True])
def test_distances_equal_a_naive_search(width: int, height: int, count: int, bounded: bool) -> None:
    worlds = mazes(count, width, height)
    world, agents = every_state(worlds)
    bound = 9 if bounded else None
    field = solve(worlds, bound)
    found = distance(field.serving(world), agents)
    for n, b in enumerate(world.tolist()):
        x, y = agents.position[n].tolist()
        exact = search(worlds.walls[b], (x, y, int(agents.direction[n])), worlds.goal[b].tolist())
        if exact is None or exact > field.bound:
            assert bounded or exact is None
            exact = field.bound + 1
        assert found[n] == exact


def test_tall_grids_use_wide_words_and_taller_ones_are_refused() -> None:
    corridor = Worlds(torch.zeros(1, 2, 62, dtype=torch.bool), torch.tensor([[1, 61]]))
    agents = Agents(torch.tensor([[0, 0]]), torch.tensor([3]))
    assert distance(solve(corridor), agents).tolist() == [2 + 61 + 1]  # turn, over, turn, down
    with pytest.raises(ValueError, match="H may be at most 62"):
        solve(Worlds(torch.zeros(1, 2, 63, dtype=torch.bool), torch.tensor([[0, 0]])))


@pytest.fixture(scope="module")
def solved() -> tuple[Worlds, Agents, torch.Tensor]:
    worlds, agents = fourrooms.tasks("test", Key(7), torch.arange(300))
    return worlds, agents, torch.arange(300)


@pytest.mark.parametrize("ties", ["canonical", "uniform"])
def test_plans_arrive_exactly_at_their_length(solved: tuple[Worlds, Agents, torch.Tensor], ties: str) -> None:
    worlds, agents, ids = solved
    field = solve(worlds, fourrooms.LONGEST)
    plans = demonstrate(field, agents, length=40, end_id=3, ties=ties, key=Key(2), ids=ids)
    assert torch.equal(plans.num_actions, distance(field, agents))
    for t in range(40):
        passed = plans.agents(torch.full((300,), t))
        assert torch.equal(passed.position, agents.position)
        assert torch.equal(passed.direction, agents.direction)
        assert torch.equal(at_goal(worlds, agents), t >= plans.num_actions)
        ended = t >= plans.num_actions
        assert torch.equal(plans.actions[:, t] == 3, ended)
        agents = step(worlds, agents, plans.actions[:, t])


def brute_masks(worlds: Worlds, plans: Plans, row: int) -> list[int]:
    """Which actions shorten the way, asked of the naive search after every action of the plan."""
    walls, goal, masks = worlds.walls[row], worlds.goal[row].tolist(), []
    for t in range(int(plans.num_actions[row])):
        agents = plans.agents(torch.full_like(plans.num_actions, t))
        state = (*agents.position[row].tolist(), int(agents.direction[row]))
        best = search(walls, state, goal)
        afters = [search(walls, after, goal) for after in successors(walls, state)]
        masks.append(sum(1 << action for action, after in enumerate(afters) if after == best - 1))
    return masks


@pytest.mark.parametrize("ties", ["canonical", "uniform"])
def test_the_masks_are_all_optimal_actions(ties: str) -> None:
    worlds, ids = mazes(60, 6, 5, walls_of_ten=2), torch.arange(60)
    world, agents = every_state(worlds)
    field = solve(worlds)
    reachable = distance(field.serving(world), agents) <= field.bound
    pick = reachable.nonzero()[::37, 0]
    world, agents = world[pick], agents.rows(pick)
    plans = demonstrate(
        field.serving(world), agents, length=30, end_id=7, ties=ties, key=Key(3), ids=torch.arange(len(pick))
    )
    assert len(ids) and len(pick) > 100
    for row in range(len(pick)):
        masks = brute_masks(worlds.rows(world), plans, row)
        assert plans.optimal[row].tolist() == masks + [0] * (30 - len(masks))
        for action, mask in zip(plans.actions[row].tolist(), masks, strict=False):
            assert mask >> action & 1
            if ties == "canonical":
                assert action == next(a for a in (2, 0, 1) if mask >> a & 1)


def test_uniform_ties_are_uniform_over_the_optimal_actions() -> None:
    walls = torch.zeros(1, 5, 5, dtype=torch.bool)
    walls[0, 2, 2] = True  # the block between agent and goal may be passed on either side, now or a step later
    field = solve(Worlds(walls, torch.tensor([[4, 2]]))).serving(torch.zeros(6000, dtype=torch.int64))
    agents = Agents(torch.tensor([[0, 2]]).expand(6000, 2), torch.zeros(6000, dtype=torch.int64))
    plans = demonstrate(field, agents, length=12, end_id=3, ties="uniform", key=Key(4), ids=torch.arange(6000))
    assert (plans.num_actions == 9).all()
    assert (plans.optimal[:, 0] == 0b111).all()
    masks = plans.optimal[:, :9].unique().tolist()
    assert {mask.bit_count() for mask in masks} == {1, 2, 3}
    for mask in masks:
        options = [a for a in range(3) if mask >> a & 1]
        taken = plans.actions[:, :9][plans.optimal[:, :9] == mask]
        shares = torch.bincount(taken, minlength=3) / len(taken)
        five_sigma = 5 * (0.25 / len(taken)) ** 0.5
        assert shares[options].tolist() == pytest.approx([1 / len(options)] * len(options), abs=five_sigma)


def test_a_suffix_is_the_plan_from_there(solved: tuple[Worlds, Agents, torch.Tensor]) -> None:
    worlds, agents, ids = solved
    field = solve(worlds, fourrooms.LONGEST)
    plans = demonstrate(field, agents, length=40, end_id=3)
    first = ids % plans.num_actions
    cut = plans.suffix(first)
    again = demonstrate(field, plans.agents(first), length=40, end_id=3)
    for name in ("actions", "num_actions", "optimal", "path"):
        assert torch.equal(getattr(cut, name), getattr(again, name)), name


@pytest.mark.parametrize("ties", ["canonical", "uniform"])
def test_a_row_is_what_it_is_alone(solved: tuple[Worlds, Agents, torch.Tensor], ties: str) -> None:
    worlds, agents, ids = solved
    plans = demonstrate(solve(worlds, 36), agents, length=40, end_id=3, ties=ties, key=Key(2), ids=ids)
    for row in (0, 17, 299):
        one = slice(row, row + 1)
        alone = demonstrate(
            solve(worlds.rows(one)), agents.rows(one), length=40, end_id=3, ties=ties, key=Key(2), ids=ids[one]
        )
        assert torch.equal(alone.actions, plans.actions[one])
        assert torch.equal(alone.optimal, plans.optimal[one])


def test_an_agent_at_its_goal_has_an_empty_plan() -> None:
    worlds, agents = fourrooms.tasks("train", Key(0), torch.arange(5))
    plans = demonstrate(solve(worlds, 36), Agents(worlds.goal, agents.direction), length=4, end_id=9)
    assert plans.num_actions.tolist() == [0] * 5
    assert (plans.actions == 9).all()


def test_states_are_packed_and_unpacked() -> None:
    _, agents = every_state(Worlds(torch.zeros(1, 7, 5, dtype=torch.bool), torch.tensor([[0, 0]])))
    again = unpack(pack(agents, (7, 5)), (7, 5))
    assert torch.equal(again.position, agents.position)
    assert torch.equal(again.direction, agents.direction)
    assert len(pack(agents, (7, 5)).unique()) == 7 * 5 * 4


def test_errors_say_what_to_do() -> None:
    walls = torch.zeros(1, 7, 3, dtype=torch.bool)
    walls[0, 3] = True
    agents = Agents(torch.tensor([[0, 0]]), torch.tensor([0]))
    closed = Worlds(walls, torch.tensor([[6, 2]]))
    with pytest.raises(ValueError, match=r"agent 0 has no plan .* walled off"):
        demonstrate(solve(closed), agents, length=40, end_id=3)
    near = Worlds(walls, torch.tensor([[2, 2]]))
    with pytest.raises(ValueError, match=r"takes 5 actions and `length` is 4; raise `length` to 5"):
        demonstrate(solve(near), agents, length=4, end_id=3)
    with pytest.raises(ValueError, match="`bound` is too small"):
        demonstrate(solve(near, bound=3), agents, length=40, end_id=3)
    with pytest.raises(ValueError, match="give `key` and `ids`"):
        demonstrate(solve(near), agents, length=40, end_id=3, ties="uniform")
