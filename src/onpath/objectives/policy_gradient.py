"""Policy optimisation: the clipped surrogate of GRPO over what an estimator reads of each rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.objectives.base import Objective
from onpath.objectives.estimators import Estimator, Views
from onpath.objectives.mask_estimators import OneStep
from onpath.processes.masking import Masking, flat_rows
from onpath.sampling.grids import EvenGrid, Grid
from onpath.sampling.loop import Sampler
from onpath.sampling.unmasking import Unmasking
from onpath.types import Batch, Denoiser, Experience, Loss, Nets

_MOST = 20.0  # of a log-ratio: its exponential, and that times an advantage, stay finite


@dataclass(frozen=True)
class Scores:
    """What a network says at the scored places of views, (C, N, L), 0 elsewhere.

    log_prob: of the targets at the sampler's temperature, with gradient. kl: to the reference, summed over words,
    with gradient, None where it was not asked for. entropy: in nats, without gradient.
    """

    log_prob: Float[Tensor, "C N L"]
    entropy: Float[Tensor, "C N L"]
    kl: Float[Tensor, "C N L"] | None = None


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """-mean of Σ weight·min(r·A, clip(r, 1 - epsilon, 1 + epsilon_high)·A), and beta times a KL to the reference.

    estimator: which states and tokens of a rollout are read, and what has a ratio r of its own.
    epsilon, epsilon_high: how far a ratio may move before it is clipped; epsilon_high None is epsilon. A log-ratio
    is held within 20 first.
    beta: weight of the KL to the network that the training began with, 0 is off. kl: `path` is the KL of the two
    distributions over words at each place that is read, with the weights of the estimator: for a trajectory its mean is
    the KL of the two samplers' paths; k1, k2 and k3 are estimates by the drawn token alone. As losses on rollouts of
    the current weights, k1 has an expected gradient of 0, k2 that of the reverse and k3 that of the forward KL.
    The same process, grid, sampler and temperature as in the rollouts: the run's own. Logged as `ess` is the effective
    share of the rollouts of a micro-batch, (Σw)²/(N·Σw²), w the ratio of a whole rollout.
    Sources: GRPO, arXiv:2402.03300, Eq. 3; the estimates k1 to k3: Schulman 2020, "Approximating KL divergence".
    """

    process: Masking
    estimator: Estimator = OneStep()
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    kl: Literal["path", "k1", "k2", "k3"] = "path"
    sampler: Sampler = Unmasking()
    grid: Grid = EvenGrid(10)

    def __post_init__(self) -> None:
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        if not (0 < self.epsilon < 1 and high > 0):
            raise ValueError(
                f"policy gradient: epsilon is {self.epsilon} and epsilon_high {self.epsilon_high}; needed are "
                "0 < epsilon < 1 and epsilon_high > 0"
            )
        if self.beta < 0:
            raise ValueError(f"policy gradient: beta is {self.beta}; it must be 0 (no KL) or more")
        if self.kl != "path" and self.beta == 0:
            raise ValueError(
                f"policy gradient: kl is {self.kl}, but beta is 0, so no KL is taken; set beta, or leave it"
            )
        if not self.estimator.has_ratio and (self.epsilon, self.epsilon_high) != (0.2, None):
            raise ValueError(
                f"policy gradient: epsilon is {self.epsilon} and epsilon_high {self.epsilon_high}, but the estimator "
                f"{type(self.estimator).__name__} has no ratio that could be clipped; leave them out"
            )

    @property
    def walker(self) -> Unmasking:
        """The sampler; ValueError where rollouts by it have no policy gradient, or not by this estimator."""
        sampler = self.sampler
        if not isinstance(sampler, Unmasking):
            raise ValueError(
                f"policy gradient: the sampler is {type(sampler).__name__}; rollouts of tokens are by Unmasking; leave "
                "sampler out"
            )
        reason = _refusal(sampler) or self.estimator.refusal(sampler)
        if reason is not None:
            raise ValueError(f"policy gradient: {reason}")
        return sampler

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0

    def __call__(self, nets: Nets, batch: Batch | Experience, key: rng.Key, step: int) -> Loss:
        if not isinstance(batch, Experience):
            raise ValueError(
                "policy gradient: the batch has no rewards; it is trained on rollouts: give the config a section "
                "`experience` with rewards"
            )
        experience = batch
        views = self.views(experience, key)
        scores = self.scores(nets.model, experience, views, None if not self.beta else nets.reference)
        log_prob, device = scores.log_prob, scores.log_prob.device
        old = log_prob.detach()
        if experience.old is not None:
            old = experience.old[:, experience.iteration].transpose(0, 1).to(device)[: len(log_prob)]
        value = self.estimator.surrogate(log_prob, views, experience)
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        if value is None:
            value, metrics = self._clipped(log_prob, old, views, experience)
        loss, count = -value.sum(), float(len(experience.tokens))
        weight = views.by_copy(views.weight).to(device)
        if scores.kl is not None:
            kl = ((weight * scores.kl).sum((0, 2)) * views.scale.to(device)).sum()
            loss = loss + self.beta * kl
            metrics["kl"] = (kl.detach(), count)
        scored = float(views.scored.sum())
        metrics["entropy"] = (scores.entropy.sum(), scored)
        metrics["loss_forwards"] = (float(len(views.x)), count)
        return Loss(loss, count, metrics)

    def views(self, experience: Experience, key: rng.Key) -> Views:
        """What this pass reads; the draws are of the round and the pass, whatever optimizer step it comes in."""
        end_id = self.walker.end_id
        own = rng.Key(key.seed, "policy").at(experience.round).fold(f"pass {experience.iteration}")
        return self.estimator.views(self.process, experience, end_id, own)

    def old_scores(self, denoiser: Denoiser, experience: Experience, key: rng.Key) -> Float[Tensor, "N C L"]:
        """Log-probabilities of a pass under the weights of the rollouts, on the CPU, for ``Experience.old``."""
        views = self.views(experience, key)
        with torch.no_grad():
            return self.scores(denoiser, experience, views).log_prob.transpose(0, 1).cpu()

    def scores(
        self, denoiser: Denoiser, experience: Experience, views: Views, reference: Denoiser | None = None
    ) -> Scores:
        """One forward of all views, the head running at the scored places alone; with a reference one of it before."""
        process, batch, device = self.process, experience.batch, experience.batch.x.device
        rows = flat_rows(views.scored, int(views.scored.sum())).to(device, non_blocking=True)
        targets = views.targets.flatten().to(device, non_blocking=True)
        x = views.x.to(device, non_blocking=True)
        share = process.masked_fraction(batch, views.masked.sum(1)).to(device, non_blocking=True)
        heat = self.walker.tokens.temperature

        def log_softmax(logits: Tensor) -> Tensor:
            return (process.words_only(logits.float()) / heat).log_softmax(-1)

        whole = None
        if reference is not None:
            with torch.no_grad():
                memo = reference.encode(**batch.conditions())
                read = _all_words if self.kl == "path" else _of(targets)
                whole = reference(x, share, memo, rows=rows, readout=lambda logits, at: read(log_softmax(logits), at))

        def readout(logits: Tensor, chunk: Tensor) -> tuple[Tensor, Tensor]:
            words = log_softmax(logits)
            found = words.gather(1, targets[chunk][:, None])
            with torch.no_grad():
                entropy = -(words.exp() * words).sum(-1)
            if whole is not None:
                place = torch.searchsorted(rows, chunk)
                found = torch.cat([found, self._kl(words, found, whole[place])], dim=1)
            return found, entropy

        memo = denoiser.encode(**batch.conditions())
        found, entropy = denoiser(x, share, memo, rows=rows, readout=readout)
        columns = [_placed(column, rows, views) for column in (*found.unbind(1), entropy)]
        return Scores(columns[0], columns[-1], columns[1] if whole is not None else None)

    def _kl(self, words: Tensor, found: Tensor, whole: Tensor) -> Tensor:
        """(N, 1) of the KL to the reference; `whole` holds its log-probabilities, of all words or of the targets."""
        if self.kl == "path":
            return (words.exp() * (words - whole).clamp(-_MOST, _MOST)).sum(-1, keepdim=True)
        gap = (whole[:, None] - found).clamp(-_MOST, _MOST)
        if self.kl == "k1":
            return -gap
        return 0.5 * gap.square() if self.kl == "k2" else gap.exp() - 1.0 - gap

    def _clipped(
        self, log_prob: Tensor, old: Tensor, views: Views, experience: Experience
    ) -> tuple[Float[Tensor, "N"], dict[str, Any]]:
        """The clipped surrogate of each rollout, and how often and how far ratios have moved."""
        device = log_prob.device
        weight, scale = views.by_copy(views.weight).to(device), views.scale.to(device)
        gap = log_prob - old
        if self.estimator.unit == "score":
            places, outer = gap, weight * scale[:, None]
        elif self.estimator.unit == "position":
            places = (weight * gap).sum(0, keepdim=True)
            outer = (weight > 0).any(0, keepdim=True) * scale[:, None]
        else:
            places = ((weight * gap).sum((0, 2)) * scale)[None, :, None]
            outer = torch.ones_like(places)
        advantage = experience.advantage.to(device)[:, None]
        ratio = places.clamp(-_MOST, _MOST).exp()
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        held = ratio.clamp(1.0 - self.epsilon, 1.0 + high)
        value = (outer * torch.minimum(ratio * advantage, held * advantage)).sum((0, 2))
        counted = outer > 0
        number = counted.sum()
        low = counted & (ratio < 1.0 - self.epsilon) & (advantage < 0)
        above = counted & (ratio > 1.0 + high) & (advantage > 0)
        ratios = (ratio.detach() * counted).sum()
        moved = (weight * gap.detach()).sum((0, 2)).clamp(-_MOST, _MOST).exp()  # of whole rollouts
        return value, {
            "ess": (moved.sum().square() / moved.square().sum(), float(len(moved))),
            "clip_ratio/low_mean": (low.sum(), number),
            "clip_ratio/high_mean": (above.sum(), number),
            "sampling/importance_sampling_ratio/mean": (ratios, number),
        }


def _refusal(sampler: Unmasking) -> str | None:
    """Why rollouts of this sampler have no log-probabilities that a loss could read again; None where they have."""
    refused: Mapping[str, tuple[bool, str]] = {
        "remask": (sampler.remask is not None, "masks revealed tokens again, so a token is drawn more than once"),
        "guidance": (sampler.guidance != 0.0, "draws from a mixture of two branches, and one of them is trained"),
        "stop_at_end": (sampler.stop_at_end, "writes over tokens that others were drawn in the sight of"),
        "blocks": (
            sampler.blocks is not None and sampler.blocks.stop_at_end,
            "stops at an end token, which writes over tokens",
        ),
    }
    for name, (given, does) in refused.items():
        if given:
            other = ", or set sampler.blocks.stop_at_end=false" if name == "blocks" else ""
            return f"sampler.{name} is {getattr(sampler, name)}, which {does}; leave sampler.{name} out{other}"
    if sampler.tokens.temperature == 0:
        return (
            "sampler.tokens.temperature is 0, so all rollouts of a prompt are the same, and no one is better than "
            "another; set it above 0, 1.0 is usual"
        )
    if sampler.tokens.restricted:
        return (
            f"sampler.tokens has top_k {sampler.tokens.top_k} and top_p {sampler.tokens.top_p}, so which words can be "
            "drawn changes with the weights, and a ratio may be 0 over 0; leave them out"
        )
    return None


def _placed(values: Float[Tensor, "R"], rows: Tensor, views: Views) -> Float[Tensor, "C N L"]:
    """Values at flat rows, 0 elsewhere."""
    whole = values.new_zeros(views.scored.numel()).index_put((rows,), values)
    return whole.view(views.num_copies, -1, views.scored.shape[1])


def _all_words(words: Tensor, chunk: Tensor) -> Tensor:
    return words


def _of(targets: Tensor) -> Any:
    def read(words: Tensor, chunk: Tensor) -> Tensor:
        return words.gather(1, targets[chunk][:, None])[:, 0]

    return read
