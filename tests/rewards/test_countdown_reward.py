"""Countdown against every expression of three numbers, against Python's own arithmetic, and against attacks."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onpath.rewards.countdown import Countdown, evaluate

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

ATTACKS = {
    "power": "99**98**97",
    "spaced power": "99* *98* *97",
    "floor": "7//2",
    "deep": "(" * 10_000 + "1" + ")" * 10_000,
    "open": "(" * 10_000,
    "just too deep": "(" * 17 + "1" + ")" * 17,
    "unbalanced": "1+(" * 16,
    "arabic digits": "٣+٤",
    "superscript": "3²+1",
    "full-width digits": "１+２",  # noqa: RUF001
    "10 kB": "1+" * 5_000 + "1",
    "10 kB of digits": "9" * 10_000,
    "10 kB of tags": "<answer>" * 1_250,
    "10 kB of closed tags": "<answer></answer>" * 600,
    "10 kB of signs": "-" * 10_000 + "1",
    "underscore": "1_0+2",
    "hexadecimal": "0x10+1",
    "exponent": "1e9",
    "float": "1.5*2",
    "complex": "1j*2",
    "truth": "True+2",
    "truth, spelled": "(1==1)+2",
    "attribute": "(1).__class__",
    "call": "1(2)",
    "import": "__import__('os').system('true')",
    "lambda": "(lambda: 3)()",
    "list": "[3][0]",
    "tuple": "1,2",
    "comparison": "1<2",
    "assignment": "x:=3",
    "tower of signs": "-----1",
    "signed": "-1+4",
    "invert": "~1",
    "division by zero": "1/0",
    "hidden division by zero": "1/(2-2)",
    "empty": "",
    "blank": " \n ",
    "empty answer": "1+2 <answer></answer>",
    "equation without a left side": "=3",
    "leading zero": "01+2",
    "two numbers": "1 2",
    "two lines": "1\n2",
    "comment": "1+2 # 3",
    "continued": "1 \\\n+ 2",
    "zero byte": "1+\x002",
    "lone surrogate": "1+\ud800",
    "empty parentheses": "()",
    "words": "one plus two",
    "many numbers": "1+" * 40 + "1",
    "thirteen digits": "1234567890123-1234567890120",
}

BUDGET_S = 1e-3
COUNTDOWN = Countdown()


def judged(completion: str, numbers: list[int], target: int, reward: Countdown = COUNTDOWN) -> float:
    return reward(prompts=[""], completions=[completion], completion_ids=[[]], numbers=[numbers], target=[target])[0]


def expressions(numbers: list[int]) -> Iterator[tuple[str, Fraction]]:
    """Every expression that uses three numbers once, with its value; those that divide by zero left out."""
    for (a, b, c), (f, g) in product(permutations(numbers), product(OPERATORS, repeat=2)):
        x, y, z = map(Fraction, (a, b, c))
        with suppress(ZeroDivisionError):
            yield f"({a} {f} {b}) {g} {c}", OPERATORS[g](OPERATORS[f](x, y), z)
        with suppress(ZeroDivisionError):
            yield f"{a} {f} ({b} {g} {c})", OPERATORS[f](x, OPERATORS[g](y, z))


@pytest.mark.parametrize(("numbers", "target"), [([3, 5, 2], 21), ([8, 3, 3], 8), ([1, 2, 3], 6), ([7, 7, 7], 8)])
def test_all_expressions_of_three_numbers(numbers: list[int], target: int) -> None:
    found = dict(expressions(numbers))
    assert len(found) > 30 and target in found.values()
    for text, value in found.items():
        assert judged(text, numbers, target) == (1.0 if value == target else 0.1), text


@given(
    st.recursive(
        st.integers(0, 10**6).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: "(" + " ".join(parts) + ")"),
        max_leaves=8,
    )
)
def test_values_are_those_of_python(text: str) -> None:
    try:
        value = eval(text)
    except ZeroDivisionError:
        assert evaluate(text) is None or value_is_nearly_zero(text)
        return
    found = evaluate(text)
    if found is not None:  # else one too deep, or an exact zero that floats miss
        assert float(found[0]) == pytest.approx(value, rel=1e-6, abs=1e-6)


def value_is_nearly_zero(text: str) -> bool:
    """Floats may divide by a zero that is none in exact arithmetic; then the exact value is huge."""
    found = evaluate(text)
    return found is not None and abs(found[0]) > 1e6


def test_arithmetic_is_exact() -> None:
    assert judged("(1/3 + 1/3 + 1/3) * 7", [1, 1, 1, 3, 3, 3, 7], 7) == 1.0
    assert judged("8 / (3 - 8/3)", [8, 3, 8, 3], 24) == 1.0
    assert judged("999999999999/1000000000000", [999999999999, 10**12], 1) == 0.0  # one has thirteen digits
    assert judged("99999999999/100000000000", [99999999999, 10**11], 1) == 0.1


@pytest.mark.parametrize(
    "text",
    [
        "55 + 36 - 7",
        "55+36-7=84",
        "<answer>55 + 36 − 7</answer>",
        "First 55 + 36 = 91.\n<answer>\n  (55 + 36)\n - 7\n</answer>\nDone",
        "<answer>1</answer><answer>55 + 36 - 7 = 84</answer>",
        "(((55)) + 36) - 7",
    ],
)
def test_where_an_expression_may_stand(text: str) -> None:
    assert judged(text, [7, 36, 55], 84) == 1.0
    assert judged(text, [7, 36, 55], 85) == 0.1


def test_signs_as_people_write_them() -> None:
    assert judged("6 × 8 ÷ 2 − 4", [6, 8, 2, 4], 20) == judged("6 · 8 / 2 – 4", [6, 8, 2, 4], 20) == 1.0


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("3 * 7", [3, 7, 1]), ("3 * 7 * 1 * 1", [3, 7, 1]), ("21", [3, 7]), ("20 + 1", [3, 7]), ("3 * 7", [3, 3, 7])],
)
def test_every_number_is_used_once(text: str, numbers: list[int]) -> None:
    assert judged(text, numbers, 21) == 0.1


def test_scales_are_honoured() -> None:
    reward = Countdown(correct=3.0, format=-0.5)
    assert [judged(text, [3, 7], 21, reward) for text in ("3*7", "3+7", "3**7")] == [3.0, -0.5, 0.0]


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_scores_nothing_in_under_a_millisecond(text: str) -> None:
    """The best of many tries, so that a busy machine does not fail it; a text that hangs fails it on any machine."""
    best = float("inf")
    for _ in range(50):
        began = time.perf_counter()
        assert judged(text, [1, 2], 3) == 0.0
        best = min(best, time.perf_counter() - began)
        if best < BUDGET_S:
            break
    assert best < BUDGET_S


@pytest.mark.parametrize(
    "text", ["*".join(["999999999989"] * 15), "/".join(["999999999989"] * 15), "(1+" * 16 + "1" + ")" * 16]
)
def test_the_costliest_expressions_that_are_allowed_too(text: str) -> None:
    tries = []
    for _ in range(50):
        began = time.perf_counter()
        assert judged(text, [1, 2], 3) == 0.1
        tries.append(time.perf_counter() - began)
    assert min(tries) < BUDGET_S


@given(st.text(alphabet="0123456789+-*/() =\n×÷_.²٣ea", max_size=60) | st.text(max_size=40))
def test_no_text_raises(text: str) -> None:
    assert judged(text, [1, 2], 3) in (0.0, 0.1, 1.0)
