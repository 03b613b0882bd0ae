"""Policies on random mazes: sets of tasks of any side, the same modes, and the real MiniGrid with their walls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import planners
import pytest
import torch
from planners import certain, policy, unsure

from onpath.data.mazes import MazeExpert
from onpath.envs import expert, fourrooms, gridworld, mazes
from onpath.envs.splits import belongs
from onpath.envs.symmetry import orbit
from onpath.evaluation.arenas import TaskSet, task_set
from onpath.evaluation.envs import Mode, agreement, episodes, evaluate
from onpath.evaluation.plans import PlanEvaluation, tasks_like
from onpath.models.policy import PlanTransformer
from onpath.records import RunFolder
from onpath.rng import Key
from onpath.runs import load
from tiny import tiny_parts


def expert_policy() -> planners.PlanPolicy:
    """The exact expert in any maze, from the image; what the canvas does not hold it leaves to the next plan."""

    def logits(image: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        worlds, agents = gridworld.read(image)
        field = expert.solve(worlds)
        actions = expert.demonstrate(field, agents, length=max(field.bound, 40), end_id=planners.END).actions
        return certain(actions[:, : planners.LENGTH])

    return policy(planners.Table(logits))


def values(rows: list[dict], mode: str) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in rows if row["mode"] == mode}


@pytest.mark.parametrize(("side", "braid", "again"), [(9, 0.5, "closed@1"), (25, 0.0, "horizon30@1")])
def test_the_exact_expert_solves_mazes_of_any_side(side: int, braid: float, again: str) -> None:
    tasks = task_set("mazes", 24, side=side, braid=braid)
    limit = side * side
    rows = evaluate(expert_policy(), tasks, [Mode.parse(name) for name in ("open@1", again)], replay=True)
    found = values(rows, again)
    assert (found["success"], found["spl"], found["optimal"], found["agreement"]) == (1.0, 1.0, 1.0, 1.0)
    assert found["return"] == pytest.approx(1 - 0.9 * float(tasks.shortest.double().mean()) / limit)
    fits = float((tasks.shortest <= planners.LENGTH).double().mean())
    assert values(rows, "open@1")["success"] == pytest.approx(fits)
    assert side == 9 or fits < 0.8


def test_simulator_and_real_mazes_agree_episode_by_episode() -> None:
    tasks = task_set("test", 6, side=7)
    wanderer = policy(unsure(), temperature=1.0, replan_every=5)
    simulated, real = (episodes(wanderer, tasks, real=real) for real in (False, True))
    for name in ("actions", "num_steps", "reached", "returns", "bumps"):
        assert torch.equal(getattr(simulated, name), getattr(real, name)), name
    assert int(simulated.num_steps.max()) == 49 or simulated.reached.all()
    assert agreement(simulated, tasks, "wander")["value"] == 1.0


def test_sets_of_mazes_are_what_they_say() -> None:
    train, test, long = (task_set(name, 300, side=11) for name in ("train", "test", "long"))
    split = Key(purpose="mazes/split")
    for tasks, name in ((train, "train"), (test, "test"), (long, "test")):
        assert tasks.worlds.walls.shape == (300, 11, 11) and tasks.limit == mazes.max_steps(11) == 121
        assert belongs(name, orbit(tasks.worlds.walls.long(), split), split).all()
        assert torch.equal(expert.distance(expert.solve(tasks.worlds), tasks.agents), tasks.shortest)
    assert int(long.shortest.min()) >= 16 > int(test.shortest.min())
    assert torch.equal(task_set("test", 40, side=11).worlds.goal, test.worlds.goal[:40])
    assert torch.equal(task_set("mazes", 40, side=11).worlds.goal, test.worlds.goal[:40])
    assert task_set("mazes", 2).worlds.walls.shape == (2, 19, 19)
    assert task_set("test", 2).limit == fourrooms.MAX_STEPS


def test_the_tasks_of_a_run_are_mazes_like_its_own() -> None:
    source = MazeExpert(side=9, braid=1.0)
    tasks = tasks_like(source, "test", 20)
    assert torch.equal(tasks.worlds.walls, task_set("test", 20, side=9, braid=1.0).worlds.walls)


@pytest.mark.slow
def test_a_run_on_mazes_is_evaluated_on_mazes(tmp_path: Path) -> None:
    parts = tiny_parts("data={kind: mazes, side: 9, starts_per_goal: 4}", "grid={kind: even, steps: 1}")
    assert parts.source.spec().length == 24
    parts.trainer.fit(parts.job(), RunFolder.create(tmp_path, parts.config.as_dict()))
    run = load(tmp_path, device="cpu")
    simulated, real = "horizon20@1", "horizon20@1/minigrid"
    sets = ("test", "long")
    settings = PlanEvaluation(sets=sets, num_tasks=3, modes=(simulated, real), latency=False, replay=True, drift=None)
    rows = run.evaluate(settings)
    assert {row["set"] for row in rows} == set(sets)
    for name in sets:
        found = [row for row in rows if row["set"] == name]
        assert values(found, simulated)["success"] == values(found, real)["success"]
        assert values(found, simulated)["return"] == pytest.approx(values(found, real)["return"])
        assert values(found, simulated)["agreement"] == 1.0
    assert len(run.traces(1)[0].maze) == 9


def test_a_network_for_any_size_plans_on_another_side() -> None:
    network = PlanTransformer(planners.SPEC, width=16, num_heads=2, depth=1, convs=0).eval()
    small = replace(policy(unsure()), denoiser=network)
    tasks: TaskSet = task_set("mazes", side=25, braid=0.5, num_tasks=3)
    (row, *_) = evaluate(small, tasks, [Mode.parse("open@2")])
    assert (row["set"], row["metric"], row["n"]) == ("mazes", "success", 3)
