"""Proofreading: the rankings against definitions, and the figures of a network whose doubts are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onpath.data.text import TextFile
from onpath.evaluation.proofreading import Proofreading, auroc, average_precision
from onpath.evaluation.settings import Subject
from onpath.processes.masking import Masking
from onpath.sampling.grids import EvenGrid
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Spec

WORDS, MASK, LENGTH = 6, 6, 20


@pytest.mark.parametrize("levels", [4, 1000])
def test_rankings_equal_their_definitions(levels: int) -> None:
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (200,), generator=generator).double() / levels
    hits = torch.rand(200, generator=generator) < 0.2 + 0.5 * scores
    found, previous = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        above = scores >= threshold
        recall = float(hits[above].sum()) / float(hits.sum())
        found += (recall - previous) * float(hits[above].double().mean())
        previous = recall
    assert average_precision(scores, hits) == pytest.approx(found)
    one, other = scores[hits][:, None], scores[~hits][None]
    assert auroc(scores, hits) == pytest.approx(float(((one > other).double() + 0.5 * (one == other)).mean()))


def test_rankings_without_hits() -> None:
    scores, none = torch.rand(5, dtype=torch.float64), torch.zeros(5, dtype=torch.bool)
    assert average_precision(scores, none) == 0.0 and auroc(scores, none) == 0.5


class KnowsTheText:
    """Answers every position with the right word, and doubts a wrong one with probability `sure`."""

    def __init__(self, text: torch.Tensor, sure: float) -> None:
        self.text, self.sure = text, sure

    def encode(self, **cond: Any) -> None:
        return None

    def __call__(self, x: Any, t: Any, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        text = self.text.expand(len(x), -1)
        probs = torch.full((*x.shape, WORDS + 1), 1e-9, dtype=torch.float64)
        probs.scatter_(2, text[..., None], 1.0)
        wrong = (x != text) & (x != MASK)
        probs[..., MASK] = torch.where(wrong, self.sure / (1 - self.sure), 1e-9)
        logits = probs.log().flatten(0, 1)
        return logits if rows is None else readout(logits[rows], rows)


def measured(sure: float) -> dict[str, float]:
    text = torch.randint(0, WORDS, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    spec = Spec(LENGTH, WORDS, MASK, mask_logit=True)
    process = Masking(LinearSchedule(), MASK)
    subject = Subject(KnowsTheText(text, sure), process, Unmasking(), EvenGrid(4), TextFile("unread.txt"), spec)
    rows = Proofreading(noise=0.2).measure(
        subject, "validation", iter([Batch.of_tokens(text.repeat(30, 1), torch.arange(30))])
    )
    return {r["metric"]: r["value"] for r in rows}


def test_a_network_that_knows_finds_and_repairs_everything() -> None:
    found = measured(0.9)
    assert found["precision"] == found["recall"] == found["right_after"] == 1.0
    assert found["average_precision"] == pytest.approx(1.0) and found["auroc"] == pytest.approx(1.0)
    assert found["flagged_clean"] == 0.0 and 0.7 < found["right_before"] < 0.9


def test_a_network_that_hardly_doubts_flags_nothing() -> None:
    found = measured(0.4)
    assert found["recall"] == 0.0 and found["right_after"] == found["right_before"]
    assert found["average_precision"] == pytest.approx(1.0)  # it still ranks wrong words first
