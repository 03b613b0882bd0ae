"""Searches over tasks of a run: rows with intervals, budgets, and the same outcome in the real environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from onpath import rng
from onpath.data.sudoku import Sudoku
from onpath.data.trajectories import FourRoomsExpert
from onpath.envs import fourrooms, minigrid
from onpath.evaluation.envs import Mode
from onpath.evaluation.search import METHODS, measure, paired, planner_of, tasks_of, written
from onpath.evaluation.settings import Subject
from onpath.models.policy import PlanMLP
from onpath.models.transformer import TokenTransformer
from onpath.processes.masking import Masking
from onpath.reports import search_picture
from onpath.sampling.grids import EvenGrid
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.search.base import search
from onpath.search.baselines import BestOfN, Remask
from onpath.search.evaluators import Likelihood
from onpath.search.mctd import MCTD
from onpath.search.planner import Meta
from onpath.search.tree import UCT, every_node
from onpath.searches import named


def subject(source: Any, network: type, **settings: Any) -> Subject:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = network(source.spec(), **settings).eval()
        for weight in denoiser.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    process = Masking(LinearSchedule(), source.spec().mask_id)
    return Subject(denoiser, process, Unmasking(), EvenGrid(4), source, source.spec())


@pytest.fixture(scope="module")
def policy() -> Subject:
    """Mostly forward, and seldom at an end."""
    made = subject(FourRoomsExpert(), PlanMLP, width=16, hidden=16, depth=1)
    with torch.no_grad():
        made.denoiser.head.bias.copy_(torch.tensor([0.0, 0.0, 1.2, -4.0]).repeat(40))  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def solver() -> Subject:
    return subject(Sudoku(), TokenTransformer, width=16, num_heads=2, depth=1)


def test_rows_tell_success_path_and_forwards_at_every_budget(policy: Subject) -> None:
    rows, _ = measure(policy, named(["mctd", "best_of_n", "beam"]), [8, 24], 20)
    modes = [f"{name}@{budget}" for name in ("mctd", "best_of_n", "beam") for budget in (8, 24)]
    assert [row["mode"] for row in rows] == [mode for mode in modes for _ in range(3)]
    by = {(row["mode"], row["metric"]): row for row in rows}
    for mode in modes:
        budget = int(mode.split("@")[1])
        assert by[mode, "forwards"]["value"] <= budget and by[mode, "success"]["n"] == 20
        assert 0 <= by[mode, "spl"]["value"] <= by[mode, "success"]["value"] <= 1
    assert by["mctd@24", "success"]["value"] >= by["mctd@8", "success"]["value"]


def test_tasks_that_fail_are_those_that_the_policy_fails(policy: Subject) -> None:
    tasks = tasks_of(policy, 10, failed=Mode(None, 4))
    assert tasks.set is not None and tasks.set.size == tasks.problem.size == 10
    (row, *_), _ = measure(policy, named(["greedy"]), [10], 10, failed=Mode(None, 4))
    assert row["set"] == "test, failed open@4"


def test_plans_that_are_found_reach_the_goal_in_the_real_environment(policy: Subject) -> None:
    pytest.importorskip("minigrid")
    tasks = tasks_of(policy, 40)
    assert tasks.set is not None
    found = search(METHODS["mcts"], planner_of(policy, tasks), 60)
    best = [progress.best for progress in found]
    plans = torch.full((40, fourrooms.MAX_STEPS), 6)
    for row, one in enumerate(best):
        assert one is not None
        plans[row, : len(one.plan)] = torch.tensor(one.plan[: fourrooms.MAX_STEPS])
    lengths = torch.tensor([min(len(one.plan), fourrooms.MAX_STEPS) for one in best if one])
    replayed = minigrid.replay(tasks.set.worlds, tasks.set.agents, plans, lengths)
    assert replayed.reached.tolist() == [one.solved for one in best if one]
    assert 3 < int(replayed.reached.sum()) < 40
    solved = replayed.reached
    assert replayed.num_steps[solved].tolist() == [one.cost for one in best if one and one.solved]


def test_pairs_of_searches_are_compared_task_by_task(policy: Subject) -> None:
    tasks = tasks_of(policy, 30)
    one, other = (search(METHODS[name], planner_of(policy, tasks), 24) for name in ("mcts", "greedy"))
    value, interval = paired(one, other, 24)
    shares = [sum(bool(p.best and p.best.solved) for p in found) / 30 for found in (one, other)]
    assert value == pytest.approx(shares[0] - shares[1])
    assert interval is not None and interval[0] <= value <= interval[1]
    assert paired(one, one, 24)[0] == 0


def test_puzzles_are_searched_too(solver: Subject) -> None:
    rows, _ = measure(solver, named(["mctd", "mcts"]), [40], 8)
    assert {row["metric"] for row in rows} == {"success", "forwards"}
    tasks = tasks_of(solver, 8)
    found = search(METHODS["mctd"], planner_of(solver, tasks), 40)
    told = written(solver, found[0], tasks)
    assert len(told["plan"]) == 16 and told["shortest"] is None and told["forwards"] <= 40
    with pytest.raises(ValueError, match="puzzles have no modes"):
        tasks_of(solver, 8, failed=Mode())


def test_a_picture_shows_tree_and_plan(policy: Subject, solver: Subject, tmp_path: Path) -> None:
    for one in (policy, solver):
        tasks = tasks_of(one, 2)
        found = search(METHODS["mctd"], planner_of(one, tasks), 30)
        search_picture.write(found[0], tasks.problem, tmp_path / "tree.png")
        assert (tmp_path / "tree.png").read_bytes()[:4] == b"\x89PNG"
        nodes = every_node(found[0].root) if found[0].root else []
        assert len({id(node) for node, _, _ in nodes}) == len(nodes) > 1
    with pytest.raises(ValueError, match="grows no tree"):
        greedy = search(METHODS["greedy"], planner_of(policy, tasks_of(policy, 1)), 10)
        search_picture.write(greedy[0], tasks.problem, tmp_path / "none.png")
    with pytest.raises(ValueError, match="cannot be written"):
        search_picture.write(found[0], tasks.problem, tmp_path / "tree.doc")


def test_searches_are_named_and_set() -> None:
    assert named(list(METHODS)) == dict(METHODS)
    found = named(["mctd", "best_of_n"], ["search.leaves=3", "search.uct.backup=mean", "search.evaluator=likelihood"])
    assert found["mctd"] == MCTD(leaves=3, uct=UCT(backup="mean"), evaluator=Likelihood())
    assert found["best_of_n"] == BestOfN(leaves=3, evaluator=Likelihood())
    (metas,) = named(["remask"], ["search.metas=[{temperature: 0.5, steps: 2}, {guidance: 1.0}]"]).values()
    assert metas == Remask(metas=(Meta(temperature=0.5, steps=2), Meta(guidance=1.0)))


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["mtcd"], [], "'mtcd' is not one; allowed are mctd, tokens"),
        (["mctd"], ["search.lefves=3"], "did you mean leaves"),
        (["mctd", "greedy"], ["search.lefves=3"], "none of mctd, greedy has the setting lefves"),
        (["mctd"], ["search.metas=[{temperature: warm}]"], r"search.metas.0.temperature is 'warm'"),
        (["mctd"], ["search.metas=3"], "give a list of mappings of guidance, temperature"),
        (["mctd"], ["search.segment=0"], "segment is 0"),
    ],
)
def test_a_search_or_setting_that_there_is_not_is_refused(names: list[str], settings: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        named(names, settings)


def test_the_key_of_a_search_is_that_of_the_run(policy: Subject) -> None:
    assert planner_of(policy, tasks_of(policy, 1)).key == rng.Key(0, "search")
