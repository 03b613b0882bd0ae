"""The moving average of the weights, which evaluation and sampling use."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn

from onpath.training.distributed import local


def average_of(model: nn.Module) -> nn.Module:
    """A frozen copy of `model`, in evaluation mode, to hold the average; weights that never change are shared."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average <- decay·average + (1 - decay)·model, in place, each process on its shards; buffers are copied.

    The decay starts low, min(decay, (1 + step)/(10 + step)), so that the first weights are soon forgotten.
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    pairs = [(a, p) for a, p in zip(average.parameters(), model.parameters(), strict=True) if p.requires_grad]
    torch._foreach_lerp_(local(a for a, _ in pairs), local(p.detach() for _, p in pairs), weight)
    for held, current in zip(average.buffers(), model.buffers(), strict=True):
        held.copy_(current)
