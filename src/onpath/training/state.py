"""What changes while a run trains, and its way to a checkpoint and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from onpath.experience.rounds import Round, Rounds
from onpath.training import checkpoint
from onpath.training.batches import packed, unpacked
from onpath.training.distributed import ALONE, Processes, on_host
from onpath.training.job import Job
from onpath.training.metrics import Meter
from onpath.training.optimizers import restore
from onpath.types import Denoiser, Nets


@dataclass
class TrainingState:
    """The state of a run: weights, their average, the optimizers, the step, the seconds so far, the plateau rule.

    trained: `model` as objectives call it, through DDP where several processes have a replica each.
    processes: those that train it together. peaks: the peak learning rate of each group of each optimizer.
    meter: sums since the last row of metrics. health: for each step since the last check, a number on the device
    that is finite where the losses and the gradient are. reference: the network as it was when the training began,
    where the objective asks for it. round: the rollouts that are trained on, where there are any.
    """

    model: nn.Module
    trained: Denoiser
    average: nn.Module
    optimizers: list[torch.optim.Optimizer]
    peaks: list[list[float]]
    processes: Processes = ALONE
    step: int = 0
    seconds: float = 0.0
    plateau: tuple[float, int, float] = (math.inf, 0, 1.0)
    meter: Meter = field(default_factory=Meter)
    health: list[Tensor] = field(default_factory=list)
    reference: nn.Module | None = None
    round: Round | None = None

    @property
    def nets(self) -> Nets:
        """The networks as an objective may ask for them."""
        average, reference = cast(Denoiser, self.average), cast(Denoiser | None, self.reference)
        return Nets(self.trained, average, reference, local=cast(Denoiser, self.model))

    def save(self, folder: Path, job: Job, keep: int, keep_every: int) -> None:
        """Writes a checkpoint to `folder` with everything that an exact resume needs, shards put together."""
        best, waited, scale = self.plateau
        writes = self.processes.rank == 0
        names = checkpoint.trained_names(self.model)
        content = checkpoint.Checkpoint(
            step=self.step,
            model=on_host(_picked(self.model, names), writes),
            average=on_host(_picked(self.average, names), writes),
            optimizers=[on_host(optimizer.state_dict(), writes) for optimizer in self.optimizers],
            experience=self._experience(job.rounds),
            extra={
                "identity": dict(job.identity),
                "plateau": [None if math.isinf(best) else best, waited, scale],
                "seconds": self.seconds,
                "sums": self.meter.sums(self.processes),
            },
        )
        self.processes.first(lambda: checkpoint.save(folder, content, keep, keep_every))

    def _experience(self, rounds: Rounds | None) -> dict[str, Tensor]:
        """The round that is not used up yet, of all processes; nothing where the next step begins one."""
        if rounds is None or self.round is None or self.step % rounds.num_steps == 0:
            return {}
        return packed(self.round, rounds.settings.steps_per_round, self.processes)

    def restore(self, folder: Path, job: Job, batch_size: int) -> list[str]:
        """Goes on from the newest checkpoint in `folder` that verifies, if any; returns what to tell the user.

        ValueError where it is of another schedule, network or optimizer, or in the middle of a round for other batches,
        or where there are checkpoints and all of them are damaged.
        """
        path, skipped = self.processes.first(lambda: checkpoint.newest(folder))
        lines = [f"skipped {reason}" for reason in skipped]
        if path is None and skipped:
            raise ValueError(
                f"resume: no checkpoint in {folder} verifies ({'; '.join(skipped)}), and nothing was changed; put back "
                "a copy of one, remove the damaged ones to begin at step 0, or start a new run"
            )
        if path is None:
            return [*lines, "no checkpoint to resume from: starting at step 0"]
        saved = checkpoint.read(path)
        checkpoint.require_identity(saved, job.identity)
        names = checkpoint.trained_names(self.model)
        checkpoint.fill(self.model, saved.model, names)
        checkpoint.fill(self.average, saved.average, names)
        restore(self.optimizers, saved.optimizers)
        best, waited, scale = saved.extra["plateau"]
        self.step, self.seconds = saved.step, saved.extra.get("seconds", 0.0)
        self.plateau = (math.inf if best is None else best, waited, scale)
        if saved.experience and job.rounds is not None:
            self.round = unpacked(saved.experience, job.rounds.settings, batch_size, self.processes)
        if self.processes.rank == 0:  # they are the sums of all processes
            self.meter = Meter({name: (total, count) for name, (total, count) in saved.extra["sums"].items()})
        return [*lines, f"resumed at step {self.step} from {path.name}"]


def _picked(network: nn.Module, names: list[str]) -> dict[str, Tensor]:
    state = network.state_dict()
    return {name: state[name] for name in names}
