"""Policy optimisation: the clipped surrogate of GRPO over what an estimator reads of each rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.objectives.base import Objective
from onpath.objectives.drawn_words import drawn, log_softmax, scored
from onpath.objectives.estimators import Estimator, Views
from onpath.objectives.mask_estimators import OneStep
from onpath.processes.masking import Masking, flat_rows
from onpath.sampling.distinct import Folded
from onpath.sampling.grids import EvenGrid, Grid
from onpath.sampling.loop import Sampler
from onpath.sampling.unmasking import Unmasking
from onpath.types import Batch, Denoiser, Experience, Loss, Nets, Readout

Cost = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""The cost of scored tokens by their log-probabilities, their KL or None, and their flat places, (R, K) each."""

_MOST = 20.0  # of a log-ratio: its exponential, and that times an advantage, stay finite


@dataclass(frozen=True)
class Readings:
    """What a network says at the scored places of views, (C, N, L), 0 elsewhere.

    log_prob: of the targets at the sampler's temperature, with gradient. kl: to the reference, summed over words,
    with gradient, None where it was not asked for. entropy: in nats, without gradient. cost: the sum of what each
    token costs, with gradient, where that was asked for; then nothing else has one. num_forwards: states that went
    through the network, equal ones once.
    """

    log_prob: Float[Tensor, "C N L"]
    entropy: Float[Tensor, "C N L"]
    num_forwards: int
    kl: Float[Tensor, "C N L"] | None = None
    cost: Float[Tensor, ""] | None = None


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
        if self.beta and self.estimator.weighs_by_advantage:
            raise ValueError(
                f"policy gradient: beta is {self.beta}, and the estimator leaves out rollouts without an advantage, so "
                "their KL would be missing; set estimator.thinning=0, or beta=0"
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
        cost = self._cost(views, experience)
        scores = self.scores(nets.model, experience, views, nets.reference if self.beta else None, cost)
        log_prob, device = scores.log_prob, scores.log_prob.device
        old = log_prob.detach()
        if experience.old is not None:
            old = experience.old[:, experience.iteration].transpose(0, 1).to(device)[: len(log_prob)]
        value = self.estimator.surrogate(log_prob, views, experience)
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        if value is None:
            value, metrics = self._clipped(log_prob, old, views, experience)
        loss, count = -value.sum(), float(len(experience.tokens))
        if scores.kl is not None:
            weight = views.by_copy(views.weight).to(device)
            kl = ((weight * scores.kl).sum((0, 2)) * views.scale.to(device)).sum()
            loss = loss + self.beta * kl
            metrics["kl"] = (kl.detach(), count)
        if scores.cost is not None:  # the same number, with the gradient that was formed while the tokens were read
            loss = loss + (scores.cost - scores.cost.detach())
        number = float(views.scored.sum())
        metrics["entropy"] = (scores.entropy.sum(), number)
        metrics["loss_forwards"] = (float(scores.num_forwards), count)
        return Loss(loss, count, metrics)

    def _cost(self, views: Views, experience: Experience) -> Cost | None:
        """What each scored token adds to the loss, where that does not depend on the others; None where it does.

        Under the weights of the rollouts every ratio is 1, so that its gradient is known before anything is read.
        """
        old = experience.old
        if not self.estimator.has_ratio or (self.estimator.unit != "score" and old is not None):
            return None
        device, copies = experience.batch.x.device, views.num_copies
        weight = _beside_none((views.by_copy(views.weight) * views.scale[:, None]).to(device))
        advantage = _beside_none(experience.advantage[:, None].expand(copies, -1, views.x.shape[1]).to(device))
        if old is not None:
            old = _beside_none(old[:, experience.iteration].transpose(0, 1)[:copies].to(device))

        def cost(log_prob: Tensor, kl: Tensor | None, at: Tensor) -> Tensor:
            gap = log_prob - (log_prob.detach() if old is None else old[at])
            gain = gap * advantage[at] if old is None else self._surrogate(_ratio(gap), advantage[at])
            return weight[at] * (-gain if kl is None else self.beta * kl - gain)

        return cost

    def views(self, experience: Experience, key: rng.Key) -> Views:
        """What this pass reads; the draws are of the round and the pass, whatever optimizer step it comes in."""
        end_id = self.walker.end_id
        own = rng.Key(key.seed, "policy").at(experience.round).fold(f"pass {experience.iteration}")
        return self.estimator.views(self.process, experience, end_id, own)

    def old_scores(self, denoiser: Denoiser, experience: Experience, key: rng.Key) -> Float[Tensor, "N C L"]:
        """Log-probabilities of a pass under the weights of the rollouts, on the CPU, for ``Experience.old``."""
        views = self.views(experience, key)
        folded, places, targets = self._asked(experience, views)
        with torch.no_grad():
            found = self._read(denoiser, experience, views, folded, self._drawn(targets))
        return _placed(found, places, views).transpose(0, 1).cpu()

    def scores(
        self,
        denoiser: Denoiser,
        experience: Experience,
        views: Views,
        reference: Denoiser | None = None,
        cost: Cost | None = None,
    ) -> Readings:
        """One forward of the states of all views, equal ones once, the head running at the scored places alone; with a
        reference one of it before. Tokens that are asked at the same place of the same state share a softmax."""
        all_words = self.kl == "path"
        folded, places, targets = self._asked(experience, views)

        whole = None
        if reference is not None:
            read = self._words if all_words else self._drawn(targets)
            with torch.no_grad():
                whole = self._read(reference, experience, views, folded, read)

        def readout(logits: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            logits = self._tempered(logits)
            found, entropy = scored(logits, targets[at])
            kl = None
            if whole is not None:
                theirs = whole[at]
                kl = _path_kl(log_softmax(logits), theirs) if all_words else self._kl(found, theirs)
            if cost is not None:
                first = cost(found, kl, places[at])
                return (first, entropy, found.detach(), *(() if kl is None else (kl.detach(),)))
            return found if kl is None else torch.stack([found, kl.expand_as(found)], dim=-1), entropy

        first, entropy, *rest = self._read(denoiser, experience, views, folded, readout)
        columns = rest if cost is not None else [first] if whole is None else first.unbind(-1)
        entropy, log_prob, *kl = (_placed(column, places, views) for column in (entropy[:, None], *columns))
        total = None if cost is None else first.sum()
        num_forwards = len(views.x if folded.states is None else folded.states)
        return Readings(log_prob, entropy, num_forwards, kl[0] if kl else None, total)

    def _asked(self, experience: Experience, views: Views) -> tuple[Folded, Int64[Tensor, "R K"], Int64[Tensor, "R K"]]:
        """The scored places by the rows that answer for them; the same and their targets on the device."""
        device = experience.batch.x.device
        folded = Folded.of(views.x, experience.group, flat_rows(views.scored, int(views.scored.sum())))
        places = folded.places
        # where a row answers for fewer its first target stands again: any other word may have no probability
        filled = torch.where(places < views.x.numel(), places, places[:, :1])
        targets = views.targets.flatten()[filled].to(device, non_blocking=True)
        return folded, places.to(device, non_blocking=True), targets

    def _read(self, denoiser: Denoiser, experience: Experience, views: Views, folded: Folded, readout: Readout) -> Any:
        """What `readout` says of the rows that answer for the scored places, and of their numbers."""
        batch = experience.batch
        share = self.process.masked_fraction(batch, views.masked.sum(1)).to(batch.x.device, non_blocking=True)
        return folded.read(denoiser, views.x, share, denoiser.encode(**batch.conditions()), readout)

    def _words(self, logits: Tensor, _: Tensor) -> Tensor:
        return log_softmax(self._tempered(logits))

    def _drawn(self, targets: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda logits, at: drawn(self._tempered(logits), targets[at])

    def _tempered(self, logits: Tensor) -> Tensor:
        """The logits that the sampler draws from."""
        logits, heat = self.process.words_only(logits.float()), self.walker.tokens.temperature
        return logits if heat == 1.0 else logits / heat

    def _kl(self, found: Tensor, reference: Tensor) -> Tensor:
        """Estimates of the KL by the log-probabilities of the drawn tokens."""
        gap = (reference - found).clamp(-_MOST, _MOST)
        if self.kl == "k1":
            return -gap
        return 0.5 * gap.square() if self.kl == "k2" else gap.exp() - 1.0 - gap

    def _surrogate(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return torch.minimum(ratio * advantage, ratio.clamp(1.0 - self.epsilon, 1.0 + high) * advantage)

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
        ratio = _ratio(places)
        value = (outer * self._surrogate(ratio, advantage)).sum((0, 2))
        counted = outer > 0
        number = counted.sum()
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
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


def _placed(values: Float[Tensor, "R #K"], places: Int64[Tensor, "R K"], views: Views) -> Float[Tensor, "C N L"]:
    """Values at flat places, 0 elsewhere."""
    whole = values.new_zeros(views.scored.numel() + 1).index_put((places,), values.expand_as(places))[:-1]
    return whole.view(views.num_copies, -1, views.scored.shape[1])


def _beside_none(values: Tensor) -> Tensor:
    """Values of all places, flat, and a 0 for the place that is none."""
    return torch.nn.functional.pad(values.flatten(), (0, 1))


def _ratio(gap: Tensor) -> Tensor:
    return gap.clamp(-_MOST, _MOST).exp()


def _path_kl(words: Float[Tensor, "N V"], reference: Float[Tensor, "N V"]) -> Float[Tensor, "N 1"]:
    """Of two distributions over words, by their log-probabilities."""
    return (words.exp() * (words - reference).clamp(-_MOST, _MOST)).sum(-1, keepdim=True)
