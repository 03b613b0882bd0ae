"""What a text costs: a uniform network, ratios and their errors, and runs whose text is gone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onpath import cli
from onpath.build import build
from onpath.config import RunConfig
from onpath.data.source import TextSource
from onpath.evaluation.drift import BRIEF
from onpath.evaluation.plans import PlanEvaluation
from onpath.evaluation.proofreading import Proofreading
from onpath.evaluation.settings import Subject
from onpath.evaluation.statistics import mean_interval
from onpath.evaluation.text import TextEvaluation, likelihood, ratio_row, written
from onpath.records import RunFolder
from onpath.runs import load
from onpath.types import Batch

TEXT = "the cat sat on the mat and the dog sat by the cat; " * 40
TINY: dict[str, Any] = {
    "data": {"kind": "text", "path": "text.txt", "length": 16},
    "model": {"kind": "token_transformer", "width": 16, "num_heads": 2, "depth": 1},
    "objective": "nelbo",
    "training": {"steps": 3, "batch_size": 4, "validation_examples": 4},
    "device": "cpu",
}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def config(**sections: Any) -> RunConfig:
    return RunConfig.parse({**TINY, **sections})


def fresh(**sections: Any) -> Subject:
    parts = build(config(**sections))
    return parts.subject(parts.model.eval())  # type: ignore[arg-type]


def test_a_uniform_network_pays_the_logarithm_of_the_alphabet(text: Path) -> None:
    rows = {row["metric"]: row for row in likelihood(fresh(), "validation", draws=17)}  # one for each count of 0 to 16
    alphabet = len(set(TEXT))
    assert rows["bits_per_character"]["value"] == pytest.approx(math.log2(alphabet), rel=1e-5)
    assert rows["bits_per_byte"]["value"] == pytest.approx(math.log2(alphabet), rel=1e-5)
    assert rows["nats_per_token"]["value"] == pytest.approx(math.log(alphabet), rel=1e-5)
    assert rows["bits_per_token"]["n"] == len(TEXT) // 10 // 16


def test_characters_of_several_bytes(text: Path) -> None:
    text.write_text("ä→o" * 400)
    rows = {row["metric"]: row["value"] for row in likelihood(fresh(), "validation", draws=17)}
    assert rows["bits_per_character"] == pytest.approx(math.log2(3), rel=1e-5)
    assert rows["bits_per_byte"] == pytest.approx(math.log2(3) / 2, rel=0.02)  # 2, 3 and 1 bytes


def test_a_ratio_of_equal_units_is_a_mean_with_its_interval() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = ratio_row("validation", "nelbo", "nats_per_token", values, torch.ones(50))
    assert found["value"] == pytest.approx(float(values.mean()))
    assert found["ci95"] == pytest.approx(list(mean_interval(values) or ()))


def test_the_error_of_a_ratio_covers_it() -> None:
    generator = torch.Generator().manual_seed(1)
    hits = 0
    for _ in range(400):
        below = torch.randint(1, 30, (60,), generator=generator).double()
        above = 2.5 * below + below.sqrt() * torch.randn(60, generator=generator, dtype=torch.float64)
        low, high = ratio_row("s", "m", "x", above, below)["ci95"]
        hits += low <= 2.5 <= high
    assert 0.90 < hits / 400 < 0.98


def test_the_kind_of_evaluation_follows_the_data(text: Path) -> None:
    assert isinstance(config().evaluation.make(), TextEvaluation)
    assert config(evaluation={"draws": 2}).evaluation.make() == TextEvaluation(draws=2)
    other = {**TINY, "data": "fourrooms", "model": "plan_mlp"}
    assert isinstance(RunConfig.parse(other).evaluation.make(), PlanEvaluation)
    with pytest.raises(ValueError, match=r"leave evaluation\.kind out"):
        build(RunConfig.parse({**other, "evaluation": {"kind": "text"}}))


def test_proofreading_needs_a_network_that_doubts(text: Path) -> None:
    with pytest.raises(ValueError, match="masking_penalties"):
        build(config(evaluation={"proofreading": {}}))
    assert isinstance(TextEvaluation(proofreading=Proofreading()).proofreading, Proofreading)


@pytest.mark.parametrize(
    "settings",
    [{"draws": 0}, {"sets": ()}, {"steps": (0,)}, {"causal": "gpt2", "num_samples": 0}, {"copy_length": 0}],
)
def test_refusals(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        replace(TextEvaluation(), **settings)


def test_a_run_measures_itself_and_samples_without_its_text(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tiny.yaml").write_text(json.dumps({**TINY, "evaluation": {"num_samples": 4, "steps": [3]}}))

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["onpath", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
        return capsys.readouterr().out

    run("train", "tiny.yaml", "--run", "run")
    rows = json.loads(run("evaluate", "run", "--json"))
    assert {row["mode"] for row in rows if "offset" not in row} == {"nelbo", "text", "samples@3"}
    assert {row["metric"] for row in rows if "offset" in row} >= {"loss", "bias", "floor", "wrong"}
    assert {"bits_per_character", "unigram_entropy", "distinct_2", "copied_20"} <= {row["metric"] for row in rows}
    (trace, *_) = load("run").folder.traces()
    assert trace["kind"] == "text" and len({event[1] for event in trace["generations"][0]["events"]}) == 16
    text.unlink()
    sampled = load("run")
    assert set(sampled.words(sampled.sample(num_samples=2).x[0].tolist())) <= set(TEXT)
    with pytest.raises(ValueError, match="masking_penalties"):
        sampled.repair(["the cat"])


def test_a_repair_keeps_texts_of_unequal_length_apart(text: Path, tmp_path: Path) -> None:
    objective = {"kind": "masking_penalties", "penalty_keep_mask": 0.25, "penalty_mask_correct": 0.5}
    made = config(objective=objective)
    parts = build(made)
    parts.trainer.fit(parts.job(), RunFolder.create(tmp_path / "doubts", parts.config.as_dict()))
    run = load(tmp_path / "doubts")
    both = run.written(run.repair(["the dog sat", "cat"], threshold=0.01))
    assert [len(one["text"]) for one in both] == [11, 3]
    assert both[1]["text"] == run.written(run.repair(["on", "cat"], threshold=0.01))[1]["text"]


def test_prompts_without_answers_have_samples_alone(text: Path) -> None:
    rows = [{"prompt": f"the cat {n}", "answer": n} for n in range(20)]
    (text.parent / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"kind": "prompts", "path": "asked.jsonl", "length": 24, "max_completion_length": 8, "begin": True}
    judged = {"rewards": [{"kind": "function", "function": "judges:shortness"}]}
    subject = fresh(data=data, objective={"kind": "policy_gradient"}, experience=judged, training={"steps": 1})
    found = TextEvaluation(num_samples=6, steps=(3,)).measure(subject)
    assert {(row["set"], row["mode"]) for row in found} == {("generated", "samples@3")}
    (trace,) = TextEvaluation(num_samples=6, steps=(3,)).traces(subject, 1)
    assert trace.length == 24
    with pytest.raises(ValueError, match="drift: Prompts are prompts without answers"):
        BRIEF.measure(subject)
    assert isinstance(subject.source, TextSource)
    assert subject.source.tokens.tolist().count(subject.source.end_id) == 18  # the begin tokens, and no padding


def test_a_text_ends_at_the_first_end_that_was_not_asked() -> None:
    x = torch.tensor([[9, 1, 9, 2, 9, 3], [9, 9, 1, 4, 5, 6]])
    given = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 0]]).bool()
    padding = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    batch = Batch.of_tokens(x, torch.arange(2), given=given, padding=padding)
    assert [row.tolist() for row in written(batch, 9)] == [[9, 1, 9, 2], [1, 4, 5, 6]]
    assert [row.tolist() for row in written(batch, None)] == [x[0].tolist(), [1, 4, 5, 6]]
