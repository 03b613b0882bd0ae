"""LoRA: small trained matrices beside the frozen ones of a network, put in and merged with peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from onpath.models.pretrained import extra


@dataclass(frozen=True)
class LoRA:
    """What is trained instead of a frozen matrix W: A (rank, D_in) and B (D_out, rank), W + alpha/rank·B·A.

    targets: the linear layers, by the last parts of their names (q_proj, v_proj, to_out.0, …); empty takes all, but
      for the head of a language model.
    dropout: 0 only; peft would draw it from torch's global state, which no exact resume could repeat.
    Source: arXiv:2106.09685, Section 4.1.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"lora: rank is {self.rank} and alpha is {self.alpha}; needed are 1 or more and above 0")
        if self.dropout:
            raise ValueError(
                f"lora: dropout is {self.dropout}; allowed is 0 only: it would be drawn from torch's global state, so "
                "that a resumed run would be another one and two evaluations of equal weights would differ"
            )

    def put_into(self, network: nn.Module) -> None:
        """Freezes every weight of `network` and puts the trained matrices beside its linear layers, in fp32.

        ValueError where a target names none of its linear layers.
        """
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        found = {name: [t for t in self.targets if f".{name}".endswith(f".{t}")] for name in linear}
        chosen = [name for name in linear if found[name] or not self.targets]
        if not chosen or set(self.targets) - {target for ends in found.values() for target in ends}:
            known = sorted({_end(name) for name in linear}) or ["none"]
            raise ValueError(
                f"lora: targets is {self.targets}, and the network has the linear layers {', '.join(known)}; choose "
                "among these, or leave targets out for all of them"
            )
        peft = extra("peft")
        network.requires_grad_(False)
        settings = peft.LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=chosen)
        peft.inject_adapter_in_model(settings, network)
        for parameter in network.parameters():
            if parameter.requires_grad:  # peft makes them in the dtype of the base, where small steps would be lost
                parameter.data = parameter.data.float()


def _end(name: str) -> str:
    """The last part of a name; of a list's member, the list's name too."""
    head, _, last = name.rpartition(".")
    return f"{head.rpartition('.')[2]}.{last}" if last.isdecimal() and head else last


@torch.no_grad()
def merge(network: nn.Module) -> None:
    """Adds what LoRA has learnt to the matrices beside it, in place, and takes its own away."""
    layer_type = extra("peft.tuners.lora").LoraLayer
    found: list[tuple[str, Any]] = [
        (name, module) for name, module in network.named_modules() if isinstance(module, layer_type)
    ]
    for name, module in found:
        module.merge(safe_merge=True)
        parent, _, attribute = name.rpartition(".")
        setattr(network.get_submodule(parent), attribute, module.get_base_layer())
