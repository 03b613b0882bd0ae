"""Distances of sets of images against closed forms, direct sums and sets that were made for the purpose."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onpath.evaluation.distances import copies, frechet, kernel_distance, nearest, precision_recall


def draws(n: int, dim: int, seed: int) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_moments(mean: Tensor, cov: Tensor, n: int = 200, seed: int = 0) -> Tensor:
    """A set whose mean and covariance are exactly these."""
    x = draws(n, len(mean), seed)
    x = x - x.mean(0)
    spread = torch.linalg.cholesky(x.T @ x / (n - 1))
    return torch.linalg.solve_triangular(spread, x.T, upper=False).T @ torch.linalg.cholesky(cov).T + mean


def covariance(dim: int, seed: int) -> Tensor:
    factor = draws(dim, dim, seed)
    return factor @ factor.T + 0.1 * torch.eye(dim, dtype=torch.float64)


def test_frechet_of_diagonal_gaussians_is_the_closed_form() -> None:
    means, scales = draws(2, 6, 0), draws(2, 6, 1).abs() + 0.1
    one, other = (with_moments(means[i], scales[i].square().diag(), 300, seed=i) for i in (0, 1))
    wanted = (means[0] - means[1]).square().sum() + (scales[0] - scales[1]).square().sum()
    assert frechet(one, other) == pytest.approx(float(wanted), rel=1e-10)


def test_frechet_of_full_covariances_is_that_of_the_product_of_both() -> None:
    """The eigenvalues of S1·S2, which is not symmetric, have the roots whose sum is the trace."""
    for dim in (2, 16):
        first, second = covariance(dim, 2), covariance(dim, 3)
        means = draws(2, dim, 4)
        roots = torch.linalg.eigvals(first @ second).real.sqrt().sum()
        wanted = (means[0] - means[1]).square().sum() + first.trace() + second.trace() - 2 * roots
        found = frechet(with_moments(means[0], first), with_moments(means[1], second, seed=9))
        assert found == pytest.approx(float(wanted), rel=1e-9)


def test_frechet_of_two_dimensions_with_full_covariances() -> None:
    """There the sum of the roots is √(tr(S1·S2) + 2·√(det S1·det S2))."""
    first, second = covariance(2, 5), covariance(2, 6)
    cross = ((first @ second).trace() + 2 * (first.det() * second.det()).sqrt()).sqrt()
    zero = torch.zeros(2, dtype=torch.float64)
    wanted = float(first.trace() + second.trace() - 2 * cross)
    assert frechet(with_moments(zero, first), with_moments(zero, second, seed=1)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("distance", [frechet, lambda one, other: kernel_distance(one, other)[0]])
def test_distances_do_not_change_under_rotation_order_or_exchange(distance: Callable[[Tensor, Tensor], float]) -> None:
    one, other = draws(80, 5, 0), draws(60, 5, 1) * 1.5 + 0.3
    turn = torch.linalg.qr(draws(5, 5, 2)).Q
    wanted = distance(one, other)
    assert distance(other, one) == pytest.approx(wanted, rel=1e-9)
    assert distance(one @ turn, other @ turn) == pytest.approx(wanted, rel=1e-9)
    assert distance(one.flip(0), other.roll(7, 0)) == pytest.approx(wanted, rel=1e-9)
    assert distance(one, other + 2.0) > wanted


def test_frechet_moves_with_the_mean_and_is_zero_of_a_set_and_itself() -> None:
    one = draws(50, 4, 0)
    assert frechet(one, one) == pytest.approx(0.0, abs=1e-12)
    assert frechet(one, one.flip(0) + 1.0) == pytest.approx(4.0, rel=1e-9)
    assert frechet(one.float() * 3.0, one.float() * 3.0) == pytest.approx(0.0, abs=1e-6)


def test_frechet_of_fewer_images_than_dimensions() -> None:
    """The covariance is singular then, which an inverse would not survive."""
    one, other = draws(6, 20, 0), draws(7, 20, 1)
    assert math.isfinite(frechet(one, other)) and frechet(one, one) == pytest.approx(0.0, abs=1e-9)


def test_kernel_distance_equals_a_double_loop() -> None:
    one, other = draws(23, 3, 0).float(), draws(31, 3, 1).float() + 0.4

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x.double() @ y.double()) / 3 + 1) ** 3

    within = [
        sum(kernel(x, y) for i, x in enumerate(part) for j, y in enumerate(part) if i != j)
        / (len(part) * (len(part) - 1))
        for part in (one, other)
    ]
    between = sum(kernel(x, y) for x in one for y in other) / (len(one) * len(other))
    assert kernel_distance(one, other)[0] == pytest.approx(within[0] + within[1] - 2 * between, rel=1e-9)


def test_kernel_distance_is_unbiased_and_its_error_is_honest() -> None:
    """Over many pairs of equal distributions the mean is 0, and the spread no more than the errors say."""
    found = [kernel_distance(draws(60, 4, 2 * i), draws(60, 4, 2 * i + 1)) for i in range(300)]
    values, errors = torch.tensor(found).T
    spread = float(values.std())
    assert abs(float(values.mean())) < 4 * spread / math.sqrt(len(found))
    assert spread < 1.1 * float(errors.square().mean().sqrt())
    assert any(value < 0 for value, _ in found)


def test_blocks_of_the_kernel_distance_do_not_follow_the_labels() -> None:
    """Sets whose classes come one after the other, or in turn, have the same classes in every block."""
    classes = torch.arange(10, dtype=torch.float64)[:, None] * 3.0
    noise = draws(200, 1, 0) * 0.1
    in_turn, in_a_row = classes.repeat(20, 1) + noise, classes.repeat_interleave(20, 0) + noise
    for one in (in_turn, in_a_row):
        mixed = one[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
        wanted = kernel_distance(mixed, mixed + 1.0)[1]
        assert 0.3 < kernel_distance(one, one + 1.0)[1] / wanted < 3.0


def test_sets_that_are_too_small_are_refused_or_have_no_error() -> None:
    one = draws(1, 3, 0)
    for measure in (frechet, kernel_distance, precision_recall):
        with pytest.raises(ValueError, match="needed"):
            measure(one, draws(30, 3, 1))
    assert math.isnan(kernel_distance(draws(12, 3, 0), draws(12, 3, 1))[1])


def grid(side: int = 12) -> Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()


def test_precision_and_recall_of_sets_made_for_it() -> None:
    """Points on a grid lie within it, points far off do not; half of a grid covers half of it."""
    real = grid()
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 1000.0) == (0.0, 0.0)
    half = real[real[:, 0] < 6] + 0.25
    precision, recall = precision_recall(real, half)
    assert precision == 1.0 and 0.5 <= recall < 0.7
    precision, recall = precision_recall(half, real)
    assert 0.5 <= precision < 0.7 and recall == 1.0
    spread = torch.cat([real, real + 1000.0])
    assert precision_recall(real, spread) == (0.5, 1.0)


def test_precision_equals_a_count_by_hand() -> None:
    real, made = draws(40, 3, 0), draws(30, 3, 1) * 1.4
    inside = 0
    for point in made:
        radii = [float((other - real).norm(dim=1).sort().values[3]) for other in real]
        inside += any(float((point - other).norm()) <= radius for other, radius in zip(real, radii, strict=True))
    assert 0 < inside < 30 and precision_recall(real, made)[0] == inside / 30


def test_nearest_is_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import onpath.evaluation.distances as distances

    points, cloud = draws(37, 5, 0), draws(53, 5, 1)
    wanted = (points[:, None] - cloud).norm(dim=2).sort(dim=1).values[:, :4]
    whole = precision_recall(points, cloud)
    for rows, columns in ((512, 8192), (10, 3), (37, 53)):
        monkeypatch.setattr(distances, "_ROWS", rows)
        monkeypatch.setattr(distances, "_COLUMNS", columns)
        torch.testing.assert_close(nearest(points, cloud, 4), wanted, rtol=1e-6, atol=1e-6)
        assert precision_recall(points, cloud) == whole


def test_planted_copies_are_found_and_nothing_else() -> None:
    training, fresh = draws(400, 64, 0).view(-1, 1, 8, 8).float(), draws(60, 64, 1).view(-1, 1, 8, 8).float()
    planted = training[:20] + 0.1 * draws(20, 64, 2).view(-1, 1, 8, 8).float()
    found = copies(torch.cat([training[20:40], planted, fresh]), training)
    assert found.copied.tolist() == [True] * 40 + [False] * 60
    assert found.ratio[:20].max() < 1e-5 and 0 < found.ratio[20:40].max() < 0.2 and found.ratio[40:].min() > 0.7


def test_an_image_that_is_near_to_many_is_no_copy() -> None:
    """A plain one, in a crowd of plain ones, is nearer to its neighbours than a copy of a rare one is to its own."""
    crowd, rare = 0.1 * draws(300, 16, 0), 10.0 * draws(300, 16, 1)
    plain, copy = 0.1 * draws(1, 16, 2), rare[:1] + 0.3 * draws(1, 16, 3)
    training = torch.cat([crowd, rare])
    found = copies(torch.cat([plain, copy]), training)
    distances = nearest(torch.cat([plain, copy]), training, 1)[:, 0]
    assert distances[0] < distances[1] and found.copied.tolist() == [False, True]


def test_copies_among_training_images_that_are_all_the_same() -> None:
    same = torch.ones(5, 1, 2, 2)
    assert copies(torch.cat([same[:1], -same[:1]]), same).copied.tolist() == [True, False]
    with pytest.raises(ValueError, match="2 or more"):
        copies(same, same[:1])
