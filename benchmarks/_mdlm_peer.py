"""MDLM's own network, noise schedule and loss, imported from a checkout of its repository.

What they import and never use here (trainer, metrics, data, other networks) is replaced by empty modules, and
flash-attn, which needs a GPU, by torch's own attention. Only `einops` must be installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

_UNUSED = (
    *("dataloader", "models.dimamba", "hydra", "hydra.utils", "torchmetrics", "torchmetrics.aggregation", "timm"),
    *("timm.scheduler", "omegaconf", "fsspec", "transformers", "huggingface_hub"),
    *("lightning", "lightning.pytorch", "lightning.pytorch.utilities"),
)
_FLASH = ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary", "flash_attn.flash_attn_interface")
_OWN = ("diffusion", "models", "models.dit", "models.ema", "models.autoregressive", "noise_schedule", "utils")
_FILES = ("diffusion.py", "noise_schedule.py", "models/dit.py", "models/ema.py")

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Empty(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _LightningModule(nn.Module):
    """What MDLM's class reads of its base: where its weights are, and of what type."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


def turned(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on queries and keys of qkv (B, L, 3, A, E); cos, sin: (L, E/2)."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    first, second = qkv[:, :, :2].chunk(2, dim=-1)
    both = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([both, qkv[:, :, 2:]], dim=2)


def attended(qkv: Tensor, cu_seqlens: Tensor, length: int, dropout: float, causal: bool = False) -> Tensor:
    """Attention by torch over qkv (B·L, 3, A, E), sequences of one length under each other; (B·L, A, E)."""
    query, key, value = qkv.unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=causal)
    return mixed.transpose(1, 2).flatten(0, 1)


def attended_by_softmax(qkv: Tensor, cu_seqlens: Tensor, length: int, dropout: float, causal: bool = False) -> Tensor:
    """The same with an explicit softmax, which is faster for short rows on a CPU."""
    query, key, value = qkv.unflatten(0, (-1, length)).permute(2, 0, 3, 1, 4)
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2).flatten(0, 1)


def _stand_ins(attention: str, turn: Turn) -> dict[str, ModuleType]:
    modules: dict[str, ModuleType] = {name: _Empty(name) for name in (*_UNUSED, *_FLASH)}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent in modules:
            setattr(modules[parent], child, module)
    attend = {"sdpa": attended, "softmax": attended_by_softmax}[attention]
    vars(modules["lightning"])["LightningModule"] = _LightningModule
    vars(modules["flash_attn.layers.rotary"])["apply_rotary_emb_qkv_"] = turn
    vars(modules["flash_attn.flash_attn_interface"])["flash_attn_varlen_qkvpacked_func"] = attend
    return modules


@contextmanager
def _replaced(modules: dict[str, ModuleType], folder: Path) -> Iterator[None]:
    """`modules` and the files of `folder` go before what is installed, until the block ends."""
    names = {*modules, *_OWN}
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(modules)
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def load(folder: str | Path, attention: str = "sdpa", device: str = "cpu") -> SimpleNamespace:
    """MDLM's modules `diffusion`, `noise_schedule`, `dit`, `ema` from a checkout.

    attention: sdpa or softmax, which stands in for flash-attn. On a GPU its rotary kernel is stood in for by a
    compiled one. ValueError where the folder is no checkout, or where einops is missing.
    """
    folder = Path(folder).resolve()
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"peer: {folder} holds no {', '.join(missing)}; give the folder of a checkout of kuleshov-group/mdlm"
        )
    if importlib.util.find_spec("einops") is None:
        raise ValueError('peer: MDLM\'s network imports einops, which is not installed; run: pip install "einops"')
    turn: Turn = torch.compile(turned) if device == "cuda" else turned
    with _replaced(_stand_ins(attention, turn), folder):
        names = {"diffusion": "diffusion", "noise_schedule": "noise_schedule", "dit": "models.dit", "ema": "models.ema"}
        return SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})


class _Autocast(nn.Module):
    """The network under bf16 on a CPU, which MDLM's own autocast (for CUDA alone) leaves in fp32; fp32 logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.training):
            logits = self.network(indices, sigma)
        return logits.float()


def build(
    modules: SimpleNamespace,
    sizes: dict[str, int],
    num_words: int,
    *,
    dropout: float = 0.1,
    bf16_on_cpu: bool = False,
) -> Any:
    """MDLM's `Diffusion` with its DiT and the settings of its config.yaml, but for Lightning's constructor.

    sizes: hidden_size, n_blocks, n_heads, length. num_words: without [MASK], whose id it is.
    The result has MDLM's `_loss(x0, attention_mask)`, `forward(x, sigma)` and samplers.
    """
    model = SimpleNamespace(**sizes, cond_dim=128, dropout=dropout, scale_by_sigma=True)
    noise = SimpleNamespace(type="loglinear")
    sampling = SimpleNamespace(predictor="ddpm_cache", steps=128, noise_removal=True)
    config = SimpleNamespace(model=model, noise=noise, sampling=sampling, time_conditioning=False, T=0)
    kind = modules.diffusion.Diffusion
    diffusion = kind.__new__(kind)
    nn.Module.__init__(diffusion)
    network = modules.dit.DIT(config, vocab_size=num_words + 1)
    settings = {
        "config": config,
        "backbone": _Autocast(network) if bf16_on_cpu else network,
        "noise": modules.noise_schedule.get_noise(config),
        "vocab_size": num_words + 1,
        "mask_index": num_words,
        "parameterization": "subs",
        "sampler": sampling.predictor,
        "time_conditioning": False,
        "T": 0,
        "subs_masking": False,
        "antithetic_sampling": True,
        "importance_sampling": False,
        "change_of_variables": False,
        "sampling_eps": 1e-3,
        "neg_infinity": -1_000_000.0,
        "ema": None,
    }
    for name, value in settings.items():
        setattr(diffusion, name, value)
    return diffusion


class PeerDenoiser(nn.Module):
    """MDLM's network as a ``Denoiser``: its SUBS log-probabilities of the words, by its own `forward`."""

    def __init__(self, diffusion: Any) -> None:
        super().__init__()
        self.diffusion = diffusion

    def encode(self, **cond: Tensor) -> None:
        if cond:
            raise ValueError(f"peer: MDLM's network takes no conditions, and was given {sorted(cond)}")

    def forward(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
        # t is what its time conditioning would read, and that is off
        words = self.diffusion.forward(x, torch.zeros_like(t))[..., : self.diffusion.mask_index]
        if rows is None and readout is None:
            return words
        words = words.flatten(0, 1)
        if rows is None:
            rows = torch.arange(len(words), device=words.device)
        return words[rows] if readout is None else readout(words[rows], rows)
