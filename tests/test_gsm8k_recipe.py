"""The recipe `trajectory_nelbo_gsm8k` as its user runs it, on a tiny model that brings its code, as LLaDA does."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mars import write_mars
from onpath import cli
from onpath.build import Parts, build
from onpath.config import RunConfig
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.models.from_transformers import RemoteLM
from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import Coupled, Sandwiched
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.recipes import path_of
from onpath.records import RunFolder
from onpath.rewards.gsm8k import StrictFormat
from onpath.rng import Key
from onpath.schedules import CosineSchedule
from onpath.training.distributed import ALONE
from onpath.training.ema import average_of
from onpath.types import Nets, Spec
from policies import rounds_of
from texts import write_lines, write_llada

NAME = "trajectory_nelbo_gsm8k"
FILES = [
    "data.path=train.jsonl",
    "data.validation_path=test.jsonl",
    "data.subset=''",
    "data.tokenizer.name=model",
    "model.name=model",
]
SIZES = [
    "data.system=''",
    "data.length=208",
    "data.max_completion_length=12",
    "model.dtype=fp32",
    "grid.steps=6",
    "training.steps=2",
    "training.batch_size=8",
    "training.accumulation=2",
    "training.optimizer.learning_rate=0.01",
    "training.warmup_steps=0",
    "training.precision=fp32",
    "training.validate_every=2",
    "training.validation_examples=3",
    "training.save_every=1",
    "device=cpu",
]
# of random text no right answer comes; `shortness` sets rollouts of it apart
REWARDS = (
    "experience.rewards=[gsm8k_correct, soft_format, strict_format, integer_answer, "
    "{kind: function, function: 'judges:shortness'}]"
)
ALL = [*FILES, *SIZES, REWARDS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, code_cache: None) -> Path:
    """A folder with a model and its tokenizer, and rows as those of GSM8K."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("gsm8k")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(write_llada(folder / "model"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # the table has rows behind the last word, as that of LLaDA
        mask_id = tokenizer.get_vocab()["<|mdm_mask|>"]
        write_mars(folder / "model", len(tokenizer) + 3, mask_id, max_sequence_length=512)
    rows = [
        {
            "question": f"Tom has {n} hens{' and a dog' * (n % 3)}. Each lays {n % 4} eggs.\nHow many eggs are there?",
            "answer": f"Each lays {n % 4}.\nSo {n}*{n % 4}=<<{n}*{n % 4}={n * (n % 4)}>>.\n#### {n * (n % 4):,}",
        }
        for n in range(24)
    ]
    write_lines(folder / "train.jsonl", rows[:18])
    write_lines(folder / "test.jsonl", rows[18:])
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_of(*overrides: str) -> RunConfig:
    return RunConfig.load(path_of(NAME), overrides)


def parts_of(*overrides: str) -> Parts:
    return build(config_of(*ALL, *overrides))


@pytest.fixture
def onpath(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["onpath", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert not left.value.code, err
        return out

    return call


def objective_of(parts: Parts) -> PolicyGradient:
    assert isinstance(parts.objective, PolicyGradient)
    return parts.objective


# --- settings -----------------------------------------------------------------------------------------------------


def test_what_is_set() -> None:
    whole = config_of().as_dict()
    assert whole["schedule"] == {"kind": "cosine", "alpha_min": 0.01, "alpha_max": 0.99}
    assert whole["grid"] == {"kind": "uniform", "steps": 128}
    estimator = whole["objective"]["estimator"]
    assert estimator == {"kind": "traj_nelbo", "trajectory_samples": 4, "level": "token", "p_mask_prompt": 0.3}
    assert (whole["data"]["path"], whole["data"]["subset"]) == ("hub:openai/gsm8k#train", "main")
    # neither sign has a role in the tokenizer of LLaDA, whose answers end with <|eot_id|><|endoftext|>
    tokenizer = whole["data"]["tokenizer"]
    assert (tokenizer["mask_token"], tokenizer["end_token"]) == ("<|mdm_mask|>", "<|eot_id|>")
    assert whole["model"]["name"] == tokenizer["name"] == "GSAI-ML/LLaDA-8B-Instruct"


def test_rollouts_and_loss_have_one_schedule_and_one_grid(here: Path) -> None:
    parts = parts_of("grid.steps=128")
    objective, generator = objective_of(parts), rounds_of(parts).generator
    assert objective.process is generator.process and objective.grid == generator.grid
    assert objective.sampler is generator.sampler
    schedule = objective.process.schedule
    assert schedule == CosineSchedule(alpha_min=0.01, alpha_max=0.99)
    assert [float(schedule.alpha(torch.tensor([t]))) for t in (0.0, 1.0)] == pytest.approx([0.99, 0.01])
    times = generator.sampler.times(generator.grid, schedule)
    assert len(times) == 128 + 2 + 1  # and one step more at each bound


def test_an_end_of_either_name_leaves_the_form_of_an_answer(here: Path) -> None:
    text = "<reasoning>\nsix\n</reasoning>\n<answer>\n6\n</answer>"
    codec = HuggingFaceTokenizer("model", mask_token="<|mdm_mask|>", end_token="<|eot_id|>")
    vocab = codec._hf.get_vocab()
    for ends in (["<|eot_id|>", "<|endoftext|>"], ["<|endoftext|>", "<|endoftext|>"]):
        completion = codec.decode([*codec.encode(text), *(vocab[end] for end in ends)])
        assert StrictFormat()(prompts=[""], completions=[completion], completion_ids=[[]]) == [0.5]


def test_the_tokenizer_of_a_model_with_code_of_its_own_asks_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    assert HuggingFaceTokenizer("model", mask_token="<|mdm_mask|>").num_words == 303
    assert "custom code" not in "".join(capfd.readouterr())


# --- the loss -----------------------------------------------------------------------------------------------------


def test_at_step_0_the_reference_is_the_base_and_the_gradient_that_of_the_adapters(here: Path) -> None:
    parts = parts_of()
    objective, model = objective_of(parts), parts.model
    assert isinstance(model, RemoteLM)
    reference = average_of(model)
    made = rounds_of(parts).collect(Nets(model), 0, 8, torch.device("cpu"), ALONE)
    experience = made.experience
    assert experience.chance is not None and experience.advantage.abs().sum() > 1
    x, time = experience.tokens, torch.zeros(8)
    memo = model.encode(**experience.batch.conditions())
    with torch.no_grad():
        whole = model(x, time, memo)
        adapters = [
            module for module in model.modules() if type(module).__name__ == "Linear" and "lora" in repr(module)
        ]
        assert len(adapters) == 2 * 3  # q, k and v of two layers
        for module in adapters:
            module.enable_adapters(False)
        assert torch.equal(whole, model(x, time, memo))
        assert torch.equal(whole, reference(x, time, reference.encode(**experience.batch.conditions())))
        for module in adapters:
            module.enable_adapters(True)
    loss = objective(Nets(model, reference=reference), experience, Key(0, "loss"), 0)
    assert float(loss.metrics["kl"][0]) == 0.0 and math.isfinite(float(loss.numerator.detach()))
    loss.numerator.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained and all(".lora_" in name for name in trained)
    assert trained == {name for name, weight in model.named_parameters() if weight.requires_grad}
    moved = [weight.grad.abs().sum() for weight in model.parameters() if weight.grad is not None]
    assert all(bool(value.isfinite()) for value in moved) and float(sum(moved)) > 0


@pytest.mark.parametrize("estimator", [None, Coupled(), Sandwiched()], ids=repr)
def test_a_mask_amid_the_words_leaves_no_nan(here: Path, estimator: Estimator | None) -> None:
    """The logit of LLaDA's [MASK] is left out of the middle of a row by -inf, where p·log p must be 0."""
    parts = parts_of("objective.beta=0.5")
    spec, model = parts.source.spec(), parts.model
    assert isinstance(spec, Spec) and spec.mask_id < spec.num_words - 1
    reference = average_of(model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    experience = rounds_of(parts).collect(Nets(model), 0, 8, torch.device("cpu"), ALONE).experience
    assert not (experience.tokens == spec.mask_id).any() and bool(experience.log_prob.isfinite().all())
    objective = objective_of(parts)
    if estimator is not None:  # the old scores are of the states that the recipe's own reads
        objective, experience = replace(objective, estimator=estimator), replace(experience, old=None)
    loss = objective(Nets(model, reference=reference), experience, Key(0, "loss"), 0)
    loss.numerator.backward()
    entropy, number = loss.metrics["entropy"]
    assert 0.0 < float(entropy) / float(number) < math.log(spec.num_words)
    assert 0.0 < float(loss.metrics["kl"][0]) < 1e6 and math.isfinite(float(loss.numerator.detach()))
    grads = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


# --- runs ---------------------------------------------------------------------------------------------------------


def test_from_prompts_to_a_report(here: Path, onpath: Callable[..., str]) -> None:
    onpath("train", NAME, *ALL, "--run", "run")
    folder = RunFolder.open(Path("run"))
    first, second, held_out = _checked(folder)
    assert first["kl"] == 0.0 and first["sampling/importance_sampling_ratio/mean"] == 1.0
    assert second["kl"] > 0.0 and second["sampling/importance_sampling_ratio/mean"] != 1.0  # the same rollouts again
    assert held_out["set"] == "validation" and held_out["step"] == 2

    # what is kept of the weights are the adapters, and the base is as it lies on disk
    saved = load_file("run/checkpoints/step-2/model.safetensors")
    assert {name.split(".")[-3] for name in saved if ".lora_" in name} == {"lora_A", "lora_B"}
    assert all(".lora_" in name or name == "_extra_state" for name in saved)

    shutil.copytree("run", "again")
    shutil.rmtree("again/checkpoints/step-2")
    assert "resumed at step 1" in onpath("train", NAME, "--run", "again", "--resume")
    taken = load_file("again/checkpoints/step-2/model.safetensors")
    assert saved.keys() == taken.keys() and all(torch.equal(saved[name], taken[name]) for name in saved)

    rows = json.loads(onpath("evaluate", "run", "--json", "num_examples=3", "drift=null"))
    assert {row["metric"] for row in rows} >= {"rewards/gsm8k_correct", "rewards/strict_format", "rewards/shortness"}
    assert {row["set"] for row in rows} == {"test"} and all(math.isfinite(row["value"]) for row in rows)
    onpath("report", "run")
    assert "gsm8k" in Path("run/report.html").read_text(encoding="utf-8")


def test_the_base_stays_as_it_is(here: Path) -> None:
    parts = parts_of()
    model = parts.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    parts.trainer.fit(parts.job(), RunFolder.create(Path("run"), parts.config.as_dict()))
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # bf16 beside adapters in fp32 is what the recipe says
def test_two_processes_with_shards_make_the_run_of_one(
    here: Path, onpath: Callable[..., str], tmp_path_factory: pytest.TempPathFactory, dtype: str
) -> None:
    settings = [*ALL, f"model.dtype={dtype}", f"training.precision={dtype}"]
    onpath("train", NAME, *settings, "--run", "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "onpath"]
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [*launch, "train", NAME, *settings, "--run", "two"],
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("code")),
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 processes, fsdp" in done.stdout
    one, two = (_checked(RunFolder.open(Path(name))) for name in ("one", "two"))
    same = ("loss", "kl", "reward", "reward_std", "entropy", "logp/traj", "gradient_norm")
    assert one[0]["kl"] == two[0]["kl"] == 0.0 and one[1]["kl"] > 0.0 and two[1]["kl"] > 0.0
    if dtype == "bf16":
        return
    for mine, its in zip(one, two, strict=True):
        assert mine.keys() == its.keys()
        for name in [name for name in same if name in mine]:
            assert its[name] == pytest.approx(mine[name], abs=1e-5, rel=1e-4), (name, mine["step"])
    saved, its_saved = (load_file(f"{name}/checkpoints/step-2/model.safetensors") for name in ("one", "two"))
    for name, weight in saved.items():
        torch.testing.assert_close(its_saved[name], weight, rtol=0, atol=1e-4)


def _checked(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of a run, all figures finite, the rewards of the recipe among them."""
    rows = list(folder.metrics())
    assert [(row["step"], row["set"]) for row in rows] == [(1, "train"), (2, "train"), (2, "validation")]
    for row in rows:
        assert all(math.isfinite(value) for name, value in row.items() if name != "set")
    for row in (rows[0], rows[2]):
        for name in ("gsm8k_correct", "soft_format", "strict_format", "integer_answer", "shortness"):
            assert f"rewards/{name}/mean" in row
    assert rows[0]["reward_std"] > 0 and rows[0]["rollout_forwards"] <= 8
    assert all(1 < row["loss_forwards"] <= 4 for row in rows[:2])  # states that rollouts of a prompt share count once
    return rows
