"""What no section of a config can know alone: whether the sections fit each other, the data and the machine.

Everything here would otherwise be refused, or go wrong, in the middle of a training or after it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
import torch.nn as nn

from onpath.components import parameters_of
from onpath.config import RunConfig
from onpath.data.source import ActionSource, Source, TextSource
from onpath.experience.settings import GroupRollouts
from onpath.kinds import kinds_beside
from onpath.models.from_diffusers import Diffusers
from onpath.objectives.base import Objective
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.ramps import Ramp
from onpath.rewards.base import require_judged
from onpath.sampling.counts import AdaptiveCount
from onpath.sampling.orders import BLIND
from onpath.sampling.solvers import ODESolver
from onpath.sampling.unmasking import Unmasking
from onpath.scheduled_sampling import ScheduledSampling
from onpath.training.reporter import require_tensorboard
from onpath.training.trainer import Trainer
from onpath.types import DataSpec, ImageSpec, Spec


def require_training(trainer: Trainer, source: Source, model: nn.Module) -> None:
    """ValueError where this training could not begin, could not end, or would never reach its learning rate."""
    if trainer.epochs and source.num_examples is None:
        raise ValueError(
            f"config: training.epochs is {trainer.epochs}, but {type(source).__name__} never ends; set training.steps "
            "instead (and training.epochs=0), or data that end, such as data.episodes=10000"
        )
    num_steps, cores = trainer.num_steps(source), os.cpu_count() or 1
    if (trainer.warmup_steps or 0) >= num_steps:
        raise ValueError(
            f"config: training.warmup_steps is {trainer.warmup_steps}, but the training has {num_steps} steps and "
            f"would never reach its learning rate; allowed are 0 to {num_steps - 1}; change training.warmup_steps or "
            "training.steps"
        )
    if trainer.threads > cores:
        raise ValueError(
            f"config: training.threads is {trainer.threads}, but this machine has {cores} cores; allowed are 0 (as "
            f"many as there are) to {cores}; change training.threads"
        )
    if trainer.tensorboard:
        require_tensorboard()
    if trainer.validation_examples:
        _ = source.at_split("validation").num_examples  # refused here where there is none
    try:
        trainer.optimizer.build(model)
    except ValueError as error:
        raise ValueError(f"config: training.optimizer: {error}") from error


def require_fit(config: RunConfig, spec: DataSpec) -> None:
    """ValueError where a section is for tokens and the data are images, or the other way round."""
    given = "images" if isinstance(spec, ImageSpec) else "tokens"
    wanted = {
        "process": Gaussian if given == "images" else Masking,
        "sampler": ODESolver if given == "images" else Unmasking,
    }
    for section, cls in wanted.items():
        part = getattr(config, section)
        if issubclass(part.cls, (Gaussian, Masking, ODESolver, Unmasking)) and not issubclass(part.cls, cls):
            fitting = [kind for kind, member in kinds_beside(part.cls).items() if issubclass(member, cls)]
            raise ValueError(_unfitting(config, section, given, fitting) + f", or leave {section} out")
    spoiled = _process_of(config.objective.cls)
    if spoiled in (Gaussian, Masking) and spoiled is not wanted["process"]:
        beside = kinds_beside(config.objective.cls).items()
        fitting = [kind for kind, member in beside if _process_of(member) is wanted["process"]]
        raise ValueError(_unfitting(config, "objective", given, fitting))
    network, _ = parameters_of(config.model.cls).get("spec", (None, None))
    if network in (Spec, ImageSpec) and not isinstance(spec, network):
        raise ValueError(
            f"config: model {config.model.kind} is a network of {'images' if network is ImageSpec else 'tokens'}, but "
            f"data {config.data.kind} are {given}; choose another model, see `onpath recipes`"
        )


def _process_of(objective: type) -> Any:
    """The process that the constructor of an objective asks for."""
    return parameters_of(objective).get("process", (None, None))[0]


def _unfitting(config: RunConfig, section: str, given: str, fitting: list[str]) -> str:
    return (
        f"config: {section} is {getattr(config, section).kind}, but data {config.data.kind} are {given}; allowed "
        f"{'is' if len(fitting) == 1 else 'are'} {', '.join(fitting)}: set {section}.kind={fitting[0]}"
    )


def require_conditions(config: RunConfig, spec: DataSpec) -> None:
    """ValueError where images have no condition that could be dropped, or guided by."""
    if not isinstance(spec, ImageSpec) or spec.cond:
        return
    for section, name in (("sampler", "guidance"), ("objective", "condition_dropout")):
        value = getattr(config, section).fields.get(name)
        if value:
            raise ValueError(
                f"config: {section}.{name} is {value}, but data {config.data.kind} have no conditions, such as labels; "
                f"set {section}.{name}=0, or give the data labels"
            )


def require_null(config: RunConfig, model: nn.Module) -> None:
    """ValueError where a condition is to be dropped, or guided by, and the network has nothing to put in its place."""
    if not isinstance(model, Diffusers) or not model.lacks_null:
        return
    for section, name in (("sampler", "guidance"), ("objective", "condition_dropout")):
        value = getattr(config, section).fields.get(name)
        if value:
            raise ValueError(
                f"config: {section}.{name} is {value}, but {model.lacks_null}; with this network it must be 0: set "
                f"{section}.{name}=0, or take one with an embedding for each class and one more for no class"
            )


def require_ramps(objective: Objective, num_steps: int) -> None:
    """ValueError where a ramp of the objective, or of its scheduled sampling, is longer than the training."""
    rule = getattr(objective, "scheduled_sampling", None)
    if isinstance(rule, ScheduledSampling) and rule.start_step >= num_steps:
        raise ValueError(
            f"config: objective.scheduled_sampling.start_step is {rule.start_step}, but the training has {num_steps} "
            f"steps, so nothing would be rolled out; allowed are 0 to {num_steps - 1}, or set training.steps above it"
        )
    for name, ramp in _ramps(objective, "objective"):
        if max(ramp.bends) > num_steps:
            raise ValueError(
                f"config: {name} ends its ramp at step {max(ramp.bends)}, but the training has {num_steps} "
                f"steps, so it would never get there; shorten the ramp, or set training.steps={max(ramp.bends)} or more"
            )


def _ramps(part: Any, path: str) -> Iterator[tuple[str, Ramp]]:
    """The ramps of an objective and of its parts, by the path of their setting."""
    if isinstance(part, Ramp):
        yield path, part
    elif isinstance(part, ScheduledSampling):
        yield path, part.ramp
    elif isinstance(part, Objective) and is_dataclass(part):
        for name in (f.name for f in fields(part)):
            yield from _ramps(getattr(part, name), f"{path}.{name}")


def require_rollouts(objective: Objective, trainer: Trainer) -> None:
    """ValueError where processes that hold shards would wait for each other's rollouts for ever, or where rollouts ask
    for a moving average that is the weights themselves."""
    rule = getattr(objective, "scheduled_sampling", None)
    if not isinstance(rule, ScheduledSampling):
        return
    if trainer.parallel == "fsdp":
        raise ValueError(
            "config: training.parallel is fsdp, but objective.scheduled_sampling is set; a process rolls out in as "
            "many forwards as its own rows need, and shards are gathered by all processes together; set "
            "training.parallel=ddp, or leave objective.scheduled_sampling out"
        )
    if rule.weights == "average" and trainer.ema == 0:
        raise ValueError(
            "config: objective.scheduled_sampling.weights is average, but training.ema is 0, which makes the moving "
            "average the current weights; set training.ema=0.999, or leave objective.scheduled_sampling.weights out"
        )
    if rule.mode == "inject" and trainer.ema == 0 and rule.coarse_steps == rule.fine_steps:
        raise ValueError(
            f"config: objective.scheduled_sampling.coarse_steps and fine_steps are both {rule.fine_steps}, but "
            "training.ema is 0, which makes both walks those of the current weights: their difference is always 0; set "
            "training.ema=0.999, or coarse_steps below fine_steps"
        )


def require_experience(config: RunConfig, objective: Objective, source: Source) -> None:
    """ValueError where rollouts are made and not trained on, or the other way round, or there is nothing to learn."""
    if config.experience is not None and not isinstance(objective, PolicyGradient):
        raise ValueError(
            f"config: there is a section experience, but objective {config.objective.kind} is trained on examples; set "
            "objective.kind=policy_gradient, or leave experience out"
        )
    if config.experience is None and isinstance(objective, PolicyGradient):
        raise ValueError(
            "config: objective policy_gradient is trained on rollouts with rewards, and there is no section "
            "experience; give it one, like experience.rewards=[sudoku_solved]"
        )
    if not source.has_answers:
        raise ValueError(
            f"config: data {config.data.kind} are prompts without answers, which objective {config.objective.kind} "
            "cannot learn from; set objective.kind=policy_gradient with a section experience, or take data with answers"
        )


def require_rounds(settings: GroupRollouts, trainer: Trainer, source: Source, policy: PolicyGradient) -> None:
    """ValueError where rounds of rollouts cannot be cut into the batches of the training, or judged."""
    walker = policy.walker  # refused here where its rollouts could not be read again
    if trainer.epochs:
        raise ValueError(
            f"config: training.epochs is {trainer.epochs}, but a policy is trained on rollouts, which never end; set "
            "training.steps instead (and training.epochs=0)"
        )
    if trainer.batch_size % settings.num_generations:
        raise ValueError(
            f"config: training.batch_size is {trainer.batch_size} rollouts, and experience.num_generations is "
            f"{settings.num_generations}; a batch holds whole groups, so batch_size must be a multiple of it"
        )
    if settings.reuses and not policy.estimator.has_ratio:
        name = "num_iterations" if settings.num_iterations > 1 else "steps_per_round"
        raise ValueError(
            f"config: experience.{name} is {getattr(settings, name)}, but objective.estimator "
            f"{type(policy.estimator).__name__} has no ratio to the weights that made the rollouts, so it can train on "
            f"them once alone; allowed is 1; set experience.{name}=1, or take the estimator diffu or traj"
        )
    if settings.shared_orders and (walker.order not in BLIND or isinstance(walker.count, AdaptiveCount)):
        raise ValueError(
            f"config: experience.shared_orders is true, but sampler.order {walker.order} with count "
            f"{type(walker.count).__name__} looks at the network, so each rollout has an order of its own; set "
            "sampler.order=random and sampler.count=schedule, or leave shared_orders out"
        )
    if settings.mask_truncated_completions and source.end_id is None:
        raise ValueError(
            f"config: experience.mask_truncated_completions is true, but data {type(source).__name__} have no end "
            "token, so no completion is cut short; allowed is false; leave it out"
        )
    if not isinstance(source, TextSource | ActionSource):
        raise ValueError(
            f"config: data are {type(source).__name__}, and rewards judge text and actions; choose other data"
        )
    require_judged(settings.rewards, source.columns(torch.arange(1)), "experience.rewards")


def require_guidance(config: RunConfig) -> None:
    """ValueError where the sampler asks for guidance that the objective never trains."""
    guidance, dropout = config.sampler.fields.get("guidance"), config.objective.fields.get("condition_dropout")
    if guidance and dropout == 0:
        raise ValueError(
            f"config: sampler.guidance is {guidance}, but objective.condition_dropout is 0, so the network never "
            "learns what to do without its condition; set objective.condition_dropout=0.1, or sampler.guidance=0"
        )
