"""Masked diffusion that also learns to doubt: wrong words are to become [MASK], by penalties that change over steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.objectives.base import Objective, check_dropout, dropped, stratified
from onpath.processes.masking import Masking, flat_rows
from onpath.processes.replacing import coins, replaced_words
from onpath.ramps import LinearRamp, Ramp, as_ramp
from onpath.types import Batch, Loss, Nets


@dataclass(frozen=True)
class MaskingPenalties(Objective):
    """Cross-entropy at every position: masks are to become words, words to stay, replaced words to become [MASK].

    A share r_m, uniform in [0, c], of the positions is masked and a share r_r, uniform in [0, c - r_m], holds another
    word, c = 1 - guaranteed_correct. Two discounts multiply the cross-entropy, numbers or ramps over optimizer steps:
    penalty_keep_mask: where a masked position is answered by [MASK] (1 at the start: guess).
    penalty_mask_correct: where an untouched word is answered by [MASK] (0 at the start: doubt freely). At exactly 0
      nothing teaches the network to leave right words alone; `floor` keeps the discount at least so large.
    weights: `argmax`, by the likeliest answer, which jumps where two answers are equally likely; or `smooth`,
      1 - (1 - penalty)·p with p the probability of [MASK], taken as a constant.
    condition_dropout: share of examples trained without their condition, for guidance.
    The loss is a mean over free positions and no bound; validation reports the NELBO of its words beside it.
    """

    process: Masking
    num_words: int
    penalty_keep_mask: float | Ramp = LinearRamp(1.0, 0.25, 1000)
    penalty_mask_correct: float | Ramp = LinearRamp(0.0, 0.5, 1000)
    guaranteed_correct: float = 0.01
    weights: Literal["argmax", "smooth"] = "argmax"
    floor: float = 0.0
    condition_dropout: float = 0.0
    predicts_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_dropout(self.condition_dropout)
        if self.weights not in ("argmax", "smooth"):
            raise ValueError(f"penalties: weights is {self.weights!r}; allowed are argmax, smooth")
        if not 0.0 <= self.guaranteed_correct < 1.0 or not 0.0 <= self.floor <= 1.0:
            raise ValueError(
                f"penalties: guaranteed_correct is {self.guaranteed_correct} and floor is {self.floor}; both are "
                "shares, the first below 1"
            )
        for name in ("penalty_keep_mask", "penalty_mask_correct"):
            ramp = as_ramp(getattr(self, name))
            values = [ramp.value(step) for step in (0, *ramp.bends, 2**62)]
            if not all(0.0 <= value <= 1.0 for value in values):
                raise ValueError(
                    f"penalties: {name} takes the values {values}; it is a discount, 0 (no loss there) to 1 (all of it)"
                )

    def conditional(self) -> MaskingPenalties:
        return replace(self, condition_dropout=0.0)

    def penalties(self, step: int) -> tuple[float, float]:
        """penalty_keep_mask and penalty_mask_correct at an optimizer step."""
        correct = as_ramp(self.penalty_mask_correct).value(step)
        return as_ramp(self.penalty_keep_mask).value(step), max(self.floor, correct)

    def __call__(self, nets: Nets, batch: Batch, key: rng.Key, step: int) -> Loss:
        batch = dropped(self.process, batch, self.condition_dropout, key)
        x, masked, replaced = self.spoiled(batch, key)
        # what is not scored need not be a word: padding is anything
        targets = torch.where(batch.free(), batch.x.masked_fill(replaced, self.process.mask_id), 0).flatten()
        kept, doubted = self.penalties(step)
        # what [MASK] as an answer costs at each position: masked, untouched, replaced
        penalty = torch.where(masked, kept, torch.where(replaced, 1.0, doubted)).flatten()
        rows = flat_rows(batch.free(), int(batch.free_counts().sum()))

        def readout(logits: Float[Tensor, "N V"], chunk: Int64[Tensor, "N"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            logits = logits.float()
            nats = F.cross_entropy(logits, targets[chunk], reduction="none")
            with torch.no_grad():
                answer = logits.argmax(-1)
                doubt = (answer == self.process.mask_id).float()
                share = doubt if self.weights == "argmax" else logits.softmax(-1)[:, self.process.mask_id]
                weight = 1.0 - (1.0 - penalty[chunk]) * share
                word = self.process.words_only(logits).argmax(-1) == targets[chunk]
            return nats * weight, nats.detach(), doubt, word

        t = self.process.masked_fraction(batch, masked.sum(-1))
        weighted, nats, doubt, word = nets.model(
            x, t, nets.model.encode(**batch.conditions()), rows=rows, readout=readout
        )
        at = {"masked": masked.flatten()[rows], "replaced": replaced.flatten()[rows]}
        at["untouched"] = ~at["masked"] & ~at["replaced"]
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {"masked_share": (masked.sum(), float(len(rows)))}
        metrics["masked_cross_entropy"], metrics["accuracy"] = _mean(nats, at["masked"]), _mean(word, at["masked"])
        metrics["doubted_replaced"] = _mean(doubt, at["replaced"])
        metrics["doubted_untouched"] = _mean(doubt, at["untouched"])
        return Loss(weighted.sum(), float(len(rows)), metrics)

    def spoiled(
        self, batch: Batch, key: rng.Key
    ) -> tuple[Int64[Tensor, "B L"], Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
        """The input of a training step, where it is masked, and where it holds a wrong word."""
        spoiled = 1.0 - self.guaranteed_correct
        share_masked = spoiled * stratified(key, batch.ids)
        share_replaced = (spoiled - share_masked) * rng.uniform(key.fold("share"), batch.ids).double()
        masked, replaced = coins(batch, (share_masked.float(), share_replaced.float()), key.fold("corrupt"))
        x = replaced_words(batch, replaced, self.num_words, self.process.mask_id, key.fold("replace"))
        return x.masked_fill(masked, self.process.mask_id), masked, replaced


def _mean(values: Tensor, where: Bool[Tensor, "N"]) -> tuple[Tensor, Tensor]:
    return (values * where).sum(), where.sum()
