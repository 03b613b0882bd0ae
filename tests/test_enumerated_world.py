"""Two words, three positions, every state enumerated: bounds, samplers and weights against exact numbers.

The network is a lookup table, once the exact posterior of a random joint distribution, once nobody's posterior.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations, pairwise, product

import pytest
import torch
from torch import Tensor

from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking, remask_limit, reveal_chance
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import EvenGrid, ExplicitGrid, Grid, UniformGrid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.remasking import Cap, Loop, RandomRemask, Rescale
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule, Schedule
from onpath.types import Nets
from statistical import assert_mean, chi_square_p
from tables import SCHEDULES
from worlds import Chain, HashDenoiser, TableDenoiser, World

WORLD = World.random(seed=1)
POSTERIOR = WORLD.posterior()
WRONG = WORLD.wrong(seed=2)
TABLES = {"posterior": POSTERIOR, "wrong": WRONG}
LENGTH = WORLD.length
EXACT_ENDS = {name: s for name, s in SCHEDULES.items() if s.end_points() == (1.0, 0.0)}
BOUNDED = {name: s for name, s in SCHEDULES.items() if s.end_points() != (1.0, 0.0)}

exact_ends = pytest.mark.parametrize("schedule", EXACT_ENDS.values(), ids=EXACT_ENDS.keys())
bounded = pytest.mark.parametrize("schedule", BOUNDED.values(), ids=BOUNDED.keys())
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())


def masking(schedule: Schedule) -> Masking:
    return Masking(schedule, WORLD.mask_id)


def subsets() -> list[tuple[int, ...]]:
    return [s for size in range(LENGTH + 1) for s in combinations(range(LENGTH), size)]


def cross_entropies(table: Tensor) -> dict[tuple[int, ...], Tensor]:
    """For each set of masked positions, (V**L,) Σ over it of -log p(x_i | rest) of every clean sequence."""
    x, out = WORLD.sequences, {}
    for subset in subsets():
        z = x.clone()
        z[:, list(subset)] = WORLD.mask_id
        probs = table[WORLD.code(z)].gather(-1, x[..., None])[..., 0]
        out[subset] = -probs.log()[:, list(subset)].sum(-1)
    return out


def expected_sum(ratio: Tensor, table: Tensor) -> Tensor:
    """(T, V**L) E_q Σ_masked CE at the mask ratios (T,)."""
    total = torch.zeros(len(ratio), len(WORLD.joint), dtype=torch.float64)
    for subset, nats in cross_entropies(table).items():
        chance = ratio ** len(subset) * (1 - ratio) ** (LENGTH - len(subset))
        total += chance[:, None] * nats
    return total


def step_bound(process: Masking, times: tuple[float, ...], table: Tensor) -> Tensor:
    """(V**L,) the T-step NELBO of every sequence, from our schedule and reveal probability."""
    t = torch.tensor(times, dtype=torch.float64)
    rho = process.reveal_probability(t[:-1], t[1:])
    return (rho[:, None] * expected_sum(process.schedule.mask_ratio(t[:-1]), table)).sum(0)


def likelihood(process: Masking, times: tuple[float, ...], table: Tensor) -> Tensor:
    """(V**L,) probability of every clean sequence under the T-step model, by its transition matrices."""
    t = torch.tensor(times, dtype=torch.float64)
    chain = Chain(WORLD, table)
    return chain.final([chain.ancestral(float(rho)) for rho in process.reveal_probability(t[:-1], t[1:])])


# --- the continuous bound -------------------------------------------------------------------------------------------


@exact_ends
def test_the_integral_with_the_exact_posterior_is_the_likelihood(schedule: Schedule) -> None:
    """-∫ alpha'/(1 - alpha) E Σ CE dt = -log p(x), by quadrature in the time of each schedule."""
    nodes, weights = gauss_legendre(400)
    # t = s^3 (or more) smooths the singular ends of the curves; the integrand stays the one of the objective
    t, stretch = nodes**4, 4 * nodes**3
    weight = -schedule.dalpha(t) / schedule.mask_ratio(t) * stretch * weights
    bound = (weight[:, None] * expected_sum(schedule.mask_ratio(t), POSTERIOR)).sum(0)
    torch.testing.assert_close(bound, -WORLD.joint.log(), rtol=1e-6, atol=1e-6)


def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1), from the eigenvalues of the Jacobi matrix (Golub and Welsch)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (values + 1) / 2, vectors[0] ** 2


def exact_counts(table: Tensor) -> Tensor:
    """E_{k~U{1..L}} (L/k) E_{|S|=k} Σ CE, every sequence."""
    total = torch.zeros(len(WORLD.joint), dtype=torch.float64)
    for subset, nats in cross_entropies(table).items():
        if subset:
            total += nats / len(subset) / math.comb(LENGTH, len(subset))
    return total


def test_exact_counts_equal_the_integral() -> None:
    torch.testing.assert_close(exact_counts(POSTERIOR), -WORLD.joint.log())
    nodes, weights = gauss_legendre(50)
    integral = ((weights / nodes)[:, None] * expected_sum(nodes, WRONG)).sum(0)
    torch.testing.assert_close(exact_counts(WRONG), integral)


def pairs(table: Tensor, low: int, numerator: int) -> Tensor:
    """E over k uniform in {low..L} and S of size k of half of (n/k)Σ_S CE + (n/(L-k))Σ_Sᶜ CE, every sequence."""
    nats = cross_entropies(table)
    total = torch.zeros(len(WORLD.joint), dtype=torch.float64)
    for subset in subsets():
        if len(subset) < low:
            continue
        rest = tuple(i for i in range(LENGTH) if i not in subset)
        halves = sum(numerator / len(half) * nats[half] for half in (subset, rest) if half)
        total += 0.5 * halves / math.comb(LENGTH, len(subset)) / (LENGTH + 1 - low)
    return total


def test_pairs_are_unbiased_only_with_an_empty_half() -> None:
    torch.testing.assert_close(pairs(WRONG, 0, LENGTH + 1), exact_counts(WRONG))
    torch.testing.assert_close(pairs(POSTERIOR, 0, LENGTH + 1), -WORLD.joint.log())
    # k from 1 to L, weights L/k and L/(L - k): too low for every sequence
    assert (pairs(WRONG, 1, LENGTH) < exact_counts(WRONG) - 0.05).all()
    assert (pairs(POSTERIOR, 1, LENGTH) < -WORLD.joint.log()).any()


@pytest.mark.parametrize(
    ("masks", "name"),
    [("pairs", "linear"), ("counts", "linear"), ("bernoulli", "cosine"), ("bernoulli", "polynomial 2")],
)
@every_table
def test_the_estimator_is_unbiased(masks: str, name: str, table: Tensor) -> None:
    objective = ContinuousNELBO(masking(SCHEDULES[name]), masks=masks)
    estimates = repeat(objective, table, 5, num_batches=80, size=128)
    assert_mean(estimates, float(exact_counts(table)[5]))


def repeat(objective, table: Tensor, index: int, num_batches: int, size: int) -> Tensor:
    """(num_batches,) estimates of nats per sequence for one sequence, each from a batch of `size` copies of it."""
    nets = Nets(TableDenoiser(table))
    batch = WORLD.batch(WORLD.sequences[index].expand(size, -1).contiguous())
    losses = [objective(nets, batch, Key(17, "unbiased", step), step) for step in range(num_batches)]
    assert all(loss.denominator == size * LENGTH for loss in losses)
    return torch.stack([loss.numerator for loss in losses]) / size


# --- the T-step bound -----------------------------------------------------------------------------------------------

GRIDS: dict[str, Grid] = {
    "one step": UniformGrid(1),
    "uniform 3": UniformGrid(3),
    "even 4": EvenGrid(4),
    "explicit": ExplicitGrid((1.0, 0.8, 0.3, 0.25, 0.0)),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())


@every_schedule
@every_grid
@every_table
def test_step_bound_is_above_the_likelihood_of_the_step_model(schedule: Schedule, grid: Grid, table: Tensor) -> None:
    process = masking(schedule)
    times = grid.times(schedule)
    bound, probability = step_bound(process, times, table), likelihood(process, times, table)
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
    assert (bound >= -probability.log() - 1e-9).all()


@bounded
@pytest.mark.parametrize("steps", [1, 3, 50])
def test_with_bounds_the_number_stays_above_the_entropy(schedule: Schedule, steps: int) -> None:
    """With the exact posterior the mean of the bound is above the entropy; without its end terms it falls below."""
    process, entropy = masking(schedule), float(-(WORLD.joint * WORLD.joint.log()).sum())
    times = UniformGrid(steps).times(schedule)
    assert float((WORLD.joint * step_bound(process, times, POSTERIOR)).sum()) >= entropy - 1e-9
    if steps == 50:
        bare = float((WORLD.joint * step_bound(process, UniformGrid(steps).inner(schedule), POSTERIOR)).sum())
        at_data, at_noise = schedule.end_points()
        assert bare < entropy or (at_noise < 0.011 and at_data > 0.9899)


@every_schedule
def test_a_fine_grid_converges_to_the_likelihood(schedule: Schedule) -> None:
    """Also with bounds, since the first and the last step are in the sum: -log p(x) + what a coarse end costs."""
    process = masking(schedule)
    coarse = step_bound(process, UniformGrid(20).times(schedule), WRONG)
    fine = step_bound(process, UniformGrid(640).times(schedule), WRONG)
    finer = step_bound(process, UniformGrid(1280).times(schedule), WRONG)
    assert ((fine - finer).abs() < (coarse - finer).abs() / 8).all()
    if schedule.end_points() == (1.0, 0.0):
        torch.testing.assert_close(finer, exact_counts(WRONG), rtol=0, atol=0.05)


@pytest.mark.parametrize("name", ["linear", "cosine", "maskgit", "cosine .01 .99", "exponential", "tabulated"])
@every_table
def test_trajectory_identity(name: str, table: Tensor) -> None:
    """E_q[log q(z_1..z_T | x) - log p(z_0..z_T)] over every trajectory = T-step NELBO = brute-force KL terms."""
    schedule = SCHEDULES[name]
    process = masking(schedule)
    times = torch.tensor(UniformGrid(3).times(schedule), dtype=torch.float64)
    ratio = process.schedule.mask_ratio(times).flip(0)  # from data to noise
    moves = Chain(WORLD, table)
    backward = [moves.ancestral(float(r)) for r in process.reveal_probability(times[:-1], times[1:])][::-1]
    ours = step_bound(process, tuple(times.tolist()), table)
    for index, x in enumerate(WORLD.sequences):
        total = 0.0
        for path, q in trajectories(x, ratio):
            log_p = sum(math.log(float(backward[j][path[j + 1], path[j]])) for j in range(len(path) - 1))
            total += q * (math.log(q) - log_p)
        assert total == pytest.approx(float(ours[index]), rel=1e-9)


def trajectories(x: Tensor, ratio: Tensor) -> list[tuple[list[int], float]]:
    """Every path z_0 = x, …, z_T = all masked with its probability: each position is masked at one step and stays."""
    first = [float(b - a) for a, b in pairwise(ratio.tolist())]
    paths = []
    for masked_from in product(range(1, len(ratio)), repeat=LENGTH):
        q = math.prod(first[step - 1] for step in masked_from)
        if q <= 0:
            continue
        moves = list(zip(x, masked_from, strict=True))
        states = [
            torch.tensor([WORLD.mask_id if step >= begin else int(word) for word, begin in moves])
            for step in range(len(ratio))
        ]
        paths.append(([int(WORLD.code(z)) for z in states], q))
    assert sum(q for _, q in paths) == pytest.approx(1.0)
    return paths


@pytest.mark.parametrize("name", ["linear", "half cosine", "maskgit .05 .95", "betas linear"])
@every_table
def test_step_formula_is_the_brute_force_kl(name: str, table: Tensor) -> None:
    """Σ_j E_q KL(q(z_s | z_t, x) ‖ p(z_s | z_t)), the posterior by Bayes from the forward kernel, to 6 digits."""
    schedule = SCHEDULES[name]
    process, times = masking(schedule), UniformGrid(4).times(schedule)
    ours = step_bound(process, times, table)
    alpha = process.schedule.alpha(torch.tensor(times, dtype=torch.float64)).tolist()
    chain, states, mask = Chain(WORLD, table), WORLD.states.tolist(), WORLD.mask_id

    def forward(z: list[int], clean: list[int], keep: float) -> float:
        """q(z | clean) when each unmasked position keeps its token with probability `keep`."""
        return math.prod(
            1.0 if c == mask and s == mask else keep if s == c else 1 - keep if s == mask else 0.0
            for s, c in zip(z, clean, strict=True)
        )

    rho = process.reveal_probability(torch.tensor(times[:-1]).double(), torch.tensor(times[1:]).double())
    reverse = [chain.ancestral(float(r)) for r in rho]
    for index in (0, 3, 6):
        x, total = WORLD.sequences[index].tolist(), 0.0
        for step, (at_t, at_s) in enumerate(pairwise(alpha)):
            for i, z_t in enumerate(states):
                for j, z_s in enumerate(states):
                    keep = at_t / at_s if at_s else 0.0
                    joint = forward(z_s, x, at_s) * forward(z_t, z_s, keep)
                    if joint > 1e-300:
                        posterior = joint / forward(z_t, x, at_t)
                        total += joint * math.log(posterior / float(reverse[step][i, j]))
        assert total == pytest.approx(float(ours[index]), rel=1e-6)


@pytest.mark.parametrize("name", ["cosine", "tabulated"])
@pytest.mark.parametrize("sampled", [0, 1, 2, 3])
def test_sampled_steps_are_unbiased(name: str, sampled: int) -> None:
    schedule, grid = SCHEDULES[name], UniformGrid(5)
    process = masking(schedule)
    objective = TrajectoryNELBO(process, grid, steps_per_example=sampled)
    expected = step_bound(process, grid.times(schedule), WRONG)
    assert_mean(repeat(objective, WRONG, 5, num_batches=60, size=128), float(expected[5]))


@pytest.mark.parametrize("name", ["linear", "maskgit", "tabulated"])
@pytest.mark.parametrize("sampled", [0, 2])
def test_bound_of_the_sampler_with_fixed_counts(name: str, sampled: int) -> None:
    """Weight n_j/|M_j|; against the trajectories of that sampler, of which q is uniform over the subsets."""
    schedule, grid = SCHEDULES[name], UniformGrid(4)
    process = masking(schedule)
    counts = masked_counts(process, grid)
    nats, index = cross_entropies(WRONG), 5
    expected = 0.0
    for before, after in pairwise(counts):
        for subset in combinations(range(LENGTH), before):
            if before:
                weight = (before - after) / before / math.comb(LENGTH, before)
                expected += weight * float(nats[subset][index])
    chain = Chain(WORLD, WRONG)
    exact = chain.final([chain.fixed(before - after) for before, after in pairwise(counts)])
    assert expected >= -math.log(float(exact[index])) - 1e-9
    objective = TrajectoryNELBO(process, grid, steps_per_example=sampled, fixed_counts=True)
    assert_mean(repeat(objective, WRONG, index, num_batches=60, size=128), expected)


def masked_counts(process: Masking, grid: Grid) -> list[int]:
    """Masked positions of a row at every time of the grid, as the schedule asks: L·(1 - alpha), rounded."""
    ratio = process.schedule.mask_ratio(torch.tensor(grid.times(process.schedule), dtype=torch.float64))
    return [math.floor(LENGTH * float(r) + 0.5 - 1e-9) for r in ratio]


# --- the samplers ---------------------------------------------------------------------------------------------------


def frequencies(sampler: Unmasking, table: Tensor, schedule: Schedule, grid: Grid, count: int = 20_000) -> Tensor:
    """(V**L,) how often each sequence was drawn."""
    batch = WORLD.batch(torch.zeros(count, LENGTH, dtype=torch.int64))
    x = sample(TableDenoiser(table), masking(schedule), sampler, grid, batch, Key(23, "draws")).x
    base = WORLD.num_words ** torch.arange(LENGTH - 1, -1, -1)
    return torch.bincount((x * base).sum(-1), minlength=len(WORLD.joint))


@pytest.mark.parametrize("name", ["linear", "cosine", "half cosine", "cosine .01 .99", "exponential", "tabulated"])
@every_table
def test_ancestral_samples_follow_the_step_model(name: str, table: Tensor) -> None:
    schedule, grid = SCHEDULES[name], UniformGrid(3)
    observed = frequencies(Unmasking(count=AncestralCount()), table, schedule, grid)
    expected = likelihood(masking(schedule), grid.times(schedule), table)
    assert chi_square_p(observed, expected * observed.sum()) > 1e-4
    # and not the distribution of the data, which three steps do not reach: the test can tell them apart
    assert chi_square_p(observed, WORLD.joint * observed.sum()) < 1e-6


@pytest.mark.parametrize("name", ["linear", "maskgit", "cosine .01 .99", "tabulated"])
def test_ancestral_states_have_the_marginals_of_the_forward_process(name: str) -> None:
    """At every time of the grid the number of masked positions is binomial with the mask ratio of the schedule."""
    process, count, length = masking(SCHEDULES[name]), 4000, 12
    batch = WORLD.batch(torch.zeros(count, length, dtype=torch.int64))
    times = UniformGrid(4).times(process.schedule)
    sampler = Unmasking(count=AncestralCount())
    states = walk(HashDenoiser(WORLD.num_words), process, sampler, UniformGrid(4), batch, Key(29, "marginals"))
    for time, state in zip(times, states, strict=True):
        ratio = float(process.schedule.mask_ratio(torch.tensor(time, dtype=torch.float64)))
        share = state.masked.double().mean()
        error = (ratio * (1 - ratio) / (count * length)) ** 0.5
        assert abs(float(share) - ratio) <= 4 * error
        variance = length * ratio * (1 - ratio)
        assert float(state.masked.sum(1).double().var()) == pytest.approx(variance, rel=0.1)


@pytest.mark.slow
def test_many_steps_reach_the_distribution_of_the_data() -> None:
    observed = frequencies(Unmasking(count=AncestralCount()), POSTERIOR, LinearSchedule(), UniformGrid(300), 8_000)
    assert chi_square_p(observed, WORLD.joint * observed.sum()) > 1e-4


@pytest.mark.parametrize("name", ["maskgit", "tabulated"])
@every_table
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_fixed_counts_in_random_order_follow_their_model(name: str, table: Tensor, steps: int) -> None:
    process, grid = masking(SCHEDULES[name]), UniformGrid(steps)
    chain, counts = Chain(WORLD, table), masked_counts(process, grid)
    expected = chain.final([chain.fixed(before - after) for before, after in pairwise(counts)])
    observed = frequencies(Unmasking(), table, SCHEDULES[name], grid)
    assert chi_square_p(observed, expected * observed.sum()) > 1e-4


def test_one_at_a_time_with_the_posterior_is_exact_in_every_order() -> None:
    for order in ("random", "left_to_right"):
        observed = frequencies(Unmasking(order=order), POSTERIOR, LinearSchedule(), UniformGrid(LENGTH))
        assert chi_square_p(observed, WORLD.joint * observed.sum()) > 1e-4


def test_guidance_of_weight_0_is_no_guidance() -> None:
    process, grid, count = masking(LinearSchedule()), UniformGrid(3), 500
    x = torch.zeros(count, LENGTH, dtype=torch.int64)
    batch = WORLD.batch(x)
    batch = type(batch).of_tokens(x, batch.ids, cond={"c": torch.linspace(-1, 1, count)})
    network = TableDenoiser(WRONG, shift=2.0)
    for sampler in (Unmasking(), Unmasking(order="confidence"), Unmasking(count=AncestralCount())):
        plain = sample(network, process, sampler, grid, batch, Key(3))
        both = sample(network, process, sampler, grid, batch, Key(3), Knobs(guidance=torch.zeros(count)))
        assert torch.equal(plain.x, both.x) and torch.equal(plain.revealed_at, both.revealed_at)
        assert torch.equal(2 * plain.num_forwards, both.num_forwards)


def test_guidance_follows_its_formula() -> None:
    """One step from all masked: p ∝ p_cond^(1+w) p_uncond^-w at each position, independently."""
    process, count, weight = masking(LinearSchedule()), 40_000, 1.5
    x = torch.zeros(count, LENGTH, dtype=torch.int64)
    batch = type(WORLD.batch(x)).of_tokens(x, torch.arange(count), cond={"c": torch.full((count,), 0.4)})
    network = TableDenoiser(WRONG, shift=1.0)
    out = sample(network, process, Unmasking(guidance=weight), UniformGrid(1), batch, Key(4)).x
    bare = WRONG[-1].log()
    tilted = bare + 0.4 * torch.arange(WORLD.num_words)
    probs = ((1 + weight) * tilted.log_softmax(-1) - weight * bare).softmax(-1)
    for position in range(LENGTH):
        counts = torch.bincount(out[:, position], minlength=WORLD.num_words)
        assert chi_square_p(counts, probs[position] * count) > 1e-4


# --- remasking and blocks -------------------------------------------------------------------------------------------

RULES: dict[str, RandomRemask] = {"cap": Cap(0.3), "rescale": Rescale(0.5), "loop": Loop(alpha=0.6, hold=0.3)}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


def remasking_steps(rule: RandomRemask, process: Masking, grid: Grid) -> list[tuple[float, float]]:
    """(chance of a reveal, sigma) of every step, by the rule."""
    steps = []
    for t, s in pairwise(grid.times(process.schedule)):
        times = (torch.tensor([t], dtype=torch.float64), torch.tensor([s], dtype=torch.float64))
        before, after = (rule.mask_ratio(process.schedule, time) for time in times)
        sigma = rule.sigma(remask_limit(before, after), torch.ones(1, dtype=torch.float64), times)
        steps.append((float(reveal_chance(before, after, sigma)), float(sigma)))
    return steps


@pytest.mark.parametrize("name", ["linear", "maskgit", "cosine .01 .99", "tabulated"])
def test_remasking_by_0_is_the_ancestral_matrix(name: str) -> None:
    process, grid, chain = masking(SCHEDULES[name]), UniformGrid(4), Chain(WORLD, WRONG)
    times = torch.tensor(grid.times(process.schedule), dtype=torch.float64)
    plain = process.reveal_probability(times[:-1], times[1:])
    for (reveal, sigma), rho in zip(remasking_steps(Cap(0.0), process, grid), plain, strict=True):
        assert sigma == 0.0
        torch.testing.assert_close(chain.remasked(reveal, sigma), chain.ancestral(float(rho)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["linear", "maskgit", "cosine .01 .99", "tabulated"])
@every_rule
def test_remasking_keeps_the_marginals_of_every_time(rule: RandomRemask, name: str) -> None:
    """From q(z_t | x), a step with the truth as the network leads to q(z_s | x), every state of the world."""
    process, grid = masking(SCHEDULES[name]), UniformGrid(9)
    if isinstance(rule, Loop) and process.schedule.end_points()[0] <= rule.alpha:
        pytest.skip("the schedule never takes this alpha")
    x = WORLD.sequences[5]
    truth = torch.nn.functional.one_hot(x, WORLD.num_words).double().expand(len(WORLD.states), -1, -1)
    chain, times = Chain(WORLD, truth), grid.times(process.schedule)

    def marginal(time: float) -> Tensor:
        ratio = float(rule.mask_ratio(process.schedule, torch.tensor([time], dtype=torch.float64)))
        chances = torch.where(WORLD.states == WORLD.mask_id, ratio, torch.where(WORLD.states == x, 1 - ratio, 0.0))
        return chances.double().prod(1)

    some = 0
    for (t, s), (reveal, sigma) in zip(pairwise(times), remasking_steps(rule, process, grid), strict=True):
        matrix = chain.remasked(reveal, sigma)
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix), dtype=torch.float64))
        torch.testing.assert_close(marginal(t) @ matrix, marginal(s), rtol=0, atol=1e-6)
        some += sigma > 0
    assert some >= 2


@every_rule
@every_table
def test_remasking_samples_follow_their_chain(rule: RandomRemask, table: Tensor) -> None:
    schedule, grid, chain = SCHEDULES["maskgit"], UniformGrid(6), Chain(WORLD, table)
    steps = remasking_steps(rule, masking(schedule), grid)
    expected = chain.final([chain.remasked(reveal, sigma) for reveal, sigma in steps])
    observed = frequencies(Unmasking(count=AncestralCount(), remask=rule), table, schedule, grid)
    assert chi_square_p(observed, expected * observed.sum()) > 1e-4
    if table is WRONG:  # and not that of the sampler without remasking: the test can tell them apart
        plain = likelihood(masking(schedule), grid.times(schedule), table)
        assert chi_square_p(observed, plain * observed.sum()) < 1e-3


@every_table
def test_fixed_counts_with_remasking_follow_their_chain(table: Tensor) -> None:
    """Numbers that are fixed but for the draw between two: a mixture of exchanges."""
    process, grid, rule, chain = masking(LinearSchedule()), UniformGrid(3), Cap(0.45), Chain(WORLD, table)
    counts, matrices = masked_counts(process, grid), []
    for (before, after), (_, sigma) in zip(pairwise(counts), remasking_steps(rule, process, grid), strict=True):
        shown = LENGTH - before
        mean = sigma * shown
        low, share = int(mean), mean - int(mean)
        parts = [(low, 1 - share), (low + 1, share)]
        matrix = torch.zeros(len(WORLD.states), len(WORLD.states), dtype=torch.float64)
        for number, weight in parts:
            again = min(number, shown, after)
            matrix += weight * chain.exchanged(before - after + again, again)
        matrices.append(matrix)
    observed = frequencies(Unmasking(remask=rule), table, LinearSchedule(), grid)
    assert chi_square_p(observed, chain.final(matrices) * observed.sum()) > 1e-4


@every_table
def test_blocks_of_one_are_the_autoregressive_model(table: Tensor) -> None:
    observed = frequencies(Unmasking(blocks=Blocks(1)), table, LinearSchedule(), UniformGrid(LENGTH))
    expected = torch.ones(len(WORLD.sequences), dtype=torch.float64)
    for position in range(LENGTH):
        state = WORLD.sequences.clone()
        state[:, position:] = WORLD.mask_id
        chance = table[WORLD.code(state), position].gather(1, WORLD.sequences[:, position : position + 1])[:, 0]
        expected = expected * chance
    assert chi_square_p(observed, expected * observed.sum()) > 1e-4
    if table is POSTERIOR:
        torch.testing.assert_close(expected, WORLD.joint)


def test_a_block_as_long_as_the_sequence_is_the_plain_sampler() -> None:
    batch = WORLD.batch(torch.zeros(2000, LENGTH, dtype=torch.int64))
    for sampler in (Unmasking(), Unmasking(count=AncestralCount()), Unmasking(order="confidence", remask=Cap(0.4))):
        plain, blocks = (
            sample(TableDenoiser(WRONG), masking(SCHEDULES["maskgit"]), made, UniformGrid(4), batch, Key(8))
            for made in (sampler, dataclasses.replace(sampler, blocks=Blocks(LENGTH)))
        )
        assert torch.equal(plain.x, blocks.x) and torch.equal(plain.revealed_at, blocks.revealed_at)
