"""How well a text model finds wrong words in a text, leaves right ones alone, and repairs it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from onpath import rng
from onpath.evaluation.settings import Row, Subject, row
from onpath.evaluation.statistics import wilson
from onpath.processes.masking import flat_rows
from onpath.processes.replacing import coins, replaced_words
from onpath.sampling.loop import last, repair
from onpath.sampling.remasking import Proofread
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.types import Batch


@dataclass(frozen=True)
class Proofreading:
    """What is measured of a network that predicts [MASK] for wrong words.

    noise: share of the words that are replaced by others, uniformly. threshold: probability of [MASK] from which a word
    counts as flagged. repair_threshold: the same for the repair, which has to guess what it flags: a right word that
    is lost costs as much as a wrong one that is found gains, and not every guess is right. passes: of the repair.
    """

    noise: float = 0.1
    threshold: float = 0.5
    repair_threshold: float = 0.65
    passes: int = 8

    def __post_init__(self) -> None:
        shares = (self.noise, self.threshold, self.repair_threshold)
        if not all(0 < share < 1 for share in shares) or self.passes < 1:
            raise ValueError(
                f"proofreading: noise is {self.noise}, threshold is {self.threshold}, repair_threshold is "
                f"{self.repair_threshold} and passes is {self.passes}; needed are shares between 0 and 1, and passes "
                "of 1 or more"
            )

    def measure(self, subject: Subject, set_name: str, batches: Iterator[Batch]) -> list[Row]:
        """precision, recall, flagged_clean (of untouched text), average_precision, auroc, and the share of right words
        before (right_before) and after (right_after) the repair, over the free positions of all batches."""
        require_doubt(subject)
        found, clean, right = [], [], []
        key = rng.Key(subject.seed).fold("proofreading")
        for batch in batches:
            spoiled, wrong = self.spoiled(subject, batch, key)
            free = batch.free()
            found.append(torch.stack([doubt(subject, spoiled), wrong[free].double()]))
            clean.append(doubt(subject, batch))
            repaired = corrected(subject, spoiled, key, self.repair_threshold, self.passes)
            right.append(torch.stack([(x == batch.x)[free] for x in (spoiled.x, repaired.x)]))
        scores, wrongs = torch.cat(found, 1).cpu()
        flagged, wrong, kept = scores > self.threshold, wrongs.bool(), torch.cat(right, 1).cpu()
        shares = {
            "precision": wrong[flagged],
            "recall": flagged[wrong],
            "flagged_clean": torch.cat(clean).cpu() > self.threshold,
            "right_before": kept[0],
            "right_after": kept[1],
        }
        mode = f"proofread@{self.noise:g}"
        rows = [_share(set_name, mode, name, hits) for name, hits in shares.items()]
        ranked = {"average_precision": average_precision(scores, wrong), "auroc": auroc(scores, wrong)}
        return rows + [row(set_name, mode, name, value, None, len(wrong)) for name, value in ranked.items()]

    def spoiled(self, subject: Subject, batch: Batch, key: rng.Key) -> tuple[Batch, Bool[Tensor, "B L"]]:
        """The batch with a share of its free words replaced, and where."""
        share = torch.full((batch.size,), self.noise)
        wrong, _ = coins(batch, (share, torch.zeros_like(share)), key.fold("noise"))
        mask_id = subject.process.mask_id
        x = replaced_words(batch, wrong, subject.spec.num_words, mask_id, key.fold("words"))
        return replace(batch, x=x), wrong


def corrected(subject: Subject, batch: Batch, key: rng.Key, threshold: float, passes: int) -> TokenState:
    """The texts of a batch after a repair: what is doubted by more than `threshold` is masked and filled in.

    The surest words first, and the likeliest: a correction is no draw.
    """
    sampler = Unmasking(order="confidence", tokens=Categorical(temperature=0.0), remask=Proofread(threshold))
    return last(repair(subject.denoiser, subject.process, sampler, batch, key.fold("repair"), passes))


def require_doubt(subject: Subject) -> None:
    """ValueError where the network has no logit for [MASK]."""
    if not subject.spec.mask_logit:
        raise ValueError(
            "evaluation: proofreading is set, but the network does not predict [MASK] for wrong words; train with the "
            "objective masking_penalties, or leave evaluation.proofreading out"
        )


@torch.no_grad()
def doubt(subject: Subject, batch: Batch) -> Float[Tensor, "N"]:
    """The probability of [MASK] at every free position of an unmasked text, fp64."""
    denoiser, mask_id = subject.denoiser, subject.process.mask_id
    rows = flat_rows(batch.free(), int(batch.free_counts().sum()))

    def readout(logits: Tensor, chunk: Tensor) -> Tensor:
        return logits.double().softmax(-1)[:, mask_id]

    t = torch.zeros(batch.size, device=batch.x.device)
    return denoiser(batch.x, t, denoiser.encode(**batch.conditions()), rows=rows, readout=readout)


def average_precision(scores: Float[Tensor, "N"], hits: Bool[Tensor, "N"]) -> float:
    """Precision averaged over the recalls at which a hit is found, equal scores found together; 0 without hits."""
    precision, recall, _ = _curve(scores, hits)
    steps = torch.diff(recall, prepend=recall.new_zeros(1))
    return float((steps * precision).sum()) if hits.any() else 0.0


def auroc(scores: Float[Tensor, "N"], hits: Bool[Tensor, "N"]) -> float:
    """The probability that a hit has a higher score than a miss, ties half; 0.5 where there are none of either."""
    if not hits.any() or hits.all():
        return 0.5
    _, recall, fallout = _curve(scores, hits)
    zero = recall.new_zeros(1)
    return float(torch.trapezoid(torch.cat([zero, recall]), torch.cat([zero, fallout])))


def _curve(scores: Tensor, hits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and false positive rate from every threshold, the highest first."""
    order = scores.argsort(descending=True, stable=True)
    sorted_scores, sorted_hits = scores[order], hits[order].double()
    last = torch.ones_like(sorted_hits, dtype=torch.bool)
    last[:-1] = sorted_scores[1:] != sorted_scores[:-1]
    found, seen = sorted_hits.cumsum(0)[last], torch.arange(1, len(scores) + 1, dtype=torch.float64)[last]
    return found / seen, found / found[-1].clamp_min(1), (seen - found) / (seen[-1] - found[-1]).clamp_min(1)


def _share(set_name: str, mode: str, metric: str, hits: Bool[Tensor, "N"]) -> Row:
    n, count = len(hits), int(hits.sum())
    return row(set_name, mode, metric, count / max(1, n), wilson(count, n), n)
