"""Rounds of rollouts in the one training loop: cut into batches, used several times, killed in the middle, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onpath.records import RunFolder
from onpath.training import checkpoint
from policies import policy_parts, train

CLOCK = {"seconds", "examples_per_second", "rollout_seconds"}
ROUNDS = [
    "training.steps=8",
    "training.save_every=1",
    "training.keep=0",
    "training.log_every=3",
    "training.validate_every=4",
    "experience.num_iterations=2",
    "experience.steps_per_round=2",
    "objective.estimator={kind: traj}",
    "objective.beta=0.05",
    "sampler.count=ancestral",
]


class Killed(Exception):
    pass


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in run.metrics()]


def killed_after(path: Path, step: int, *overrides: str) -> RunFolder:
    """A run that ended without a word when it had taken `step` steps."""
    parts = policy_parts(*overrides)
    run, taken = RunFolder.create(path, parts.config.as_dict()), 0

    def dies() -> bool:
        nonlocal taken
        taken += 1
        if taken > step:
            raise Killed
        return False

    with pytest.raises(Killed):
        parts.trainer.fit(parts.job(), run, should_stop=dies)
    return run


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert rows(one) == rows(other)
    assert one.completions() == other.completions()
    (_, newest), (_, others) = checkpoint.steps_in(one.checkpoints)[-1], checkpoint.steps_in(other.checkpoints)[-1]
    assert newest.name == others.name
    own, theirs = checkpoint.load(newest), checkpoint.load(others)
    for mine, its in ((own.model, theirs.model), (own.average, theirs.average)):
        assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)
    torch.testing.assert_close(own.optimizers, theirs.optimizers, rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("rounds") / "whole", *ROUNDS)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_killed_in_the_middle_of_a_round_and_resumed_is_undisturbed(
    whole: RunFolder, tmp_path: Path, step: int
) -> None:
    torn = killed_after(tmp_path / "torn", step, *ROUNDS)
    held = checkpoint.load(torn.checkpoints / f"step-{step}").experience
    assert held and held["old"].shape[:2] == (32, 2) and int(held["scalars"][0]) == step // 4
    with (torn.path / "completions.jsonl").open("a") as file:
        file.write(json.dumps({"step": step + 1, "completion": "of a step that is not saved"}) + "\n")
    assert_same_run(train(torn.path, *ROUNDS, resume=True), whole)


def test_completions_hold_each_round_once(whole: RunFolder) -> None:
    kept = whole.completions()
    assert [row["step"] for row in kept] == [1] * 8 + [5] * 8
    assert all(set(row["rewards"]) == {"ones"} and row["reward"] == row["rewards"]["ones"] for row in kept)
    sparse = [*ROUNDS, "training.log_every=7", "experience.log_completions=2"]
    run = train(whole.path.parent / "sparse", *sparse)
    assert [row["step"] for row in run.completions()] == [5, 5]  # step 7 is logged, and step 8 is the last


def test_an_end_of_a_round_holds_no_rollouts(whole: RunFolder) -> None:
    assert not checkpoint.load(whole.checkpoints / "step-4").experience
    assert not checkpoint.load(whole.checkpoints / "step-8").experience


@pytest.mark.parametrize(
    ("setting", "value", "was"),
    [
        ("experience.steps_per_round", 1, 2),
        ("experience.num_iterations", 3, 2),
        ("experience.num_generations", 8, 4),
        ("training.batch_size", 32, 16),
    ],
)
def test_a_round_of_other_batches_is_refused(
    whole: RunFolder, tmp_path: Path, setting: str, value: int, was: int
) -> None:
    run = killed_after(tmp_path / "torn", 2, *ROUNDS)
    before = (run.path / "metrics.jsonl").read_text() if (run.path / "metrics.jsonl").exists() else ""
    with pytest.raises(ValueError, match=rf"{setting} is now {value}.*made with {was}; set it to {was}"):
        train(run.path, *ROUNDS, f"{setting}={value}", resume=True)
    assert not before or (run.path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    "estimator",
    ["traj", pytest.param("diffu", marks=pytest.mark.slow), pytest.param("coupled", marks=pytest.mark.slow)],
)
def test_accumulation_and_rollout_batches_change_memory_alone(tmp_path: Path, estimator: str) -> None:
    common = [f"objective.estimator.kind={estimator}", "experience.num_iterations=2", "sampler.count=ancestral"]
    one = train(tmp_path / "one", *common)
    cut = train(tmp_path / "cut", *common, "training.accumulation=4", "experience.rollout_batch_size=3")
    for own, other in zip(rows(one), rows(cut), strict=True):
        assert own.keys() == other.keys()
        for name in own.keys() - {"ess"}:  # which is of a micro-batch
            value = own[name]
            assert other[name] == pytest.approx(value, abs=2e-5), name
    first = [row["sampling/importance_sampling_ratio/mean"] for row in rows(cut) if row["set"] == "train"][::2]
    assert first == [1.0, 1.0]  # bit for bit in the first pass: old and new ones are read at the same shapes
