"""The recipe `sft` as its user runs it: a model on disk, a JSONL file, one command, an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onpath import cli
from onpath.evaluation.scores import perplexity_row
from onpath.recipes import path_of
from texts import write_byte_pairs, write_lines


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny causal model with random weights, and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    folder = write_byte_pairs(tmp_path / "model")
    words = len(transformers.AutoTokenizer.from_pretrained(folder))
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.Qwen2Config(**sizes, num_key_value_heads=1, vocab_size=words, tie_word_embeddings=False)
        transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["onpath", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_from_a_model_and_pairs_to_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"{n} + 1 =", "response": f"{n + 1}"} for n in range(40)]
    write_lines(tmp_path / "pairs.jsonl", pairs)
    given = ["model.name=model", "data.tokenizer.name=model", "data.path=pairs.jsonl", "data.length=24", "device=cpu"]
    short = ["training.steps=3", "training.batch_size=4", "grid.steps=4", "evaluation.steps=[4]"]
    code, _, err = run(monkeypatch, capsys, "train", "sft", *given, *short, "--run", "run")
    assert code == 0, err
    code, out, err = run(monkeypatch, capsys, "evaluate", "run", "--json", "num_examples=4", "num_samples=2")
    assert code == 0, err
    metrics = {(row["mode"], row["metric"]) for row in json.loads(out)}
    assert {("nelbo", "nats_per_token"), ("nelbo", "bits_per_byte"), ("samples@4", "length")} <= metrics
    code, out, err = run(monkeypatch, capsys, "sample", "run", "--prompt", "5 + 1 =", "--num", "1", "--json")
    assert code == 0 and "5 + 1 =" in out, err


def test_perplexity_is_that_of_transformers(model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = "alpha beta gamma, alpha zeta"
    causal = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    ids = transformers.AutoTokenizer.from_pretrained(model)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(causal(ids, labels=ids).loss.exp())
    assert perplexity_row("generated", "samples@4", [text], str(model))["value"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="causal is 'nowhere'"):
        perplexity_row("generated", "samples@4", [text], "nowhere")


def test_what_is_missing_is_named() -> None:
    recipe: dict[str, Any] = yaml.safe_load(path_of("sft").read_text())
    assert "name" not in recipe["model"] and "path" not in recipe["data"]


def test_without_a_model_it_says_what_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, "train", "sft")
    assert code == 2 and "is missing" in err and not list(tmp_path.iterdir())
