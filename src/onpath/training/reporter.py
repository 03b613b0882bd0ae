"""What a training tells the world: rows of metrics on disk and progress to whoever shows it, by the first process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onpath.records import RunFolder


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it. seconds: of the whole run so far. rate: examples per second."""

    step: int
    num_steps: int
    loss: float
    rate: float
    seconds: float
    note: str = ""


@dataclass
class Reporter:
    """Writes and speaks where `speaks` is true, in the first process of a run; elsewhere it does nothing.

    writer: TensorBoard's, or None.
    """

    folder: RunFolder
    num_steps: int
    on_progress: Callable[[Progress], None]
    speaks: bool = True
    writer: Any = None

    def open_events(self, step: int) -> None:
        """Also writes TensorBoard's files from now on, for what comes after `step`; ValueError without the package."""
        if not self.speaks:
            return
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=step + 1)

    def close(self) -> None:
        """Closes TensorBoard's files."""
        if self.writer is not None:
            self.writer.close()

    def row(self, step: int, name: str, row: Mapping[str, float]) -> None:
        """Writes a row of figures of the set `name` to metrics.jsonl, and to TensorBoard."""
        if not self.speaks:
            return
        self.folder.append_metrics({"step": step, "set": name, **row})
        if self.writer is not None:
            for metric, value in row.items():
                self.writer.add_scalar(f"{name}/{metric}", value, step)

    def completions(self, step: int, completions: Sequence[Mapping[str, Any]]) -> None:
        """Keeps what the policy answered at `step`, to be read later."""
        if self.speaks and completions:
            self.folder.append_completions(step, completions)

    def progress(self, step: int, row: Mapping[str, float]) -> None:
        """Says where the run stands, by a row of training."""
        if self.speaks:
            loss, rate, seconds = row.get("loss", math.nan), row["examples_per_second"], row["seconds"]
            self.on_progress(Progress(step, self.num_steps, loss, rate, seconds))

    def note(self, step: int, text: str) -> None:
        """Says something in words."""
        if self.speaks:
            self.on_progress(Progress(step, self.num_steps, math.nan, 0.0, 0.0, text))


def require_tensorboard() -> None:
    """ValueError where the package tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "training: tensorboard is true, but the package tensorboard is not installed; install the extra "
            "onpath[track], or set training.tensorboard=false"
        ) from error
