"""The run folder: nothing half-written, nothing lost, nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onpath.records import RunFolder, write_atomically


def test_create_and_open(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "b", {"seed": 3, "model": {"kind": "plan_mlp"}})
    assert RunFolder.open(folder.path).config() == {"seed": 3, "model": {"kind": "plan_mlp"}}
    environment = json.loads((folder.path / "environment.json").read_text())
    assert {"python", "packages", "platform", "cpu_count", "gpu", "command"} <= set(environment)
    assert environment["packages"]["torch"]
    assert list(folder.metrics()) == [] and folder.evaluation() == []


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {"seed": 3})
    with pytest.raises(ValueError, match=r"already holds a run; pass --resume .* or choose another --run"):
        RunFolder.create(tmp_path, {"seed": 4})
    assert RunFolder.open(tmp_path).config() == {"seed": 3}


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.yaml, so it is not a run; give the folder of one"):
        RunFolder.open(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made .*choose another --run"):
        RunFolder.create(tmp_path / "file" / "run", {})


def test_metrics_keep_their_digits_and_their_order(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, {})
    rows = [{"step": step, "set": "train", "loss": 0.1 + step / 3} for step in range(5)]
    for row in rows:
        folder.append_metrics(row)
    assert list(folder.metrics()) == rows


def test_a_torn_last_line_is_left_out_and_goes_at_resume(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, {})
    for step in (2, 4, 6):
        folder.append_metrics({"step": step, "set": "train"})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "se')
    assert [row["step"] for row in folder.metrics()] == [2, 4, 6]
    folder.truncate_metrics(4)
    folder.append_metrics({"step": 6, "set": "train"})
    assert [row["step"] for row in folder.metrics()] == [2, 4, 6]
    assert path.read_text().count("\n") == 3


def test_truncating_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, {})
    folder.truncate_metrics(0)
    assert list(folder.metrics()) == []


def test_evaluations_are_merged(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, {})
    row = {"set": "test", "mode": "open@1", "metric": "success", "value": 0.5, "ci95": [0.4, 0.6], "n": 10, "step": 3}
    other = row | {"mode": "open@2"}
    folder.write_evaluation([row, other])
    folder.write_evaluation([row | {"value": 0.75}])
    assert folder.evaluation() == [row | {"value": 0.75}, other]
    later = other | {"step": 4}
    folder.write_evaluation([later])
    assert folder.evaluation() == [later]  # figures of other weights do not stand beside these


def test_samples_are_added(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, {})
    folder.append_samples(0, [{"tokens": [1, 2], "revealed_at": [0, 1]}])
    folder.append_samples(1, [{"tokens": [2, 2], "revealed_at": [1, 1]}])
    lines = [json.loads(line) for line in (tmp_path / "samples" / "samples.jsonl").read_text().splitlines()]
    assert lines == [
        {"seed": 0, "tokens": [1, 2], "revealed_at": [0, 1]},
        {"seed": 1, "tokens": [2, 2], "revealed_at": [1, 1]},
    ]


def test_writing_leaves_nothing_beside(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new" / "file", "one")
    write_atomically(tmp_path / "new" / "file", "two")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert (tmp_path / "new" / "file").read_text() == "two"
