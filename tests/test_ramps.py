"""Ramps: exact ends, the values in between, and what is refused."""

from __future__ import annotations

import math

import pytest

from onpath.ramps import Constant, CosineRamp, LinearRamp, Piecewise, Ramp, as_ramp
from tables import RAMPS

KINDS = pytest.mark.parametrize("kind", [LinearRamp, CosineRamp], ids=["linear", "cosine"])


@KINDS
def test_ends_are_exact(kind: type) -> None:
    # 0.1 + 1·(0.7 - 0.1) is not 0.7 in floating point: the end must not be computed
    ramp = kind(start=0.1, end=0.7, steps=3)
    assert ramp.value(0) == 0.1
    assert [ramp.value(step) for step in (3, 4, 10**9, 2**62)] == [0.7] * 4
    assert 0.1 < ramp.value(1) < ramp.value(2) < 0.7


@KINDS
def test_no_steps_is_the_end_at_once(kind: type) -> None:
    assert kind(start=1.0, end=0.25, steps=0).value(0) == 0.25


@KINDS
def test_start_step_delays_the_ramp(kind: type) -> None:
    ramp = kind(start=2.0, end=1.0, steps=10, start_step=100)
    assert [ramp.value(step) for step in (0, 99, 100, 110)] == [2.0, 2.0, 2.0, 1.0]
    assert ramp.value(105) == pytest.approx(1.5)


def test_linear_values() -> None:
    # the curriculum of the penalty objective: keep 1.0 to 0.25, correct 0.0 to 0.5 over 1000 steps
    keep, correct = LinearRamp(1.0, 0.25, 1000), LinearRamp(0.0, 0.5, 1000)
    assert [keep.value(step) for step in (0, 250, 500, 1000, 5000)] == [1.0, 0.8125, 0.625, 0.25, 0.25]
    assert [correct.value(step) for step in (0, 250, 500, 1000, 5000)] == [0.0, 0.125, 0.25, 0.5, 0.5]


def test_cosine_values() -> None:
    ramp = CosineRamp(start=0.0, end=1.0, steps=12)
    for step in range(13):
        assert ramp.value(step) == pytest.approx((1 - math.cos(math.pi * step / 12)) / 2, abs=1e-15)


def test_piecewise_values() -> None:
    ramp = Piecewise(knots=((10, 1.0), (20, 3.0), (40, 2.0)))
    assert [ramp.value(step) for step in (0, 10, 15, 20, 30, 40, 99)] == [1.0, 1.0, 2.0, 3.0, 2.5, 2.0, 2.0]
    assert Piecewise(knots=((5, 0.3),)).value(0) == Piecewise(knots=((5, 0.3),)).value(9) == 0.3


def test_a_number_is_a_ramp() -> None:
    assert as_ramp(0.3).value(0) == as_ramp(0.3).value(10**9) == 0.3
    assert as_ramp(1) == Constant(1.0)
    ramp = LinearRamp(0.0, 1.0, 5)
    assert as_ramp(ramp) is ramp


@pytest.mark.parametrize("ramp", RAMPS.values(), ids=RAMPS.keys())
def test_every_ramp_is_a_pure_function_of_the_step_and_settles(ramp: Ramp) -> None:
    assert [ramp.value(step) for step in range(50)] == [ramp.value(step) for step in range(50)]
    assert ramp.value(10**6) == ramp.value(2**62)
    assert all(isinstance(ramp.value(step), float) for step in (0, 7, 10**6))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: LinearRamp(0.0, 1.0, -1), "steps"),
        (lambda: CosineRamp(0.0, 1.0, 5, start_step=-2), "start_step"),
        (lambda: Piecewise(knots=()), "knots"),
        (lambda: Piecewise(knots=((5, 0.0), (5, 1.0))), "rising"),
        (lambda: Piecewise(knots=((5, 0.0), (1, 1.0))), "rising"),
    ],
)
def test_refusals(make, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
