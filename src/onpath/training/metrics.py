"""Sums over steps that stay on the device until they are read, and where they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from onpath.records import RunFolder
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

    def _add(self, name: str, pair: tuple[Tensor | float, Tensor | float]) -> None:
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (total + pair[0], count + pair[1])

    def sums(self) -> dict[str, tuple[float, float]]:
        """(sum, count) of everything added, as floats."""
        values = [v for pair in self._sums.values() for v in pair]
        held = [v.double() for v in values if isinstance(v, Tensor)]
        read = iter(torch.stack([v.to(held[0].device) for v in held]).tolist() if held else [])
        numbers = [next(read) if isinstance(v, Tensor) else float(v) for v in values]
        return dict(zip(self._sums, zip(numbers[0::2], numbers[1::2], strict=True), strict=True))

    def means(self) -> dict[str, float]:
        """Sum over count of everything added, as floats; a metric that counted nothing is left out."""
        return {name: total / count for name, (total, count) in self.sums().items() if count}


def event_writer(folder: RunFolder, step: int) -> Any:
    """TensorBoard's writer into `folder`, for what comes after `step`; ValueError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "training: tensorboard is true, but the package tensorboard is not installed; install the extra "
            "onpath[track], or set training.tensorboard=false"
        ) from error
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=step + 1)


def record(folder: RunFolder, writer: Any, step: int, name: str, row: Mapping[str, float]) -> None:
    """Writes a row of figures to metrics.jsonl, and to TensorBoard's `writer` unless that is None."""
    folder.append_metrics({"step": step, "set": name, **row})
    if writer is not None:
        for metric, value in row.items():
            writer.add_scalar(f"{name}/{metric}", value, step)
