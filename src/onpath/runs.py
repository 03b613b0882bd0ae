"""Trained runs: loading one, generating with it, measuring and checking it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn

from onpath import rng
from onpath.build import Parts, build
from onpath.config import RunConfig
from onpath.data.source import ActionSource, TextSource
from onpath.evaluation.check import Check, ScheduleRow, check_all, schedule_table
from onpath.evaluation.plans import planner
from onpath.evaluation.policy import Actor, PlanPolicy
from onpath.evaluation.settings import Evaluation, Row, Subject
from onpath.records import RunFolder, Trace
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, Sampler, State, sample
from onpath.schedules import Schedule
from onpath.training import checkpoint
from onpath.types import Batch, Denoiser, Exportable, Spec


@dataclass(frozen=True)
class Run:
    """A trained run: its parts, the moving average of its weights, and the step that they are from.

    identity: what the checkpoint says that it was trained with, see ``Parts.identity``.
    """

    folder: RunFolder
    parts: Parts
    denoiser: Denoiser
    step: int
    identity: Mapping[str, Any]

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

        Without a batch, on the first `num_samples` conditions of the validation split. The result's ``x`` is (B, L).
        """
        parts = self.parts
        if batch is None:
            ids = torch.arange(num_samples, dtype=torch.int64)
            shown = parts.source.at_split("validation").examples(ids, parts.device)
            # without its padding, which tells how long the answer is
            batch = Batch.of_tokens(shown.x, shown.ids, given=shown.given, cond=shown.cond)
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

    def words(self, tokens: Sequence[int]) -> str:
        """A sample as people read it."""
        source = self.parts.source
        return source.words(tokens) if isinstance(source, ActionSource | TextSource) else " ".join(map(str, tokens))

    @property
    def subject(self) -> Subject:
        """The run as an evaluation takes it."""
        return self.parts.subject(self.denoiser)

    def policy(self) -> PlanPolicy:
        """The run as a planner of actions; see ``actor`` for one environment at a time."""
        return planner(self.subject)

    def actor(self) -> Actor:
        """The run as a policy for one Gymnasium environment: ``action = actor.act(observation)``."""
        return Actor(self.policy(), self.parts.device)

    def evaluate(self, settings: Evaluation | None = None, label: str = "") -> list[Row]:
        """Result rows {set, mode, metric, value, ci95, n, step}, by the run's settings or other ones.

        label: added to the name of every mode, to tell results of another sampler apart. ValueError for a run of
        which this cannot be measured.
        """
        rows = (settings or self.parts.evaluation).measure(self.subject)
        return [{**row, "mode": f"{row['mode']} {label}".strip(), "step": self.step} for row in rows]

    def traces(self, num: int = 8, label: str = "") -> list[Trace]:
        """How the first `num` generations of an evaluation come about, step by step; `label` as for ``evaluate``."""
        made = self.parts.evaluation.traces(self.subject, num)
        return [replace(one, mode=f"{one.mode} {label}".strip(), step=self.step) for one in made]

    def export(self, folder: str | Path) -> None:
        """Writes the network into the new folder `folder` in its own format; ValueError where it has none."""
        if not isinstance(self.denoiser, Exportable):
            raise ValueError(
                f"export: {type(self.denoiser).__name__} has no format but that of its checkpoints; the moving "
                f"average is in average.safetensors of the newest folder below {self.folder.checkpoints}"
            )
        self.denoiser.export(Path(folder))


def load(path: str | Path, *, device: str | None = None, overrides: Iterable[str] = ()) -> Run:
    """The run in folder `path` with the moving average of its newest checkpoint that verifies.

    device: auto, cpu or cuda, in place of the run's own. overrides: ``key.path=value`` settings over those of the
      training, such as ``grid.steps=40``.
    ValueError where there is no run, no whole checkpoint, or the checkpoint's schedule is not the config's.
    """
    folder = RunFolder.open(Path(path))
    config = RunConfig.load(folder.path / "config.yaml", [*overrides, *([f"device={device}"] if device else [])])
    newest, skipped = checkpoint.newest(folder.checkpoints)
    if newest is None:
        faults = f" ({'; '.join(skipped)})" if skipped else ""
        todo = "copy a whole one there, or train again" if skipped else "train it first"
        raise ValueError(f"run: {path} has no checkpoint that verifies{faults}; {todo}")
    saved = checkpoint.read(newest, for_training=False)
    spec = saved.extra["identity"].get("spec")
    parts = build(config, Spec.of(spec) if spec else None)
    checkpoint.require_identity(saved, parts.identity)
    model = parts.model.to(parts.device).eval()
    checkpoint.fill(model, saved.average)
    model.requires_grad_(False)
    return Run(folder, parts, cast(Denoiser, model), saved.step, saved.extra["identity"])


def _saved_schedule(run: Run) -> Schedule:
    """The schedule that the checkpoint of a run says it was trained with."""
    told = {**run.parts.config.as_dict(), "schedule": run.identity["schedule"]}
    return cast(Schedule, RunConfig.parse(told).schedule.make())


def check(config: RunConfig, run: Run | None = None) -> tuple[tuple[Check, ...], tuple[ScheduleRow, ...]]:
    """The sanity checks of a config, or of a trained run, and its schedule as a table."""
    parts = build(config)
    if parts.trainer.threads:
        torch.set_num_threads(parts.trainer.threads)
    parts.calibrate()
    parts.model.to(parts.device)
    checks = check_all(
        parts.model,
        parts.objective,
        parts.source,
        parts.trainer.optimizer,
        trained=None if run is None else cast(nn.Module, run.denoiser),
        schedules=() if run is None else (_saved_schedule(run),),
    )
    return checks, schedule_table(parts.process.schedule)
