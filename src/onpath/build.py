"""From a config to objects: the only place where heavy things are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn

from onpath import rng
from onpath.config import RunConfig
from onpath.data.source import Source
from onpath.evaluation.settings import Evaluation
from onpath.objectives.base import Objective
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking
from onpath.records import RunFolder
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, Sampler, State, sample
from onpath.training import checkpoint
from onpath.training.trainer import Job, Trainer
from onpath.types import Batch, Calibrated, Denoiser, Spec

_CALIBRATION_EXAMPLES = 8192


@dataclass(frozen=True)
class Parts:
    """The objects of a run. `model` is fresh; ``Run`` holds trained ones."""

    config: RunConfig
    device: torch.device
    source: Source
    spec: Spec
    process: Masking
    model: nn.Module
    objective: Objective
    sampler: Sampler
    grid: Grid
    trainer: Trainer
    evaluation: Evaluation

    @property
    def seed(self) -> int:
        return self.config.seed

    def job(self) -> Job:
        """What the trainer is given; the network's input statistics are taken from the training data first."""
        if isinstance(self.model, Calibrated):
            ids = torch.arange(_CALIBRATION_EXAMPLES, dtype=torch.int64)
            self.model.calibrate(**self.source.examples(ids).cond)
        return Job(
            model=self.model,
            objective=self.objective,
            source=self.source,
            validation=self.source.at_split("validation"),
            seed=self.seed,
            device=self.device,
            bounds=self._bounds(),
            identity={"schedule": self.config.schedule.as_dict()},
        )

    def _bounds(self) -> tuple[Objective, ...]:
        """The bound that validation reports where the training loss is none: continuous where the schedule allows."""
        if isinstance(self.objective, ContinuousNELBO | TrajectoryNELBO):
            return ()
        if self.process.schedule.end_points() == (1.0, 0.0):
            return (ContinuousNELBO(self.process),)
        return (TrajectoryNELBO(self.process, self.grid, steps_per_example=0),)


def build(config: RunConfig) -> Parts:
    """Every object of a run from its config; the same seed gives the same weights."""
    source = cast(Source, config.data.make())
    spec = source.spec()
    process = Masking(config.schedule.make(), spec.mask_id)
    grid = cast(Grid, config.grid.make())
    # torch initialises weights from its global state: borrow it and give it back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = cast(nn.Module, config.model.make(spec=spec))
    return Parts(
        config=config,
        device=device_of(config.device),
        source=source,
        spec=spec,
        process=process,
        model=model,
        objective=config.objective.make(process=process, grid=grid),
        sampler=config.sampler.make(),
        grid=grid,
        trainer=config.training.make(),
        evaluation=config.evaluation.make(),
    )


def device_of(name: str) -> torch.device:
    """auto, cpu or cuda as a device; ValueError where a GPU is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda was asked for, but this torch sees no GPU; set device: cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@dataclass(frozen=True)
class Run:
    """A trained run: its parts, the moving average of its weights, and the step that they are from."""

    folder: RunFolder
    parts: Parts
    denoiser: Denoiser
    step: int

    def sample(
        self,
        batch: Batch | None = None,
        *,
        num_samples: int = 4,
        seed: int = 0,
        grid: Grid | None = None,
        sampler: Sampler | None = None,
        knobs: Knobs | None = None,
    ) -> State:
        """Generates with the run's own schedule, on `batch`'s conditions and given positions.

        Without a batch, on the first `num_samples` conditions of the test split. The result's ``x`` is (B, L).
        """
        parts = self.parts
        if batch is None:
            ids = torch.arange(num_samples, dtype=torch.int64)
            batch = parts.source.at_split("test").examples(ids, parts.device)
        key = rng.Key(seed).fold("sample")
        return sample(
            self.denoiser,
            parts.process,
            sampler or parts.sampler,
            grid or parts.grid,
            batch.to(parts.device),
            key,
            knobs,
        )


def load(path: str | Path, *, device: str = "auto") -> Run:
    """The run in folder `path` with the moving average of its newest checkpoint that verifies.

    ValueError where there is no run, no whole checkpoint, or the checkpoint's schedule is not the config's.
    """
    folder = RunFolder.open(Path(path))
    config = RunConfig.load(folder.path / "config.yaml", [f"device={device}"])
    parts = build(config)
    newest, skipped = checkpoint.newest(folder.checkpoints)
    if newest is None:
        faults = f" ({'; '.join(skipped)})" if skipped else ""
        raise ValueError(f"run: {path} has no checkpoint that verifies{faults}; train it first")
    saved = checkpoint.load(newest, parts.device)
    identity: dict[str, Any] = {"schedule": config.schedule.as_dict()}
    if saved.extra["identity"] != identity:
        raise ValueError(
            f"run: {path} was trained with {saved.extra['identity']} but its config.yaml names {identity}; restore "
            "the config of the training"
        )
    model = parts.model.to(parts.device).eval().requires_grad_(False)
    model.load_state_dict(dict(saved.average))
    return Run(folder, parts, cast(Denoiser, model), saved.step)
