"""From a config to objects: the only place where heavy things are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn

from onpath import rng
from onpath.config import RunConfig
from onpath.consistency import require_evaluation, require_guidance, require_ramps, require_training
from onpath.data.source import ActionSource, Source
from onpath.envs import fourrooms, minigrid
from onpath.evaluation.arenas import task_set
from onpath.evaluation.check import Check, ScheduleRow, check_all, schedule_table
from onpath.evaluation.envs import Mode, Row, evaluate, latency
from onpath.evaluation.policy import Actor, PlanPolicy
from onpath.evaluation.settings import Evaluation
from onpath.evaluation.traces import trace
from onpath.objectives.base import Objective
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking
from onpath.records import RunFolder, Trace
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, Sampler, State, sample
from onpath.schedules import Schedule
from onpath.training import checkpoint
from onpath.training.distributed import local_gpu
from onpath.training.trainer import Job, Trainer
from onpath.types import Batch, Calibrated, Denoiser, Spec

_CALIBRATION_EXAMPLES = 8192
_BOUND_STEPS = 8  # steps of the sampler's walk that validation draws for each example


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

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the config that it is loaded for, as JSON."""
        spec = json.loads(json.dumps(asdict(self.spec)))
        return {"schedule": self.config.schedule.as_dict(), "seed": self.seed, "spec": spec}

    def job(self) -> Job:
        """What the trainer is given; the network's input statistics are taken from the training data first."""
        self.calibrate()
        return Job(
            model=self.model,
            objective=self.objective,
            validated=self.objective.conditional(),
            source=self.source,
            validation=self.source.at_split("validation"),
            seed=self.seed,
            device=self.device,
            bounds=self._bounds(),
            identity=self.identity,
            config=self.config.as_dict(),
        )

    def policy(self, denoiser: Denoiser) -> PlanPolicy:
        """A network of this run as a planner of actions."""
        if not isinstance(self.source, ActionSource):
            raise ValueError(
                f"run: it was trained on {type(self.source).__name__}, whose tokens are not actions; it samples, but "
                "it is no policy"
            )
        key = rng.Key(self.seed, "policy")
        return PlanPolicy(denoiser, self.process, self.sampler, self.grid, self.spec, self.source.end_id, key=key)

    def calibrate(self) -> None:
        """Takes the statistics of the network's inputs from training examples, where the network has any."""
        if isinstance(self.model, Calibrated):
            ids = torch.arange(_CALIBRATION_EXAMPLES, dtype=torch.int64)
            self.model.calibrate(**self.source.examples(ids).cond)

    def _bounds(self) -> tuple[Objective, ...]:
        """The bound that validation reports where the training loss is none: continuous where the schedule allows."""
        if self.objective.is_bound:
            return ()
        if self.process.schedule.end_points() == (1.0, 0.0):
            return (ContinuousNELBO(self.process),)
        num_steps = min(_BOUND_STEPS, len(self.grid.times(self.process.schedule)) - 1)
        return (TrajectoryNELBO(self.process, self.grid, num_steps, self.sampler.fixed_counts),)


def build(config: RunConfig, spec: Spec | None = None) -> Parts:
    """Every object of a run from its config; the same seed gives the same weights.

    spec: of the data of a trained run, which need not be there any more; without it they are asked, and what would
      otherwise be refused in the middle of a training is refused here.
    """
    require_guidance(config)
    states = _states(config, spec)
    trainer, evaluation = cast(Trainer, config.training.make()), cast(Evaluation, config.evaluation.make())
    # torch initialises weights from its global state: borrow it and give it back
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reach every GPU's state too
        model = cast(nn.Module, config.model.make(spec=states["spec"]))
    parts = Parts(
        config=config,
        device=device_of(config.device),
        model=model,
        trainer=trainer,
        evaluation=evaluation,
        **states,
    )
    if spec is None:
        require_training(trainer, parts.source, model)
        require_ramps(parts.objective, trainer.num_steps(parts.source))
        if isinstance(parts.source, ActionSource):
            require_evaluation(evaluation, parts.policy(cast(Denoiser, model)))
    return parts


def _states(config: RunConfig, spec: Spec | None = None) -> dict[str, Any]:
    """The parts by name that say where examples come from, how they are spoiled, and by what rule."""
    source = cast(Source, config.data.make(seed=config.seed))
    spec = spec or source.spec()
    process = Masking(config.schedule.make(), spec.mask_id)
    grid, sampler = cast(Grid, config.grid.make()), cast(Sampler, config.sampler.make())
    objective = config.objective.make(process=process, grid=grid, fixed_counts=sampler.fixed_counts)
    return {
        "source": source,
        "spec": spec,
        "process": process,
        "grid": grid,
        "sampler": sampler,
        "objective": objective,
    }


def training_states(config: RunConfig) -> tuple[Source, Objective]:
    """The examples of a run and the objective that spoils them: its training states without a network."""
    states = _states(config)
    return states["source"], states["objective"]


def device_of(name: str) -> torch.device:
    """auto, cpu or cuda as a device; ValueError where a GPU is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "config: device is 'cuda', but this torch sees no GPU; set device: cpu or auto (for a trained "
            "run: --device cpu)"
        )
    gpu = None if name == "cpu" else local_gpu()
    return torch.device("cpu") if gpu is None else torch.device("cuda", gpu)


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
        return source.words(tokens) if isinstance(source, ActionSource) else " ".join(map(str, tokens))

    def policy(self) -> PlanPolicy:
        """The run as a planner of actions; see ``actor`` for one environment at a time."""
        return self.parts.policy(self.denoiser)

    def actor(self) -> Actor:
        """The run as a policy for one Gymnasium environment: ``action = actor.act(observation)``."""
        return Actor(self.policy(), self.parts.device)

    def _fourrooms_policy(self) -> PlanPolicy:
        """The run as a planner, where FourRooms looks like what it was trained on."""
        trained, needed = self.parts.spec.cond.get("image"), (fourrooms.SIDE, fourrooms.SIDE, 3)
        if trained != needed:
            raise ValueError(
                f"run: {self.folder.path} was trained on images of shape {trained}, and an evaluation is on FourRooms, "
                f"whose images are {needed}: its figures would say nothing about this run. Act in your own "
                "environment instead, with actor = onpath.load(run).actor() and actor.act(observation)"
            )
        return self.policy()

    def evaluate(self, settings: Evaluation | None = None, label: str = "") -> list[Row]:
        """Result rows {set, mode, metric, value, ci95, n, step} on FourRooms, by the run's settings or other ones.

        label: added to the name of every mode, to tell results of another sampler apart. ValueError for a run that
        was trained on images of another size.
        """
        settings = settings or self.parts.evaluation
        policy, device = self._fourrooms_policy(), self.parts.device
        modes = [Mode.parse(name) for name in settings.modes]
        # what would otherwise be refused after other modes have been measured
        _ = [mode.of(policy) for mode in modes]
        if settings.replay or any(mode.real for mode in modes):
            minigrid.require()
        rows = []
        for name in settings.sets:
            tasks = task_set(name, num_tasks=settings.num_tasks)
            rows += evaluate(policy, tasks, modes, device=device, replay=settings.replay)
            if settings.latency:
                simulated = [mode for mode in modes if not mode.real]
                rows += [row for mode in simulated for row in latency(policy, tasks, mode, device=device)]
        return [{**row, "mode": f"{row['mode']} {label}".strip(), "step": self.step} for row in rows]

    def traces(self, num_tasks: int = 8, label: str = "") -> list[Trace]:
        """How the plans of the first tasks come about and are walked, in open and in closed loop on the run's grid.

        num_tasks: of the first set of the settings. label: as for ``evaluate``.
        """
        parts, policy = self.parts, self._fourrooms_policy()
        steps = len(parts.grid.inner(parts.process.schedule)) - 1
        tasks = task_set(parts.evaluation.sets[0], num_tasks=num_tasks)
        made = [trace(policy, tasks, Mode(every, steps), parts.device) for every in (None, 1)]
        return [replace(one, mode=f"{one.mode} {label}".strip(), step=self.step) for some in made for one in some]


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
    model = parts.model.to(parts.device).eval().requires_grad_(False)
    checkpoint.fill(model, saved.average)
    return Run(folder, parts, cast(Denoiser, model), saved.step, saved.extra["identity"])


def estimate(config: RunConfig) -> dict[str, str]:
    """Parameters, memory and time of a run, from a few steps taken on objects that are then thrown away."""
    parts = build(config)
    num_parameters = sum(p.numel() for p in parts.model.parameters())
    seconds, states = parts.trainer.cost(parts.job())
    num_steps = parts.trainer.num_steps(parts.source)
    rows = {
        "parameters": f"{num_parameters:,}",
        "optimizer steps": f"{num_steps:,}",
        "weights, gradients, average, moments": f"{states / 2**20:,.0f} MiB",
        "seconds a step": f"{seconds:.3f}",
        "time": f"{seconds * num_steps / 60:.1f} min on {parts.device}",
    }
    if parts.device.type == "cuda":
        rows["peak GPU memory"] = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB"
    return rows


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
