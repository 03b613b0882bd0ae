"""Sums over steps that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onpath.training.distributed import ALONE, Processes
from onpath.types import Loss


class Meter:
    """Adds up losses and their metrics; reading it costs one transfer, adding to it none."""

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Goes on from the `sums` of another meter, if given."""
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = dict(sums or {})
        self.num_losses = 0

    def add(self, loss: Loss) -> None:
        """Takes in the numerator and denominator of a loss and of each of its metrics."""
        self._add("loss", (loss.numerator.detach(), loss.denominator))
        for name, pair in loss.metrics.items():
            self._add(name, pair)
        self.num_losses += 1

    def add_sums(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Takes in figures that come with no loss, each a (sum, count)."""
        for name, pair in sums.items():
            self._add(name, pair)

    def _add(self, name: str, pair: tuple[Tensor | float, Tensor | float]) -> None:
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + pair[0], count + pair[1])

    def sums(self, processes: Processes = ALONE) -> dict[str, tuple[float, float]]:
        """(sum, count) of everything added in all processes, as floats."""
        total: dict[str, tuple[float, float]] = {}
        for part in processes.gather(self._own_sums()):
            for name, pair in part.items():
                so_far = total.get(name, (0.0, 0.0))
                total[name] = (so_far[0] + pair[0], so_far[1] + pair[1])
        return total

    def _own_sums(self) -> dict[str, tuple[float, float]]:
        values = [v for pair in self._sums.values() for v in pair]
        held = [v.double() for v in values if isinstance(v, Tensor)]
        read = iter(torch.stack([v.to(held[0].device) for v in held]).tolist() if held else [])
        numbers = [next(read) if isinstance(v, Tensor) else float(v) for v in values]
        return dict(zip(self._sums, zip(numbers[0::2], numbers[1::2], strict=True), strict=True))

    def means(self, processes: Processes = ALONE) -> dict[str, float]:
        """Sum over count of everything added in all processes; a metric that counted nothing is left out."""
        return {name: total / count for name, (total, count) in self.sums(processes).items() if count}
