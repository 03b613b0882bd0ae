"""Draws: against a second implementation in Python integers, and against the laws of chance."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from onpath import rng
from onpath.rng import Key
from statistical import assert_mean, chi_square_p, uniform_p

WORD = 2**32
IDS = torch.arange(2000)


def reference(seed: int, purpose: str, step: int, example: int, position: int) -> int:
    """The documented hash once more, in integers of any size, one word at a time."""

    def mix(word: int) -> int:
        for shift, multiplier in ((17, 0x7FEB352D), (11, 0x46D7A4CB), (15, 0x2C1B3C6D)):
            word = (word ^ (word >> shift)) * multiplier % WORD
        return word ^ (word >> 14)

    weyl = 0x1E3779B1
    digest = hashlib.blake2b(f"{seed}|{purpose}".encode(), digest_size=8).digest()
    first, second = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4))
    step_low, step_high = step % WORD, step // WORD % WORD
    low, high = example % WORD, example // WORD % WORD
    a = mix(mix(step_low ^ first) ^ low)
    b = mix((mix((step_high + high * weyl) % WORD ^ second) + (low ^ step_low) * weyl) % WORD)
    return mix((mix((position + 1) * weyl % WORD ^ b) + a) % WORD)


@pytest.mark.parametrize("key", [Key(), Key(7, "/corrupt", 3), Key(2**40, "x", 2**33 + 5), Key(1, "y", 2**31)])
def test_words_equal_an_implementation_in_python_integers(key: Key) -> None:
    ids = torch.tensor([0, 1, 2, 12345, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**45 + 17, 2**62])
    words = rng.bits(key, ids, (3, 2))
    expected = [[reference(key.seed, key.purpose, key.step, int(i), p) for p in range(6)] for i in ids]
    assert words.view(len(ids), 6).tolist() == expected


def test_values_do_not_change_between_versions() -> None:
    # a run that resumes after an update must go on with the draws it would have had
    words = rng.bits(Key(0).fold("corrupt").at(3), torch.tensor([7, 2**40]), (2,))
    assert words.tolist() == [[3115272355, 1651886742], [991626879, 3212505925]]


def test_moments() -> None:
    u = rng.uniform(Key(1, "moments"), IDS, (500,)).double()
    n = u.numel()
    for power in range(1, 5):
        exact, variance = 1 / (power + 1), 1 / (2 * power + 1) - 1 / (power + 1) ** 2
        assert abs((u**power).mean() - exact) < 4 * (variance / n) ** 0.5
    assert float(u.min()) >= 0.0 and float(u.max()) < 1.0


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_is_uniform(shift: int) -> None:
    words = rng.bits(Key(2, "bytes"), IDS, (500,))
    assert uniform_p((words >> shift) & 255, 256) > 1e-4


def streams() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of draws that are neighbours in one coordinate and must be independent."""
    key, shape = Key(3, "pairs"), (200,)
    base = rng.bits(key, IDS, shape)
    later = rng.bits(key.at(1), IDS, shape)
    return {
        "positions": (base[:, :-1], base[:, 1:]),
        "ids": (base[:-1], base[1:]),
        "ids and positions": (base[:-1, 1:], base[1:, :-1]),
        "ids one apart in the second bit": (base[:-2], base[2:]),
        "steps": (base, later),
        # ids and steps with the same exclusive or share one of the two row words
        "ids against steps": (base[0::2], later[1::2]),
        "high words of ids": (base, rng.bits(key, IDS + WORD, shape)),
        "high words of steps": (base, rng.bits(key.at(WORD), IDS, shape)),
        "purposes": (base, rng.bits(key.fold("other"), IDS, shape)),
        "seeds": (base, rng.bits(Key(4, "pairs"), IDS, shape)),
    }


@pytest.mark.parametrize("name", sorted(streams()))
def test_neighbours_are_independent(name: str) -> None:
    one, two = streams()[name]
    for shift in (28, 0):  # the highest and the lowest four bits
        pair = ((one >> shift) & 15) * 16 + ((two >> shift) & 15)
        assert uniform_p(pair, 256) > 1e-4, f"bits from {shift}"
    correlation = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]).double())[0, 1]
    assert abs(correlation) < 4 / one.numel() ** 0.5


def test_differences_and_sums_of_neighbours_are_uniform() -> None:
    words = rng.bits(Key(5, "sums"), IDS, (500,))
    assert uniform_p((words[:, 1:] - words[:, :-1]) % WORD >> 24, 256) > 1e-4
    assert uniform_p((words[1:] ^ words[:-1]) >> 24, 256) > 1e-4


def test_no_two_rows_are_shifted_copies() -> None:
    words = rng.bits(Key(6, "rows"), torch.arange(300), (300,))
    assert len(torch.unique(words)) > words.numel() - 10  # the birthday bound gives about one collision


def test_a_row_of_a_batch_draws_what_it_draws_alone() -> None:
    whole = rng.bits(Key(8, "rows", 5), IDS, (7,))
    for row in (0, 1, 999):
        assert torch.equal(rng.bits(Key(8, "rows", 5), IDS[row : row + 1], (7,))[0], whole[row])
    order = torch.randperm(len(IDS), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rng.bits(Key(8, "rows", 5), IDS[order], (7,)), whole[order])


def test_a_longer_row_begins_like_a_shorter_one() -> None:
    assert torch.equal(rng.uniform(Key(9), IDS, (20,))[:, :7], rng.uniform(Key(9), IDS, (7,)))


def test_step_may_be_a_tensor() -> None:
    for step in (0, 5, 2**31, 2**33 + 1):
        assert torch.equal(
            rng.bits(Key(10, "step", step), IDS, (3,)), rng.bits(Key(10, "step", torch.tensor(step)), IDS, (3,))
        )


def test_global_state_is_not_touched() -> None:
    state = torch.get_rng_state()
    rng.uniform(Key(11), IDS, (3,))
    rng.integers(Key(11), IDS, (3,), 5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("high", [1, 2, 3, 7, 1000])
def test_integers_are_uniform_below_high(high: int) -> None:
    draws = rng.integers(Key(12), IDS, (100,), high)
    assert int(draws.min()) >= 0 and int(draws.max()) < high
    assert high == 1 or uniform_p(draws, high) > 1e-4


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_integers_refuse_a_bad_bound(high: int) -> None:
    with pytest.raises(ValueError, match="high"):
        rng.integers(Key(), IDS, (1,), high)


def test_uniforms_are_multiples_of_two_to_the_minus_24() -> None:
    u = rng.uniform(Key(14), IDS, (50,))
    assert u.dtype == torch.float32
    assert torch.equal(u * 2**24, (u * 2**24).round())


def test_normals_have_the_moments_of_a_normal() -> None:
    z = rng.normal(Key(20, "normal"), IDS, (301,)).double().flatten()  # an odd count: a pair is cut
    for power, wanted in enumerate((0.0, 1.0, 0.0, 3.0, 0.0, 15.0), start=1):
        assert_mean(z**power, wanted)
    assert float(z.abs().max()) < 6.8 and float(z.abs().max()) > 4.0


def test_normals_follow_the_law_in_cells_of_equal_probability_and_in_the_tails() -> None:
    z = rng.normal(Key(21, "normal"), IDS, (300,)).double().flatten()
    assert uniform_p((torch.special.ndtr(z) * 200).long().clamp(max=199), 200) > 1e-4
    edges = torch.tensor([-math.inf, -4.0, -3.5, -3.0, 3.0, 3.5, 4.0, math.inf], dtype=torch.float64)
    cells = torch.bincount(torch.bucketize(z, edges) - 1, minlength=7)
    assert chi_square_p(cells, torch.special.ndtr(edges).diff() * len(z)) > 1e-4


def test_the_distribution_function_of_normals_is_nowhere_far_off() -> None:
    """Kolmogorov and Smirnov, one sample."""
    z = rng.normal(Key(22, "normal"), IDS, (50,)).double().flatten().sort().values
    ranks = torch.arange(1, len(z) + 1).double() / len(z)
    below = torch.special.ndtr(z)
    distance = float(torch.maximum((ranks - below).abs(), (ranks - 1 / len(z) - below).abs()).max())
    assert distance * len(z) ** 0.5 < 1.95  # p above .001


@pytest.mark.parametrize("count", [300, 301])
def test_neighbouring_normals_are_independent(count: int) -> None:
    """Of positions, of the two of a pair, of rows, of steps; in value and in size."""
    key = Key(23, "normal")
    z, later = rng.normal(key, IDS, (count,)).double(), rng.normal(key.at(1), IDS, (count,)).double()
    half = (count + 1) // 2
    pairs = {
        "positions": (z[:, 1:], z[:, :-1]),
        "of a pair": (z[:, : count - half], z[:, half:]),
        "rows": (z[1:], z[:-1]),
        "steps": (z, later),
    }
    for name, (one, two) in pairs.items():
        for power in (1, 2):
            a, b = (part.flatten() ** power for part in (one, two))
            correlation = ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())
            assert abs(float(correlation)) < 4 / len(a) ** 0.5, (name, power)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (2, 4, 4)])
def test_a_row_of_normals_is_the_same_alone(shape: tuple[int, ...]) -> None:
    state = torch.get_rng_state()
    whole = rng.normal(Key(24, "normal"), IDS[:50], shape)
    assert whole.shape == (50, *shape) and whole.dtype == torch.float32 and whole.isfinite().all()
    for row in (0, 49):
        assert torch.equal(rng.normal(Key(24, "normal"), IDS[row : row + 1], shape)[0], whole[row])
    assert torch.equal(torch.get_rng_state(), state)
