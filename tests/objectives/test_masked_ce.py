"""Plain masked cross-entropy and its curriculum."""

from __future__ import annotations

import pytest
import torch

from onpath.objectives.masked_ce import MaskedCrossEntropy
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking
from onpath.ramps import LinearRamp
from onpath.rng import Key
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Nets
from tables import SCHEDULES
from worlds import HashDenoiser

WORDS, LENGTH, SIZE = 5, 20, 400
PROCESS = Masking(LinearSchedule(), WORDS)


def masked_shares(objective: MaskedCrossEntropy, step: int) -> torch.Tensor:
    network = HashDenoiser(WORDS)
    batch = Batch.of_tokens(torch.zeros(SIZE, LENGTH, dtype=torch.int64), torch.arange(SIZE))
    loss = objective(Nets(network), batch, Key(1, "shares", step), step)
    x, t, _ = network.forwards[0]
    masks = (x == WORDS).sum(1)
    torch.testing.assert_close(t, masks / LENGTH)
    assert float(loss.denominator) == float(masks.sum())
    return masks


def test_shares_cover_everything_up_to_all_masked() -> None:
    shares = masked_shares(MaskedCrossEntropy(PROCESS), 0)
    counts = torch.bincount(shares, minlength=LENGTH + 1)
    assert counts[0] == 0  # a sequence without a mask would teach nothing
    assert (counts[1:] >= SIZE // LENGTH - 2).all() and (counts[1:] <= SIZE // LENGTH + 2).all()


def test_curriculum_follows_its_ramps() -> None:
    objective = MaskedCrossEntropy(PROCESS, low=LinearRamp(0.1, 0.5, 100), high=LinearRamp(0.3, 1.0, 100))
    for step, low, high in ((0, 0.1, 0.3), (50, 0.3, 0.65), (100, 0.5, 1.0), (10_000, 0.5, 1.0)):
        shares = masked_shares(objective, step) / LENGTH
        assert low <= float(shares.min()) <= low + 0.1
        assert high - 0.06 <= float(shares.max()) <= high + 0.05


@pytest.mark.parametrize("name", ["cosine", "maskgit", "polynomial 2"])
def test_the_schedule_decides_the_distribution_of_the_shares(name: str) -> None:
    objective = MaskedCrossEntropy(Masking(SCHEDULES[name], WORDS), exact=False)
    mean = masked_shares(objective, 0).double().mean() / LENGTH
    grid = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert float(mean) == pytest.approx(float(SCHEDULES[name].mask_ratio(grid).mean()), abs=0.02)


@pytest.mark.parametrize("high", [0.825, LinearRamp(0.15, 0.99, 10)])
def test_a_curriculum_that_never_reaches_1_is_refused(high) -> None:
    with pytest.raises(ValueError, match=r"1\.0"):
        MaskedCrossEntropy(PROCESS, high=high)
    assert MaskedCrossEntropy(PROCESS, high=high, partial=True).partial


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 1.5), (LinearRamp(0.0, 1.2, 10), 1.0)])
def test_a_ratio_outside_0_to_1_is_refused(low, high) -> None:
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        MaskedCrossEntropy(PROCESS, low=low, high=high)


@pytest.mark.parametrize("objective", [MaskedCrossEntropy, ContinuousNELBO, TrajectoryNELBO])
def test_a_dropout_that_is_no_share_is_refused(objective) -> None:
    with pytest.raises(ValueError, match=r"condition_dropout is 1\.5"):
        objective(PROCESS, condition_dropout=1.5)


def test_mean_over_masked_tokens() -> None:
    network = HashDenoiser(WORDS)
    x = torch.randint(0, WORDS, (6, LENGTH), generator=torch.Generator().manual_seed(0))
    loss = MaskedCrossEntropy(PROCESS)(Nets(network), Batch.of_tokens(x, torch.arange(6)), Key(3), 0)
    noisy, t, _ = network.forwards[0]
    log_p = HashDenoiser(WORDS)(noisy, t, None).log_softmax(-1).gather(-1, x[..., None])[..., 0]
    torch.testing.assert_close(loss.mean, -log_p[noisy == WORDS].mean())
