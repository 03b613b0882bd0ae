"""Classifier-free guidance: two branches of a request, and what becomes of their predictions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onpath.processes.base import Process
from onpath.types import Batch, Denoiser


def encoded(process: Process, denoiser: Denoiser, batch: Batch, is_guided: bool) -> Any:
    """The memo of a request; where it is guided, of 2·B rows, those of the unconditional branch behind the others."""
    cond = batch.conditions()
    if is_guided:
        bare = process.unconditional(batch).conditions()
        flags = torch.zeros(batch.size, dtype=torch.bool, device=batch.x.device)
        both = {**cond, "drop": flags} if "drop" in bare else cond
        cond = {name: torch.cat([both[name], bare[name]]) for name in both}
    return denoiser.encode(**cond)


def guided(logits: Float[Tensor, "N2 V"], weight: Float[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """(1 + w)·cond - w·uncond of rows that alternate between the two branches.

    Source: classifier-free guidance, arXiv:2207.12598, Eq. 6.
    """
    logits = logits.float().clamp_min(-1e9)  # a token that both branches exclude must not become -inf - -inf
    cond, uncond = logits[0::2], logits[1::2]
    return cond + weight[:, None] * (cond - uncond)
