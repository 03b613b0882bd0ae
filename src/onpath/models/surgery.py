"""Looks into a network of transformers, and changes small parts of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from jaxtyping import Int64
from torch import Tensor

from onpath.types import Spec


def head_of(kind: str, network: Any) -> tuple[str, nn.Linear]:
    """The last linear layer and where it is."""
    head = network.get_output_embeddings()
    found = [path for path, module in network.named_modules() if module is head]
    if not found or not isinstance(head, nn.Linear):
        raise ValueError(f"{kind}: {type(network).__name__} has no linear layer as its head; take another model")
    return found[0], head


def put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, attribute = path.rpartition(".")
    setattr(network.get_submodule(parent), attribute, module)


def add_row(network: Any, spec: Spec, embedding: Tensor, head: Tensor | None) -> None:
    """Puts the row of [MASK] into the tables of words."""
    rows = max(spec.mask_id + 1, network.get_input_embeddings().num_embeddings)
    with torch.random.fork_rng(devices=[]):  # transformers draws new rows, which are overwritten
        network.resize_token_embeddings(rows, mean_resizing=False)
    network.get_input_embeddings().weight[spec.mask_id] = embedding
    output = network.get_output_embeddings().weight
    if output is not network.get_input_embeddings().weight:
        output[spec.mask_id] = output[: spec.num_words].mean(0) if head is None else head


@torch.no_grad()
def scale_of(table: nn.Module, kind: str) -> float:
    """What an embedding multiplies its rows by (Gemma); ValueError where it does anything else with them."""
    assert isinstance(table.weight, Tensor)
    rows, found = table.weight[:4].float(), table(torch.arange(4)).float()
    scale = float((rows * found).sum() / rows.square().sum())
    if not torch.allclose(found, rows * scale, rtol=0.02, atol=1e-6):
        raise ValueError(
            f"{kind}: {type(table).__name__} does more than to look up a row, so that no [MASK] can be added; take "
            "another model"
        )
    return scale


def fingerprint(*networks: nn.Module) -> Int64[Tensor, "P"]:
    """A number for each parameter from some of its bits, the same on every machine."""
    parameters = [p for network in networks for p in network.parameters()]
    some = [p.detach().flatten()[:: max(1, p.numel() // 64)].float() for p in parameters]
    return torch.stack([part.view(torch.int32).long().sum() for part in some])


def first_position(network: nn.Module) -> int:
    """The id of position 0, where a table of positions keeps the first rows for padding (RoBERTa)."""
    for path, module in network.named_modules():
        if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def sample(config: Any) -> Int64[Tensor, "1 L"]:
    """Four tokens, none of which pads."""
    pad = getattr(config, "pad_token_id", None)
    return torch.tensor([[token for token in range(5) if token != pad][:4]])
