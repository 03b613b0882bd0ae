"""The table of searches: what it prints is what searching the tasks by hand gives."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

import onpath
from onpath.evaluation.search import planner_of, tasks_of
from onpath.records import RunFolder
from onpath.search.base import search
from onpath.search.baselines import BestOfN
from onpath.search.mctd import MCTD
from tiny import tiny_job, tiny_parts

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are no package

from benchmarks.search import table


def test_the_table_is_what_searching_by_hand_gives(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.trainer.fit(tiny_job(parts), RunFolder.create(tmp_path / "run", parts.config.as_dict()))
    arguments = argparse.Namespace(
        searches=["mctd", "best_of_n"], set=["search.leaves=2"], failed="none", tasks=40, budgets=[4, 40], load=[]
    )
    rows = {(row["case"], row["metric"]): row for row in table([tmp_path / "run"], arguments)}

    subject = onpath.load(tmp_path / "run").subject
    tasks = tasks_of(subject, 40)
    planner = planner_of(subject, tasks)
    found = {name: search(method, planner, 40) for name, method in (("mctd", MCTD(leaves=2)), ("best_of_n", BestOfN()))}
    for budget in (4, 40):
        solved = {
            name: [bool((best := one.at(budget)) and best.solved) for one in every] for name, every in found.items()
        }
        ours, theirs = (sum(one) / 40 for one in solved.values())
        row = rows[f"run, mctd@{budget}", "success"]
        assert (row["value"], row["baseline"], row["n"]) == pytest.approx((ours, theirs, 40))
        more = rows[f"all, mctd@{budget}", "more than best_of_n"]
        assert more["value"] == pytest.approx(ours - theirs)
        assert rows[f"all, best_of_n@{budget}", "more than best_of_n"]["value"] == 0
    assert rows["run, mctd@40", "success"]["value"] > 0
