"""Sanity checks before a long training: what each measured, what it needs, and what to do where it fails."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.data.source import Source
from onpath.evaluation.schedule_table import schedule_table
from onpath.objectives.base import Objective, score_masked
from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.processes.masking import Masking
from onpath.schedules import Schedule
from onpath.training.optimizers import OptimizerConfig
from onpath.types import Batch, Denoiser, Nets, Spec

MAX_LOSS, MIN_ACCURACY, MIN_DIFFERENCE = 0.1, 0.95, 0.1
_MOST_TOKENS = 1 << 8  # of text that is to be known by heart within a minute, with nothing to know it by
_MOST_LOGITS = 1 << 27  # of a whole batch, which these checks look at; 512 MiB in fp32
_KEY = rng.Key(purpose="check")


@dataclass(frozen=True)
class Check:
    """One finding. measured: figures by name. required: in words. advice: what to do where it failed."""

    name: str
    passed: bool
    measured: dict[str, float]
    required: str
    advice: str


def check_all(
    fresh: nn.Module,
    objective: Objective,
    source: Source,
    optimizer: OptimizerConfig,
    *,
    trained: nn.Module | None = None,
    schedules: Sequence[Schedule] = (),
    batch_size: int = 64,
) -> tuple[Check, ...]:
    """Every check, in well under a minute for a network of some million parameters on one core.

    fresh: a network as training would start with, its input statistics taken; it is trained here, so hand in one
      that is not needed afterwards. trained: the network of a run; without it the one that has learnt one batch
      answers the questions on outputs. schedules: those saved elsewhere (in a checkpoint), which must be the one in
      use; without any that is not asked.
    Raises ValueError for an objective that does not mask tokens.
    """
    if not isinstance(objective.process, Masking):
        raise ValueError(
            f"check: {type(objective).__name__} does not mask tokens; these checks are for masked diffusion"
        )
    if not source.has_answers:
        raise ValueError(
            f"check: {type(source).__name__} are prompts without answers, which nothing can be learnt from; check the "
            "run that policy optimisation begins with"
        )
    process = objective.process
    if isinstance(objective, PolicyGradient):
        objective = MaskedCrossEntropy(process)  # whether the network can learn is asked of the answers
    device = next(fresh.parameters()).device
    spec = source.spec()
    assert isinstance(spec, Spec)
    most = _MOST_LOGITS // spec.num_words if spec.cond else _MOST_TOKENS
    size = max(2, min(batch_size, most // spec.length))
    batch = source.examples(torch.arange(size), device)
    before = {name: p.detach().clone() for name, p in fresh.named_parameters()}
    checks = [overfits(fresh, objective, batch, optimizer)]
    if all(p.requires_grad for p in fresh.parameters()):  # else [MASK] may be known already, and frozen
        checks.append(mask_is_learnt(fresh, before, process, batch))
    judged = fresh if trained is None else trained
    checks.append((positions_differ if batch.cond else order_matters)(judged, process, batch))
    if batch.cond:
        checks += [states_differ(judged, process, batch), condition_matters(judged, process, batch)]
    checks += [ratio_is_one(judged, process, batch), corruption_follows(process, batch)]
    if schedules:
        checks.append(schedules_agree(process.schedule, schedules))
    return tuple(checks)


def overfits(
    model: nn.Module, objective: Objective, batch: Batch, optimizer: OptimizerConfig, max_steps: int = 1000
) -> Check:
    """Trains `model` on one batch, other masks at every step, until it knows it: cross-entropy and accuracy at
    masked tokens, under masks of their own that never change."""
    assert isinstance(objective.process, Masking)
    optimizers = optimizer.build(model)
    loss, accuracy, num_steps = math.inf, 0.0, 0
    while num_steps < max_steps and not (loss < MAX_LOSS and accuracy > MIN_ACCURACY):
        train_step(model, optimizers, objective, batch, num_steps)
        num_steps += 1
        if num_steps % 20 == 0 or num_steps == max_steps:
            loss, accuracy = _recall(model, objective.process, batch)
    return Check(
        "overfits one batch",
        loss < MAX_LOSS and accuracy > MIN_ACCURACY,
        {"loss": loss, "accuracy": accuracy, "steps": num_steps},
        f"loss < {MAX_LOSS} and accuracy > {MIN_ACCURACY} within {max_steps} steps",
        "The network cannot learn even one batch: look for a learning rate that is too low or too high, conditions "
        "that do not reach the network, or examples whose conditions are equal and whose tokens differ.",
    )


def mask_is_learnt(model: nn.Module, before: dict[str, Tensor], process: Masking, batch: Batch) -> Check:
    """Whether the parameters that only [MASK] reaches get gradient, and have moved since `before`."""
    own = _mask_parameters(model, process, batch)
    gradient = _gradients(model, process, batch, _all_masked(process, batch))
    norm, moved = 0.0, 0.0
    for name, p in model.named_parameters():
        norm += float(gradient[name][own[name]].square().sum())
        moved += float((p.detach() - before[name])[own[name]].square().sum())
    return Check(
        "[MASK] is learnt",
        norm > 0 and moved > 0,
        {
            "parameters": sum(int(mask.sum()) for mask in own.values()),
            "gradient_norm": math.sqrt(norm),
            "moved": math.sqrt(moved),
        },
        "parameters that only [MASK] reaches have gradient and move",
        "No weight that belongs to [MASK] alone is trained: give it its own learned embedding (one more row than there "
        "are words) and put its id, not noise and not a word, at masked positions.",
    )


def positions_differ(model: nn.Module, process: Masking, batch: Batch) -> Check:
    """Variance of the logits over positions of a fully masked input."""
    variance = float(_logits(model, process, batch, _all_masked(process, batch)).var(dim=1).mean())
    return Check(
        "positions differ",
        variance > 0.01,
        {"variance": variance},
        "variance of the logits over the positions of a masked input > 0.01",
        "Every position gets the same prediction: the network does not know positions; add position embeddings.",
    )


def order_matters(model: nn.Module, process: Masking, batch: Batch) -> Check:
    """Mean absolute difference of the logits at every other position, masked, when the words between them are turned
    around; a network of relative positions says the same everywhere of a fully masked text, and is right to."""
    place = torch.arange(batch.x.shape[1], device=batch.x.device)
    hidden, shown = place[place % 2 == 0], place[place % 2 == 1]
    x = batch.x.index_fill(1, hidden, process.mask_id)
    turned = x.index_copy(1, shown, x[:, shown].flip(1))
    logits = [_logits(model, process, batch, state)[:, hidden] for state in (x, turned)]
    difference = float((logits[0] - logits[1]).abs().mean())
    return Check(
        "the order of words matters",
        difference > MIN_DIFFERENCE,
        {"difference": difference},
        f"mean absolute difference of the logits > {MIN_DIFFERENCE} when words are turned around",
        "The prediction hardly depends on where words stand: the network does not know positions; add position "
        "embeddings or rotary positions.",
    )


def states_differ(model: nn.Module, process: Masking, batch: Batch) -> Check:
    """Mean absolute difference of the logits of a fully masked input between two conditions."""
    logits = _logits(model, process, batch, _all_masked(process, batch))
    difference = float((logits - logits.roll(1, 0)).abs().mean())
    return Check(
        "outputs for two states differ",
        difference > MIN_DIFFERENCE,
        {"difference": difference},
        f"mean absolute difference of the logits > {MIN_DIFFERENCE}",
        "The prediction hardly depends on the state: feed the whole state to the network (not one pooled vector), and "
        "standardise its inputs.",
    )


def condition_matters(model: nn.Module, process: Masking, batch: Batch) -> Check:
    """How much worse the tokens are predicted under the condition of another example, all of them masked."""
    own = _masked_nats(model, process, batch)
    rolled = replace(batch, cond={name: value.roll(1, 0) for name, value in batch.cond.items()})
    gain = _masked_nats(model, process, rolled) - own
    return Check(
        "the condition matters",
        gain > MIN_DIFFERENCE,
        {"gain": gain, "loss": own},
        f"another example's condition costs > {MIN_DIFFERENCE} nats a token",
        "The network answers alike whatever the condition is, or rightly by chance only: check that examples and "
        "conditions belong together, and that condition_dropout is not near 1.",
    )


def ratio_is_one(model: nn.Module, process: Masking, batch: Batch) -> Check:
    """Largest |ratio - 1| of the examples' likelihoods from two evaluations at equal weights and equal draws."""
    was_training = model.training
    model.train()
    logs = []
    for _ in range(2):
        noisy = process.corrupt(batch, torch.full((batch.size,), 0.5), _KEY.fold("ratio"))
        with torch.no_grad():
            scores = score_masked(process, _denoiser(model), batch, noisy)
        # summed on the CPU: on a GPU the order of index_add, and with it the last bit, is not the same twice
        logs.append(torch.zeros(batch.size).index_add(0, scores.example.cpu(), -scores.nats.float().cpu()))
    model.train(was_training)
    error = float(((logs[0] - logs[1]).exp() - 1).abs().max())
    return Check(
        "ratio 1 at equal weights",
        error == 0.0,
        {"error": error},
        "likelihood ratio exactly 1",
        "Two evaluations of the same weights differ, so a policy ratio would not start at 1: turn dropout off, or look "
        "for a network that draws at random.",
    )


def corruption_follows(process: Masking, batch: Batch) -> Check:
    """Largest deviation, in standard errors, of the share of masked positions from the schedule's, over nine times."""
    worst, num_free = 0.0, int(batch.free_counts().sum())
    for row in schedule_table(process.schedule):
        t = torch.full((batch.size,), row.t)
        share = float(process.corrupt(batch, t, _KEY.fold(f"share {row.t}")).masked.sum()) / num_free
        error = math.sqrt(row.mask_share * (1 - row.mask_share) / num_free)
        worst = max(worst, abs(share - row.mask_share) / max(error, 1e-6))
    return Check(
        "corruption follows the schedule",
        worst < 5.0,
        {"standard_errors": worst},
        "share of masked positions within 5 standard errors of 1 - alpha(t)",
        "The process masks another share than its schedule says: its corrupt does not read its schedule.",
    )


def schedules_agree(used: Schedule, others: Sequence[Schedule]) -> Check:
    """Whether every other schedule (that of a checkpoint) is the one used, as object and curve."""
    t = torch.linspace(0, 1, 129, dtype=torch.float64)
    gaps = [float((used.alpha(t) - other.alpha(t)).abs().max()) for other in others]
    return Check(
        "schedule used = schedule saved",
        all(other == used for other in others),
        {"difference": max(gaps), "compared": len(gaps)},
        "the same schedule everywhere",
        "The run was saved with another schedule than the one in use: do not override `schedule` of a trained run.",
    )


def _denoiser(model: nn.Module) -> Denoiser:
    return cast(Denoiser, model)


def train_step(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], objective: Objective, batch: Batch, step: int
) -> None:
    """One step on the same batch, under draws of its own."""
    model.train()
    loss = objective(Nets(_denoiser(model)), batch, _KEY.fold("overfit").at(step), step).mean
    for one in optimizers:
        one.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for one in optimizers:
        one.step()


def _recall(model: nn.Module, process: Masking, batch: Batch) -> tuple[float, float]:
    """Mean cross-entropy and accuracy at masked tokens, over mask ratios from 0 to 1."""
    model.eval()
    with torch.no_grad():
        measure = MaskedCrossEntropy(process)
        metrics = measure(Nets(_denoiser(model)), batch, _KEY.fold("recall"), 0).metrics
    loss, accuracy = (
        float(metrics[name][0]) / float(metrics[name][1]) for name in ("masked_cross_entropy", "accuracy")
    )
    return loss, accuracy


def _all_masked(process: Masking, batch: Batch) -> Tensor:
    return process.prior(batch).x


def _logits(model: nn.Module, process: Masking, batch: Batch, x: Tensor) -> Float[Tensor, "B L V"]:
    model.eval()
    with torch.no_grad():
        return _forward(model, process, batch, x).float()


def _forward(model: nn.Module, process: Masking, batch: Batch, x: Tensor) -> Float[Tensor, "B L V"]:
    """Logits at every position, without the column of [MASK], which is never emitted."""
    t = process.masked_fraction(batch, ((x == process.mask_id) & batch.free()).sum(-1))
    denoiser = _denoiser(model)
    logits = denoiser(x, t, denoiser.encode(**batch.conditions()))
    keep = [word for word in range(logits.shape[-1]) if word != process.mask_id]
    return logits if len(keep) == logits.shape[-1] else logits[..., keep]


def _words(model: nn.Module, process: Masking, batch: Batch) -> Tensor:
    """The ids of all words, without [MASK]."""
    width = _logits(model, process, batch.rows(slice(0, 1)), batch.x[:1]).shape[-1]
    ids = torch.arange(width + 1, device=batch.x.device)
    return ids[ids != process.mask_id][:width]


def _gradients(model: nn.Module, process: Masking, batch: Batch, x: Tensor) -> dict[str, Tensor]:
    model.eval()
    model.zero_grad(set_to_none=True)
    logits = _forward(model, process, batch, x).flatten(0, 1).float()
    target = batch.x.flatten()
    target = target - (target > process.mask_id).long()  # the column of [MASK] is gone
    F.cross_entropy(logits, target).backward()
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for name, p in model.named_parameters()
    }
    model.zero_grad(set_to_none=True)
    return found


def _mask_parameters(model: nn.Module, process: Masking, batch: Batch) -> dict[str, Tensor]:
    """Where each parameter is reached by [MASK] only: a row of an embedding, columns of a matrix over one-hots.

    The gradient there is exactly 0 on inputs without [MASK] and is not on a fully masked one. It is taken at several
    random weights, because a network at its start, or a unit that is silent by chance, has zeros of its own.
    """
    words = _words(model, process, batch)
    places = torch.arange(batch.size)[:, None] + torch.arange(batch.x.shape[1])
    plain, masked = words[(places % len(words)).to(words.device)], _all_masked(process, batch)
    own = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    model = copy.deepcopy(model)
    for trial in range(3):
        with torch.no_grad():
            for name, p in model.named_parameters():
                draws = rng.uniform(_KEY.fold(name).at(trial), torch.zeros(1, dtype=torch.int64), (p.numel(),))
                p.copy_((draws.view(p.shape) - 0.5) * 0.2)
        without, wholly = (_gradients(model, process, batch, x) for x in (plain, masked))
        own = {name: mask & (without[name] == 0) & (wholly[name] != 0) for name, mask in own.items()}
    return own


def _masked_nats(model: nn.Module, process: Masking, batch: Batch) -> float:
    """Nats a token with every free position masked."""
    model.eval()
    with torch.no_grad():
        scores = score_masked(process, _denoiser(model), batch, process.prior(batch))
    return float(scores.nats.float().mean())
