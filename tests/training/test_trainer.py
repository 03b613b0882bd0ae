"""The training loop: denominators, rates, exact resumes, and what stops it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from onpath import rng
from onpath.data.source import Source
from onpath.objectives.base import Objective
from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.ramps import LinearRamp
from onpath.records import RunFolder
from onpath.training import checkpoint
from onpath.training.optimizers import AdamW, Plateau
from onpath.training.reporter import Progress
from onpath.training.trainer import Job, Trainer
from onpath.types import Batch, Loss, Nets, Spec
from tiny import tiny_job, tiny_parts

CLOCK = {"seconds", "examples_per_second"}


def folder(path: Path) -> RunFolder:
    return RunFolder.create(path, {"seed": 0})


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in run.metrics()]


def lasting(saved: checkpoint.Checkpoint) -> dict[str, Any]:
    """What a checkpoint says beside the weights, but for the time."""
    return {name: value for name, value in saved.extra.items() if name not in CLOCK}


# A model of one number on numbered examples: every gradient can be worked out by hand.


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def encode(self, **cond: Tensor) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Tensor:
        return self.slope


@dataclass(frozen=True)
class Numbers(Source):
    size: int | None = None

    def spec(self) -> Spec:
        return Spec(1, 2, 2)

    def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
        return Batch.of_tokens(torch.zeros(len(ids), 1, dtype=torch.int64), ids)

    def at_split(self, split: str) -> Numbers:
        return self

    @property
    def num_examples(self) -> int | None:
        return self.size


@dataclass(frozen=True)
class Slope(Objective):
    """slope · Σ height(id) over Σ count(id); not a number at one step, if asked."""

    process: Any = None
    breaks_at: int = -1

    def __call__(self, nets: Nets, batch: Batch, key: rng.Key, step: int) -> Loss:
        slope: Tensor = nets.model.slope.sum()  # pyright: ignore[reportAttributeAccessIssue]
        total = slope * float(heights(batch.ids).sum())
        if step == self.breaks_at:
            total = total * math.nan
        return Loss(total, float(counts(batch.ids).sum()))


def heights(ids: Tensor) -> Tensor:
    return (ids % 5 + 1) ** 2


def counts(ids: Tensor) -> Tensor:
    return ids % 7 + 1


def line(trainer: Trainer, path: Path, objective: Objective | None = None, size: int | None = None) -> RunFolder:
    run, source = folder(path), Numbers(size)
    trainer = replace(trainer, validation_examples=min(trainer.validation_examples, 16))
    trainer.fit(Job(Line(), objective or Slope(), source, source), run)
    return run


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8])
def test_the_denominator_is_global(tmp_path: Path, accumulation: int) -> None:
    run = line(Trainer(steps=3, batch_size=8, accumulation=accumulation, clip_norm=0.0, log_every=1), tmp_path)
    differs = accumulation == 1
    for row in (row for row in run.metrics() if row["set"] == "train"):
        ids = torch.arange(8) + 8 * (row["step"] - 1)
        by_hand = float(heights(ids).sum() / counts(ids).sum())
        assert row["gradient_norm"] == pytest.approx(by_hand, rel=1e-6)
        of_means = [float(heights(part).sum() / counts(part).sum()) for part in ids.chunk(accumulation)]
        differs |= abs(sum(of_means) / accumulation - by_hand) > 0.01
    assert differs  # the mean of means is something else


@pytest.mark.parametrize("objective", ["nelbo", "trajectory_nelbo", "masked_cross_entropy"])
def test_accumulation_changes_memory_only(tmp_path: Path, objective: str) -> None:
    # a large eps makes Adam's step linear in the gradient, so that rounding is not blown up to a sign
    given = [f"objective={objective}", "training.optimizer.eps=1.0", "training.warmup_steps=0", "training.log_every=1"]
    results = {}
    for accumulation in (1, 2, 8):
        parts = tiny_parts(*given, f"training.accumulation={accumulation}")
        run = folder(tmp_path / str(accumulation))
        parts.trainer.fit(tiny_job(parts), run)
        losses = [row["loss"] for row in run.metrics() if row["set"] == "train"]
        results[accumulation] = losses, {name: value.clone() for name, value in parts.model.state_dict().items()}
    start = dict(tiny_parts(*given).model.state_dict())
    for accumulation in (2, 8):
        assert results[accumulation][0] == pytest.approx(results[1][0], abs=1e-5)
        for name, value in results[1][1].items():
            torch.testing.assert_close(results[accumulation][1][name], value, rtol=0, atol=1e-6)
    assert any(not torch.equal(start[name], value) for name, value in results[1][1].items())


def test_clipping_is_that_of_torch() -> None:
    model, reference = nn.Linear(4, 3), nn.Linear(4, 3)
    reference.load_state_dict(model.state_dict())
    x = torch.arange(8.0).view(2, 4)
    (100 * model(x).square().sum()).backward()
    (100 * reference(x).square().sum() / 2).backward()
    norm = Trainer(steps=1, clip_norm=0.5)._scale_gradients(model, 2.0)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    torch.testing.assert_close(norm, expected)
    for own, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


class Stop(Exception):
    """What kills a run in these tests."""


def killer(step: int) -> Any:
    def on_progress(progress: Progress) -> None:
        if progress.step >= step and not progress.note:
            raise Stop

    return on_progress


# Logging, validation and saving out of step with each other, and a plateau that cuts at once.
UNEVEN = [
    "training.steps=11",
    "training.log_every=3",
    "training.save_every=4",
    "training.validate_every=2",
    "training.keep=0",
    "training.decay=plateau",
    "training.plateau.patience=0",
    "training.optimizer.learning_rate=0.3",
    "objective={kind: masked_cross_entropy, low: {kind: linear, start: 0.5, end: 0.0, steps: 7}}",
]


@pytest.mark.parametrize("killed_at", [3, 6, 9])
def test_a_resumed_run_is_the_same_run(tmp_path: Path, killed_at: int) -> None:
    whole = folder(tmp_path / "whole")
    parts = tiny_parts(*UNEVEN)
    parts.trainer.fit(tiny_job(parts), whole)

    cut = folder(tmp_path / "cut")
    parts = tiny_parts(*UNEVEN)
    with pytest.raises(Stop):
        parts.trainer.fit(tiny_job(parts), cut, on_progress=killer(killed_at))
    parts, notes = tiny_parts(*UNEVEN), []
    parts.trainer.fit(tiny_job(parts), cut, resume=True, on_progress=lambda progress: notes.append(progress.note))
    begun_at = killed_at // 4 * 4
    assert f"resumed at step {begun_at}" in notes[0] if begun_at else "starting at step 0" in notes[0]

    assert rows(cut) == rows(whole)
    assert len({row["learning_rate"] for row in rows(whole) if row["set"] == "train"}) > 2  # the plateau did cut
    for _, path in checkpoint.steps_in(whole.checkpoints):
        one, other = checkpoint.load(path), checkpoint.load(cut.checkpoints / path.name)
        for field in ("model", "average"):
            states = getattr(one, field), getattr(other, field)
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        torch.testing.assert_close(one.optimizers, other.optimizers, rtol=0, atol=0)
        assert lasting(one) == lasting(other)


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    run, parts = folder(tmp_path), tiny_parts()
    with run.locked(), pytest.raises(ValueError, match="another process is training in"):
        parts.trainer.fit(tiny_job(parts), run, resume=True)
    assert not (tmp_path / "metrics.jsonl").exists()
    parts.trainer.fit(tiny_job(parts), run)  # the lock is gone


def test_another_network_is_refused(tmp_path: Path) -> None:
    run, parts = folder(tmp_path), tiny_parts()
    parts.trainer.fit(tiny_job(parts), run)
    parts = tiny_parts("model.width=24")
    with pytest.raises(ValueError, match=r"(?s)do not fit the network.*Restore the settings of `model`"):
        parts.trainer.fit(tiny_job(parts), run, resume=True)


def test_a_resumed_run_takes_the_optimizer_settings_of_its_config(tmp_path: Path) -> None:
    run, parts = folder(tmp_path), tiny_parts()
    parts.trainer.fit(tiny_job(parts), run)
    parts = tiny_parts("training.steps=5", "training.optimizer.weight_decay=0.25", "training.optimizer.eps=1e-6")
    parts.trainer.fit(tiny_job(parts), run, resume=True)
    (saved,) = checkpoint.load(run.checkpoints / "step-5").optimizers
    assert [group["weight_decay"] for group in saved["param_groups"]] == [0.25, 0.0]
    assert all(group["eps"] == 1e-6 for group in saved["param_groups"])
    assert all(int(state["step"]) == 5 for state in saved["state"].values())
    parts = tiny_parts("training.steps=7", "training.optimizer.kind=muon")
    with pytest.raises(ValueError, match="the checkpoint holds 1 optimizers and the config makes 2"):
        parts.trainer.fit(tiny_job(parts), run, resume=True)


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run = folder(tmp_path)
    for resume in (False, True):
        parts = tiny_parts()
        parts.trainer.fit(tiny_job(parts), run, resume=resume)
    assert [row["step"] for row in run.metrics()] == [3, 3]


def test_a_run_is_not_resumed_to_fewer_steps_or_from_nothing_whole(tmp_path: Path) -> None:
    run, parts = folder(tmp_path), tiny_parts()
    parts.trainer.fit(tiny_job(parts), run)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    parts = tiny_parts("training.steps=2", "training.warmup_steps=0")
    with pytest.raises(ValueError, match=r"training\.steps is 2, and 3 steps are done already"):
        parts.trainer.fit(tiny_job(parts), run, resume=True)
    (run.checkpoints / "step-3" / "state.json").unlink()
    parts = tiny_parts("training.steps=5")
    with pytest.raises(ValueError, match=r"no checkpoint in .* verifies .*state\.json is missing"):
        parts.trainer.fit(tiny_job(parts), run, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_another_schedule_or_seed_is_refused(tmp_path: Path) -> None:
    run = folder(tmp_path)
    parts = tiny_parts()
    parts.trainer.fit(tiny_job(parts), run)
    for other, message in (
        ("schedule=cosine", r"schedule .*linear.*cosine.*one schedule"),
        ("seed=5", "seed 0.*says 5"),
    ):
        parts = tiny_parts(other, "training.steps=5")
        with pytest.raises(ValueError, match=f"checkpoint: step 3 was trained with {message}"):
            parts.trainer.fit(tiny_job(parts), run, resume=True)


def test_a_loss_that_is_no_number_stops_the_run_at_its_step(tmp_path: Path) -> None:
    trainer = Trainer(steps=30, batch_size=8, log_every=50, save_every=2)
    with pytest.raises(ValueError, match=r"optimizer step 8 \(examples 56 to 63, seed 0\); the last checkpoint is"):
        line(trainer, tmp_path, Slope(breaks_at=7))
    newest, skipped = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None and newest.name == "step-6" and not skipped
    assert checkpoint.load(newest).model["slope"].isfinite().all()


def test_a_run_that_never_logs_is_checked_as_well(tmp_path: Path) -> None:
    trainer = Trainer(steps=10**6, batch_size=1, log_every=0)
    with pytest.raises(ValueError, match="optimizer step 3 "):
        line(trainer, tmp_path, Slope(breaks_at=2))


def test_a_loss_that_is_no_number_is_not_validated(tmp_path: Path) -> None:
    trainer = Trainer(steps=30, batch_size=8, log_every=50, validate_every=10)
    with pytest.raises(ValueError, match="optimizer step 8 "):
        line(trainer, tmp_path, Slope(breaks_at=7))
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_rate_is_that_of_training(tmp_path: Path) -> None:
    class Slow(Numbers):  # to validate on
        def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
            time.sleep(0.2)
            return super().examples(ids)

    run = folder(tmp_path)
    trainer = Trainer(steps=12, batch_size=8, validation_examples=8, validate_every=3, log_every=4, save_every=3)
    begun = time.perf_counter()
    trainer.fit(Job(Line(), Slope(), Numbers(), Slow()), run)
    took = time.perf_counter() - begun
    trained = [row for row in run.metrics() if row["set"] == "train"]
    # validations take nearly all of the time, and none of it is in the rates
    assert sum(8 * 4 / row["examples_per_second"] for row in trained) < took - 3 * 0.2
    assert all(row["examples_per_second"] < 8 * 4 / 1e-4 for row in trained)
    seconds = [row["seconds"] for row in trained]
    more = Trainer(steps=16, batch_size=8, validation_examples=8, log_every=4)
    more.fit(Job(Line(), Slope(), Numbers(), Numbers()), run, resume=True)
    last = [row["seconds"] for row in run.metrics() if row["set"] == "train"][-1]
    assert seconds == sorted(seconds) and last > seconds[-1]  # the clock goes on where it stood


def test_validation_is_seeded_and_takes_the_last_value_of_ramps() -> None:
    parts = tiny_parts("training.validation_examples=20")
    ramped = MaskedCrossEntropy(parts.process, low=LinearRamp(0.0, 1.0, steps=100), high=1.0)
    final = MaskedCrossEntropy(parts.process, low=1.0, high=1.0)
    found = []
    for objective in (ramped, ramped, final):
        job = Job(parts.model, objective, parts.source, parts.source.at_split("validation"))
        found.append(parts.trainer.validate(parts.model, job, num_steps=100))
    assert found[0] == found[1] == found[2]
    assert found[0]["masked_share"] == 1.0


def test_a_small_validation_split_is_counted_once(tmp_path: Path) -> None:
    run = line(Trainer(steps=1, batch_size=8), tmp_path, size=5)
    (row,) = [row for row in run.metrics() if row["set"] == "validation"]
    ids = torch.arange(5)
    slope = checkpoint.load(tmp_path / "checkpoints" / "step-1").average["slope"]
    assert row["loss"] == pytest.approx(float(slope * heights(ids).sum() / counts(ids).sum()), rel=1e-5)


def test_epochs(tmp_path: Path) -> None:
    run = line(Trainer(epochs=2, batch_size=8, log_every=1), tmp_path, size=20)
    assert [row["step"] for row in run.metrics() if row["set"] == "train"] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="never end; set steps"):
        Trainer(epochs=2).num_steps(Numbers())


def test_the_learning_rate_of_a_run(tmp_path: Path) -> None:
    trainer = Trainer(steps=4, batch_size=1, optimizer=AdamW(0.5), warmup_steps=2, decay="linear", log_every=1)
    run = line(trainer, tmp_path)
    rates = [row["learning_rate"] for row in run.metrics() if row["set"] == "train"]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_validation_moves_the_learning_rate_only_on_a_plateau(tmp_path: Path) -> None:
    class Worse(Slope):  # no validation is better than the one before
        def __call__(self, nets: Nets, batch: Batch, key: rng.Key, step: int) -> Loss:
            return super().__call__(nets, batch, key, step) if torch.is_grad_enabled() else Loss(torch.ones(()), 1.0)

    found = {}
    for decay in ("constant", "plateau"):
        rule = {"plateau": Plateau(patience=0)} if decay == "plateau" else {}
        trainer = Trainer(steps=12, batch_size=1, warmup_steps=0, decay=decay, validate_every=1, log_every=1, **rule)
        run = line(trainer, tmp_path / decay, Worse())
        found[decay] = [row["learning_rate"] for row in run.metrics() if row["set"] == "train"]
    assert set(found["constant"]) == {AdamW().learning_rate}
    assert found["plateau"][-1] < found["plateau"][0] / 100


def test_precision(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        parts = tiny_parts(f"training.precision={precision}", "training.optimizer.learning_rate=0.01")
        run = folder(tmp_path / precision)
        average = parts.trainer.fit(tiny_job(parts), run)
        losses[precision] = [row["loss"] for row in run.metrics()]
        assert all(p.dtype == torch.float32 for p in average.parameters())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        line(Trainer(steps=1, batch_size=1, threads=before + 1), tmp_path)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    line(Trainer(steps=2, batch_size=1, tensorboard=True), tmp_path)
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert all(name in content for name in (b"train/loss", b"train/gradient_norm", b"validation/loss"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of them"),
        ({"steps": 1, "epochs": 1}, "exactly one of them"),
        ({"steps": 1, "batch_size": 6, "accumulation": 4}, "multiple of accumulation"),
        ({"steps": 1, "ema": 1.0}, "ema is 1.0"),
        ({"steps": 1, "decay": "plateau"}, "validate_every is 0"),
        ({"steps": 1, "validate_every": 1, "validation_examples": 0}, "validation_examples is 0"),
        ({"steps": 1, "decay": "constant", "final_rate": 0.1}, "final_rate is 0.1"),
        ({"steps": 1, "keep": -1}, "keep is -1"),
        ({"steps": 9, "save_every": 2, "keep_every": 3}, "must be a multiple of save_every"),
        ({"steps": 9, "save_every": 2, "keep_every": 4, "keep": 0}, "keep: 0 keeps all"),
        ({"steps": 1, "clip_norm": -0.1}, "clip_norm is -0.1"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer(**fields)


COMPILED = """
import json, pathlib, sys, tempfile
from torch._dynamo.utils import counters
from onpath.records import RunFolder
from tiny import tiny_job, tiny_parts

parts = tiny_parts("training.steps=8", "training.log_every=1", *sys.argv[1:])
folder = RunFolder.create(pathlib.Path(tempfile.mkdtemp()), {})
parts.trainer.fit(tiny_job(parts), folder)
losses = [row["loss"] for row in folder.metrics()]
print(json.dumps([losses, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["pairs", "counts"])
def test_compiled_training_is_the_same_and_settles(masks: str) -> None:
    # a process of its own: the checks of annotations in this one cannot be compiled
    found = []
    for compiled in ("false", "true"):
        given = [f"objective.masks={masks}", f"training.compile={compiled}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", COMPILED, *given]
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    (eager, no_graphs, _), (losses, num_graphs, num_breaks) = found
    assert losses == pytest.approx(eager, abs=1e-4) and no_graphs == 0
    # once for the first number of rows, and where that varies once more for any number
    assert 1 <= num_graphs <= 2 and num_breaks == 0


def test_rows_are_plain_json(tmp_path: Path) -> None:
    run = line(Trainer(steps=1, batch_size=1), tmp_path)
    for text in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_a_first_step_in_which_nothing_is_masked_changes_nothing(tmp_path: Path) -> None:
    parts = tiny_parts("objective={kind: masked_cross_entropy, low: 0, high: 0, partial: true, exact: false}")
    before = [p.detach().clone() for p in parts.model.parameters()]
    folder = RunFolder.create(tmp_path, {})
    parts.trainer.fit(parts.job(), folder)
    assert all(torch.equal(b, p) for b, p in zip(before, parts.model.parameters(), strict=True))
