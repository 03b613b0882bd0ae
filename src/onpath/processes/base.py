"""The process noun: how data are spoiled, and what is known of the way back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from onpath import rng
from onpath.schedules import Schedule
from onpath.types import Batch, Noised, Noisy


class Process(ABC):
    """Spoils data along its one schedule; everything that needs the schedule asks the process for it."""

    schedule: Schedule

    @abstractmethod
    def prior(self, batch: Batch, key: rng.Key | None = None) -> Noisy | Noised:
        """The state without any signal, from which generation starts."""

    def unconditional(self, batch: Batch, rows: Bool[Tensor, "B"] | None = None) -> Batch:
        """The batch with its conditions dropped (in `rows`, or everywhere), for guidance and condition drop-out.

        ``cond["drop"]`` is True there. Raises ValueError where there is nothing to drop.
        """
        if not batch.cond:
            raise ValueError(
                "guidance or condition drop-out was asked for, but the batch has neither conditions nor given "
                "positions; set guidance and condition_dropout to 0"
            )
        drop = torch.ones(batch.size, dtype=torch.bool, device=batch.x.device) if rows is None else rows
        return replace(batch, cond={**batch.cond, "drop": drop})
