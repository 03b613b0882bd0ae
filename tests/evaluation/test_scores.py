"""Scores of texts against the standard library's way of counting."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from onpath.evaluation.scores import copied, distinct, ngrams, text_rows, unigram_entropy

GENERATOR = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(0, 5, (length,), generator=GENERATOR) for length in (30, 12, 1, 0)]
TRAINING = torch.randint(0, 5, (400,), generator=GENERATOR)


def runs(text: torch.Tensor, size: int) -> list[tuple[int, ...]]:
    tokens = text.tolist()
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_hashes_tell_runs_apart_as_tuples_do(size: int) -> None:
    hashes = ngrams(TRAINING, size).tolist()
    pairs = set(zip(hashes, runs(TRAINING, size), strict=True))
    assert len(pairs) == len(set(hashes)) == len(set(runs(TRAINING, size)))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_distinct_equals_counting_tuples(size: int) -> None:
    found = [run for text in TEXTS for run in runs(text, size)]
    assert distinct(TEXTS, size) == pytest.approx(len(set(found)) / len(found))


@pytest.mark.parametrize("size", [2, 4])
def test_copied_equals_a_search(size: int) -> None:
    known, found = set(runs(TRAINING, size)), [run for text in TEXTS for run in runs(text, size)]
    assert copied(TEXTS, TRAINING, size) == pytest.approx(sum(run in known for run in found) / len(found))
    assert copied([TRAINING[50:90]], TRAINING, 20) == 1.0
    assert copied([torch.full((40,), 7)], TRAINING, 20) == 0.0


def test_unigram_entropy_equals_the_definition() -> None:
    for text in TEXTS:
        shares = [count / len(text) for count in Counter(text.tolist()).values()]
        assert unigram_entropy(text) == pytest.approx(-sum(p * math.log(p) for p in shares))


def test_rows_of_nothing_and_of_something() -> None:
    rows = {r["metric"]: r for r in text_rows("generated", "samples@4", TEXTS, TRAINING, 3)}
    assert rows["length"]["value"] == pytest.approx(43 / 4) and rows["length"]["n"] == 4
    assert set(rows) == {"length", "unigram_entropy", "distinct_1", "distinct_2", "distinct_3", "copied_3"}
    empty = {r["metric"]: r["value"] for r in text_rows("generated", "samples@4", TEXTS[3:], TRAINING, 3)}
    assert empty["distinct_2"] == 0 and empty["copied_3"] == 0 and empty["unigram_entropy"] == 0
