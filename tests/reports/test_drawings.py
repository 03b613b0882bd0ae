"""The numbers behind the drawings, against formulas and against what training logs."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from folders import IMAGE_CONFIG, TEXT_CONFIG

from onpath.config import RunConfig, override
from onpath.records import RunFolder
from onpath.reports import drawings
from onpath.reports.drawings import NUM_BINS, States, ramps, schedule_curve, settings
from tiny import tiny, tiny_job, tiny_parts

CROSS_ENTROPY = "objective={kind: masked_cross_entropy}"


def curve(*overrides: str) -> dict:
    config = tiny(*overrides)
    return schedule_curve(config.schedule.make(), config.grid.make())


def test_the_schedule_is_its_formula() -> None:
    found = curve("schedule=cosine", "grid={kind: uniform, steps: 4}")
    for t, alpha, share in zip(found["t"], found["alpha"], found["mask_share"], strict=True):
        assert alpha == pytest.approx(math.cos(math.pi * t / 2) ** 2, abs=1e-6)
        assert share == pytest.approx(math.sin(math.pi * t / 2) ** 2, abs=1e-6)
    assert [at["t"] for at in found["grid"]] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [at["mask_share"] for at in found["grid"]] == pytest.approx(
        [math.sin(math.pi * t / 2) ** 2 for t in (1, 0.75, 0.5, 0.25, 0)], abs=1e-6
    )


def test_pure_states_of_a_bounded_schedule_are_drawn_at_its_ends() -> None:
    found = curve("schedule={kind: linear, alpha_min: 0.1, alpha_max: 0.9}", "grid={kind: uniform, steps: 2}")
    assert [(at["t"], at["mask_share"], at["pure"]) for at in found["grid"]] == [
        (1.0, 1.0, True),
        (1.0, 0.9, False),
        (0.5, 0.5, False),
        (0.0, 0.1, False),
        (0.0, 0.0, True),
    ]


def test_settings_that_differ_are_those_that_were_set() -> None:
    rows = {row["path"]: row for row in settings(tiny("training.optimizer.learning_rate=0.5", "seed=3"))}
    rate = rows["training.optimizer.learning_rate"]
    assert rate["value"] == "0.5" and float(rate["default"]) < 0.5 and rate["differs"]
    differing = {path for path, row in rows.items() if row["differs"]}
    assert {"seed", "training.steps", "training.batch_size", "model.width", "data.starts_per_goal"} <= differing
    assert not {"training.clip_norm", "sampler.order", "data.length", "grid.steps", "sampler.tokens"} & differing


def test_ramps_and_the_learning_rate() -> None:
    ramp = "{kind: linear, start: 0.2, end: 1.0, steps: 50}"
    config = tiny(f"objective={{kind: masked_cross_entropy, high: {ramp}}}", "training.steps=100")
    found = {one["path"]: one for one in ramps(config, 100)}
    assert set(found) == {"objective.low", "objective.high", "training.optimizer.learning_rate"}
    high = dict(zip(found["objective.high"]["steps"], found["objective.high"]["values"], strict=True))
    assert [high[0], high[25], high[50], high[100]] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert set(found["objective.low"]["values"]) == {0.0}


@pytest.mark.parametrize("settings", [["training.warmup_steps=3"], ["training.warmup_steps=null"]])
def test_the_learning_rate_is_the_one_that_training_logs(tmp_path: Path, settings: list[str]) -> None:
    steps = ["training.steps=40", "training.batch_size=2", "training.log_every=1", "training.validation_examples=0"]
    parts = tiny_parts(*steps, *settings)
    folder = RunFolder.create(tmp_path / "run", parts.config.as_dict())
    parts.trainer.fit(tiny_job(parts), folder)
    logged = [row["learning_rate"] for row in folder.metrics() if row["set"] == "train"]
    (rate,) = [one for one in ramps(parts.config, 40) if one["path"].endswith("learning_rate")]
    assert rate["steps"] == list(range(41))
    assert rate["values"][:40] == pytest.approx(logged)


@pytest.mark.parametrize(
    "objective",
    [
        "{kind: masked_cross_entropy}",
        "{kind: masked_cross_entropy, exact: false}",
        "{kind: masked_cross_entropy, high: {kind: linear, start: 0.2, end: 1.0, steps: 4}}",
        "{kind: nelbo, masks: counts}",
        "{kind: nelbo, masks: bernoulli}",
        "{kind: trajectory_nelbo, steps_per_example: 2}",
    ],
)
def test_mask_shares_are_those_that_training_logs(tmp_path: Path, objective: str) -> None:
    steps = ["training.steps=5", "training.log_every=1", "training.batch_size=32"]
    parts = tiny_parts(f"objective={objective}", *steps)
    folder = RunFolder.create(tmp_path / "run", parts.config.as_dict())
    parts.trainer.fit(tiny_job(parts), folder)
    logged = [row["masked_share"] for row in folder.metrics() if row["set"] == "train"]
    states = States.of(parts.config)
    assert states.num_steps == 5
    for last in range(1, 6):
        found = states.mask_shares(last)
        assert found["steps"] == list(range(last))
        assert found["mean"] == pytest.approx(sum(logged[:last]) / last, abs=1e-6)
        assert sum(map(sum, found["counts"])) == found["num_states"]


def test_shares_of_an_objective_that_predicts_masks() -> None:
    settings = ["objective={kind: masking_penalties}", "training.batch_size=64"]
    found = States.of(RunConfig.parse(override(TEXT_CONFIG, settings))).mask_shares(3)
    assert found["num_states"] == 3 * 64 and 0.4 < found["mean"] < 0.6


def test_many_words_are_looked_at_in_few_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "_LOGITS_OF_A_STEP", 40 * 4 * 5)  # of five examples
    assert States.of(tiny(CROSS_ENTROPY)).mask_shares(1)["num_states"] == 5
    monkeypatch.setattr(drawings, "_LOGITS_OF_A_STEP", 1)
    assert States.of(tiny(CROSS_ENTROPY)).mask_shares(1)["num_states"] == 2


def test_uniform_shares_fill_all_bins_alike_and_a_ramp_bounds_them() -> None:
    uniform = States.of(tiny(CROSS_ENTROPY, "training.batch_size=256")).mask_shares(8)
    total = [sum(column) for column in zip(*uniform["counts"], strict=True)]
    assert len(total) == NUM_BINS and max(total) - min(total) <= 0.1 * sum(total) / NUM_BINS
    ramp = "{kind: linear, start: 0.25, end: 1.0, steps: 7}"
    risen = States.of(tiny(f"objective={{kind: masked_cross_entropy, high: {ramp}}}")).mask_shares(8)
    highest = [max(bin for bin, count in enumerate(counts) if count) for counts in risen["counts"]]
    assert all(a <= b for a, b in pairwise(highest))
    assert highest[0] < NUM_BINS // 4 and highest[-1] == NUM_BINS - 1


def test_times_of_images_are_those_of_the_density_alone() -> None:
    """The forwards of rollouts are not among them."""

    def drawn(*settings: str) -> dict[str, Any]:
        return States.of(RunConfig.parse(override(IMAGE_CONFIG, ["training.batch_size=200", *settings]))).mask_shares(3)

    uniform = drawn()
    totals = [sum(column) for column in zip(*uniform["counts"], strict=True)]
    assert uniform["num_states"] == 600 and min(totals) >= 20 and uniform["mean"] == pytest.approx(0.5, abs=0.02)
    noisy = drawn("objective.time_density={kind: shifted, shift: 3.0}")
    assert noisy["mean"] > 0.6
    assert drawn("objective.scheduled_sampling={max_step_offset: 5, probability: 0.5}") == uniform
