"""The reward of Countdown: an arithmetic expression of given numbers that makes a target."""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from onpath.rewards.answers import tagged
from onpath.rewards.base import Reward, check_scales, text_of

_MOST_CHARACTERS = 200
_MOST_NUMBERS = 32
_MOST_DIGITS = 12
_MOST_DEPTH = 16
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_CHARACTERS = re.compile(r"[0-9+\-*/() \n]+")
_OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Countdown(Reward):
    """`correct` for an expression that uses every one of the column `numbers` once and makes `target`; else `format`
    for any well-formed expression, and 0 for everything else.

    The expression stands in the last <answer></answer>, else it is the whole completion; of an equation, it is the left
    side. It may hold integers, + - * / (or × ÷ −) and parentheses, at most 200 characters with 32 numbers of up to 12
    digits; it is read as a syntax tree, never executed, and computed in exact fractions.
    Source of the task and of `format`: TinyZero, Pan et al. 2025.

    >>> Countdown()(prompts=[""] * 3, completions=["(50 - 8) / 2 = 21", "50 / 8", "99**98**97"],
    ...             completion_ids=[[1]] * 3, numbers=[[2, 8, 50]] * 3, target=[21] * 3)
    [1.0, 0.1, 0.0]
    """

    correct: float = 1.0
    format: float = 0.1

    def __post_init__(self) -> None:
        check_scales(self.name, correct=self.correct, format=self.format)

    def __call__(
        self, *, completions: Sequence[Any], numbers: Sequence[Sequence[int]], target: Sequence[int], **columns: Any
    ) -> list[float | None]:
        tasks = zip(completions, numbers, target, strict=True)
        return [self._reward(text_of(completion), those, int(aim)) for completion, those, aim in tasks]

    def _reward(self, text: str, numbers: Sequence[int], target: int) -> float | None:
        found = evaluate(expression_of(text))
        if found is None:
            return 0.0
        value, used = found
        return self.correct if value == target and Counter(used) == Counter(map(int, numbers)) else self.format


def expression_of(text: str) -> str:
    """Where an expression is looked for: the last <answer></answer>, else the whole, up to the first `=`."""
    inside = tagged(text)
    return (text if inside is None else inside).partition("=")[0].strip()


def evaluate(expression: str) -> tuple[Fraction, list[int]] | None:
    """The value of an arithmetic expression and the integers in it, in order; None where it is not well-formed.

    Bounds on length, digits and depth stand before anything is parsed, so that every text takes under a millisecond.

    >>> evaluate("3 * (2 + 5) / 4")
    (Fraction(21, 4), [3, 2, 5, 4])
    """
    if len(expression) > _MOST_CHARACTERS:
        return None
    plain = expression.translate(_SIGNS)
    digits = [len(number) for number in re.findall("[0-9]+", plain)]
    if not _CHARACTERS.fullmatch(plain) or "**" in plain or "//" in plain or _depth(plain) > _MOST_DEPTH:
        return None
    if len(digits) > _MOST_NUMBERS or max(digits, default=0) > _MOST_DIGITS:
        return None
    used: list[int] = []
    try:
        tree = ast.parse(plain.replace("\n", " ").strip(), mode="eval").body
        return _value(tree, used), used
    except (SyntaxError, ZeroDivisionError, ValueError):
        return None


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The value of a syntax tree; the integers in it are appended to `used`. ValueError for any other syntax."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left = _value(node.left, used)
        return _OPERATORS[type(node.op)](left, _value(node.right, used))
    raise ValueError(f"{type(node).__name__} is not part of an arithmetic expression")


def _depth(expression: str) -> int:
    """How deep its parentheses nest at most."""
    depth = deepest = 0
    for character in expression:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest
