"""Sums over steps that stay on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from onpath.types import Loss


class Meter:
    """Adds up losses and their metrics; reading it costs one transfer, adding to it none."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        self.num_losses = 0

    def add(self, loss: Loss) -> None:
        """Takes in the numerator and denominator of a loss and of each of its metrics."""
        self._add("loss", (loss.numerator.detach(), loss.denominator))
        for name, pair in loss.metrics.items():
            self._add(name, pair)
        self.num_losses += 1

    def _add(self, name: str, pair: tuple[Tensor | float, Tensor | float]) -> None:
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + pair[0], count + pair[1])

    def means(self) -> dict[str, float]:
        """Sum over count of everything added, as floats; a metric that counted nothing is left out."""
        values = [v for pair in self._sums.values() for v in pair]
        numbers = (
            torch.stack([torch.as_tensor(v, dtype=torch.float64).cpu() for v in values]).tolist() if values else []
        )
        pairs = zip(self._sums, numbers[0::2], numbers[1::2], strict=True)
        return {name: total / count for name, total, count in pairs if count}
