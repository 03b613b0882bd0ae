"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.nn as nn
from torch import Tensor

from onpath import rng
from onpath.data.source import Source, step_ids
from onpath.objectives.base import Objective
from onpath.records import RunFolder
from onpath.training import checkpoint
from onpath.training.ema import average_of, update_average
from onpath.training.metrics import Meter, event_writer, record
from onpath.training.optimizers import AdamW, Decay, OptimizerConfig, Plateau, rate_factor, restore
from onpath.types import Denoiser, Nets

_MOST_UNCHECKED = 64  # steps, so that a run that never logs does not pile up numbers


@dataclass(frozen=True)
class Job:
    """What is trained on what: the objects that the trainer moves, slices and counts.

    validated: the objective of validation, None for the same. bounds: more that validation reports beside it (a NELBO).
    identity: JSON values that a resumed run must share with its checkpoint (the schedule).
    config: plain data that replaces config.yaml of the folder once a run goes on; empty leaves that as it is.
    """

    model: nn.Module
    objective: Objective
    source: Source
    validation: Source
    seed: int = 0
    device: torch.device = torch.device("cpu")
    validated: Objective | None = None
    bounds: tuple[Objective, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for whoever shows it. seconds: since this process began. rate: examples per second."""

    step: int
    num_steps: int
    loss: float
    rate: float
    seconds: float
    note: str = ""


@dataclass
class _Run:
    """The state of a run: weights, their average, the optimizers, the step, the plateau rule.

    meter: sums since the last row of metrics. health: for each step since the last check, a number on the device
    that is finite where the losses and the gradient are.
    """

    model: nn.Module
    average: nn.Module
    optimizers: list[torch.optim.Optimizer]
    peaks: list[list[float]]
    step: int = 0
    plateau: tuple[float, int, float] = (math.inf, 0, 1.0)
    meter: Meter = field(default_factory=Meter)
    health: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Trainer:
    """How a model is trained. The batch at a step and every draw depend on the seed and the step alone.

    steps: optimizer steps; or epochs: passes over a finite source (exactly one of the two above 0).
    batch_size: examples of one optimizer step; accumulation: micro-batches that it is cut into, which changes
      memory, not the result.
    warmup_steps, decay, final_rate: of the learning rate, whose peak the optimizer names; `plateau` is used by
      decay: plateau. clip_norm: greatest gradient norm, 0 is off. ema: decay of the moving average.
    precision: bf16 runs the forward under autocast. compile: torch.compile. threads: CPU threads, 0 leaves torch's.
    log_every, validate_every, save_every: in steps, 0 is off (a checkpoint is always written at the end).
    validation_examples: the first so many of the validation split, under draws that never change.
    keep: newest checkpoints to keep, 0 keeps all. tensorboard: also write event files.
    """

    steps: int = 0
    epochs: int = 0
    batch_size: int = 512
    accumulation: int = 1
    optimizer: OptimizerConfig = AdamW()
    warmup_steps: int = 200
    decay: Decay = "cosine"
    final_rate: float = 0.0
    plateau: Plateau = Plateau()
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    threads: int = 0
    log_every: int = 50
    validate_every: int = 0
    validation_examples: int = 1024
    save_every: int = 0
    keep: int = 2
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if (self.steps > 0) == (self.epochs > 0):
            raise ValueError(
                f"training: steps is {self.steps} and epochs is {self.epochs}; exactly one of them must be above 0"
            )
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"training: batch_size is {self.batch_size} and accumulation is {self.accumulation}; batch_size must "
                "be a positive multiple of accumulation"
            )
        self._check_numbers()
        if self.validate_every and not self.validation_examples:
            raise ValueError(
                f"training: validate_every is {self.validate_every}, but validation_examples is 0; set how many "
                "examples to validate on, or remove validate_every"
            )
        if self.decay in ("constant", "plateau") and self.final_rate:
            raise ValueError(
                f"training: final_rate is {self.final_rate}, but decay {self.decay} does not end at a rate; remove "
                "final_rate, or take decay: cosine or linear"
            )
        if not 0 <= self.ema < 1:
            raise ValueError(f"training: ema is {self.ema}; needed is 0 <= ema < 1 (0.999 forgets in 1,000 steps)")
        if self.decay == "plateau" and not self.validate_every:
            raise ValueError("training: decay is plateau, but validate_every is 0; set how often to validate")
        if self.decay != "plateau" and self.plateau != Plateau():
            raise ValueError(f"training: plateau is set, but decay is {self.decay}; set decay: plateau or remove it")

    def _check_numbers(self) -> None:
        names = ("steps", "epochs", "warmup_steps", "final_rate", "clip_norm", "threads", "log_every")
        for name in (*names, "validate_every", "validation_examples", "save_every", "keep"):
            if getattr(self, name) < 0:
                raise ValueError(f"training: {name} is {getattr(self, name)}; it must be 0 or more")

    def num_steps(self, source: Source) -> int:
        """Optimizer steps of the whole run."""
        if self.steps:
            return self.steps
        if source.num_examples is None:
            raise ValueError("training: epochs is set, but the data never end; set steps instead")
        return math.ceil(self.epochs * source.num_examples / self.batch_size)

    def fit(
        self,
        job: Job,
        folder: RunFolder,
        *,
        resume: bool = False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> nn.Module:
        """Trains to the end, writing metrics and checkpoints to `folder`; returns the average of the weights.

        ValueError where another process trains in the same folder.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        with folder.locked():
            return self._fit(job, folder, resume, on_progress)

    def _fit(self, job: Job, folder: RunFolder, resume: bool, on_progress: Callable[[Progress], None]) -> nn.Module:
        num_steps = self.num_steps(job.source)
        run = self._start(job)
        if resume:
            for line in self._restore(run, job, folder):
                on_progress(Progress(run.step, num_steps, math.nan, 0.0, 0.0, line))
            if job.config:
                folder.write_config(job.config)
        writer = event_writer(folder, run.step) if self.tensorboard else None
        begun = since = time.perf_counter()
        while run.step < num_steps:
            norm = self._step(run, job, num_steps)
            run.step += 1
            last = run.step == num_steps
            saves = _due(self.save_every, run.step) or last
            if saves or _due(self.log_every, run.step) or len(run.health) >= _MOST_UNCHECKED:
                self._require_finite(run, job)
            if _due(self.log_every, run.step) or last:
                now = time.perf_counter()
                row = run.meter.means() | self._rates(run, norm, now - since) | {"seconds": now - begun}
                record(folder, writer, run.step, "train", row)
                loss, rate = row.get("loss", math.nan), row["examples_per_second"]
                on_progress(Progress(run.step, num_steps, loss, rate, now - begun))
                run.meter, since = Meter(), now
            if _due(self.validate_every, run.step) or (last and self.validation_examples):
                row = self.validate(run.average, job, num_steps)
                if self.decay == "plateau":
                    run.plateau = self.plateau.update(run.plateau, row.get("loss", math.inf))
                record(folder, writer, run.step, "validation", row)
                since = time.perf_counter()
            if saves:
                self._save(run, job, folder)
        if writer is not None:
            writer.close()
        return run.average

    def time_steps(self, job: Job, num_steps: int = 5) -> float:
        """Seconds of an optimizer step, the median of a few after a first one; nothing is written."""
        if self.threads:
            torch.set_num_threads(self.threads)
        run, seconds = self._start(job), []
        for _ in range(num_steps + 1):
            begun = time.perf_counter()
            float(self._step(run, job, self.num_steps(job.source)))
            seconds.append(time.perf_counter() - begun)
            run.step += 1
        return sorted(seconds[1:])[num_steps // 2]

    def validate(self, network: nn.Module, job: Job, num_steps: int) -> dict[str, float]:
        """Means over the validation examples at the final values of every ramp, under draws that never change."""
        judged = (job.validated or job.objective, *job.bounds)
        meters = [Meter() for _ in judged]
        held_out = job.validation.num_examples
        count = self.validation_examples if held_out is None else min(self.validation_examples, held_out)
        size = min(count, self.batch_size // self.accumulation)
        key = rng.Key(job.seed).fold("validation")
        with torch.no_grad():
            for first in range(0, count, size):
                ids = torch.arange(first, min(first + size, count), dtype=torch.int64)
                batch = job.validation.examples(ids, job.device).to(job.device)
                for meter, objective in zip(meters, judged, strict=True):
                    with self._autocast(job.device):
                        meter.add(objective(Nets(cast(Denoiser, network)), batch, key, num_steps))
        row: dict[str, float] = {}
        for meter in reversed(meters):  # the objective's own figures win over a bound's of the same name
            row |= meter.means()
        return row

    def _start(self, job: Job) -> _Run:
        model = job.model.to(job.device).train()
        average = average_of(model)
        if self.compile:
            model.compile()
        optimizers = self.optimizer.build(model)
        peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        return _Run(model, average, optimizers, peaks)

    def _step(self, run: _Run, job: Job, num_steps: int) -> Tensor:
        """One optimizer step; returns the gradient norm."""
        key = rng.Key(job.seed).fold("train").at(run.step)
        denominator: Tensor | float = 0.0
        health = torch.zeros((), device=job.device)
        for part in range(self.accumulation):
            ids = step_ids(run.step, self.batch_size, part, self.accumulation)
            batch = job.source.examples(ids, job.device).to(job.device)
            with self._autocast(job.device):
                loss = job.objective(Nets(cast(Denoiser, run.model), cast(Denoiser, run.average)), batch, key, run.step)
            loss.numerator.backward()
            denominator = denominator + loss.denominator
            run.meter.add(loss)
            health = health + loss.numerator.detach()
        norm = self._scale_gradients(run.model, denominator)
        factor = rate_factor(run.step, num_steps, self.warmup_steps, self.decay, self.final_rate) * run.plateau[2]
        for optimizer, peaks in zip(run.optimizers, run.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_average(run.average, run.model, self.ema, run.step)
        run.health.append(health + norm)
        return norm

    def _scale_gradients(self, model: nn.Module, denominator: Tensor | float) -> Tensor:
        """Divides the summed gradients by the global denominator and clips them, in one pass over the weights."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        denominator = torch.as_tensor(denominator).clamp_min(1e-9)  # coins may mask nothing: then there is no step
        norm = torch.nn.utils.get_total_norm(gradients) / denominator
        scale = torch.ones_like(norm) / denominator
        if self.clip_norm:
            scale = scale * (self.clip_norm / (norm + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_(gradients, scale)
        return norm

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _rates(self, run: _Run, norm: Tensor, seconds: float) -> dict[str, float]:
        return {
            "learning_rate": run.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(norm),
            "examples_per_second": run.meter.num_losses / self.accumulation * self.batch_size / max(seconds, 1e-9),
        }

    def _require_finite(self, run: _Run, job: Job) -> None:
        """Raises ValueError at the first step since the last check whose loss or gradient is not finite."""
        good = torch.stack(run.health).isfinite().tolist()
        if all(good):
            run.health.clear()
            return
        step = run.step - len(good) + good.index(False)
        ids = step_ids(step, self.batch_size)
        raise ValueError(
            f"training: the loss or its gradient is not finite at optimizer step {step + 1} (examples {int(ids[0])} "
            f"to {int(ids[-1])}, seed {job.seed}); the last checkpoint is intact. Try a lower learning rate, a longer "
            "warm-up, or precision: fp32"
        )

    def _save(self, run: _Run, job: Job, folder: RunFolder) -> None:
        content = checkpoint.Checkpoint(
            step=run.step,
            model=run.model.state_dict(),
            average=run.average.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in run.optimizers],
            extra={
                "identity": dict(job.identity),
                "plateau": [*map(float, run.plateau)],
                "sums": run.meter.sums(),
            },
        )
        checkpoint.save(folder.checkpoints, content, self.keep)

    def _restore(self, run: _Run, job: Job, folder: RunFolder) -> list[str]:
        """Loads the newest checkpoint that verifies; returns what to tell the user."""
        path, skipped = checkpoint.newest(folder.checkpoints)
        lines = [f"skipped {reason}" for reason in skipped]
        if path is None:
            folder.truncate_metrics(0)
            return [*lines, "no checkpoint to resume from: starting at step 0"]
        saved = checkpoint.load(path, job.device)
        if saved.extra["identity"] != dict(job.identity):
            raise ValueError(
                f"resume: the checkpoint was trained with {saved.extra['identity']}, the config names "
                f"{dict(job.identity)}; one run has one schedule. Restore the config, or start a new run"
            )
        checkpoint.fill(run.model, saved.model)
        checkpoint.fill(run.average, saved.average)
        restore(run.optimizers, saved.optimizers)
        best, waited, scale = saved.extra["plateau"]
        run.step, run.plateau = saved.step, (best, int(waited), scale)
        run.meter = Meter({name: (total, count) for name, (total, count) in saved.extra["sums"].items()})
        folder.truncate_metrics(run.step)
        return [*lines, f"resumed at step {run.step} from {path.name}"]


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
