"""Plans are rewarded as the episodes of the evaluation go, and as the expert's search says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onpath.data.source import ActionSource
from onpath.data.trajectories import FourRoomsExpert, TrajectoryFile
from onpath.data.trajectory_files import save
from onpath.envs import gridworld
from onpath.evaluation.arenas import Simulation
from onpath.rewards.plans import PlanProgress, PlanSuccess
from onpath.rng import Key, integers

IDS = torch.arange(200)
SOURCE = FourRoomsExpert()


def plans_of(source: ActionSource, ids: torch.Tensor) -> list[list[int]]:
    """The examples' plans, without what stands behind them."""
    return [plan[: [*plan, source.end_id].index(source.end_id)] for plan in source.examples(ids).x.tolist()]


def reward(plans: list[list[int]], columns: Any, **fields: float) -> list[float | None]:
    given = {"prompts": [""] * len(plans), "completions": [""] * len(plans), "completion_ids": plans}
    return PlanSuccess(**fields)(**given, **columns)


def test_the_expert_arrives_with_its_last_action() -> None:
    plans, columns = plans_of(SOURCE, IDS), SOURCE.columns(IDS)
    assert reward(plans, columns, per_step=0.1) == [1.0] * 200
    assert reward([plan[:-1] for plan in plans], columns) == [0.0] * 200
    assert reward([[] for _ in plans], columns) == [0.0] * 200
    # the episode is over at the goal
    assert reward([[*plan, 2, 2, 0, 2] for plan in plans], columns, per_step=0.1) == [1.0] * 200


def test_a_longer_way_is_worth_less() -> None:
    plans, columns = plans_of(SOURCE, IDS), SOURCE.columns(IDS)
    for detour, more in (([0, 1], 2), ([0] * 4, 4), ([6], 1), ([3, 0, 1, 5], 4)):
        late = [[*detour, *plan] for plan in plans]
        assert reward(late, columns) == [1.0] * 200
        assert reward(late, columns, per_step=0.1) == pytest.approx([1 - 0.1 * more] * 200, abs=1e-12)
        assert reward(late, columns, per_step=2.0) == [0.0] * 200


def test_any_plan_fares_as_in_an_episode() -> None:
    """Plans of the expert in which some actions are others, acted out one by one in the arena of the evaluation."""
    ids = torch.arange(2000)
    worlds, agents, plans = FourRoomsExpert(suffixes=False, num_actions=7).demonstrations(ids)
    drawn = integers(Key(3, "mutants"), ids, (40, 2), 40)
    actions = torch.where(drawn[..., 0] < 2, drawn[..., 1] % 7, plans.actions)
    lengths = (actions != 7).long().cumprod(1).sum(1)
    arena, reached = Simulation(worlds, agents, 100), torch.zeros(2000, dtype=torch.bool)
    for t in range(40):
        going = (~reached & (t < lengths)).nonzero()[:, 0]
        if len(going):
            reached[going] = arena.act(going, actions[going, t]).reached
    completions = [row[:size] for row, size in zip(actions.tolist(), lengths.tolist(), strict=True)]
    columns = {"task": list(gridworld.observe(worlds, agents))}
    assert reward(completions, columns) == reached.double().tolist()
    assert 0.2 < reached.float().mean() < 0.8


@pytest.mark.parametrize(
    "source", [SOURCE, FourRoomsExpert(episodes=50, rotate=True), FourRoomsExpert(padding="zero", length=36)]
)
def test_a_task_is_what_the_network_is_shown(source: FourRoomsExpert) -> None:
    ids = torch.tensor([7, 3, 7, 7, 900])
    batch, columns = source.prompts(ids), source.columns(ids)
    assert torch.equal(torch.stack(list(columns["task"])), batch.cond["image"])
    assert batch.padding is None and batch.free_counts().tolist() == [source.length] * 5
    assert set(columns) == {"task"} and reward(plans_of(source, ids), columns) == [1.0] * 5


def test_demonstrations_of_a_file_are_tasks_too(tmp_path: Any) -> None:
    save(tmp_path / "plans.npz", FourRoomsExpert().record(torch.arange(60)))
    source = TrajectoryFile(str(tmp_path / "plans.npz"), validation_share=0, rotate=True, reflect=True, suffixes=True)
    assert reward(plans_of(source, IDS), source.columns(IDS), per_step=0.5) == [1.0] * 200


def progress(plans: list[list[int]], columns: Any) -> list[float | None]:
    given = {"prompts": [""] * len(plans), "completions": [""] * len(plans), "completion_ids": plans}
    return PlanProgress()(**given, **columns)


def test_progress_is_the_share_of_the_experts_way() -> None:
    """Each action of a shortest plan brings the agent one nearer; to wait takes nothing off."""
    source = FourRoomsExpert(suffixes=False)
    plans, columns = plans_of(source, IDS), source.columns(IDS)
    for share in (0.0, 0.3, 1.0):
        done = [round(share * len(plan)) for plan in plans]
        cut = [plan[:size] for plan, size in zip(plans, done, strict=True)]
        wanted = pytest.approx([size / len(plan) for size, plan in zip(done, plans, strict=True)], abs=1e-12)
        assert progress(cut, columns) == wanted
        assert progress([[*plan, 6, 5, 3] for plan in cut], columns) == wanted
    assert progress([[*plan, 2, 2, 0, 2] for plan in plans], columns) == [1.0] * 200


def test_who_arrives_has_made_all_the_progress() -> None:
    source = FourRoomsExpert(suffixes=False)
    plans = [row.tolist() for row in integers(Key(1, "plans"), torch.arange(400), (30,), 3)]
    columns = {"task": source.columns(torch.arange(400) // 2)["task"]}
    share, arrived = progress(plans, columns), reward(plans, columns)
    assert [value == 1.0 for value in share] == [value == 1.0 for value in arrived]
    assert 0 < sum(arrived) < 100 and all(0 <= value <= 1 for value in share)  # type: ignore[arg-type,operator]
    at_goal = columns["task"][0].clone()
    at_goal[at_goal[..., 0] == 8] = torch.tensor([1, 0, 0], dtype=torch.uint8)
    assert progress([[0], []], {"task": [at_goal, at_goal]}) == [1.0, 1.0]


def test_what_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="plan_success: per_step is -1; a finite number, 0 or more"):
        PlanSuccess(per_step=-1)
    (task,) = SOURCE.columns(torch.arange(1))["task"]
    with pytest.raises(ValueError, match=r"plan_success: the column `task` holds images of the shapes"):
        reward([[0], [0]], {"task": [task, task[:18]]})
    with pytest.raises(ValueError, match="read: image 0 holds not exactly one agent"):
        reward([[0]], {"task": [torch.ones(5, 5, 3, dtype=torch.uint8)]})
    assert reward([], {"task": []}) == []
    assert reward([[2]], {"task": [task.tolist()]}) in ([0.0], [1.0])
