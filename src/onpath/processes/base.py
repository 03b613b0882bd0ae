"""The process noun: how data are spoiled, and what is known of the way back."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool
from torch import Tensor

from onpath.schedules import Schedule
from onpath.types import Batch, Noisy


class Process(ABC):
    """Spoils data along its one schedule; everything that needs the schedule asks the process for it."""

    schedule: Schedule

    @abstractmethod
    def prior(self, batch: Batch) -> Noisy:
        """The state without any signal, from which generation starts."""

    @abstractmethod
    def unconditional(self, batch: Batch, rows: Bool[Tensor, "B"] | None = None) -> Batch:
        """The batch with its conditions dropped (in `rows`, or everywhere), for guidance and condition drop-out."""
