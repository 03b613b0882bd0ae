"""From a config to objects: the only place where heavy things are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn

from onpath.config import RunConfig
from onpath.consistency import (
    require_conditions,
    require_experience,
    require_fit,
    require_guidance,
    require_null,
    require_ramps,
    require_rollouts,
    require_rounds,
    require_training,
)
from onpath.data.source import Source
from onpath.evaluation.settings import Evaluation, Subject
from onpath.experience.rounds import Rounds
from onpath.experience.settings import GroupRollouts
from onpath.objectives.base import Objective
from onpath.objectives.nelbo import bound_of
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.processes.base import Process
from onpath.processes.masking import Masking
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Sampler
from onpath.training.checkpoint import begin_with
from onpath.training.distributed import local_gpu
from onpath.training.trainer import Job, Trainer
from onpath.types import Calibrated, DataSpec, Denoiser, Spec

_CALIBRATION_EXAMPLES = 8192
_BOUND_STEPS = 8  # steps of the sampler's walk that validation draws for each example


@dataclass(frozen=True)
class Parts:
    """The objects of a run. `model` is fresh; ``Run`` holds trained ones."""

    config: RunConfig
    device: torch.device
    source: Source
    spec: DataSpec
    process: Process
    model: nn.Module
    objective: Objective
    sampler: Sampler
    grid: Grid
    trainer: Trainer
    evaluation: Evaluation
    rounds: Rounds | None = None

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the config that it is loaded for, as JSON."""
        spec = json.loads(json.dumps(asdict(self.spec)))
        return {"schedule": self.config.schedule.as_dict(), "seed": self.seed, "spec": spec}

    def job(self) -> Job:
        """What the trainer is given; a fresh network's input statistics are taken from the training data first."""
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
            rounds=self.rounds,
        )

    def subject(self, denoiser: Denoiser) -> Subject:
        """A network of this run with all that it generates with, as an evaluation takes it."""
        return Subject(
            denoiser=denoiser,
            process=self.process,
            sampler=self.sampler,
            grid=self.grid,
            source=self.source,
            spec=self.spec,
            seed=self.seed,
            device=self.device,
        )

    def calibrate(self) -> None:
        """Takes the statistics of the network's inputs from training examples, where the network has any.

        Weights to begin with have statistics of their own, by which all else in them was learned.
        """
        if isinstance(self.model, Calibrated) and self.config.start is None:
            ids = torch.arange(_CALIBRATION_EXAMPLES, dtype=torch.int64)
            self.model.calibrate(**self.source.examples(ids).cond)

    def _bounds(self) -> tuple[Objective, ...]:
        """The bound that validation reports where the training loss is none: continuous where the schedule allows."""
        if self.rounds is not None or self.objective.conditional().is_bound or not isinstance(self.process, Masking):
            return ()
        return (bound_of(self.process, self.grid, _BOUND_STEPS, self.sampler.fixed_counts),)


def build(config: RunConfig, spec: DataSpec | None = None, trained: RunConfig | None = None) -> Parts:
    """Every object of a run from its config; the same seed gives the same weights.

    spec: of the data of a trained run, which need not be there any more; without it they are asked, and what would
      otherwise be refused in the middle of a training is refused here.
    trained: the config that it was trained with, where it is now to generate otherwise: the objective is of that.
    """
    require_guidance(config)
    states = _states(config, spec, trained)
    trainer, evaluation = cast(Trainer, config.training.make()), cast(Evaluation, config.evaluation.make())
    # torch initialises weights from its global state: borrow it and give it back
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would reach every GPU's state too
        model = cast(nn.Module, config.model.make(spec=states["spec"], process=states["process"]))
    require_null(config, model)
    parts = Parts(
        config=config.settled(states["source"].settled()),
        device=device_of(config.device),
        model=model,
        trainer=trainer,
        evaluation=evaluation,
        rounds=_rounds(config, states, trainer) if spec is None else None,
        **states,
    )
    if config.start is not None and spec is None:
        begin_with(model, Path(config.start))
    if spec is None:
        if parts.rounds is not None:
            require_rounds(parts.rounds.settings, trainer, parts.source, parts.rounds.policy)
        require_training(trainer, parts.source, model)
        require_ramps(parts.objective, trainer.num_steps(parts.source))
        require_rollouts(parts.objective, trainer)
        evaluation.require(parts.subject(cast(Denoiser, model)))
    return parts


def _states(config: RunConfig, spec: DataSpec | None = None, trained: RunConfig | None = None) -> dict[str, Any]:
    """The parts by name that say where examples come from, how they are spoiled, and by what rule."""
    source = cast(Source, config.data.make(seed=config.seed))
    spec = spec or source.spec()
    of_tokens = {"mask_id": spec.mask_id, "num_words": spec.num_words} if isinstance(spec, Spec) else {}
    require_fit(config, spec)
    require_conditions(config, spec)
    process = cast(Process, config.process.make(schedule=config.schedule.make(), **of_tokens))
    grid, sampler = _generation(config, source)
    own_grid, own_sampler = (grid, sampler) if trained is None else _generation(trained, source)
    objective = config.objective.make(
        process=process, grid=own_grid, sampler=own_sampler, fixed_counts=own_sampler.fixed_counts, **of_tokens
    )
    if isinstance(spec, Spec):
        spec = replace(spec, mask_logit=objective.predicts_mask)
    return {
        "source": source,
        "spec": spec,
        "process": process,
        "grid": grid,
        "sampler": sampler,
        "objective": objective,
    }


def _generation(config: RunConfig, source: Source) -> tuple[Grid, Sampler]:
    return cast(Grid, config.grid.make()), cast(Sampler, config.sampler.make(end_id=source.end_id))


def _rounds(config: RunConfig, states: Mapping[str, Any], trainer: Trainer) -> Rounds | None:
    """Where rollouts with rewards come from; None where examples are trained on."""
    policy = states["objective"]
    if config.experience is None or not isinstance(policy, PolicyGradient):
        require_experience(config, policy, states["source"])
        return None
    settings = cast(GroupRollouts, config.experience.make())
    lockstep = trainer.parallel == "fsdp"
    return Rounds(settings, policy, states["source"], config.seed, lockstep)


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
