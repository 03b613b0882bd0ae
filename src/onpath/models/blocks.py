"""Building blocks that the networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath.types import Readout


class RMSNorm(nn.Module):
    """x / rms(x) over the last axis, without a learned gain; statistics in fp32, result in the dtype of x."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=1e-6).to(x.dtype)


class ResidualMLP(nn.Module):
    """x + W₂·relu(W₁·norm(x))², W₂ zero at the start, so that a fresh block is the identity.

    Source of the squared ReLU: Primer, arXiv:2109.08668, Section 3.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm()
        self.inner = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x + self.outer(F.relu(self.inner(self.norm(x))).square())


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
    chunk: int = 8192,
) -> Any:
    """Runs `head` and `readout` over chunks of at most `chunk` rows, so that no logits of all rows exist at once."""
    if len(rows) <= chunk:
        return readout(head(hidden), rows)
    parts = [readout(head(h), r) for h, r in zip(hidden.split(chunk), rows.split(chunk), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(parts)


def keep_where(drop: Bool[Tensor, "B"] | None, value: Float[Tensor, "B *rest"], null: Tensor) -> Tensor:
    """`value`, with the learned `null` in the rows whose condition is dropped."""
    if drop is None:
        return value
    return torch.where(drop.view(-1, *([1] * (value.dim() - 1))), null.to(value.dtype), value)
