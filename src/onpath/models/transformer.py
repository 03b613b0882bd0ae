"""The token transformer: from partly masked text to the words behind the masks."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from onpath.models.blocks import LinearHead, RMSNorm, read_rows, sinusoids
from onpath.types import Readout, Spec

_LARGE, _TILE = 4096, 128  # heads from this width on are padded to whole tiles, which matrix units prefer
_SHORT = 512  # rows up to this length attend by an explicit softmax on a CPU, which is quicker there


class TokenTransformer(nn.Module):
    """A bidirectional pre-norm transformer over tokens: rotary positions, normalised queries and keys, no biases.

    spec: of the data. width, num_heads, depth: of the blocks. mlp: `squared_relu` (4·width hidden units) or `gated`
    (SiLU gate, 8/3·width). reads: what is read beside the tokens:
    `time`, the masked fraction, modulates every norm (adaLN), which a masked state shows anyway; `place` adds a learned
    vector of its place to each token, for canvases whose places have meanings of their own, such as those of a
    written sum, and rows are then as long as in training at most; `row_column` adds one of its row and one of its
    column instead, for canvases that are grids, where a rule of rows or columns is then the same at each of them.
    tied: whether the head is the embedding. recompute: keep only the inputs of blocks for the backward, which saves
    memory for a third more work.
    Sources: rotary positions arXiv:2104.09864, Eq. 34; squared ReLU arXiv:2109.08668; adaLN arXiv:2212.09748.
    """

    def __init__(  # noqa: PLR0913  (fields of a config, and the spec that the run gives)
        self,
        spec: Spec,
        *,
        width: int = 256,
        num_heads: int = 4,
        depth: int = 6,
        mlp: Literal["squared_relu", "gated"] = "squared_relu",
        reads: tuple[Literal["time", "place", "row_column"], ...] = (),
        tied: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        _check(spec, width, num_heads, depth, mlp)
        time = "time" in reads
        self.num_logits, self.recompute = spec.num_logits, recompute
        self.token = nn.Embedding(max(spec.num_words, spec.mask_id + 1), width)
        nn.init.normal_(self.token.weight, std=1.0 if not tied else width**-0.5)
        self.scale = 1.0 if not tied else width**0.5  # the input has unit variance either way
        self.place = _places(spec, width, reads)
        self.rotary = Rotary(width // num_heads)
        self.read_time = nn.Sequential(nn.Linear(width, width), nn.SiLU()) if time else None
        self.blocks = nn.ModuleList(_Block(width, num_heads, mlp, time) for _ in range(depth))
        self.norm = RMSNorm()
        self.head = None if tied else nn.Linear(width, _padded(self.num_logits), bias=False)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def encode(
        self,
        padding: Bool[Tensor, "B L"] | None = None,
        documents: Int64[Tensor, "B L"] | None = None,
        drop: Bool[Tensor, "B"] | None = None,
    ) -> tuple[Bool[Tensor, "B L"] | None, Int64[Tensor, "B L"] | None]:
        """Padding, which is never attended, and documents, between which nothing is."""
        return padding, documents

    def forward(
        self,
        x: Int[Tensor, "M L"],
        t: Float[Tensor, "M"],
        memo: tuple[Tensor | None, Tensor | None],
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Logits (M, L, V), or (N, V) at `rows`, or what `readout` makes of them."""
        allowed = _allowed(*memo, copies=1 if memo[0] is None and memo[1] is None else _copies(x, memo))
        hidden = self.token(x) * self.scale
        if self.place is not None:
            hidden = hidden + self.place(torch.arange(x.shape[1], device=x.device))
        turn = self.rotary(x.shape[1], x.device)
        mood = None
        if self.read_time is not None:
            width = hidden.shape[-1]
            mood = self.read_time(sinusoids(1000.0 * t.float(), width, longest=10_000.0).to(hidden.dtype))
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, turn, allowed, mood, use_reentrant=False)
            else:
                hidden = block(hidden, turn, allowed, mood)
        weight = self.token.weight[: self.num_logits] if self.head is None else self.head.weight
        head = LinearHead(weight, self.num_logits)
        return read_rows(head, self.norm(hidden), rows, readout, self.num_logits, (weight,))


class _Places(nn.Module):
    """A learned vector for each place of a canvas: its own, or the sum of those of its row and its column."""

    def __init__(self, length: int, width: int, line_length: int = 0) -> None:
        super().__init__()
        self.length, self.line_length = length, line_length
        sizes = (length // line_length, line_length) if line_length else (length,)
        self.parts = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, place: Int64[Tensor, "L"]) -> Float[Tensor, "L D"]:
        if len(place) > self.length:
            raise ValueError(
                f"token transformer: a row has {len(place)} tokens, and with reads: [place] or [row_column] there is a "
                f"vector for each of {self.length} places; allowed are rows of up to {self.length}; ask for shorter "
                "ones, or train without"
            )
        if not self.line_length:
            return self.parts[0](place)
        return self.parts[0](place // self.line_length) + self.parts[1](place % self.line_length)


def _places(spec: Spec, width: int, reads: tuple[str, ...]) -> _Places | None:
    if "row_column" not in reads:
        return _Places(spec.length, width) if "place" in reads else None
    if "place" in reads or not spec.line_length:
        wrong = "the tokens of the data are no grid" if not spec.line_length else "place tells rows and columns apart"
        raise ValueError(
            f"token_transformer: reads is {list(reads)}, but {wrong}; row_column is for grids such as those of sudoku, "
            f"instead of place; leave {'place' if spec.line_length else 'row_column'} out"
        )
    return _Places(spec.length, width, spec.line_length)


class Rotary(nn.Module):
    """Cosines and sines (L, E/2) of the angles by which each position turns pairs of features."""

    def __init__(self, head_width: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.head_width, self.base = head_width, base

    def forward(self, length: int, device: torch.device) -> tuple[Float[Tensor, "L H"], Float[Tensor, "L H"]]:
        share = torch.arange(0, self.head_width, 2, device=device, dtype=torch.float32) / self.head_width
        angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * self.base**-share
        return angle.cos(), angle.sin()


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, mlp: str, time: bool) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.attention = _SelfAttention(width, num_heads)
        self.mlp = _SquaredReLU(width) if mlp == "squared_relu" else _Gated(width)
        self.modulate = nn.Linear(width, 6 * width) if time else None
        if self.modulate is not None:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(
        self,
        x: Float[Tensor, "M L D"],
        turn: tuple[Tensor, Tensor],
        allowed: Bool[Tensor, "M 1 S L"] | None,
        mood: Float[Tensor, "M D"] | None,
    ) -> Float[Tensor, "M L D"]:
        if self.modulate is None or mood is None:
            x = x + self.attention(self.norm(x), turn, allowed)
            return x + self.mlp(self.norm(x))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulate(mood)[:, None].chunk(6, dim=-1)
        x = x + (1 + gate_a) * self.attention(self.norm(x) * (1 + scale_a) + shift_a, turn, allowed)
        return x + (1 + gate_m) * self.mlp(self.norm(x) * (1 + scale_m) + shift_m)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = RMSNorm()
        self.inner = nn.Linear(width, 3 * width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(
        self, x: Float[Tensor, "M L D"], turn: tuple[Tensor, Tensor], allowed: Bool[Tensor, "M 1 S L"] | None
    ) -> Float[Tensor, "M L D"]:
        query_key, value = self.inner(x).split((2 * x.shape[-1], x.shape[-1]), dim=-1)
        query_key = _turned(self.norm(query_key.unflatten(-1, (2 * self.num_heads, -1))), turn).to(value.dtype)
        query, key = query_key.transpose(1, 2).chunk(2, dim=1)
        value = value.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.outer(_attend(query, key, value, allowed).transpose(1, 2).flatten(2))


class _SquaredReLU(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 4 * width, bias=False)
        self.outer = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Float[Tensor, "M L D"]) -> Float[Tensor, "M L D"]:
        return self.outer(F.relu(self.inner(x)).square())


class _Gated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3 // 8 * 8
        self.inner = nn.Linear(width, 2 * hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Float[Tensor, "M L D"]) -> Float[Tensor, "M L D"]:
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.outer(F.silu(gate) * value)


def _attend(
    query: Float[Tensor, "M A L E"],
    key: Float[Tensor, "M A L E"],
    value: Float[Tensor, "M A L E"],
    allowed: Bool[Tensor, "M 1 S L"] | None,
) -> Float[Tensor, "M A L E"]:
    if query.device.type != "cpu" or query.shape[2] > _SHORT:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).to(value.dtype) @ value


def _turned(x: Float[Tensor, "M L A E"], turn: tuple[Tensor, Tensor]) -> Float[Tensor, "M L A E"]:
    cos, sin = (part[:, None].to(x.dtype) for part in turn)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _copies(x: Tensor, memo: tuple[Tensor | None, Tensor | None]) -> int:
    return next(x.shape[0] // part.shape[0] for part in memo if part is not None)


def _allowed(
    padding: Bool[Tensor, "B L"] | None, documents: Int64[Tensor, "B L"] | None, copies: int
) -> Bool[Tensor, "M 1 S L"] | None:
    """Which positions may look at which, (M, 1, L or 1, L); a padded position looks at itself, for want of others."""
    if padding is None and documents is None:
        return None
    if documents is not None:
        allowed = documents[:, :, None] == documents[:, None, :]
        if padding is not None:
            alone = torch.eye(padding.shape[1], dtype=torch.bool, device=padding.device)
            allowed = allowed & ~padding[:, None, :] | alone
    else:
        assert padding is not None
        # a row of nothing but padding may look at all of it: nobody reads what comes of it
        allowed = (~padding | padding.all(1, keepdim=True))[:, None, :]
    return allowed[:, None].repeat(copies, 1, 1, 1)


def _padded(num_logits: int) -> int:
    return num_logits if num_logits < _LARGE else math.ceil(num_logits / _TILE) * _TILE


def _check(spec: Spec, width: int, num_heads: int, depth: int, mlp: str) -> None:
    if num_heads < 1 or depth < 1 or width < 1 or width % (2 * num_heads):
        raise ValueError(
            f"token_transformer: width is {width}, num_heads is {num_heads} and depth is {depth}; all must be 1 or "
            "more, and width an even multiple of num_heads (rotary positions turn pairs)"
        )
    if mlp not in ("squared_relu", "gated"):
        raise ValueError(f"token_transformer: mlp is {mlp!r}; allowed are squared_relu, gated")
    if spec.cond:
        raise ValueError(
            f"token_transformer: it reads tokens alone, and the data have the conditions {sorted(spec.cond)}; take a "
            "model that reads them, such as plan_transformer"
        )
