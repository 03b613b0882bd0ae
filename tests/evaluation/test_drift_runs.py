"""Drift of runs, from the command line to the files: images, plans; text is in test_text_evaluation.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onpath import cli
from onpath.build import build
from onpath.config import RunConfig
from onpath.evaluation.drift import Drift
from onpath.records import RunFolder
from onpath.runs import Run, load
from tiny import CONFIG

IMAGES: dict[str, Any] = {
    "data": "digits",
    "model": {"kind": "image_unet", "width": 16, "levels": [1, 2]},
    "objective": "denoising",
    "grid": {"kind": "uniform", "steps": 4},
    "training": {"steps": 2, "batch_size": 8, "validation_examples": 8, "warmup_steps": 1},
    "evaluation": {"num_samples": 10, "steps": [2], "copies": False, "drift": {"num_examples": 3}},
    "device": "cpu",
}
SHORT = Drift(times=(0.5,), offsets=(1, "all"), num_examples=4)


def trained(path: Path, config: dict[str, Any]) -> Run:
    parts = build(RunConfig.parse(config))
    parts.trainer.fit(parts.job(), RunFolder.create(path, parts.config.as_dict()))
    return load(path)


@pytest.fixture
def onpath(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["onpath", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        told = capsys.readouterr()
        return told.err if left.value.code else told.out

    return run


def test_images_from_the_command_line(tmp_path: Path, onpath: Callable[..., str]) -> None:
    run = trained(tmp_path / "run", IMAGES)
    other = {"set": "test", "mode": "samples@2", "metric": "frechet", "value": 1.0, "ci95": None, "n": 9, "step": 2}
    run.folder.write_evaluation([other])
    options = ["--times", "0.5,0.9", "--offsets", "1,all", "--examples", "4"]
    picture = tmp_path / "drift.png"
    rows = json.loads(onpath("drift", str(run.folder.path), *options, "--picture", str(picture), "--json"))
    assert run.folder.evaluation() == [other, *rows]  # what was there stays
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert {(row["t"], row["offset"]) for row in rows} == {(t, o) for t in (0.5, 0.75) for o in (0, 1, "all")}
    table = onpath("drift", str(run.folder.path), *options, "sampler.kind=euler", "grid.steps=8")
    assert "as in training" in table and "floor" in table and "from noise" in table
    labels = {row["mode"].split(" ", 3)[3] for row in run.folder.evaluation() if row["mode"].count(" ") > 2}
    assert labels == {"sampler.kind=euler grid.steps=8"}
    refused = onpath("drift", str(run.folder.path), "--offsets", "some")
    assert "--offsets 1,5,all" in refused
    assert "no effect" in onpath("drift", str(run.folder.path), "training.steps=3")


def test_an_evaluation_measures_a_brief_drift_and_keeps_a_longer_one(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", IMAGES)
    brief = [row for row in run.evaluate() if "offset" in row]
    assert {row["metric"] for row in brief} == {"loss", "loss_ratio", "floor", "excess", "bias"}
    assert {row["n"] for row in brief} == {3} and {row["step"] for row in brief} == {2}
    run.folder.write_evaluation(run.drift(SHORT))
    assert not [row for row in run.evaluate() if "offset" in row]
    assert [row for row in run.evaluate(label="sampler.clip=1") if "offset" in row]  # of another sampler
    without = RunConfig.parse({**IMAGES, "evaluation": {**IMAGES["evaluation"], "drift": None}})
    assert without.evaluation.make().drift is None


def test_plans(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", CONFIG)
    rows = run.drift(SHORT)
    assert {row["metric"] for row in rows} == {"loss", "loss_ratio", "floor", "excess", "bias", "wrong"}
    wrong = next(row for row in rows if row["metric"] == "wrong" and row["offset"] == "all")
    assert 0.5 < wrong["value"] <= 1.0  # after three steps of training
