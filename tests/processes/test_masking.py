"""The masking process: what it touches, how often, and the posterior by Bayes."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.schedules import DATA, PRIOR, CosineSchedule, LinearSchedule, Schedule
from onpath.types import Batch, Noisy
from statistical import assert_mean, chi_square_p
from tables import SCHEDULES

MASK, LENGTH = 9, 6
PROCESS = Masking(CosineSchedule(), MASK)
KEY = Key(2, "corrupt")
GIVEN = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0] * 6, [1] * 6], dtype=torch.bool)
PADDING = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0] * 6, [0] * 6], dtype=torch.bool)


def ragged() -> Batch:
    return Batch.of_tokens(torch.arange(24).view(4, 6) % 9, torch.arange(40, 44), given=GIVEN, padding=PADDING)


def plain(count: int, length: int = LENGTH) -> Batch:
    return Batch.of_tokens(torch.zeros(count, length, dtype=torch.int64), torch.arange(count))


def states() -> dict[str, Noisy]:
    batch = ragged()
    return {
        "prior": PROCESS.prior(batch),
        "time": PROCESS.corrupt(batch, torch.full((4,), 0.7), KEY),
        "time by position": PROCESS.corrupt(batch, torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), KEY),
        "all noise": PROCESS.corrupt(batch, torch.full((4,), PRIOR), KEY),
        "no noise": PROCESS.corrupt(batch, torch.full((4,), DATA), KEY),
        "ratio": PROCESS.corrupt_ratio(batch, torch.full((4,), 0.4), KEY),
        "count": PROCESS.corrupt_count(batch, torch.tensor([2, 3, 6, 0]), KEY),
    }


@pytest.mark.parametrize("name", states())
def test_only_free_positions_are_masked(name: str) -> None:
    batch, noisy = ragged(), states()[name]
    assert (noisy.masked <= batch.free()).all()
    assert (noisy.x[noisy.masked] == MASK).all()
    assert torch.equal(noisy.x[~noisy.masked], batch.x[~noisy.masked])
    if noisy.num_masked is not None:
        assert torch.equal(noisy.num_masked, noisy.masked.sum(1))
    assert torch.equal(batch.x, ragged().x)


def test_the_pure_states() -> None:
    found = states()
    assert torch.equal(found["prior"].masked, ragged().free())
    assert torch.equal(found["all noise"].masked, ragged().free())
    assert not found["no noise"].masked.any()
    assert found["count"].masked.sum(1).tolist() == [2, 3, 6, 0]


@pytest.mark.parametrize("name", ["linear", "half cosine", "cosine .01 .99", "betas linear"])
@pytest.mark.parametrize("t", [0.0, 0.05, 0.5, 1.0])
def test_marginal_of_a_position_is_the_mask_ratio(name: str, t: float) -> None:
    schedule = SCHEDULES[name]
    masked = Masking(schedule, MASK).corrupt(plain(20_000), torch.full((20_000,), t), KEY).masked
    ratio = float(schedule.mask_ratio(torch.tensor(t, dtype=torch.float64)))
    if ratio in (0.0, 1.0):
        assert (masked == bool(ratio)).all()
    else:
        assert_mean(masked.double().flatten(), ratio)
        # independent positions: the number of masks is binomial
        if 0.01 < ratio < 0.99:
            assert float(masked.sum(1).double().var()) == pytest.approx(LENGTH * ratio * (1 - ratio), rel=0.06)


def test_times_by_position() -> None:
    t = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]).expand(20_000, -1)
    masked = Masking(LinearSchedule(), MASK).corrupt(plain(20_000), t, KEY).masked
    for position in range(1, 5):
        assert_mean(masked[:, position].double(), 0.2 * position)
    assert not masked[:, 0].any() and masked[:, 5].all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_counts_pick_every_subset_equally(count: int) -> None:
    masked = PROCESS.corrupt_count(plain(20_000, 5), torch.full((20_000,), count), KEY).masked
    code = (masked.long() * 2 ** torch.arange(5)).sum(1)
    wanted = torch.zeros(32)
    for subset in combinations(range(5), count):
        wanted[sum(2**p for p in subset)] = 1
    assert chi_square_p(torch.bincount(code, minlength=32), wanted / wanted.sum() * 20_000) > 1e-4


def test_a_smaller_count_masks_a_subset() -> None:
    nested = [PROCESS.corrupt_count(plain(50), torch.full((50,), k), KEY).masked for k in range(LENGTH + 1)]
    assert all((a <= b).all() for a, b in pairwise(nested))


def test_ranks_are_an_order_of_the_free_positions() -> None:
    batch = ragged()
    ranks, free = PROCESS.ranks(batch, KEY), batch.free()
    for row in range(4):
        assert ranks[row][free[row]].sort().values.tolist() == list(range(int(free[row].sum())))
        assert (ranks[row][~free[row]] >= int(free[row].sum())).all()


def test_a_row_is_corrupted_as_it_would_be_alone() -> None:
    for row in range(4):
        alone = ragged().rows(torch.tensor([row]))
        t = torch.tensor([0.6])
        assert torch.equal(PROCESS.corrupt(alone, t, KEY).x[0], PROCESS.corrupt(ragged(), t.expand(4), KEY).x[row])
        assert torch.equal(PROCESS.ranks(alone, KEY)[0], PROCESS.ranks(ragged(), KEY)[row])


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_reveal_probability_is_the_posterior(schedule: Schedule) -> None:
    """Bayes: q(z_s = x | z_t = mask) = alpha_s·(1 - alpha_t/alpha_s) / (1 - alpha_t)."""
    process = Masking(schedule, MASK)
    t = torch.linspace(0.05, 1.0, 40, dtype=torch.float64)
    for shrink in (0.0, 0.3, 0.95):
        s = t * shrink
        alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
        stays = alpha_t / alpha_s
        bayes = alpha_s * (1 - stays) / (alpha_s * (1 - stays) + (1 - alpha_s))
        torch.testing.assert_close(process.reveal_probability(t, s), bayes, rtol=1e-7, atol=1e-12)


def test_reveal_probability_at_the_ends() -> None:
    process = Masking(CosineSchedule(alpha_min=0.1, alpha_max=0.8), MASK)
    pairs = torch.tensor([[PRIOR, 1.0], [0.0, DATA], [PRIOR, DATA], [DATA, DATA]], dtype=torch.float64)
    rho = process.reveal_probability(pairs[:, 0], pairs[:, 1])
    torch.testing.assert_close(rho, torch.tensor([0.1, 1.0, 1.0, 0.0], dtype=torch.float64))


def test_two_steps_reveal_as_often_as_one() -> None:
    """(1 - rho(t, r)) = (1 - rho(t, s))·(1 - rho(s, r)) for t > s > r."""
    t, s, r = (torch.tensor(x, dtype=torch.float64) for x in (0.9, 0.5, 0.2))
    direct = 1 - PROCESS.reveal_probability(t, r)
    steps = (1 - PROCESS.reveal_probability(t, s)) * (1 - PROCESS.reveal_probability(s, r))
    torch.testing.assert_close(direct, steps)


def test_scheduled_counts_round_and_keep_their_ends() -> None:
    process = Masking(LinearSchedule(), MASK)
    free = torch.tensor([40, 3, 0, 7])
    for t, wanted in ((1.0, [40, 3, 0, 7]), (0.0, [0, 0, 0, 0]), (0.49, [20, 1, 0, 3]), (0.51, [20, 2, 0, 4])):
        assert process.scheduled_count(torch.full((4,), t), free).tolist() == wanted
    # a tie falls on the same side for every way of writing the time
    ways = torch.tensor([0.0125, 1 - 0.9875], dtype=torch.float64)
    ties = process.scheduled_count(ways, torch.tensor([40, 40]))
    assert ties[0] == ties[1] == 0


def test_masked_fraction_is_of_the_free_positions() -> None:
    batch = ragged()
    assert batch.free_counts().tolist() == [3, 3, 6, 0]
    fraction = PROCESS.masked_fraction(batch, torch.tensor([3, 1, 3, 0, 0, 3, 6, 0]))
    torch.testing.assert_close(fraction, torch.tensor([1, 1 / 3, 0.5, 0, 0, 1, 1, 0]))


def test_unconditional_drops_the_conditions_of_some_rows() -> None:
    batch = Batch.of_tokens(torch.zeros(3, 2, dtype=torch.int64), torch.arange(3), cond={"c": torch.arange(3)})
    assert PROCESS.unconditional(batch).cond["drop"].tolist() == [True] * 3
    rows = torch.tensor([True, False, True])
    assert torch.equal(PROCESS.unconditional(batch, rows).cond["drop"], rows)
    assert "drop" not in batch.cond


def test_unconditional_hides_the_given_tokens_where_there_are_no_conditions() -> None:
    rows = torch.tensor([True, False, True, True])
    bare = PROCESS.unconditional(ragged(), rows)
    assert (bare.x[GIVEN & rows[:, None]] == MASK).all()
    assert torch.equal(bare.x[1], ragged().x[1])
    with pytest.raises(ValueError, match="guidance"):
        PROCESS.unconditional(plain(2))


def test_words_only() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PROCESS.words_only(logits), logits[:, :9])  # [MASK] behind the words is left out
    inside = Masking(PROCESS.schedule, 4).words_only(logits)
    others = [word for word in range(10) if word != 4]
    assert torch.equal(inside[:, others], logits[:, others]) and (inside[:, 4] == -torch.inf).all()
    assert logits.isfinite().all()
    assert torch.equal(PROCESS.words_only(logits[:, :9]), logits[:, :9])


def test_counts_above_the_free_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="num_masked"):
        PROCESS.corrupt_count(ragged(), torch.tensor([4, 3, 6, 0]), KEY)
