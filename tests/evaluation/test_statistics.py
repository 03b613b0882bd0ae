from __future__ import annotations

import math

import pytest
import torch

from onpath.evaluation.statistics import Z95, mean_interval, path_scores, wilson


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [(8, 10, (0.4902, 0.9433)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_by_hand(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 7), (1990, 2000), (300, 401)])
def test_wilson_ends_solve_the_score_equation(successes: int, n: int) -> None:
    share = successes / n
    for end in wilson(successes, n):
        assert abs(share - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_wilson_covers_about_95_percent() -> None:
    n, share = 60, 0.9
    weights = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    covered = sum(w for k, w in enumerate(weights) if wilson(k, n)[0] <= share <= wilson(k, n)[1])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_wilson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="11 successes of 10"):
        wilson(11, 10)


def test_mean_interval_by_hand() -> None:
    low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0])) or (0.0, 0.0)
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)
    assert mean_interval(torch.tensor([1.0])) is None


def test_path_scores_by_hand() -> None:
    reached = torch.tensor([True, True, False, True])
    scores = path_scores(reached, torch.tensor([10, 10, 10, 3]), torch.tensor([10, 40, 10, 4]))
    assert scores.tolist() == [1.0, 0.25, 0.0, 0.75]
