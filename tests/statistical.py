"""Statistical checks that the tests share. Seeds are fixed, so a test that passes always passes."""

from __future__ import annotations

import torch
from torch import Tensor


def chi_square_p(observed: Tensor, expected: Tensor) -> float:
    """p value of Pearson's test; cells with an expectation of 0 must be empty and do not count."""
    observed, expected = observed.double().flatten(), expected.double().flatten()
    assert torch.all(observed[expected <= 0] == 0), "an impossible outcome was observed"
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert float(expected.min()) >= 5, "too few samples for a chi-square test"
    statistic = ((observed - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2))


def uniform_p(cells: Tensor, num_cells: int) -> float:
    """p value of the hypothesis that the integers `cells` are uniform over 0 … num_cells - 1."""
    counts = torch.bincount(cells.flatten(), minlength=num_cells)
    return chi_square_p(counts, torch.full((num_cells,), counts.sum() / num_cells))


def assert_mean(samples: Tensor, expected: float, sigmas: float = 4.0) -> None:
    """The mean of independent samples lies within `sigmas` standard errors of `expected`."""
    samples = samples.double()
    error = samples.std() / len(samples) ** 0.5
    assert abs(samples.mean() - expected) <= sigmas * error, (
        f"{samples.mean():.5f} for {expected:.5f}, {abs(samples.mean() - expected) / error:.1f} standard errors off"
    )
