"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn as nn
from torch import Tensor

from onpath import rng
from onpath.data.source import Source, step_ids
from onpath.records import RunFolder
from onpath.training.batches import of_examples, of_rollouts
from onpath.training.distributed import ALONE, Parallel, Processes, blocks_of, local, unsynced, whole
from onpath.training.ema import average_of, update_average
from onpath.training.job import Job
from onpath.training.metrics import Meter
from onpath.training.optimizers import AdamW, Decay, OptimizerConfig, Plateau, rate_factor
from onpath.training.reporter import Progress, Reporter
from onpath.training.state import TrainingState
from onpath.training.validation import means, rewards
from onpath.types import Batch, Denoiser, Experience, Loss, Nets

_MOST_UNCHECKED = 64  # steps, so that a run that never logs does not pile up numbers


@dataclass(frozen=True)
class Trainer:
    """How a model is trained. The batch at a step and every draw depend on the seed and the step alone.

    steps: optimizer steps; or epochs: passes over a finite source (exactly one of the two above 0).
    batch_size: examples of one optimizer step; accumulation: micro-batches that it is cut into, which changes
      memory, not the result.
    warmup_steps, decay, final_rate: of the learning rate, whose peak the optimizer names; warmup_steps are a tenth of
      the run, at most 200, where not given. plateau: how decay plateau cuts. clip_norm: greatest gradient norm, 0 is
      off. ema: decay of the moving average.
    precision: bf16 runs the forward under autocast. compile: torch.compile, block by block. threads: CPU threads, 0
      leaves torch's.
    parallel: what several processes (torchrun) do: each holds a replica (ddp), or a shard of weights, gradients,
      moments and average (fsdp). One process holds everything either way.
    log_every, validate_every, save_every: in steps, 0 is off (a checkpoint is always written at the end).
    validation_examples: the first so many of the validation split, under draws that never change.
    keep: newest checkpoints to keep, 0 keeps all. keep_every: keep those at its multiples for good, 0 is none.
    tensorboard: also write event files.
    """

    steps: int = 0
    epochs: int = 0
    batch_size: int = 512
    accumulation: int = 1
    optimizer: OptimizerConfig = AdamW()
    warmup_steps: int | None = None
    decay: Decay = "cosine"
    final_rate: float = 0.0
    plateau: Plateau = Plateau()
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    threads: int = 0
    parallel: Parallel = "ddp"
    log_every: int = 50
    validate_every: int = 0
    validation_examples: int = 1024
    save_every: int = 0
    keep: int = 2
    keep_every: int = 0
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
        if self.keep_every and (not self.keep or not self.save_every or self.keep_every % self.save_every):
            raise ValueError(
                f"training: keep_every is {self.keep_every} with save_every {self.save_every} and keep {self.keep}; it "
                "picks from the checkpoints that are written, so it must be a multiple of save_every, and keep: 0 "
                "keeps all anyway"
            )
        if self.parallel not in get_args(Parallel):
            raise ValueError(f"training: parallel is {self.parallel!r}; allowed are ddp and fsdp")
        if not 0 <= self.ema < 1:
            raise ValueError(f"training: ema is {self.ema}; needed is 0 <= ema < 1 (0.999 forgets in 1,000 steps)")
        if self.decay == "plateau" and not self.validate_every:
            raise ValueError("training: decay is plateau, but validate_every is 0; set how often to validate")
        if self.decay != "plateau" and self.plateau != Plateau():
            raise ValueError(f"training: plateau is set, but decay is {self.decay}; set decay: plateau or remove it")

    def _check_numbers(self) -> None:
        names = ("steps", "epochs", "warmup_steps", "final_rate", "clip_norm", "threads", "log_every")
        for name in (*names, "validate_every", "validation_examples", "save_every", "keep", "keep_every"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"training: {name} is {getattr(self, name)}; it must be 0 or more")

    def num_steps(self, source: Source) -> int:
        """Optimizer steps of the whole run."""
        if self.steps:
            return self.steps
        if source.num_examples is None:
            raise ValueError("training: epochs is set, but the data never end; set steps instead")
        return math.ceil(self.epochs * source.num_examples / self.batch_size)

    def rate_factor(self, step: int, num_steps: int) -> float:
        """What the peak learning rates are multiplied by at `step` of `num_steps`, before any cut by the plateau."""
        warmup_steps = min(200, num_steps // 10) if self.warmup_steps is None else self.warmup_steps
        return rate_factor(step, num_steps, warmup_steps, self.decay, self.final_rate)

    def fit(
        self,
        job: Job,
        folder: RunFolder,
        *,
        resume: bool = False,
        processes: Processes = ALONE,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> nn.Module:
        """Trains to the end, writing metrics and checkpoints to `folder`; returns the average of the weights.

        processes: those that train together, see ``Processes.joined``. on_progress: called in the first of them.
        should_stop: asked after every step; True, in any process, writes a checkpoint and ends the training there.
        ValueError where another run trains in the same folder.
        """
        if self.threads:
            torch.set_num_threads(self.threads)
        step_ids(0, self.batch_size, 0, self.accumulation * processes.count)  # the batch must be cut evenly
        reporter = Reporter(folder, self.num_steps(job.source), on_progress, speaks=processes.rank == 0)
        with ExitStack() as stack:
            processes.first(lambda: stack.enter_context(folder.locked()))
            state = self.start(job, processes)
            if resume:
                for line in state.restore(folder.checkpoints, job, self.batch_size):
                    reporter.note(state.step, line)
                if state.step > reporter.num_steps:
                    raise ValueError(
                        f"resume: training.steps is {reporter.num_steps}, and {state.step} steps are done already; "
                        f"set training.steps to {state.step} or more"
                    )
                processes.first(lambda: _rewind(folder, state.step, job.config))
            if self.tensorboard:
                stack.callback(reporter.close)
                reporter.open_events(state.step)
            self._loop(state, job, reporter, should_stop)
        return state.average

    def _loop(self, state: TrainingState, job: Job, reporter: Reporter, should_stop: Callable[[], bool]) -> None:
        num_steps, processes = reporter.num_steps, state.processes
        since = time.perf_counter()
        begun, stopped = since - state.seconds, False
        while state.step < num_steps and not stopped:
            norm = self.step(state, job, num_steps)
            state.step += 1
            self._keep_completions(state, job, reporter)
            last, stopped = state.step == num_steps, processes.any(should_stop())
            saves = _due(self.save_every, state.step) or last or stopped
            logs, validates = (_due(every, state.step) or last for every in (self.log_every, self.validate_every))
            if saves or logs or validates or len(state.health) >= _MOST_UNCHECKED:
                self._require_finite(state, job)
            now = time.perf_counter()
            if logs:
                row = state.meter.means(processes) | self._rates(state, norm, now - since) | {"seconds": now - begun}
                reporter.row(state.step, "train", row)
                reporter.progress(state.step, row)
                state.meter, since = Meter(), now
            if validates and self.validation_examples:
                row = self.validate(state.average, job, num_steps, processes)
                if self.decay == "plateau":
                    state.plateau = self.plateau.update(state.plateau, row.get("loss", math.inf))
                reporter.row(state.step, "validation", row)
            if saves:
                state.seconds = time.perf_counter() - begun
                state.save(reporter.folder.checkpoints, job, self.keep, self.keep_every)
            since += time.perf_counter() - now  # the rate is that of training alone

    def _keep_completions(self, state: TrainingState, job: Job, reporter: Reporter) -> None:
        """Writes what the policy answered at the step that begins a round, where one of its steps is logged."""
        if job.rounds is None or state.round is None or (state.step - 1) % job.rounds.num_steps:
            return
        steps = range(state.step, state.step + job.rounds.num_steps)
        if reporter.num_steps in steps or any(_due(self.log_every, step) for step in steps):
            reporter.completions(state.step, state.round.completions)

    def cost(self, job: Job, num_steps: int = 5) -> tuple[float, int]:
        """Seconds of an optimizer step, the median of a few after a first one, at the end of all ramps, and bytes of
        everything that stays in memory between steps: weights, gradients, average, moments. Nothing is written."""
        if self.threads:
            torch.set_num_threads(self.threads)
        state, seconds = self.start(job), []
        state.step = max(0, self.num_steps(job.source) - num_steps - 1)
        for _ in range(num_steps + 1):
            begun = time.perf_counter()
            float(self.step(state, job, self.num_steps(job.source)))
            seconds.append(time.perf_counter() - begun)
            state.step += 1
        held = sum(p.nbytes * (3 if p.requires_grad else 1) for p in job.model.parameters())
        moments = [v for o in state.optimizers for held in o.state.values() for v in held.values()]
        return sorted(seconds[1:])[num_steps // 2], held + sum(v.nbytes for v in moments)

    def validate(self, network: nn.Module, job: Job, num_steps: int, processes: Processes = ALONE) -> dict[str, float]:
        """Means over the validation examples at the final values of every ramp, under draws that never change."""
        held_out = job.validation.num_examples
        count = self.validation_examples if held_out is None else min(self.validation_examples, held_out)
        denoiser, size = cast(Denoiser, network), min(count, self.batch_size // self.accumulation)
        if job.rounds is not None:
            with self._autocast(job.device):
                return rewards(job.rounds, denoiser, job.validation, (count, size), job.device, processes)
        judged = (job.validated or job.objective, *job.bounds)
        key = rng.Key(job.seed).fold("validation")

        def losses(batch: Batch) -> list[Loss]:
            with self._autocast(job.device):
                return [objective(Nets(denoiser), batch, key, num_steps) for objective in judged]

        return means(losses, job.validation, (count, size), job.device, processes)

    def start(self, job: Job, processes: Processes = ALONE) -> TrainingState:
        """The state before the first step: the weights of the job's model, which is trained in place."""
        model = job.model.to(job.device).train()
        average = average_of(model)
        reference = average_of(model) if job.objective.needs_reference else None
        if self.compile:
            # block by block: they are alike, so one compilation serves all, and what reads the logits stays outside
            for part in blocks_of(model) or [model]:
                part.compile()
        if self.parallel == "fsdp":
            processes.shards(model, average, *([] if reference is None else [reference]))
            trained = cast(Denoiser, model)
        else:
            trained = processes.replicated(model)
        optimizers = self.optimizer.build(model)
        peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        return TrainingState(model, trained, average, optimizers, peaks, processes, reference=reference)

    def step(self, state: TrainingState, job: Job, num_steps: int) -> Tensor:
        """One optimizer step on `state`, whose count of steps is the caller's to raise; returns the gradient norm."""
        key, processes = rng.Key(job.seed).fold("train").at(state.step), state.processes
        nets = state.nets
        # the denominator, and a number that is finite where all losses are
        totals = torch.zeros(2, dtype=torch.float64, device=job.device)
        for micro, batch in enumerate(self._batches(state, job, nets)):
            with unsynced(state.trained) if micro + 1 < self.accumulation else nullcontext():
                with self._autocast(job.device):
                    loss = job.objective(nets, batch, key, state.step)
                loss.numerator.backward()
            state.meter.add(loss)
            totals[0] += loss.denominator
            totals[1] += loss.numerator.detach()
        totals = processes.sum(totals)
        # several processes average their gradients; the denominator is of their sum
        norm = self._scale_gradients(state.model, totals[0] / processes.count)
        factor = self.rate_factor(state.step, num_steps) * state.plateau[2]
        for optimizer, peaks in zip(state.optimizers, state.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_average(state.average, state.model, self.ema, state.step)
        state.health.append(totals[1] + norm)
        return norm

    def _batches(self, state: TrainingState, job: Job, nets: Nets) -> Iterator[Batch | Experience]:
        """The micro-batches of this process at a step; where a round begins, its rollouts are made first."""
        rounds, step = job.rounds, state.step
        if rounds is None:
            return of_examples(job.source, step, (self.batch_size, self.accumulation), state.processes, job.device)
        number = step // rounds.num_steps
        if state.round is None or state.round.number != number:
            with self._autocast(job.device):
                state.round = rounds.collect(
                    nets, number, self.batch_size, job.device, state.processes, self.accumulation
                )
            state.meter.add_sums(state.round.sums)
        return of_rollouts(rounds, state.round, step, self.accumulation, job.device)

    def _scale_gradients(self, model: nn.Module, denominator: Tensor | float) -> Tensor:
        """Divides the summed gradients by the global denominator and clips them, in one pass over the weights."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        # coins may mask nothing: then the gradient is zero
        denominator = torch.as_tensor(denominator, device=norm.device).to(norm.dtype).clamp_min(1e-9)
        norm = norm / denominator
        scale = torch.ones_like(norm) / denominator
        if self.clip_norm:
            scale = scale * (self.clip_norm / (norm + 1e-6)).clamp_max(1.0)
        torch._foreach_mul_(local(gradients), scale)
        return norm

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _rates(self, state: TrainingState, norm: Tensor, seconds: float) -> dict[str, float]:
        return {
            "learning_rate": state.optimizers[0].param_groups[0]["lr"],
            "gradient_norm": float(norm),
            "examples_per_second": state.meter.num_losses / self.accumulation * self.batch_size / max(seconds, 1e-9),
        }

    def _require_finite(self, state: TrainingState, job: Job) -> None:
        """Raises ValueError at the first step since the last check whose loss or gradient is not finite."""
        good = torch.stack(state.health).isfinite().tolist()
        if all(good):
            state.health.clear()
            return
        step = state.step - len(good) + good.index(False)
        ids = step_ids(step, self.batch_size)
        raise ValueError(
            f"training: the loss or its gradient is not finite at optimizer step {step + 1} (examples {int(ids[0])} "
            f"to {int(ids[-1])}, seed {job.seed}); the last checkpoint is intact. Try a lower learning rate, a longer "
            "warm-up, or precision: fp32"
        )


def _rewind(folder: RunFolder, step: int, config: Mapping[str, Any]) -> None:
    """Leaves in the folder what belongs to a run at `step` that goes on by `config`."""
    folder.truncate_metrics(step)
    if config:
        folder.write_config(config)


def _due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
