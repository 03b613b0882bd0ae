from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from planners import END, always, policy, shortest, unsure

from onpath.codes import DONE
from onpath.envs import fourrooms, minigrid
from onpath.evaluation.arenas import LONG, TaskSet, task_set
from onpath.evaluation.envs import Episodes, Mode, agreement, episodes, evaluate, latency, summarise
from onpath.evaluation.policy import Actor
from onpath.sampling.grids import ExplicitGrid, UniformGrid


def values(rows: list[dict], mode: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["mode"] == mode}


def same(one: Episodes, other: Episodes) -> None:
    for f in fields(Episodes):
        assert torch.equal(getattr(one, f.name), getattr(other, f.name)), f.name


def test_the_exact_expert_scores_one_everywhere_in_the_simulator() -> None:
    tasks = task_set("test", 200)
    modes = [Mode.parse(name) for name in ("open@1", "open@3", "closed@1", "horizon8@2", "horizon4@2+warm0.5")]
    rows = evaluate(policy(shortest()), tasks, modes)
    for mode in modes:
        found = values(rows, mode.name)
        assert (found["success"], found["spl"], found["optimal"], found["bumps"]) == (1.0, 1.0, 1.0, 0.0)
        assert found["return"] == pytest.approx(1 - 0.9 * float(tasks.shortest.double().mean()) / 100)
        assert found["forwards_per_decision"] == mode.steps
    assert values(rows, "open@3")["forwards_per_episode"] == 3
    mean = float(tasks.shortest.double().mean())
    assert values(rows, "closed@1")["forwards_per_episode"] == pytest.approx(mean)
    plans = (tasks.shortest + 7) // 8
    assert values(rows, "horizon8@2")["forwards_per_episode"] == pytest.approx(2 * float(plans.double().mean()))


@pytest.mark.parametrize("mode", ["open@1/minigrid", "closed@1/minigrid", "horizon8@1/minigrid"])
def test_the_exact_expert_scores_one_in_the_real_environment(mode: str) -> None:
    tasks = task_set("long", 8)
    found = values(evaluate(policy(shortest()), tasks, [Mode.parse(mode)]), mode)
    assert (found["success"], found["spl"], found["optimal"], found["bumps"]) == (1.0, 1.0, 1.0, 0.0)
    assert found["return"] == pytest.approx(float(fourrooms.reward(tasks.shortest).mean()))


@pytest.mark.parametrize("replan_every", [1, 5, None])
def test_simulator_and_real_environment_agree_episode_by_episode(replan_every: int | None) -> None:
    tasks = task_set("test", 6)
    wanderer = policy(unsure(), temperature=1.0, replan_every=replan_every)
    simulated, real = (episodes(wanderer, tasks, real=real) for real in (False, True))
    same(simulated, real)
    assert int(simulated.bumps.sum()) > 0
    row = agreement(simulated, tasks, "wander")
    assert (row["metric"], row["value"], row["n"]) == ("agreement", 1.0, 6)


def test_agreement_sees_a_difference() -> None:
    tasks = task_set("test", 4)
    outcome = episodes(policy(shortest()), tasks)
    shifted = TaskSet("test", tasks.worlds.rows(torch.tensor([1, 0, 2, 3])), tasks.agents, tasks.ids, tasks.shortest)
    assert agreement(outcome, shifted, "closed")["value"] <= 0.75


def test_a_policy_that_always_bumps() -> None:
    tasks = task_set("train", 50)
    outcome = episodes(policy(always([2] * 40)), tasks)
    for row in range(50):
        x, y = tasks.agents.position[row].tolist()
        dx, dy = [(1, 0), (0, 1), (-1, 0), (0, -1)][int(tasks.agents.direction[row])]
        bumps, reached = 0, False
        for _ in range(100):
            if tasks.worlds.walls[row, x + dx, y + dy]:
                bumps += 1
                continue
            x, y = x + dx, y + dy
            if [x, y] == tasks.worlds.goal[row].tolist():
                reached = True
                break
        assert (int(outcome.bumps[row]), bool(outcome.reached[row])) == (bumps, reached)
        assert reached or int(outcome.num_steps[row]) == 100
    assert 0 < int(outcome.reached.sum()) < 50


def test_waiting_is_counted_and_costs_a_plan_each() -> None:
    outcome = episodes(policy(always([])), task_set("test", 3))
    assert outcome.num_steps.tolist() == [100] * 3
    assert outcome.num_plans.tolist() == [100] * 3
    assert bool((outcome.actions == DONE).all())
    once = episodes(policy(always([]), replan_every=None), task_set("test", 3))
    assert once.num_steps.tolist() == [1] * 3


def test_episodes_do_not_depend_on_the_chunk() -> None:
    tasks, wanderer = task_set("test", 10), policy(unsure(), temperature=1.0, replan_every=4, warm_start=0.5)
    same(episodes(wanderer, tasks), episodes(wanderer, tasks, chunk=4))


def test_acting_in_a_gymnasium_environment_equals_the_batched_evaluation() -> None:
    tasks = task_set("test", 3)
    wanderer = policy(unsure(), temperature=1.0, replan_every=3, warm_start=0.5)
    batched, actor = episodes(wanderer, tasks), Actor(wanderer)
    for row in range(3):
        env, observation = minigrid.make(tasks.worlds, tasks.agents, row)
        actor.reset(task=int(tasks.ids[row]))
        taken, over = [], False
        while not over:
            taken.append(actor.act(observation))
            observation, _, terminated, truncated, _ = env.step(taken[-1])
            over = terminated or truncated
        assert taken == batched.actions[row, : len(taken)].tolist()
        assert len(taken) == int(batched.num_steps[row])
        assert terminated == bool(batched.reached[row])


def test_task_sets_are_fixed_and_are_what_they_say() -> None:
    held_out, train, long = (task_set(name, 300) for name in ("test", "train", "long"))
    layouts = {name: set(fourrooms.layouts(name).tolist()) for name in ("test", "train")}
    assert set(fourrooms.layout_of(held_out.worlds.walls).tolist()) <= layouts["test"]
    assert set(fourrooms.layout_of(train.worlds.walls).tolist()) <= layouts["train"]
    assert set(fourrooms.layout_of(long.worlds.walls).tolist()) <= layouts["test"]
    assert int(long.shortest.min()) >= LONG
    assert float(held_out.shortest.double().mean()) == pytest.approx(16.13, abs=1.5)
    assert torch.equal(task_set("long", 40).worlds.goal, long.worlds.goal[:40])
    assert torch.equal(task_set("long", 40).ids, long.ids[:40])
    assert not torch.equal(task_set("test", 300, seed=1).worlds.goal, held_out.worlds.goal)
    assert int(task_set("test", 2100).ids.max()) == 2099


def test_summary_by_hand() -> None:
    outcome = Episodes(
        actions=torch.full((4, 100), -1),
        num_steps=torch.tensor([10, 20, 40, 100]),
        reached=torch.tensor([True, True, True, False]),
        returns=torch.tensor([0.91, 0.82, 0.64, 0.0], dtype=torch.float64),
        bumps=torch.tensor([0, 0, 2, 10]),
        num_plans=torch.tensor([1, 2, 4, 10]),
        num_forwards=torch.tensor([10, 20, 40, 100]),
        shortest=torch.tensor([10, 10, 10, 10]),
    )
    rows = {row["metric"]: row for row in summarise(outcome, "test", "closed@10")}
    assert set(rows["success"]) == {"set", "mode", "metric", "value", "ci95", "n"}
    assert rows["success"]["value"] == 0.75
    assert rows["success"]["ci95"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
    assert rows["optimal"]["value"] == 0.25
    assert rows["spl"]["value"] == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
    assert rows["return"]["value"] == pytest.approx(0.5925)
    assert rows["bumps"]["value"] == 3
    assert rows["forwards_per_episode"]["value"] == 42.5
    assert rows["forwards_per_decision"]["value"] == 10
    assert all(row["n"] == 4 for row in rows.values())


@pytest.mark.parametrize(
    "name", ["open@40", "closed@10", "horizon8@10", "horizon8@10+warm0.5/minigrid", "open@1/minigrid"]
)
def test_mode_names_round_trip(name: str) -> None:
    assert Mode.parse(name).name == name


@pytest.mark.parametrize("name", ["closed", "open@0", "horizon@10", "closed@10/gym", "shut@1", "horizon8@1+warm."])
def test_other_mode_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="write open@40"):
        Mode.parse(name)


def test_a_mode_needs_a_grid_with_steps() -> None:
    fixed = replace(policy(always([])), grid=ExplicitGrid((1.0, 0.0)))
    with pytest.raises(ValueError, match="ExplicitGrid has a fixed number of steps"):
        Mode.parse("open@4").of(fixed)
    assert Mode.parse("open@4").of(replace(fixed, grid=UniformGrid(9))).grid == UniformGrid(4)


def test_latency_rows() -> None:
    rows = latency(policy(always([2] * 3 + [END])), task_set("test", 5), Mode(steps=4), batch_sizes=(1, 8), repeats=3)
    by_metric = {row["metric"]: row["value"] for row in rows}
    assert set(by_metric) == {
        f"ms_per_{what}_batch{size}_p{q}" for what in ("decision", "forward") for size in (1, 8) for q in (50, 95)
    }
    assert by_metric["ms_per_decision_batch1_p50"] == pytest.approx(4 * by_metric["ms_per_forward_batch1_p50"])
    assert all(row["n"] == 8 and row["ci95"] is None for row in rows)


def test_an_unknown_task_set_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are train, test, long"):
        task_set("valid", 3)
