"""dLLM's own log-probabilities and loss of diffu-GRPO, imported from a checkout of its repository and run as they are.

Its file `dllm/pipelines/rl/grpo/trainer.py` is executed unchanged. Of what it imports, the trainer of TRL 0.19 that it
inherits the clipped loss from is taken from an unpacked wheel where one is named, its file unchanged too; otherwise a
stand-in computes the same. The rest (accelerate, datasets, transformers, samplers) is empty: no log-probability reads
it. Constructors, which want a whole trainer, are left out, and what they set is set here.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

_FILE, _TRL_FILE = Path("dllm/pipelines/rl/grpo/trainer.py"), Path("trl/trainer/grpo_trainer.py")
_PACKAGES = ("dllm", "dllm.pipelines", "dllm.pipelines.rl", "dllm.pipelines.rl.grpo", "dllm.core")
_EMPTY = (
    *("dllm.core.samplers", "accelerate", "accelerate.utils", "datasets", "transformers", "transformers.utils"),
    *("transformers.trainer_utils", "trl.data_utils", "trl.extras.profiling", "trl.extras.vllm_client"),
    *("trl.import_utils", "trl.models", "trl.models.utils", "trl.trainer.callbacks", "trl.trainer.grpo_config"),
    "trl.trainer.utils",
)
_TRL_PACKAGES = ("trl", "trl.extras", "trl.trainer")


class _Empty(ModuleType):
    """A module in which every name is an empty class, and every question whether something is there is denied."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.startswith("is_"):
            return lambda *_: False
        return type(name, (), {})


class _Trainer:
    """TRL's clipped loss in other words: a stand-in for its GRPOTrainer, which dLLM's class inherits from."""

    def _compute_loss(self: Any, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        kept = inputs["completion_mask"]
        ids, attended = (
            torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask")
        )
        found = self._get_per_token_logps(model, ids, attended, kept.shape[1])
        old = found.detach() if inputs["old_per_token_logps"] is None else inputs["old_per_token_logps"]
        ratio, advantage = (found - old).exp(), inputs["advantages"][:, None]
        held = ratio.clamp(1 - self.epsilon_low, 1 + self.epsilon_high)
        cost = -torch.minimum(ratio * advantage, held * advantage)
        if self.beta != 0.0:
            gap = inputs["ref_per_token_logps"] - found
            cost = cost + self.beta * (gap.exp() - gap - 1)
        return ((cost * kept).sum(1) / kept.sum(1).clamp(min=1.0)).mean()


def _modules(folder: Path, trl: Path | None) -> dict[str, ModuleType]:
    """Packages without their own start-up, TRL's trainer or its stand-in, and all that is not needed as nothing."""
    modules: dict[str, ModuleType] = {name: _Empty(name) for name in _EMPTY}
    for root, names in ((folder, _PACKAGES), (trl, _TRL_PACKAGES)):
        for name in names:
            modules[name] = _Empty(name)
            modules[name].__path__ = [] if root is None else [str(root / name.replace(".", "/"))]
    vars(modules["accelerate.utils"])["set_seed"] = torch.manual_seed
    vars(modules["trl.extras.profiling"])["profiling_decorator"] = lambda function: function
    if trl is None:
        trainer = modules["trl.trainer.grpo_trainer"] = _Empty("trl.trainer.grpo_trainer")
        vars(trainer)["GRPOTrainer"] = _Trainer
    return modules


@contextmanager
def _replaced(modules: dict[str, ModuleType]) -> Iterator[None]:
    """`modules` stand for what is installed until the block ends, and nothing of both projects stays behind."""
    names = {*modules, *(name for name in sys.modules if name.split(".")[0] in ("dllm", "trl"))}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name in modules or name.split(".")[0] in ("dllm", "trl")]:
            del sys.modules[name]
        sys.modules.update(before)


@dataclass(frozen=True)
class Settings:
    """Of the loss. num_iterations: passes over a round of rollouts; beta: of the KL, 0 is off.

    one_prompt: all rollouts answer the same prompt, and are given the prompt masked as the first one has it.
    """

    mask_id: int
    num_iterations: int = 1
    beta: float = 0.0
    one_prompt: bool = False
    epsilon: float = 0.2
    p_mask_prompt: float = 0.15


def load(folder: str | Path, trl: str | Path | None = None) -> type[Any]:
    """dLLM's class `DiffuGRPOTrainer` from a checkout; ValueError where the folders are none.

    trl: a folder that an unpacked wheel of TRL 0.19 lies in; None takes a stand-in.
    """
    folder, trl = Path(folder).resolve(), None if trl is None else Path(trl).resolve()
    if not (folder / _FILE).is_file():
        raise ValueError(f"peer: {folder} holds no {_FILE}; give the folder of a checkout of ZHZisZZ/dllm")
    if trl is not None and not (trl / _TRL_FILE).is_file():
        raise ValueError(f"trl: {trl} holds no {_TRL_FILE}; give the folder that a wheel of TRL 0.19 is unpacked in")
    with _replaced(_modules(folder, trl)):
        return importlib.import_module("dllm.pipelines.rl.grpo.trainer").DiffuGRPOTrainer


def trainer(kind: type[Any], settings: Settings, model: nn.Module) -> Any:
    """dLLM's trainer with the settings of its loss, but for its constructor.

    The mean over a completion, then over rollouts, as its paper has it (`loss_type` grpo).
    """
    made: Any = object.__new__(kind)
    made.args = SimpleNamespace(p_mask_prompt=settings.p_mask_prompt, delta=None)
    made.processing_class = SimpleNamespace(mask_token_id=settings.mask_id)
    made.sampler_config = SimpleNamespace(cfg_scale=0.0)
    made.beta, made.loss_type = settings.beta, "grpo"
    made.epsilon_low = made.epsilon_high = settings.epsilon
    made.num_iterations, made.model = settings.num_iterations, model
    made.accelerator = SimpleNamespace(gather=lambda value: value)
    made._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made._mask_seeds = list(range(settings.num_iterations))
    made._current_mask_seed, made._diffu_iter_idx = 0, 0
    if settings.one_prompt:
        drawn = made._forward_process
        # of one prompt and completions of which nothing is left, all are that of the first
        made._forward_process = lambda tokens, *rest, **named: drawn(tokens, *rest, **named)[:1].repeat(len(tokens), 1)
    return made


def log_probs(made: Any, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(N, I, L'): of the completions in each pass, without gradient, as its collection of a round takes them."""
    ids, mask = (torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    length = inputs["completion_ids"].shape[1]
    with torch.no_grad():
        passes = [made._get_per_token_logps(model, ids, mask, length, len(ids), seed=seed) for seed in made._mask_seeds]
    return torch.stack(passes, dim=1)


class Logits(nn.Module):
    """A denoiser of masked states as dLLM calls a model: the logits of all positions.

    Its attention mask is left aside, so that both sides see the same states behind an end token, and under bf16 the
    logits go to fp32, as Accelerate hands them to a trainer.
    """

    def __init__(self, network: nn.Module, bf16: bool = False) -> None:
        super().__init__()
        self.network, self.bf16 = network, bf16

    def forward(self, ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        share = torch.ones(len(ids), device=ids.device)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(ids, share, (None, None))
        return SimpleNamespace(logits=logits.float())
