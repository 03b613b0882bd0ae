"""Language models of transformers as denoisers, beside transformers itself, on tiny random models saved to disk."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from mars import write_mars
from onpath import rng
from onpath.build import build
from onpath.config import RunConfig
from onpath.data.source import Source
from onpath.models.from_transformers import CausalLM, MaskedLM, RemoteLM
from onpath.models.lora import LoRA
from onpath.objectives.base import score_masked
from onpath.processes.masking import Masking
from onpath.records import RunFolder
from onpath.schedules import LinearSchedule
from onpath.training import checkpoint
from onpath.training.ema import average_of, update_average
from onpath.training.optimizers import Muon
from onpath.types import Batch, Noisy, Spec
from tiny import tiny, tiny_job, tiny_parts

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is loaded: nothing here is on a hub

WORDS, LENGTH = 24, 10  # words 0 … 23, of which the first five are special
MASK = {"bert": 4, "roberta": 4, "modernbert": 4, "remote": 23}
MASK |= dict.fromkeys(("qwen2", "qwen3", "llama", "gemma3"), WORDS)
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.5,  # so that everything matters
}


@dataclass(frozen=True)
class Copying(Source):
    """Texts of a begin sign and words that repeat with a period of three; the first two tokens are the prompt."""

    mask_id: int
    split: str = "train"

    def spec(self) -> Spec:
        return Spec(LENGTH, WORDS, self.mask_id)

    def examples(self, ids: Tensor, device: Any = "cpu") -> Batch:
        head = 5 + rng.integers(rng.Key(purpose=f"copying/{self.split}"), ids, (3,), 12)
        x = torch.cat([torch.full((len(ids), 1), 2), head.repeat(1, 3)], dim=1)
        given = torch.arange(LENGTH).expand(len(ids), -1) < 2
        return Batch.of_tokens(x.to(device), ids, given=given.to(device))

    def at_split(self, split: str) -> Source:
        return Copying(self.mask_id, split)

    @property
    def num_examples(self) -> int | None:
        return 64


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, code_cache: None) -> Path:
    """A folder with tiny models of each type, with a tokenizer, as transformers saves them."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models")
    hf.utils.logging.disable_progress_bar()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    split = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*specials, *"abcdefghijklmnopqrs"])}, "[UNK]"))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    grouped = {**SIZES, "num_key_value_heads": 1, "attention_dropout": 0.5}
    ends = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "bert": hf.BertForMaskedLM(hf.BertConfig(**SIZES)),
        "qwen2": hf.Qwen2ForCausalLM(hf.Qwen2Config(**grouped, tie_word_embeddings=True)),
        "qwen3": hf.Qwen3ForCausalLM(hf.Qwen3Config(**grouped, head_dim=8)),
        "llama": hf.LlamaForCausalLM(hf.LlamaConfig(**grouped)),
        "roberta": hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES)),  # whose positions begin at 2
        "modernbert": hf.ModernBertForMaskedLM(hf.ModernBertConfig(**SIZES, **ends, local_attention=16)),
        "gemma3": hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**grouped, head_dim=8)),  # whose embeddings are scaled
    }
    for name, network in networks.items():
        network.save_pretrained(folder / name)
        own = {"mask_token": "[MASK]"} if "bert" in name else {}
        hf.PreTrainedTokenizerFast(tokenizer_object=split, **roles, **own).save_pretrained(folder / name)
    write_mars(folder / "remote", WORDS, MASK["remote"])
    return folder


KINDS: dict[str, Callable[..., Any]] = {
    "bert": MaskedLM,
    "qwen2": CausalLM,
    "qwen3": CausalLM,
    "llama": CausalLM,
    "gemma3": CausalLM,
    "roberta": MaskedLM,
    "modernbert": MaskedLM,
    "remote": lambda spec, **options: RemoteLM(spec, trust=True, **options),
}
every = pytest.mark.parametrize("kind", KINDS)
THREE = ("bert", "qwen2", "remote")


def spec_of(kind: str, **more: Any) -> Spec:
    return Spec(LENGTH, WORDS, MASK[kind], **more)


def denoiser(models: Path, kind: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return KINDS[kind](spec_of(kind), name=str(models / kind), **options).eval()


def auto_of(kind: str) -> Any:
    import transformers as hf

    return (
        hf.AutoModel if kind == "remote" else (hf.AutoModelForMaskedLM if "bert" in kind else hf.AutoModelForCausalLM)
    )


def theirs(models: Path, kind: str) -> Any:
    """The model as transformers loads it, with one row more for [MASK] where it has none."""
    network = auto_of(kind).from_pretrained(models / kind, trust_remote_code=kind == "remote").eval()
    if MASK[kind] == WORDS:
        mean = network.get_input_embeddings().weight.detach().mean(0)
        network.resize_token_embeddings(WORDS + 1, mean_resizing=False)
        network.get_input_embeddings().weight.data[WORDS] = mean
    return network


def expected(network: Any, kind: str, x: Tensor, allowed: Tensor | None = None) -> Tensor:
    """What transformers says of each row: of a causal model with a full mask, and of the row to the left."""
    causal = KINDS[kind] is CausalLM
    if allowed is None:
        allowed = torch.ones(len(x), x.shape[1], dtype=torch.bool)
    mask = allowed[:, None, None, :].expand(-1, 1, x.shape[1], -1) if causal else allowed.long()
    logits = network(input_ids=x, attention_mask=mask).logits[..., :WORDS]
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if causal else logits


def tokens(kind: str, size: int = 3, seed: int = 0) -> Tensor:
    """Words and masks, the first of them given."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(5, 20, (size, LENGTH), generator=generator)
    masked = torch.rand(size, LENGTH, generator=generator) < 0.4
    masked[:, 0] = False
    return x.masked_fill(masked, MASK[kind])


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


TIME = torch.zeros(3)


@every
@torch.no_grad()
def test_logits_equal_those_of_transformers(models: Path, kind: str) -> None:
    network, x = denoiser(models, kind), tokens(kind)
    own, reference = network(x, TIME, network.encode()), theirs(models, kind)
    close(own, expected(reference, kind, x))
    assert own.std() > 0.1
    # and with padding on the right, which changes nothing to its left
    allowed = torch.arange(LENGTH) < torch.tensor([[7], [10], [8]])
    padded = network(x, TIME, network.encode(padding=~allowed))
    close(padded[allowed], expected(reference, kind, x, allowed)[allowed])


@every
@torch.no_grad()
def test_the_head_runs_at_rows_only(models: Path, kind: str) -> None:
    network, x = denoiser(models, kind), tokens(kind)
    whole, seen = network(x, TIME, None), []
    network.head.register_forward_hook(lambda *_: pytest.fail("the head ran everywhere"))
    rows = torch.tensor([3, 7, 9, 22, 28])
    close(network(x, TIME, None, rows=rows), whole.flatten(0, 1)[rows])

    def readout(logits: Tensor, chunk: Tensor) -> Tensor:
        seen.append(logits.shape)
        return logits.sum(-1) + chunk

    close(network(x, TIME, None, rows=rows, readout=readout), whole.flatten(0, 1)[rows].sum(-1) + rows)
    assert seen == [(5, WORDS)]


@every
@torch.no_grad()
def test_every_position_hears_of_every_other(models: Path, kind: str) -> None:
    network, x = denoiser(models, kind), tokens(kind)
    before = network(x, TIME, None)
    for position in (0, 5, LENGTH - 1):
        other = x.clone()
        other[:, position] = 20
        moved = (network(other, TIME, None) - before).abs().amax((0, 2)) > 1e-4
        assert moved.all()


@every
@torch.no_grad()
def test_padding_does_not_matter(models: Path, kind: str) -> None:
    network = denoiser(models, kind)
    x = tokens(kind)[:, :6]
    alone = network(x, TIME, None)
    for left in (0, 1, 4):
        wide = torch.full((3, LENGTH), 11)
        wide[:, left : left + 6] = x
        padding = torch.ones(3, LENGTH, dtype=torch.bool)
        padding[:, left : left + 6] = False
        memo = network.encode(padding=padding)
        close(network(wide, TIME, memo)[:, left : left + 6], alone)
        # one memo serves several states of each example
        twice = network(wide.repeat(2, 1), TIME.repeat(2), memo)
        close(twice[3:, left : left + 6], alone)


@pytest.mark.parametrize("kind", ["bert", "roberta", "qwen2", "llama"])
@torch.no_grad()
def test_documents_do_not_see_each_other(models: Path, kind: str) -> None:
    network = denoiser(models, kind)
    x = tokens(kind)
    documents = torch.tensor([[0] * 4 + [1] * 4 + [2] * 2]).repeat(3, 1)
    x[:, [4, 8]] = 6  # the first of each is given
    padding = documents == 2
    packed = network(x, TIME, network.encode(padding=padding, documents=documents))
    for part in (slice(0, 4), slice(4, 8)):
        close(packed[:, part], network(x[:, part], TIME, None))


@pytest.mark.parametrize("kind", ["remote", "modernbert", "gemma3"])  # two with attention that slides
def test_what_cannot_keep_documents_apart_says_so(models: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=r"_lm: .* packed documents apart .* one document in each example"):
        denoiser(models, kind).encode(documents=torch.zeros(1, LENGTH, dtype=torch.int64))


def test_shift_needs_the_first_position(models: Path) -> None:
    network, x = denoiser(models, "qwen2"), tokens("qwen2")
    padding = (torch.arange(LENGTH) < 3).expand(3, -1)
    left = network.encode(padding=padding)
    for memo, first in ((None, 0), (left, 3)):
        with pytest.raises(ValueError, match=r"first position of a sequence is free.*shift: false"):
            network(x, TIME, memo, rows=torch.tensor([first, first + 4]))
    assert network(x, TIME, left, rows=torch.tensor([4, 8])).shape == (2, WORDS)
    free = denoiser(models, "qwen2", shift=False)
    close(free(x, TIME, None)[:, :-1], network(x, TIME, None)[:, 1:])
    assert free(x, TIME, None, rows=torch.tensor([0])).shape == (1, WORDS)


@torch.no_grad()
def test_a_new_mask_is_the_mean_and_has_a_logit_where_asked(models: Path) -> None:
    for kind in ("qwen2", "llama"):  # with one table for both ends, and with two
        network = CausalLM(spec_of(kind, mask_logit=True), name=str(models / kind))
        table = network.network.get_input_embeddings().weight
        close(network.mask_embedding, table.mean(0))
        logits = network(tokens(kind), TIME, None)
        assert logits.shape == (3, LENGTH, WORDS + 1)
        close(logits[..., :WORDS], denoiser(models, kind)(tokens(kind), TIME, None))
        close(logits[..., WORDS], logits[..., :WORDS].mean(-1))  # the head is linear, and its row is the mean as well
    own = MaskedLM(spec_of("bert", mask_logit=True), name=str(models / "bert"))
    assert own.mask_embedding is None and own(tokens("bert"), TIME, None).shape == (3, LENGTH, WORDS)


@pytest.mark.parametrize("kind", THREE)
def test_lora_starts_as_the_base_and_trains_little(models: Path, kind: str) -> None:
    base, network, x = denoiser(models, kind), denoiser(models, kind, lora=LoRA(rank=2)), tokens(kind)
    close(network(x, TIME, None), base(x, TIME, None))
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name == "mask_embedding" for name in trained)
    assert ("mask_embedding" in trained) == (kind == "qwen2")
    assert sum(p.numel() for p in trained.values()) < 0.4 * sum(p.numel() for p in base.parameters())
    network.train()
    network(x, TIME, None).square().sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == set(trained)


def test_frozen_weights_are_shared_with_the_average_and_not_saved(models: Path) -> None:
    network = denoiser(models, "qwen2", lora=LoRA(rank=2))
    average = average_of(network)
    pairs = list(zip(network.named_parameters(), average.parameters(), strict=True))
    assert all((p is held) != p.requires_grad for (_, p), held in pairs)
    begun = {name: held.clone() for (name, _), held in pairs}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0 if p.requires_grad else 0.0)
    update_average(average, network, 0.0, 0)
    for (name, p), held in pairs:
        close(held, begun[name] + (1.0 if p.requires_grad else 0.0))
    names = checkpoint.trained_names(network)
    assert set(names) == {"_extra_state", *(name for (name, p), _ in pairs if p.requires_grad)}
    state = network.state_dict()
    with pytest.raises(ValueError, match="do not fit the network"):
        checkpoint.fill(network, {name: state[name] for name in names[1:]})
    with pytest.raises(ValueError, match="do not fit the network"):
        checkpoint.fill(network, state)
    other = denoiser(models, "qwen2", lora=LoRA(rank=2))
    checkpoint.fill(other, {name: state[name] for name in names})
    with pytest.raises(ValueError, match="trained beside other frozen weights"):
        checkpoint.fill(network, {name: state[name] for name in names} | {"_extra_state": network.base + 1})


@every
def test_nothing_is_drawn_and_memory_can_be_saved(models: Path, kind: str) -> None:
    x = tokens(kind)
    gradients = []
    for again in (False, True):
        # a deep copy, as the moving average is
        network = copy.deepcopy(denoiser(models, kind, gradient_checkpointing=again)).train()
        one, two = network(x, TIME, None), network(x, TIME, None)
        assert torch.equal(one, two)  # no drop-out, whatever the config of the model says
        calls: list[str] = []
        layer = next(m for m in network.network.modules() if isinstance(m, torch.nn.ModuleList))[1]
        inside = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        for module, name in ((layer, "layer"), (inside, "inside")):
            module.register_forward_hook(partial(lambda calls, name, *_: calls.append(name), calls, name))
        network(x, TIME, None).square().sum().backward()
        assert calls == (["inside", "layer", "inside"] if again else ["inside", "layer"])
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


def test_bf16_is_for_frozen_weights(models: Path) -> None:
    with pytest.raises(ValueError, match="dtype is bf16 without lora"):
        denoiser(models, "qwen2", dtype="bf16")
    network, x = denoiser(models, "qwen2", dtype="bf16", lora=LoRA(rank=2)), tokens("qwen2")
    kept = {p.dtype for p in network.parameters() if p.requires_grad}
    assert kept == {torch.float32} and network.head.weight.dtype == torch.bfloat16
    exact = denoiser(models, "qwen2")(x, TIME, None)
    assert (network(x, TIME, None).float() - exact).abs().max() < 0.1 * exact.abs().max()


# --- the whole way ------------------------------------------------------------------------------------------------

LITTLE = {"lora": {"rank": 4, "alpha": 8}}
SECTIONS: dict[str, Any] = {
    "bert": {"kind": "masked_lm", **LITTLE},
    "qwen2": {"kind": "causal_lm", **LITTLE},
    "remote": {"kind": "remote_lm", "trust": True, **LITTLE},
    "llama": {"kind": "causal_lm"},
}


def config_of(models: Path, kind: str, **training: Any) -> RunConfig:
    model = {**SECTIONS[kind], "name": str(models / kind)}
    return RunConfig.parse(
        {
            "data": {"class": f"{__name__}:Copying", "mask_id": MASK[kind]},
            "model": model,
            "objective": "nelbo",
            "training": {
                "steps": 6,
                "batch_size": 8,
                "validation_examples": 8,
                "save_every": 3,
                "log_every": 1,
                "keep": 0,
                "optimizer": {"kind": "adamw", "learning_rate": 0.02},
                "ema": 0.5,
                **training,
            },
            "device": "cpu",
        }
    )


def fit(config: RunConfig, folder: RunFolder, resume: bool = False) -> Any:
    parts = build(config)
    return parts, parts.trainer.fit(parts.job(), folder, resume=resume)


def newest(run: RunFolder) -> checkpoint.Checkpoint:
    path, _ = checkpoint.newest(run.checkpoints)
    assert path is not None
    return checkpoint.load(path)


def exported(folder: Path, kind: str) -> Any:
    return auto_of(kind).from_pretrained(folder, trust_remote_code=kind == "remote").eval()


@pytest.mark.parametrize("kind", SECTIONS)
def test_from_a_model_to_a_model(models: Path, tmp_path: Path, kind: str) -> None:
    """Load, fine-tune (three with LoRA), break off and resume, evaluate, sample, merge, load in transformers."""
    import onpath

    config = config_of(models, kind)
    whole = RunFolder.create(tmp_path / "whole", config.as_dict())
    parts, average = fit(config, whole)
    # broken off after three steps: the rest comes out with the same bits
    torn = RunFolder(tmp_path / "torn")
    shutil.copytree(whole.path, torn.path)
    shutil.rmtree(torn.checkpoints / "step-6")
    fit(config, torn, resume=True)
    one, two = newest(whole), newest(torn)
    assert one.step == two.step == 6
    little = [name for name in one.model if "lora_" in name or name in ("mask_embedding", "_extra_state")]
    assert len(little) == (2 if kind == "llama" else len(one.model))
    for ours, again in ((one.model, two.model), (one.average, two.average)):
        assert ours.keys() == again.keys() and all(torch.equal(ours[name], again[name]) for name in ours)
    torch.testing.assert_close(one.optimizers, two.optimizers, rtol=0, atol=0)
    # it has learnt, and the run can be had again from its folder and that of the base
    row = parts.trainer.validate(average, parts.job(), 6)
    base = parts.trainer.validate(build(config).model, parts.job(), 6)
    assert row["nelbo_per_token"] < base["nelbo_per_token"] - 0.01
    run: Any = onpath.load(tmp_path / "whole")
    assert parts.trainer.validate(run.denoiser, parts.job(), 6) == row
    sampled = run.sample(num_samples=4)
    shown = parts.source.at_split("validation").examples(torch.arange(4))
    assert (sampled.x != MASK[kind]).all() and (sampled.x < WORDS).all()
    assert torch.equal(sampled.x[:, :2], shown.x[:, :2])
    # merged, in the format of transformers
    run.export(tmp_path / "merged")
    network, x = exported(tmp_path / "merged", kind), tokens(kind)
    with torch.no_grad():
        close(expected(network, kind, x), run.denoiser(x, TIME, None))
    assert not [name for name in network.state_dict() if "lora" in name]
    assert network.config.mask_token_id == MASK[kind]
    # which can be the base of the next
    with torch.no_grad():
        close(KINDS[kind](spec_of(kind), name=str(tmp_path / "merged"))(x, TIME, None), run.denoiser(x, TIME, None))
    with pytest.raises(ValueError, match="merged is not empty"):
        run.export(tmp_path / "merged")


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_what_is_exported_says_how_to_run_it(models: Path, tmp_path: Path, kind: str) -> None:
    import transformers as hf

    network = denoiser(models, kind, lora=LoRA(rank=2))
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p) if p.requires_grad else 0.0)
    network.export(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"`[MASK]` is the id {WORDS}" in text and "logits of position i - 1" in text and "attention_mask" in text
    words = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words.mask_token_id == WORDS and words("a b c")["input_ids"] == [5, 6, 7]
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["attention_dropout"] == 0.5 and saved["vocab_size"] == WORDS + 1 and "is_causal" not in saved
    with torch.no_grad():
        x = tokens(kind)
        close(expected(exported(tmp_path / "out", kind), kind, x), network(x, TIME, None))


DYING = """
import os, signal, sys
import torch

sys.path[:0] = sys.argv[1:3]
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
from pathlib import Path

import transformers.dynamic_module_utils
from onpath.build import build
from onpath.config import RunConfig
from onpath.records import RunFolder

transformers.dynamic_module_utils.HF_MODULES_CACHE = sys.argv[3]
run = RunFolder.open(Path(sys.argv[4]))
parts = build(RunConfig.load(run.path / "config.yaml"))
parts.trainer.fit(parts.job(), run, resume=True, on_progress=lambda p: p.step == 5 and os.kill(os.getpid(), 9))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", THREE)
def test_a_kill_changes_nothing(models: Path, tmp_path: Path, kind: str) -> None:
    config = config_of(models, kind)
    whole = RunFolder.create(tmp_path / "whole", config.as_dict())
    fit(config, whole)
    torn = RunFolder.create(tmp_path / "torn", config.as_dict())
    here = Path(__file__).parent
    command = [sys.executable, "-c", DYING, str(here), str(here.parent), str(tmp_path / "code"), str(torn.path)]
    dead = subprocess.run(command, check=False, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert newest(torn).step == 3
    fit(config, torn, resume=True)
    one, two = newest(whole), newest(torn)
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
    assert all(torch.equal(one.average[name], two.average[name]) for name in one.average)


WORKER = """
import os, sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

sys.path[:0] = sys.argv[2:4]
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
from onpath.build import build
from onpath.config import RunConfig
from onpath.records import RunFolder
from onpath.training.distributed import Processes

root = Path(sys.argv[1])
with Processes.joined() as processes:
    for name in ("ddp", "fsdp"):
        settings = [f"training.parallel={name}", "model.gradient_checkpointing=true"]
        config = RunConfig.load(root / "config.yaml", settings)
        parts = build(config)
        folder = processes.first(lambda: RunFolder.create(root / name, config.as_dict()))
        average = parts.trainer.fit(parts.job(), folder, processes=processes)
        assert all(isinstance(p, DTensor) == (name == "fsdp") for p in average.parameters())
        assert all(isinstance(layer, FSDPModule) == (name == "fsdp") for layer in parts.model.blocks)
print("both agree")
"""


@pytest.mark.slow
def test_two_processes_fine_tune_what_one_does(models: Path, tmp_path: Path) -> None:
    config = config_of(models, "qwen2")
    alone = RunFolder.create(tmp_path / "alone", config.as_dict())
    fit(config, alone)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    (tmp_path / "worker.py").write_text(WORKER)
    here = Path(__file__).parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = [str(tmp_path / "worker.py"), str(tmp_path), str(here), str(here.parent)]
    done = subprocess.run([*command, *given], check=False, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0 and done.stdout.count("both agree") == 2, done.stderr
    one = newest(alone)
    for name in ("ddp", "fsdp"):
        run = RunFolder(tmp_path / name)
        losses = [[row["loss"] for row in folder.metrics()] for folder in (alone, run)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4), name
        other = newest(run)
        assert other.model.keys() == one.model.keys() and other.average.keys() == one.average.keys()
        for weight in one.average:
            torch.testing.assert_close(one.average[weight], other.average[weight], rtol=0, atol=1e-3)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_trust_is_asked_for(models: Path) -> None:
    spec, name = spec_of("remote"), str(models / "remote")
    with pytest.raises(ValueError, match=r"trust is false.*modeling_mars.MarsModelLM.*all your rights.*trust: true"):
        RemoteLM(spec, name=name)
    with pytest.raises(ValueError, match=r"remote_lm with trust: true"):
        CausalLM(spec, name=name)
    with pytest.raises(ValueError, match=r"brings no code of its own.*masked_lm or causal_lm"):
        RemoteLM(spec_of("bert"), name=str(models / "bert"), trust=True)


def test_what_does_not_fit_is_refused(models: Path, tmp_path: Path) -> None:
    bert = str(models / "bert")
    with pytest.raises(ValueError, match=r"the data have 40 words and .*bert has 24"):
        MaskedLM(Spec(LENGTH, 40, 4), name=bert)
    with pytest.raises(ValueError, match=r"the id 3 for \[MASK\].*has 4"):
        MaskedLM(Spec(LENGTH, WORDS, 3), name=bert)
    with pytest.raises(ValueError, match=r"33 tokens long and .* reads 32"):
        MaskedLM(Spec(33, WORDS, 4), name=bert)
    with pytest.raises(ValueError, match=r"id of \[MASK\] is 30"):
        CausalLM(Spec(LENGTH, WORDS, 30), name=str(models / "llama"))
    for name in (str(tmp_path / "nothing"), "nothing", "./nothing"):
        with pytest.raises(ValueError, match=r"nothing.*give a local folder or a hub name|no such folder"):
            MaskedLM(spec_of("bert"), name=name)


def test_a_model_without_its_head_is_refused(models: Path, tmp_path: Path) -> None:
    import transformers as hf

    hf.BertModel.from_pretrained(models / "bert").save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare has no weights for cls\.predictions"):
        MaskedLM(spec_of("bert"), name=str(tmp_path / "bare"))
    assert MaskedLM(spec_of("bert"), name=str(tmp_path / "bare"), random=True).head.out_features == WORDS


def changed(models: Path, target: Path, old: str, new: str) -> str:
    """The remote model with a line of its code changed."""
    shutil.copytree(models / "remote", target)
    code = target / "modeling_mars.py"
    assert old in code.read_text()
    code.write_text(code.read_text().replace(old, new))
    return str(target)


def test_remote_models_may_tie_their_weights(models: Path, tmp_path: Path) -> None:
    tie = "self.model.transformer.ff_out.weight = self.model.transformer.wte.weight; self.post_init()"
    tied = changed(models, tmp_path / "tied", "self.post_init()", tie)
    network, x = RemoteLM(spec_of("remote"), name=tied, trust=True, lora=LoRA(rank=2)), tokens("remote")
    network.export(tmp_path / "out")
    assert len(network.state_dict()) > len(load_file(tmp_path / "out" / "model.safetensors"))
    again = RemoteLM(spec_of("remote"), name=str(tmp_path / "out"), trust=True)
    close(again(x, TIME, None), network(x, TIME, None))
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"out has no weights for model\.transformer"):
        RemoteLM(spec_of("remote"), name=str(tmp_path / "out"), trust=True)


def test_what_a_network_cannot_do_is_found_out(models: Path, tmp_path: Path) -> None:
    spec = spec_of("remote")
    deaf = changed(models, tmp_path / "deaf", "if attention_mask is None", "if True")
    network = RemoteLM(spec, name=deaf, trust=True)
    with pytest.raises(ValueError, match=r"deaf attends to padding.*data\.end: fill"):
        network.encode(padding=torch.zeros(1, LENGTH, dtype=torch.bool))
    causal = changed(models, tmp_path / "causal", "attn_mask=bias", "is_causal=True")
    with pytest.raises(ValueError, match="a later token does not change what is said of an earlier one"):
        RemoteLM(spec, name=causal, trust=True)
    squashed = changed(models, tmp_path / "squashed", "return self.transformer", "return 1 + self.transformer")
    with pytest.raises(ValueError, match="does more to its logits than its head"):
        RemoteLM(spec, name=squashed, trust=True)
    broken = changed(models, tmp_path / "broken", "self.post_init()", "self.no_such_thing()")
    with pytest.raises(ValueError, match=r"code of .*broken fails with transformers .*no_such_thing"):
        RemoteLM(spec, name=broken, trust=True)


def test_muon_says_that_it_is_for_other_networks(models: Path) -> None:
    with pytest.raises(ValueError, match=r"MaskedLM has no matrices under `blocks`.*adamw"):
        Muon().build(denoiser(models, "bert"))


def test_only_what_has_a_format_is_exported(tmp_path: Path) -> None:
    import onpath

    parts = tiny_parts()
    parts.trainer.fit(tiny_job(parts), RunFolder.create(tmp_path / "run", tiny().as_dict()))
    with pytest.raises(ValueError, match=r"PlanMLP has no format but that of its checkpoints.*average\.safetensors"):
        onpath.load(tmp_path / "run").export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lora_says_what_it_takes(models: Path) -> None:
    for settings, said in (
        (SimpleNamespace(rank=0), "rank is 0"),
        (SimpleNamespace(alpha=0), "alpha is 0"),
        (SimpleNamespace(dropout=0.1), "dropout is 0.1.*global state"),
    ):
        with pytest.raises(ValueError, match=said):
            LoRA(**vars(settings))
    with pytest.raises(ValueError, match="random weights would stay random"):
        denoiser(models, "qwen2", lora=LoRA(), random=True)
    with pytest.raises(ValueError, match=r"the linear layers .*q_proj"):
        denoiser(models, "qwen2", lora=LoRA(targets=("query",)))
    chosen = denoiser(models, "qwen2", lora=LoRA(rank=2, targets=("q_proj", "v_proj")))
    assert sum("lora_A" in name for name, _ in chosen.named_parameters()) == 4


@torch.no_grad()
def test_two_evaluations_of_equal_weights_agree(models: Path) -> None:
    network = denoiser(models, "qwen2", lora=LoRA(rank=2)).train()
    batch = Copying(MASK["qwen2"]).examples(torch.arange(4))
    process = Masking(LinearSchedule(), MASK["qwen2"])
    noisy: Noisy = process.corrupt_ratio(batch, torch.full((4,), 0.5), rng.Key(0, "equal"))
    first, second = (score_masked(process, network, batch, noisy).nats for _ in range(2))
    assert len(first) and torch.equal(first, second)
