"""The policy network of the design document: the state as one pooled vector, adaLN on the mask ratio."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from onpath.models.blocks import read_rows
from onpath.types import Readout, Spec


class PooledPolicy(nn.Module):
    """A transformer over action tokens to each of which the same pooled vector of the whole maze is added.

    spec: of the data. width, num_heads, depth: of the blocks.
    """

    def __init__(self, spec: Spec, *, width: int = 128, num_heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        w, h = spec.cond["image"][:2]
        self.num_words = spec.num_words
        self.see = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * ((w + 1) // 2) * ((h + 1) // 2), width),
        )
        self.direction = nn.Embedding(4, width)
        self.token = nn.Embedding(spec.num_words + 1, width)
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width))
        self.position = nn.Parameter(torch.randn(spec.length, width) * 0.02)
        self.ratio = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_AdaptiveBlock(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, spec.num_words)

    def encode(
        self,
        image: UInt8[Tensor, "B W H 3"],
        direction: Int64[Tensor, "B"],
        padding: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """One vector for the whole maze. Padded positions hold action 0 and are inputs like any other."""
        return self.see(image.movedim(-1, 1).float() / 10.0) + self.direction(direction)

    def forward(
        self,
        x: Int[Tensor, "M L"],
        t: Float[Tensor, "M"],
        memo: Float[Tensor, "B D"],
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Logits (M, L, V), or (N, V) at `rows`, or what `readout` makes of them."""
        state = memo.repeat(x.shape[0] // memo.shape[0], 1)
        hidden = self.project(self.token(x)) + self.position + state[:, None]
        cond = self.ratio(t.to(memo.dtype)[:, None])
        for block in self.blocks:
            hidden = block(hidden, cond)
        return read_rows(self.head, self.norm(hidden), rows, readout)


class _AdaptiveBlock(nn.Module):
    """A pre-norm transformer block whose norms are scaled and shifted by the condition (adaLN)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulate = nn.Linear(width, 4 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: Float[Tensor, "M L D"], cond: Float[Tensor, "M D"]) -> Float[Tensor, "M L D"]:
        scale1, shift1, scale2, shift2 = self.modulate(cond)[:, None].chunk(4, dim=-1)
        y = self.first(x) * (1 + scale1) + shift1
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.second(x) * (1 + scale2) + shift2)
