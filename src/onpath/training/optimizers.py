"""Optimizers as configs, and the learning rate over steps."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn as nn

from onpath.training.distributed import sharded_like


class OptimizerConfig(ABC):
    """How the weights move; ``build`` makes torch's optimizers, whose learning rates the trainer then scales."""

    @abstractmethod
    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """One optimizer or several over disjoint parameters of `model`, at their peak learning rates."""


@dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW. Weight decay acts on matrices only. Source: arXiv:1711.05101, Algorithm 2."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.learning_rate < 0 or self.weight_decay < 0 or self.eps <= 0 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(
                f"adamw: learning_rate {self.learning_rate}, weight_decay {self.weight_decay}, betas {self.betas}, "
                f"eps {self.eps}; needed are rates of 0 or more, betas in [0, 1), and eps above 0"
            )

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        return [self._over([p for p in model.parameters() if p.requires_grad])]

    def _over(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        filled = [group for group in groups if group["params"]]
        return torch.optim.AdamW(filled, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True)
class Muon(OptimizerConfig):
    """Muon for the square-ish hidden matrices (those of ``model.blocks``), AdamW for everything else.

    learning_rate: of Muon, for updates of orthogonal matrices. rest: AdamW of inputs, heads, gains and embeddings.
    Source: Jordan et al. 2024, as implemented in torch.optim.Muon.
    """

    learning_rate: float = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.0
    rest: AdamW = AdamW(learning_rate=2e-3)

    def __post_init__(self) -> None:
        if self.learning_rate < 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"muon: learning_rate {self.learning_rate}, weight_decay {self.weight_decay}, momentum "
                f"{self.momentum}; needed are rates of 0 or more and momentum in [0, 1)"
            )

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        hidden = [p for name, p in named if p.dim() == 2 and name.startswith("blocks.")]
        if not hidden:
            raise ValueError(
                f"muon: {type(model).__name__} has no matrices under `blocks`, which are what it orthogonalises; "
                "take optimizer: adamw"
            )
        chosen = {id(p) for p in hidden}
        muon = torch.optim.Muon(hidden, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)
        return [muon, self.rest._over([p for _, p in named if id(p) not in chosen])]


def restore(optimizers: list[torch.optim.Optimizer], states: list[dict[str, Any]]) -> None:
    """Puts saved states into fresh optimizers, whose settings (decay, betas, …) stay those of the config.

    ValueError where the config makes other optimizers than those that were saved.
    """
    if len(optimizers) != len(states):
        raise ValueError(
            f"resume: the checkpoint holds {len(states)} optimizers and the config makes {len(optimizers)}; restore "
            "training.optimizer, or start a new run"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
        for parameter, moments in optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:  # a moment, not the count of steps
                    moments[name] = sharded_like(value, parameter)


Decay = Literal["cosine", "linear", "constant", "plateau"]


def rate_factor(step: int, num_steps: int, warmup_steps: int, decay: Decay, final: float) -> float:
    """What the peak learning rate is multiplied by at `step`: linear warm-up, then decay to `final` at the end."""
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if decay in ("constant", "plateau"):
        return warmup
    share = min(1.0, max(0.0, (step - warmup_steps) / max(1, num_steps - warmup_steps)))
    curve = 0.5 + 0.5 * math.cos(math.pi * share) if decay == "cosine" else 1.0 - share
    return warmup * (final + (1.0 - final) * curve)


@dataclass(frozen=True)
class Plateau:
    """Cuts the learning rate where the validation loss has stopped falling; state is returned, not kept.

    factor: of each cut. patience: validations without a new best before a cut.
    """

    factor: float = 0.5
    patience: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.factor < 1 or self.patience < 0:
            raise ValueError(
                f"plateau: factor is {self.factor} and patience is {self.patience}; needed are 0 < factor < 1 and "
                "patience >= 0"
            )

    def update(self, state: tuple[float, int, float], loss: float) -> tuple[float, int, float]:
        """(best loss, validations since, factor so far) after one more validation loss."""
        best, waited, scale = state
        if loss < best:
            return loss, 0, scale
        if waited + 1 > self.patience:
            return best, 0, scale * self.factor
        return best, waited + 1, scale
