"""The adaptive rules against references that look at one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onpath.sampling.counts import AdaptiveCount, EntropyBound, Factor, Threshold


def confidences(seed: int, rows: int = 200, length: int = 9) -> Tensor:
    """Rows of masked positions in the sampler's order, some shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(rows, length, generator=generator) ** 0.3
    number = torch.randint(1, length + 1, (rows, 1), generator=generator)
    values = values.sort(1, descending=True).values if seed % 2 else values
    return values.masked_fill(torch.arange(length) >= number, 0.0)


def entropies(confidence: Tensor) -> Tensor:
    return torch.where(confidence > 0, 3 * (1 - confidence), torch.inf)


def threshold(tau: float, confidence: list[float], entropy: list[float]) -> list[bool]:
    return [c >= tau for c in confidence]


def factor(f: float, confidence: list[float], entropy: list[float]) -> list[bool]:
    best = 0
    for n in range(1, len(confidence) + 1):
        if (n + 1) * (1 - min(confidence[:n])) < f:
            best = n
    return [i < best for i in range(len(confidence))]


def entropy_bound(gamma: float, confidence: list[float], entropy: list[float]) -> list[bool]:
    finite = [h for h in entropy if h != float("inf")]
    return [i < len(finite) and sum(finite[: i + 1]) - max(finite[: i + 1]) <= gamma for i in range(len(entropy))]


RULES = {
    "threshold .9": (Threshold(), threshold, 0.9),
    "threshold .5": (Threshold(0.5), threshold, 0.5),
    "threshold 1": (Threshold(1.0), threshold, 1.0),
    "factor .5": (Factor(), factor, 0.5),
    "factor 2": (Factor(2.0), factor, 2.0),
    "entropy .1": (EntropyBound(), entropy_bound, 0.1),
    "entropy 0": (EntropyBound(0.0), entropy_bound, 0.0),
    "entropy 2": (EntropyBound(2.0), entropy_bound, 2.0),
}


@pytest.mark.parametrize(("rule", "reference", "value"), RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_rule_equals_a_reference_by_row(rule: AdaptiveCount, reference, value: float, seed: int) -> None:
    confidence = confidences(seed).double()
    entropy = entropies(confidence)
    admitted = rule.admit(confidence.float(), entropy.float())
    for row in range(len(confidence)):
        wanted = reference(value, confidence[row].tolist(), entropy[row].tolist())
        assert admitted[row].tolist() == wanted, (confidence[row], entropy[row])


def test_the_bound_admits_a_prefix_and_grows_with_gamma() -> None:
    entropy = entropies(confidences(1))
    confidence = confidences(1)
    small, large = (EntropyBound(g).admit(confidence, entropy) for g in (0.1, 0.5))
    assert (small <= large).all()
    for admitted in (small, large):
        assert (admitted.long().diff(dim=1) <= 0).all()


@pytest.mark.parametrize(
    "make", [lambda: Threshold(0.0), lambda: Threshold(1.5), lambda: Factor(0.0), lambda: EntropyBound(-0.1)]
)
def test_refusals(make) -> None:
    with pytest.raises(ValueError, match=r"threshold|factor|entropy"):
        make()
