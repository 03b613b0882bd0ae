"""One table with every schedule: ends, monotone, precision, inverse, derivative; then the closed forms."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from onpath.schedules import (
    DATA,
    PRIOR,
    BetasSchedule,
    CosineSchedule,
    ExponentialSchedule,
    HalfCosineSchedule,
    LinearSchedule,
    MaskGITCosineSchedule,
    PolynomialSchedule,
    Schedule,
    ShiftedSchedule,
    TabulatedSchedule,
)
from tables import SCHEDULES

GRID = torch.linspace(0, 1, 201, dtype=torch.float64)
INSIDE = GRID[1:-1]
EXACT = {name: schedule for name, schedule in SCHEDULES.items() if schedule.end_points() == (1.0, 0.0)}
# the true bounds of the others, from their constructor
ENDS = {
    "linear .01 .99": (0.99, 0.01),
    "cosine .01 .99": (0.99, 0.01),
    "maskgit .05 .95": (0.95, 0.05),
    "half cosine 0 .9": (0.9, 0.0),
    "half cosine .2 1": (1.0, 0.2),
    "polynomial 3 .1 .7": (0.7, 0.1),
    "exponential": (1.0, 0.01),
    "exponential .01 .99": (0.99, 0.01),
    "tabulated": (0.9, 0.2),
}

table = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])


def test_the_unbounded_schedules_have_exact_ends() -> None:
    assert len(EXACT) >= 7


@pytest.mark.parametrize("schedule", EXACT.values(), ids=EXACT.keys())
@dtypes
def test_unbounded_ends_are_exact(schedule: Schedule, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert schedule.alpha(ends).tolist() == [1.0, 0.0]
    assert schedule.mask_ratio(ends).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ENDS)
@dtypes
def test_bounded_ends_are_the_bounds(name: str, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    exact = torch.tensor(ENDS[name], dtype=dtype)
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(SCHEDULES[name].alpha(ends), exact, rtol=0, atol=precision)
    torch.testing.assert_close(SCHEDULES[name].mask_ratio(ends), 1 - exact, rtol=0, atol=precision)


@table
@dtypes
def test_monotone_and_inside_0_and_1(schedule: Schedule, dtype: torch.dtype) -> None:
    alpha, ratio = schedule.alpha(GRID.to(dtype)), schedule.mask_ratio(GRID.to(dtype))
    assert (alpha.diff() < 0).all() and (ratio.diff() > 0).all()
    for share in (alpha, ratio):
        assert float(share.min()) >= 0.0 and float(share.max()) <= 1.0


@table
def test_shares_add_up_to_1(schedule: Schedule) -> None:
    torch.testing.assert_close(
        schedule.alpha(GRID) + schedule.mask_ratio(GRID), torch.ones_like(GRID), rtol=0, atol=4e-16
    )


@table
def test_pure_states_lie_outside_of_0_and_1(schedule: Schedule) -> None:
    for times in (torch.tensor([PRIOR, DATA]), torch.tensor([1.0001, -0.0001], dtype=torch.float64)):
        assert schedule.alpha(times).tolist() == [0.0, 1.0]
        assert schedule.mask_ratio(times).tolist() == [1.0, 0.0]


@table
@dtypes
def test_inverse(schedule: Schedule, dtype: torch.dtype) -> None:
    t = GRID.to(dtype)
    alpha = schedule.alpha(t)
    back = schedule.t_of(alpha)
    precision = torch.finfo(dtype).eps
    torch.testing.assert_close(schedule.alpha(back), alpha, rtol=0, atol=8 * precision)
    # t itself is known no better than the digits of alpha allow where the curve is flat
    slope = schedule.dalpha(t.clamp(1e-3, 1 - 1e-3)).abs()
    steep = slope > 0.02
    assert ((back - t).abs() <= 40 * precision * (1 + 1 / slope))[steep].all()
    assert steep.double().mean() > 0.7
    assert schedule.t_of(alpha[[0, -1]]).tolist() == pytest.approx([0.0, 1.0], abs=1e-2)


@table
def test_derivative(schedule: Schedule) -> None:
    t = INSIDE.clone().requires_grad_()
    (exact,) = torch.autograd.grad(schedule.alpha(t).sum(), t)
    # at the nodes of a table the left and the right slope differ; a grid of 200 misses the nodes of those used here
    torch.testing.assert_close(schedule.dalpha(INSIDE), exact, rtol=1e-9, atol=1e-12)
    step = 1e-6
    finite = (schedule.alpha(INSIDE + step) - schedule.alpha(INSIDE - step)) / (2 * step)
    torch.testing.assert_close(schedule.dalpha(INSIDE), finite, rtol=2e-3, atol=1e-7)
    (rising,) = torch.autograd.grad(schedule.mask_ratio(t := INSIDE.clone().requires_grad_()).sum(), t)
    torch.testing.assert_close(-schedule.dalpha(INSIDE), rising, rtol=1e-9, atol=1e-12)
    assert (schedule.dalpha(INSIDE) <= 0).all()


@table
def test_derivative_integrates_to_the_difference_of_the_ends(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    middle = (t[1:] + t[:-1]) / 2
    area = schedule.dalpha(middle).sum() / len(middle)
    ends = schedule.end_points()
    assert float(area) == pytest.approx(ends[1] - ends[0], rel=3e-3)


@table
@dtypes
@pytest.mark.parametrize("shape", [(), (5,), (2, 3)], ids=["scalar", "B", "B L"])
def test_shape_dtype_and_device(schedule: Schedule, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    t = torch.full(shape, 0.3, dtype=dtype)
    for function in (schedule.alpha, schedule.mask_ratio, schedule.dalpha, schedule.t_of):
        value = function(schedule.alpha(t) if function == schedule.t_of else t)
        assert (value.shape, value.dtype, value.device) == (t.shape, dtype, t.device)
    assert schedule.alpha(torch.full((0,), 0.3, dtype=dtype)).shape == (0,)


@table
def test_inputs_are_not_changed(schedule: Schedule) -> None:
    t = GRID.clone()
    schedule.alpha(t), schedule.mask_ratio(t), schedule.dalpha(t), schedule.t_of(schedule.alpha(t))
    assert torch.equal(t, GRID)


CLOSED = {
    "linear": (LinearSchedule(), lambda t: 1 - t),
    "cosine": (CosineSchedule(), lambda t: mpmath.cos(mpmath.pi * t / 2) ** 2),
    "maskgit": (MaskGITCosineSchedule(), lambda t: 1 - mpmath.sin(mpmath.pi * t / 2)),
    "half cosine": (HalfCosineSchedule(), lambda t: mpmath.cos(mpmath.pi * t / 2)),
    "polynomial 2": (PolynomialSchedule(power=2.0), lambda t: 1 - t**2),
    "polynomial 0.5": (PolynomialSchedule(power=0.5), lambda t: 1 - mpmath.sqrt(t)),
    "exponential": (ExponentialSchedule(alpha_min=0.01), lambda t: mpmath.mpf(0.01) ** t),
    "exponential .01 .9999": (
        ExponentialSchedule(alpha_min=0.01, alpha_max=0.9999),
        lambda t: mpmath.mpf(0.9999) * (mpmath.mpf(0.01) / mpmath.mpf(0.9999)) ** t,
    ),
    "linear .001 .999": (
        LinearSchedule(alpha_min=0.001, alpha_max=0.999),
        lambda t: mpmath.mpf(0.001) + (mpmath.mpf(0.999) - mpmath.mpf(0.001)) * (1 - t),
    ),
    "shifted linear": (ShiftedSchedule(LinearSchedule(), 3.0), lambda t: 1 - 3 * t / (1 + 2 * t)),
    "shifted half cosine": (
        ShiftedSchedule(HalfCosineSchedule(), 0.5),
        lambda t: 1 - 0.5 * (1 - mpmath.cos(mpmath.pi * t / 2)) / (1 - 0.5 * (1 - mpmath.cos(mpmath.pi * t / 2))),
    ),
}


@pytest.mark.parametrize(("schedule", "alpha"), CLOSED.values(), ids=CLOSED.keys())
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 2**-20])
@dtypes
def test_closed_form_with_all_digits(schedule: Schedule, alpha, t: float, dtype: torch.dtype) -> None:
    """Neither alpha near noise nor the mask ratio near data loses its digits to a subtraction."""
    time = torch.tensor(t, dtype=dtype)
    with mpmath.workdps(50):
        exact = alpha(mpmath.mpf(float(time)))
        # t = 1 - 1e-3 itself has only the digits of 1; what is asked is alpha at the number that t is
        for value, truth in ((schedule.alpha(time), exact), (schedule.mask_ratio(time), 1 - exact)):
            assert abs(mpmath.mpf(float(value)) / truth - 1) < 20 * torch.finfo(dtype).eps


def test_betas_equal_the_product_of_ddpm() -> None:
    for kind, betas in (
        ("linear", [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]),
        ("scaled_linear", [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]),
    ):
        first, last = (1e-4, 0.02) if kind == "linear" else (0.00085, 0.012)
        schedule = BetasSchedule(kind, first, last)
        product, exact = 1.0, []
        for beta in betas:
            product *= 1 - beta
            exact.append(product)
        at_nodes = schedule.alpha(torch.arange(1000, dtype=torch.float64) / 999)
        torch.testing.assert_close(at_nodes, torch.tensor(exact, dtype=torch.float64), rtol=1e-10, atol=0)
        single = schedule.alpha(torch.arange(1000) / 999)
        torch.testing.assert_close(single, torch.tensor(exact), rtol=3e-6, atol=0)


# DDPMScheduler(beta_schedule=kind, beta_start=0.00085, beta_end=0.012).alphas_cumprod at NODES, diffusers 0.36.0, fp32
NODES = [0, 1, 9, 99, 250, 499, 750, 900, 998, 999]
DIFFUSERS = {
    "linear": [
        *(0.999149978, 0.998289526, 0.991034091, 0.869052827, 0.568788052),
        *(0.161812171, 0.0225192253, 0.00493905367, 0.00159814057, 0.00157896278),
    ],
    "scaled_linear": [
        *(0.999149978, 0.998296022, 0.991321087, 0.895462453, 0.673792303),
        *(0.27766943, 0.0561698042, 0.0141511327, 0.00471669575, 0.00466009509),
    ],
}


@pytest.mark.parametrize("kind", DIFFUSERS)
def test_betas_equal_diffusers(kind: str) -> None:
    ours = BetasSchedule(kind, 0.00085, 0.012).alpha(torch.tensor(NODES, dtype=torch.float64) / 999)
    torch.testing.assert_close(ours, torch.tensor(DIFFUSERS[kind], dtype=torch.float64), rtol=1e-5, atol=0)


def test_tabulated_passes_through_its_values_and_stays_between() -> None:
    values = (0.95, 0.8, 0.5, 0.3, 0.02)
    schedule = TabulatedSchedule(values)
    nodes = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(nodes), torch.tensor(values, dtype=torch.float64), rtol=1e-14, atol=0)
    between = schedule.alpha(nodes[:-1] + 0.125)
    logits = torch.tensor(values, dtype=torch.float64).logit()
    torch.testing.assert_close(between, ((logits[1:] + logits[:-1]) / 2).sigmoid())
    torch.testing.assert_close(schedule.t_of(between), nodes[:-1] + 0.125)


def test_shift_is_that_of_esser() -> None:
    sigma = GRID
    shifted = ShiftedSchedule(LinearSchedule(), 3.0).mask_ratio(sigma)
    torch.testing.assert_close(shifted, 3 * sigma / (1 + 2 * sigma))
    torch.testing.assert_close(ShiftedSchedule(CosineSchedule(), 1.0).alpha(GRID), CosineSchedule().alpha(GRID))


def test_signal_to_noise_of_a_shift_scales_by_one_factor() -> None:
    base, shifted = CosineSchedule(), ShiftedSchedule(CosineSchedule(), 4.0)
    ratio = (shifted.alpha(INSIDE) / shifted.mask_ratio(INSIDE)) / (base.alpha(INSIDE) / base.mask_ratio(INSIDE))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.25))


def test_half_way_points() -> None:
    half = torch.tensor(0.5, dtype=torch.float64)
    assert float(CosineSchedule().alpha(half)) == pytest.approx(0.5, abs=1e-15)
    assert float(HalfCosineSchedule().alpha(half)) == pytest.approx(math.sqrt(0.5), abs=1e-15)
    assert float(MaskGITCosineSchedule().alpha(half)) == pytest.approx(1 - math.sqrt(0.5), abs=1e-15)
    assert float(ExponentialSchedule().alpha(half)) == pytest.approx(0.1, abs=1e-15)


REFUSED = {
    "order of bounds": (lambda: LinearSchedule(alpha_min=0.9, alpha_max=0.1), "alpha_min"),
    "equal bounds": (lambda: CosineSchedule(alpha_min=0.5, alpha_max=0.5), "alpha_min"),
    "negative": (lambda: HalfCosineSchedule(alpha_min=-0.1), "alpha_min"),
    "above 1": (lambda: MaskGITCosineSchedule(alpha_max=1.1), "alpha_max"),
    "not a number": (lambda: LinearSchedule(alpha_min=math.nan), "alpha_min"),
    "power 0": (lambda: PolynomialSchedule(power=0.0), "power"),
    "polynomial bounds": (lambda: PolynomialSchedule(alpha_min=2.0), "alpha_min"),
    "exponential to 0": (lambda: ExponentialSchedule(alpha_min=0.0), "alpha_min"),
    "rising table": (lambda: TabulatedSchedule((0.2, 0.5)), "alphas_cumprod"),
    "one value": (lambda: TabulatedSchedule((0.5,)), "alphas_cumprod"),
    "no value": (lambda: TabulatedSchedule(()), "alphas_cumprod"),
    "table from 1": (lambda: TabulatedSchedule((1.0, 0.5)), "alphas_cumprod"),
    "beta_schedule": (lambda: BetasSchedule("cubic"), "linear, scaled_linear"),
    "betas": (lambda: BetasSchedule("linear", 0.02, 1e-4), "beta_start"),
    "one step": (lambda: BetasSchedule(num_steps=1), "num_steps"),
    "shift": (lambda: ShiftedSchedule(LinearSchedule(), 0.0), "shift"),
}


@pytest.mark.parametrize(("make", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_the_field(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
