"""Completions of policy optimisation in a report: which are shown, and what is told of each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from folders import NASTY, data_of, made_of_text

from onpath.records import RunFolder
from onpath.reports import completions, contents, page
from policies import policy_config

GIVENS, SOLUTION = "12..3..4......21", "1234341221434321"


def grid(step: int, group: int, reward: float, canvas: str = SOLUTION) -> dict[str, Any]:
    steps = [-1 if clue != "." else place % 3 for place, clue in enumerate(GIVENS)]
    return {
        "step": step,
        "prompt": GIVENS.replace(".", "▒"),
        "completion": "".join(cell for cell, clue in zip(canvas, GIVENS, strict=True) if clue == "."),
        "group": group,
        "reward": reward,
        "rewards": {"sudoku_cells": reward, "sudoku_solved": float(canvas == SOLUTION)},
        "advantage": reward - 0.5,
        "columns": {"givens": GIVENS, "solution": SOLUTION},
        "line": 4,
        "tokens": [int(cell) - 1 for cell in canvas],
        "words": list(canvas),
        "revealed_at": steps,
        "log_prob": [0.0 if step < 0 else math.log(0.25) for step in steps],
    }


WRONG = SOLUTION[:2] + "4" + SOLUTION[3:]


def test_the_first_and_the_latest_are_shown() -> None:
    rows = [grid(step, group, 1.0) for step in range(1, 40) for group in (0, 0, 1, 1, 2, 2)]
    shown = completions.some(rows)
    assert [row["step"] for row in shown] == [39] * 6 + [38] * 6 + [1] * 4


def test_of_long_ones_fewer_are_shown() -> None:
    rows = [{**grid(step, 0, 1.0), "words": ["x" * 90_000] * 16} for step in (1, 2)] + [grid(3, 0, 1.0)]
    assert [row["step"] for row in completions.some(rows)] == [3]
    assert len(json.dumps(completions.some([grid(1, 0, 1.0)] * 10_000))) < 200_000


def test_a_grid_tells_what_is_given_and_what_is_wrong() -> None:
    (row,) = completions.table([grid(3, 0, 0.5, WRONG)])["rows"]
    kinds = [cell["kind"] for line in row["cells"] for cell in line]
    expected = ["given" if clue != "." else "right" for clue in GIVENS]
    expected[2] = "wrong"
    assert kinds == expected and len(row["cells"]) == 4
    assert "".join(cell["word"] for line in row["cells"] for cell in line) == WRONG


def test_another_solution_is_not_wrong() -> None:
    one = grid(3, 0, 1.0, WRONG)
    one["rewards"]["sudoku_solved"] = 1.0
    assert completions.traces([one])[0]["wrong"] == []


def test_traces_are_of_the_last_step() -> None:
    rows = [grid(3, 7, 1.0), grid(3, 7, 0.5, WRONG), grid(3, 8, 0.25, WRONG), grid(1, 0, 1.0)]
    made = completions.traces(rows)
    assert [(one["task"], one["mode"], one["wrong"]) for one in made] == [
        (7, "best", []),
        (7, "worst", [2]),
        (8, "best", [2]),
    ]
    events = made[0]["generations"][0]["events"]
    assert made[0]["generations"][0]["steps"] == 3
    assert sorted(place for _, place, _, _ in events) == list(range(16))
    for step, place, word, share in events:
        assert word == SOLUTION[place]
        assert (step == 0) == (GIVENS[place] != ".") and share == (None if step == 0 else 0.25)
    assert [event[0] for event in events] == sorted(event[0] for event in events)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "3"},
        {"reward": math.nan},
        {"prompt": 7},
        {"rewards": {"a": "b"}},
        {"rewards": None},
        {"group": "x"},
        {"advantage": math.inf},
        {"columns": 3},
    ],
)
def test_what_cannot_be_shown_is_left_out(change: dict[str, Any]) -> None:
    assert completions.some([{**grid(3, 0, 1.0), **change}]) == []


@pytest.mark.parametrize(
    "change", [{"words": ["a"]}, {"words": None}, {"revealed_at": ["x"] * 16}, {"log_prob": [None] * 16}, {"line": "4"}]
)
def test_what_is_no_grid_is_read_as_text(change: dict[str, Any]) -> None:
    told = completions.table(completions.some([{**grid(3, 0, 1.0), **change}]))
    assert not told["is_grid"] and told["rows"][0]["completion"]


def test_the_page(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    folder = made_of_text(tmp_path / "run")
    folder.append_completions(3, [{**grid(3, 0, 0.5, WRONG)}, {**grid(3, 0, 1.0)}])
    page.write([folder.path], tmp_path / "grid.html")
    text = (tmp_path / "grid.html").read_text()
    assert text.count('<span class="wrong">') == 1 and text.count('<div class="cells"') == 2
    assert '<th scope="col" class="n">Sudoku cells</th>' in text
    assert [one["mode"] for one in data_of(tmp_path / "grid.html")["runs"][0]["traces"]] == [
        "samples@4",
        "worst",
        "best",
    ]

    plain = {"prompt": NASTY, "completion": NASTY, "reward": 1.0, "rewards": {NASTY: None}}
    folder.append_completions(4, [plain])
    page.write([folder.path], tmp_path / "text.html")
    text = (tmp_path / "text.html").read_text()
    assert "<img src=x" not in text and "&lt;img src=x" in text


def test_no_section_where_nothing_was_answered(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    page.write([made_of_text(tmp_path / "run").path], tmp_path / "page.html")
    assert 'id="completions"' not in (tmp_path / "page.html").read_text()


def test_a_policy_has_no_states_to_draw_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", policy_config().as_dict())
    folder.append_metrics({"step": 2, "set": "train", "reward": 0.5, "reward_std": 0.25})
    folder.append_completions(2, [grid(2, 0, 1.0)])
    told = page.facts(contents.read(folder.path, "run"))
    assert not any("states" in note["what"] for note in told["notes"])
    assert told["mask_shares"] is None and told["num_steps"] == 4 and told["schedule"]
