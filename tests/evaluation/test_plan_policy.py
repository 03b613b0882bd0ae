from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planners import END, LENGTH, always, by_direction, policy, unsure

from onpath.codes import DONE
from onpath.evaluation.policy import Actor, PlanPolicy
from onpath.sampling.grids import EvenGrid

COND = {"image": torch.zeros(1, 19, 19, 3, dtype=torch.uint8), "direction": torch.zeros(1, dtype=torch.int64)}


def conditions(directions: list[int]) -> dict[str, torch.Tensor]:
    image = torch.zeros(len(directions), 19, 19, 3, dtype=torch.uint8)
    return {"image": image, "direction": torch.tensor(directions)}


def decisions(policy: PlanPolicy, num_steps: int) -> tuple[list[int], list[int]]:
    """Actions of one episode under an observation that stays, and the plans made until each."""
    state, actions, plans = policy.start(torch.tensor([0])), [], []
    for _ in range(num_steps):
        action, state = policy.decide(state, COND)
        actions.append(int(action))
        plans.append(int(state.num_plans))
    return actions, plans


def test_closed_loop_plans_at_every_action() -> None:
    actions, plans = decisions(policy(always([0, 1, 2])), 4)
    assert actions == [0, 0, 0, 0]
    assert plans == [1, 2, 3, 4]


def test_a_horizon_executes_so_many_actions_of_a_plan() -> None:
    actions, plans = decisions(policy(always([0, 1, 2, 0, 1]), replan_every=3), 7)
    assert actions == [0, 1, 2, 0, 1, 2, 0]
    assert plans == [1, 1, 1, 2, 2, 2, 3]


def test_a_plan_that_is_used_up_is_replaced_at_once() -> None:
    actions, plans = decisions(policy(always([2, 0]), replan_every=8), 5)
    assert actions == [2, 0, 2, 0, 2]
    assert plans == [1, 1, 2, 2, 3]


def test_an_end_at_the_front_waits_one_step_and_plans_anew() -> None:
    actions, plans = decisions(policy(always([]), replan_every=8), 3)
    assert actions == [DONE] * 3
    assert plans == [1, 2, 3]


def test_open_loop_plans_once_and_then_does_nothing() -> None:
    planner = policy(always([2, 1]), replan_every=None)
    assert decisions(planner, 5) == ([2, 1, DONE, DONE, DONE], [1] * 5)
    state = planner.start(torch.tensor([0]))
    finished = []
    for _ in range(3):
        _, state = planner.decide(state, COND)
        finished.append(bool(planner.finished(state)))
    assert finished == [False, True, True]


def test_open_loop_without_an_end_token_executes_the_whole_canvas() -> None:
    plan = [0, 1, 2, 3] * (LENGTH // 4)
    actions, plans = decisions(policy(by_direction([plan] * 4), replan_every=None, end_id=None), LENGTH + 2)
    assert actions == [*plan, DONE, DONE]
    assert plans[-1] == 1


def test_forwards_are_counted() -> None:
    planner = policy(always([0, 1, 2]), replan_every=2, steps=5)
    state = planner.start(torch.arange(3))
    for _ in range(3):
        _, state = planner.decide(state, conditions([0, 1, 2]))
    assert state.num_forwards.tolist() == [10, 10, 10]


def replanned(warm_start: float, tasks: int = 1) -> tuple[torch.Tensor, int]:
    """Plans after a plan of ones was used for `horizon` actions and planning now answers with twos."""
    horizon = 8
    planner = policy(by_direction([[1] * LENGTH, [2] * LENGTH]), replan_every=horizon, warm_start=warm_start)
    state = planner.start(torch.arange(tasks))
    for _ in range(horizon):
        _, state = planner.decide(state, conditions([0] * tasks))
    _, state = planner.decide(state, conditions([1] * tasks))
    return state.plan, horizon


def test_a_full_warm_start_keeps_the_tail() -> None:
    plan, horizon = replanned(1.0)
    assert plan[0].tolist() == [1] * (LENGTH - horizon) + [2] * horizon


def test_without_a_warm_start_nothing_is_kept() -> None:
    assert replanned(0.0)[0].tolist() == [[2] * LENGTH]


def test_a_partial_warm_start_keeps_its_share() -> None:
    plan, horizon = replanned(0.25, tasks=200)
    kept = (plan == 1)[:, : LENGTH - horizon].double()
    assert float(kept.mean()) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / kept.numel()) ** 0.5)
    assert len({tuple(row) for row in plan.tolist()}) > 190  # every task has its own coins
    assert bool((plan[:, LENGTH - horizon :] == 2).all())


def test_a_warm_start_does_not_keep_a_plan_that_has_ended() -> None:
    ended, fresh = [0, END] + [1] * (LENGTH - 2), [2] * LENGTH
    planner = policy(by_direction([ended, fresh]), replan_every=4, warm_start=1.0)
    state = planner.start(torch.tensor([0]))
    _, state = planner.decide(state, conditions([0]))
    _, state = planner.decide(state, conditions([1]))
    assert state.plan[0].tolist() == fresh


@pytest.mark.parametrize("settings", [{}, {"replan_every": 3, "warm_start": 0.5}, {"replan_every": None}])
def test_a_row_is_what_it_is_alone(settings: dict[str, Any]) -> None:
    planner = policy(unsure(), steps=4, temperature=1.0, **settings)
    tasks, headings = torch.tensor([5, 0, 7, 1000003]), [0, 1, 2, 3]
    together = planner.start(tasks)
    alone = [planner.start(tasks[row : row + 1]) for row in range(4)]
    for step in range(6):
        turned = [(h + step) % 4 for h in headings]
        actions, together = planner.decide(together, conditions(turned))
        for row in range(4):
            action, alone[row] = planner.decide(alone[row], conditions(turned[row : row + 1]))
            assert int(action) == int(actions[row])
            assert torch.equal(alone[row].plan[0], together.plan[row])


def test_rows_at_different_steps_share_a_batch() -> None:
    planner = policy(unsure(), steps=4, temperature=1.0)
    first, second = planner.start(torch.tensor([1])), planner.start(torch.tensor([2]))
    _, first = planner.decide(first, conditions([0]))
    both = type(first)(
        *(torch.cat([getattr(first, n), getattr(second, n)]) for n in ("task", "step", "plan", "used")),
        *(torch.cat([getattr(first, n), getattr(second, n)]) for n in ("num_plans", "num_forwards")),
    )
    actions, both = planner.decide(both, conditions([0, 0]))
    _, first = planner.decide(first, conditions([0]))
    _, second = planner.decide(second, conditions([0]))
    assert torch.equal(both.plan, torch.cat([first.plan, second.plan]))


def test_draws_differ_between_tasks_and_steps_and_repeat_by_seed() -> None:
    planner = policy(unsure(), temperature=1.0)

    def plans(planner: PlanPolicy) -> set[tuple[int, ...]]:
        state, seen = planner.start(torch.arange(4)), set()
        for _ in range(4):
            _, state = planner.decide(state, conditions([0] * 4))
            seen |= {tuple(row) for row in state.plan.tolist()}
        return seen

    assert len(plans(planner)) == 16
    assert plans(planner) == plans(planner)
    assert not plans(planner) & plans(replace(planner, key=replace(planner.key, seed=1)))


def test_an_actor_counts_its_episodes() -> None:
    planner = policy(unsure(), steps=4, temperature=1.0)
    observation = {"image": np.zeros((19, 19, 3), dtype=np.uint8), "direction": 1, "mission": "reach the goal"}
    actor, expected = Actor(planner), []
    state = planner.start(torch.tensor([0]))
    for _ in range(5):
        action, state = planner.decide(state, conditions([1]))
        expected.append(int(action))
    assert [actor.act(observation) for _ in range(5)] == expected
    actor.reset()
    second = [actor.act(observation) for _ in range(5)]
    actor.reset(task=1)
    assert [actor.act(observation) for _ in range(5)] == second
    actor.reset(task=0)
    assert [actor.act(observation) for _ in range(5)] == expected


def test_an_actor_wants_a_full_observation() -> None:
    with pytest.raises(ValueError, match=r"lacks .'direction'.*FullyObsWrapper"):
        Actor(policy(always([]))).act({"image": np.zeros((19, 19, 3), dtype=np.uint8)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replan_every": 0}, "replan_every is 0"),
        ({"replan_every": LENGTH + 1}, "1 .* to 40"),
        ({"warm_start": 1.5}, "warm_start is 1.5"),
        ({"warm_start": 0.5, "replan_every": None}, "open loop"),
        ({"end_id": 4}, "end_id is 4"),
    ],
)
def test_what_a_policy_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy(always([]), **settings)


def test_a_grid_of_more_steps_makes_the_same_certain_plan() -> None:
    one, many = policy(always([0, 1, 2])), policy(always([0, 1, 2]))
    plans = [p.plan(COND, torch.tensor([0]))[0] for p in (one, replace(many, grid=EvenGrid(40)))]
    assert torch.equal(*plans)
