"""The objective noun, and the one way in which token objectives score a network: cross-entropy at chosen rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.base import Process
from onpath.processes.masking import Masking, flat_rows
from onpath.rollouts import DrawnStates, TokenRollouts
from onpath.types import Batch, Denoiser, Loss, Nets, Noisy

_GOLDEN = 0x61C88647  # 2**32 divided by the square of the golden ratio


class Objective(ABC):
    """What is minimised. ``objective(nets, batch, key, step)`` is a pure function of its arguments."""

    process: Process
    predicts_mask: ClassVar[bool] = False
    """Whether the network is asked for [MASK] as well as for words."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares the network with what it was when the training began."""
        return False

    @property
    def is_bound(self) -> bool:
        """Whether the loss is a bound on the negative log-likelihood; beside any other, validation reports one."""
        return False

    def conditional(self) -> Objective:
        """The objective without condition drop-out and rollouts, by which validation judges the conditional model."""
        return self

    @abstractmethod
    def __call__(self, nets: Nets, batch: Any, key: rng.Key, step: int) -> Loss:
        """The loss of a ``Batch``, or of an ``Experience`` where it is trained on rollouts; `key` is the stream of this
        optimizer step and `step` drives the ramps."""


@dataclass(frozen=True)
class Corrections:
    """Positions that are scored beside the masked ones: those where a rollout has revealed a wrong token.

    at: (M, L) what rollouts have revealed, right or wrong. number: how many positions that are. weight: of the
    cross-entropy at a wrong one.
    """

    at: Bool[Tensor, "M L"]
    number: int
    weight: float


@dataclass(frozen=True)
class TokenScores:
    """Cross-entropy and hits at N rows.

    cost: (N,) weighed cross-entropy, with gradient. nats: (N,) unweighed, without; hit: (N,): of masked positions, 0 at
    others. example: (N,) index of each row's example.
    """

    cost: Float[Tensor, "N"]
    nats: Float[Tensor, "N"]
    hit: Bool[Tensor, "N"]
    example: Int64[Tensor, "N"]


def stratified(key: rng.Key, ids: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
    """One uniform in [0, 1) for each example, fp64, low-discrepancy over any run of consecutive ids.

    An additive recurrence of the golden ratio with a random shift from `key`: each draw alone is uniform, and a
    batch covers [0, 1) evenly however it is cut over ranks and micro-batches.
    """
    shift = rng.bits(key.fold("strata"), torch.zeros(1, dtype=torch.int64))
    word = ((ids & 0xFFFFFFFF) * _GOLDEN + shift) & 0xFFFFFFFF
    return word.double() / 2.0**32


def score_masked(
    process: Masking,
    denoiser: Denoiser,
    batch: Batch,
    noisy: Noisy,
    weights: Float[Tensor, "M"] | None = None,
    corrections: Corrections | None = None,
) -> TokenScores:
    """Cross-entropy of the clean tokens at the masked positions, the head running there only.

    weights: (M,) of the states, 1 each without them; they are multiplied in while a row is read, so that nothing is
    left to do with the rows but to sum them up (see ``models.blocks.apply_readout``). corrections: positions that are
    scored as well; the time that the network receives does not change with them.

    `noisy` may hold m·B rows for a batch of B: several corruptions of the same examples share one encoding.
    A network that also has a logit for [MASK] is scored by its distribution over words, as it is sampled from.
    """
    length = batch.x.shape[1]
    copies = noisy.x.shape[0] // batch.size
    clean = batch.x.repeat(copies, 1)
    known = None if noisy.num_masked is None else int(noisy.num_masked.sum())
    counts = noisy.masked.sum(-1) if noisy.num_masked is None else noisy.num_masked.to(noisy.x.device)
    # a row that is not masked is read only where masked ones could not be counted, and weighs nothing
    weight = noisy.masked.to(torch.float32)
    weight = weight if weights is None else weight * weights.to(weight.device)[:, None]
    asked = noisy.masked
    if corrections is not None:
        weight = torch.where(corrections.at & (noisy.x != clean), corrections.weight, weight)
        asked = asked | corrections.at
        known = None if known is None else known + corrections.number
    # elsewhere the token need not be a word: a dropped prompt is [MASK], padding is anything
    targets, weight = torch.where(asked, clean, int(process.mask_id == 0)).flatten(), weight.flatten()
    rows = flat_rows(asked, known)

    def readout(logits: Float[Tensor, "N V"], chunk: Int64[Tensor, "N"]) -> tuple[Tensor, Tensor, Tensor]:
        logits = process.words_only(logits.float())
        target = targets[chunk]
        nats = F.cross_entropy(logits, target, reduction="none")
        return nats * weight[chunk], nats.detach(), logits.detach().argmax(-1) == target

    memo = denoiser.encode(**batch.conditions())
    cost, nats, hit = denoiser(noisy.x, process.masked_fraction(batch, counts), memo, rows=rows, readout=readout)
    if corrections is not None or (len(rows) == noisy.masked.numel() and known is None):
        keep = noisy.masked.flatten()[rows]
        nats, hit = nats * keep, hit & keep
    return TokenScores(cost, nats, hit, rows // length)


def stack_noisy(states: list[Noisy]) -> Noisy:
    """Several corruptions of the same batch under each other, (m·B, L)."""
    counts = [state.num_masked for state in states]
    known = torch.cat([c for c in counts if c is not None]) if all(c is not None for c in counts) else None
    return Noisy(torch.cat([s.x for s in states]), torch.cat([s.masked for s in states]), known)


def check_dropout(condition_dropout: float) -> None:
    """ValueError unless it is a share."""
    if not 0.0 <= condition_dropout <= 1.0:
        raise ValueError(
            f"objective: condition_dropout is {condition_dropout}; it is a share of the examples, 0 (never) to 1"
        )


def dropped(process: Process, batch: Batch, probability: float, key: rng.Key) -> Batch:
    """The batch with the conditions of a share of its examples dropped, so that guidance has a second branch."""
    if probability == 0.0:
        return batch
    draws = rng.uniform(key.fold("condition_dropout"), batch.ids)
    return process.unconditional(batch, (draws < probability).to(batch.x.device, non_blocking=True))


def token_metrics(scores: TokenScores, noisy: Noisy, batch: Batch) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """The figures that every token objective reports, as (sum, count) pairs."""
    num_masked = noisy.masked.sum() if noisy.num_masked is None else float(noisy.num_masked.sum())
    num_free = float(batch.free_counts().sum()) * (noisy.x.shape[0] // batch.size)
    return {
        "accuracy": (scores.hit.sum().detach(), num_masked),
        "masked_cross_entropy": (scores.nats.sum(), num_masked),
        "masked_share": (num_masked, num_free),
        "num_masked": (num_masked, float(noisy.x.shape[0])),
    }


def corrections_of(rollouts: TokenRollouts | None, drawn: DrawnStates, share: float = 1.0) -> Corrections | None:
    """What the rollouts of a step give to be corrected, where that is asked for; `share` is put on its weight."""
    if rollouts is None or not rollouts.rule.correction or drawn.revealed is None:
        return None
    return Corrections(drawn.revealed, drawn.num_revealed, share * rollouts.rule.correction)


def rollout_metrics(drawn: DrawnStates, batch: Batch) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Of scheduled sampling, as (sum, count) pairs: shares of the states and of the tokens, and what it costs."""
    wrong: Tensor | float = 0.0
    assert isinstance(drawn.state, Noisy)
    num_states = drawn.state.x.shape[0]
    if drawn.revealed is not None:
        clean = batch.x.repeat(num_states // batch.size, 1)
        wrong = (drawn.revealed & (drawn.state.x != clean)).sum()
    return {**drawn.costs(num_states, batch.size), "rollout_wrong": (wrong, float(drawn.num_revealed))}
