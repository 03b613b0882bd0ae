"""The section on searches: curves of what they solve, and trees that grow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, chromium
from folders import MAZE, PLAN, data_of, made, measured

from onpath.records import Trace
from onpath.reports import contents, page

NODES = [
    {"born": 0, "parent": None, "depth": 0, "value": 0.9, "visits": 6, "cell": [1, 1]},
    {"born": 2, "parent": 0, "depth": 1, "value": 0.3, "visits": 2, "cell": [2, 1]},
    {"born": 4, "parent": 0, "depth": 1, "value": 0.9, "visits": 3, "cell": [1, 2]},
    {"born": 6, "parent": 2, "depth": 2, "value": 0.9, "visits": 1, "cell": [1, 3]},
]
FOUND = [
    {"forwards": 1, "value": 0.3, "solved": False, "cost": 2, "plan": "F F", "cells": [[1, 1], [2, 1], [3, 1]]},
    {"forwards": 6, "value": 0.9, "solved": True, "cost": 6, "plan": "R F F", "cells": [[1, 1], [1, 2], [1, 3]]},
]
TREE = Trace(
    kind="search",
    set="test, failed open@2",
    mode="mctd@8",
    task=3,
    length=4,
    maze=MAZE,
    goal=[3, 3],
    poses=([1, 1, 0],),
    reached=True,
    shortest=5,
    step=3,
    search={"spent": 8, "nodes": NODES, "found": FOUND},
)


def searched(path: Path, *traces: Trace) -> Path:
    folder = made(path)
    rows = [
        measured(set="test, failed open@2", mode=f"{name}@{budget}", search=name, budget=budget, value=value)
        for name, values in (("mctd", (0.5, 0.9)), ("best_of_n", (0.25, 0.5)))
        for budget, value in zip((2, 8), values, strict=True)
    ]
    folder.write_evaluation([*folder.evaluation(), *rows])
    folder.write_traces([PLAN, *traces])
    page.write([path], path / "report.html")
    return path


def test_the_page_holds_curves_and_trees(tmp_path: Path) -> None:
    path = searched(tmp_path / "run", TREE)
    html = (path / "report.html").read_text()
    assert 'id="search-charts"' in html and 'id="search-player"' in html and 'href="#searches"' in html
    (run,) = data_of(path / "report.html")["runs"]
    assert [trace["search"]["nodes"] for trace in run["traces"] if trace["kind"] == "search"] == [NODES]
    made(tmp_path / "plain")
    page.write([tmp_path / "plain"], tmp_path / "plain.html")
    assert 'id="search' not in (tmp_path / "plain.html").read_text()


@pytest.mark.parametrize(
    "search",
    [
        None,
        {"spent": 8, "nodes": [], "found": []},
        {"spent": 8, "nodes": [{**NODES[0], "parent": 0}], "found": []},
        {"spent": 8, "nodes": [NODES[0], {**NODES[1], "parent": 1}], "found": []},
        {"spent": "many", "nodes": NODES, "found": []},
        {"spent": 8, "nodes": [{**NODES[0], "value": None}], "found": []},
    ],
)
def test_a_tree_that_cannot_be_drawn_is_left_out(tmp_path: Path, search: Any) -> None:
    path = searched(tmp_path / "run", replace(TREE, search=search))
    assert not any(trace["kind"] == "search" for trace in contents.read(path, "run").traces)
    assert 'id="search-player"' not in (path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_tree_grows(tmp_path: Path) -> None:
    path = searched(tmp_path / "run", TREE)
    with chromium(tmp_path / "profile") as tab:
        shown = "[...document.querySelectorAll('.tree .node')].filter((o) => o.getAttribute('visibility') !== 'hidden')"
        tab.open((path / "report.html").as_uri())
        assert tab.run(f"{shown}.length") == 4
        said = tab.run("document.querySelector('#search-player .status').textContent")
        assert "8 of 8 forwards, 4 nodes: solved in 6 actions; the shortest way takes 5." in said
        tab.run("document.querySelector('#search-player [aria-label=\"To the beginning\"]').click()")
        assert tab.run(f"{shown}.length") == 1
        assert "no plan yet" in tab.run("document.querySelector('#search-player .status').textContent")
        for _ in range(2):
            tab.run("document.querySelector('#search-player [aria-label=\"One step forward\"]').click()")
        assert tab.run(f"{shown}.length") == 2
        assert "solves nothing" in tab.run("document.querySelector('#search-player .status').textContent")
        assert tab.run("document.querySelectorAll('#search-charts .chart path.s').length") == 2
