"""What is read of a run folder, however little is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import (
    EVALUATION,
    IMAGE_CONFIG,
    PLAN,
    SHEETS,
    STRIP,
    TEXT,
    TEXT_CONFIG,
    as_written,
    made,
    made_of_images,
    made_of_text,
)

from onpath.config import RunConfig
from onpath.records import RunFolder
from onpath.reports.contents import Contents, read


def notes(run: Contents) -> str:
    return "\n".join(f"{note.what} {note.command}" for note in run.notes)


def test_everything_that_is_there(tmp_path: Path) -> None:
    run = read(made(tmp_path / "a").path, "a")
    assert run.metrics["train"]["step"] == [1, 2, 3]
    assert run.metrics["train"]["loss"] == [1.5, 0.1 + 0.2, None]  # not a number: a gap in the curve
    assert run.metrics["validation"] == {"step": [2], "loss": [0.75], "nelbo_per_token": [0.875]}
    assert list(run.evaluation) == EVALUATION
    assert list(run.traces) == [as_written(PLAN)]
    assert run.step == 3 and run.every == 1 and not run.notes
    assert run.environment["packages"]["torch"] and run.written.endswith("UTC")


def test_time_is_added_over_resumed_processes(tmp_path: Path) -> None:
    assert read(made(tmp_path / "a").path, "a").seconds == 4.0 + 1.0


def test_an_empty_run_says_what_makes_the_rest(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", {})
    (folder.path / "environment.json").unlink()
    run = read(folder.path, "a")
    assert (run.step, run.metrics, run.evaluation, run.traces, run.environment) == (0, {}, [], [], {})
    for what in ("No metrics yet", "No evaluation", "No traces", "environment.json cannot be read"):
        assert what in notes(run)
    assert f"onpath evaluate {folder.path}" in notes(run)


def test_a_run_on_text(tmp_path: Path) -> None:
    folder = made_of_text(tmp_path / "a")
    run = read(folder.path, "a")
    assert run.subject == "text" and list(run.traces) == [as_written(TEXT)] and not run.notes
    assert read(made(tmp_path / "b").path, "b").subject == "plan"
    folder.write_config({"data": {"kind": "gone"}})
    assert read(folder.path, "a").subject == "text"  # its traces tell
    empty = read(RunFolder.create(tmp_path / "c", RunConfig.parse(TEXT_CONFIG).as_dict()).path, "c")
    assert "the likelihood of text is not measured yet" in notes(empty)
    assert "there are no texts to watch" in notes(empty)


def test_a_run_on_images(tmp_path: Path) -> None:
    folder = made_of_images(tmp_path / "a")
    run = read(folder.path, "a")
    assert run.subject == "image" and list(run.traces) == [as_written(one) for one in (*SHEETS, STRIP)]
    assert not run.notes
    folder.write_config({"data": {"kind": "gone"}})
    assert read(folder.path, "a").subject == "image"
    empty = read(RunFolder.create(tmp_path / "b", RunConfig.parse(IMAGE_CONFIG).as_dict()).path, "b")
    assert "the quality of samples is not measured yet" in notes(empty)
    assert "there are no samples to watch" in notes(empty)


def test_a_torn_line_is_left_out_and_named(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    path = folder.path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "set": "tr')
    run = read(folder.path, "a")
    assert run.step == 3 and "1 line(s) cannot be read" in notes(run)


@pytest.mark.parametrize("text", ["{", "3", "null", "[3]", '{"set": 1, "value": "x"}', "\x00"])
def test_a_broken_evaluation_is_a_note_and_no_failure(tmp_path: Path, text: str) -> None:
    folder = made(tmp_path / "a")
    (folder.path / "evaluation.json").write_text(text)
    (folder.path / "samples" / "traces.jsonl").write_text(text)
    run = read(folder.path, "a")
    assert not run.evaluation and not run.traces
    assert "No evaluation" in notes(run) and "No traces" in notes(run)


def test_a_long_run_is_thinned_evenly_and_keeps_its_last_row(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", {})
    rows = [json.dumps({"step": step, "set": "train", "loss": step / 7}) for step in range(1, 10_001)]
    (folder.path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    run = read(folder.path, "a")
    steps = run.metrics["train"]["step"]
    assert run.every == 5 and steps[-1] == 10_000 and set(map(int.__sub__, steps[1:], steps)) == {5}
    assert run.metrics["train"]["loss"] == [step / 7 for step in steps]


def test_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml, so it is not a run"):
        read(tmp_path, "a")
