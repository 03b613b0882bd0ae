"""Building blocks that the networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from onpath.models.chunks import LinearHead, piece_of, read_and_form
from onpath.types import Readout

_CHUNK_LOGITS = (1 << 23) - (1 << 16)  # below 32 MiB in fp32: from there on temporaries are paged in anew each time
_CHUNK_LOGITS_GPU = 1 << 28  # small chunks would leave a GPU waiting for their launches


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis, without a learned gain; statistics in fp32, result in the dtype of x."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=1e-6).to(x.dtype)


class ResidualMLP(nn.Module):
    """x + W₂·norm(gelu(W₁·norm(x))), W₂ zero at the start, so that a fresh block is the identity.

    The second norm bounds what a block adds, so that later blocks can still read what went in.
    Source of that norm: NormFormer, arXiv:2110.09456, Section 2.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.inner = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x + self.outer(self.norm(F.gelu(self.inner(self.norm(x)))))


class Standardize(nn.Module):
    """(x - mean) / std per feature with fixed statistics, no learned scale; a feature that never varies becomes 0."""

    mean: Tensor
    scale: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "B F"]) -> None:
        """Takes the statistics of x (B, F)."""
        std, mean = torch.std_mean(x.double(), dim=0)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-4, 1.0 / std.clamp_min(1e-4), 0.0))

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        return (x - self.mean) * self.scale


def apply_readout(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "N D"],
    rows: Int64[Tensor, "N"],
    readout: Readout,
    chunk: int,
    weights: Sequence[Tensor] = (),
) -> Any:
    """Runs `head` and `readout` over chunks of at most `chunk` rows, so that no logits of all rows exist at once.

    Where there are several chunks, training forms the gradients of the first result in the forward, while the logits of
    the chunk are there, if `weights` names all weights of the head; without them it makes the logits anew in the
    backward. The first is twice as fast, for results that are only summed up afterwards: weigh them in the readout.
    """

    def read(hidden: Tensor, rows: Tensor) -> Any:
        return readout(head(hidden), rows)

    if len(rows) <= chunk:
        return read(hidden, rows)
    if torch.is_grad_enabled() and weights:
        return read_and_form(head, hidden, rows, readout, chunk, weights)
    pairs = list(zip(hidden.split(chunk), rows.split(chunk), strict=True))
    if torch.is_grad_enabled():
        parts = [checkpoint(read, h, r, use_reentrant=False) for h, r in pairs]
    else:
        head, step = head.fixed() if isinstance(head, LinearHead) else head, piece_of(chunk, hidden)
        parts = []
        for h, r in pairs:
            logits = head(h)
            parts += [readout(*piece) for piece in zip(logits.split(step), r.split(step), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(parts)


def read_rows(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "M L D"],
    rows: Int64[Tensor, "N"] | None,
    readout: Readout | None,
    num_words: int,
    weights: Sequence[Tensor] = (),
) -> Any:
    """How a network ends: logits (M, L, V), or (N, V) at `rows`, or what `readout` makes of them chunk by chunk.

    num_words: V. A chunk has at most 2**23 logits (2**28 on a GPU), and an even number of rows. weights: all that the
    head has, for a training that does not make logits twice; see ``apply_readout``.
    """
    if rows is None and readout is None:
        return head(hidden)
    flat = hidden.flatten(0, 1)
    if rows is None:
        rows = torch.arange(flat.shape[0], device=flat.device)
    else:
        flat = flat[rows]
    if readout is None:
        return head(flat)
    most = _CHUNK_LOGITS if flat.device.type == "cpu" else _CHUNK_LOGITS_GPU
    return apply_readout(head, flat, rows, readout, max(2, most // num_words // 2 * 2), weights)


def keep_where(drop: Bool[Tensor, "B"] | None, value: Float[Tensor, "B *rest"], null: Tensor) -> Tensor:
    """`value`, with the learned `null` in the rows whose condition is dropped."""
    if drop is None:
        return value
    return torch.where(drop.view(-1, *([1] * (value.dim() - 1))), null.to(value.dtype), value)


class KeysValues(nn.Module):
    """Keys, normalised, and values of what attention reads: A heads of width E each, made once per memory."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(width, num_heads)
        self.num_heads = num_heads
        self.norm = RMSNorm()
        self.key_value = nn.Linear(width, 2 * width, bias=False)

    def forward(self, memory: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B A S E"], Float[Tensor, "B A S E"]]:
        key, value = self.key_value(self.norm(memory)).chunk(2, dim=-1)
        return self.norm(_heads(key, self.num_heads)), _heads(value, self.num_heads)


class Attention(nn.Module):
    """Multi-head attention with normalised queries to what ``KeysValues`` made of a memory."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        _check_heads(width, num_heads)
        self.num_heads = num_heads
        self.norm = RMSNorm()
        self.query = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        memory: tuple[Float[Tensor, "B A S E"], Float[Tensor, "B A S E"]],
        blocked: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """x plus what it reads from `memory`, whose `blocked` places are never attended."""
        query = self.norm(_heads(self.query(self.norm(x)), self.num_heads))
        key, value = memory
        mask = None if blocked is None else ~blocked[:, None, None, :]
        read = F.scaled_dot_product_attention(query, key.to(query.dtype), value.to(query.dtype), attn_mask=mask)
        return x + self.outer(read.transpose(1, 2).flatten(2))


def _check_heads(width: int, num_heads: int) -> None:
    if width % num_heads:
        raise ValueError(f"attention: width is {width} and num_heads is {num_heads}; width must be a multiple of it")


def _heads(x: Float[Tensor, "B L D"], num_heads: int) -> Float[Tensor, "B A L E"]:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


class ResidualConv(nn.Module):
    """x + W₂ * relu(W₁ * norm(x)) over a (B, D, W, H) plane, 3×3, W₂ zero at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Float[Tensor, "B D W H"]) -> Float[Tensor, "B D W H"]:
        normed = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return x + self.outer(F.relu(self.inner(normed)))


def sinusoids(position: Float[Tensor, "*shape"], width: int, longest: float = 64.0) -> Float[Tensor, "*shape width"]:
    """Sines and cosines of a coordinate at `width` / 2 wavelengths from 2 to `longest`, for positions of any grid."""
    count = width // 2
    wavelengths = torch.logspace(math.log2(2.0), math.log2(longest), count, base=2.0, device=position.device)
    phase = position[..., None] * (2 * math.pi / wavelengths)
    return torch.cat([phase.sin(), phase.cos()], dim=-1)
