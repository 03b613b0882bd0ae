"""Arithmetic expressions of a few numbers, many at once: their values, and how they are written."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

OPERATIONS = "+-*/"
ALPHABET = f"0123456789 =:(){OPERATIONS}"
"""The characters of problems and expressions; the id of a digit is the digit."""
_NUMBER, _NOTHING = -1, -2


@lru_cache(maxsize=4)
def merges(num: int) -> Int64[Tensor, "T steps"]:
    """The ways to make one value of `num` in a row by joining neighbours num - 1 times: the left place of each join.

    >>> merges(3)
    tensor([[0, 0],
            [1, 0]])
    """
    return torch.tensor(list(product(*(range(left) for left in range(num - 1, 0, -1)))))


def values(
    numbers: Int64[Tensor, "N num"], places: Int64[Tensor, "N steps"], operations: Int64[Tensor, "N steps"]
) -> tuple[Int64[Tensor, "N"], Bool[Tensor, "N"]]:
    """The value of each expression, and whether each of its steps makes a whole number above 0; else it says nothing.

    places: as in ``merges``. operations: places in OPERATIONS.
    """
    whole = torch.ones(len(numbers), dtype=torch.bool)
    for place, operation in zip(places.split(1, 1), operations.split(1, 1), strict=True):
        left, right = numbers.gather(1, place), numbers.gather(1, place + 1)
        quotient = left // right
        made = torch.cat([left + right, left - right, left * right, quotient], 1).gather(1, operation)
        fits = (made > 0) & ((operation != OPERATIONS.index("/")) | (quotient * right == left))
        whole &= fits[:, 0]
        kept = torch.where(torch.arange(numbers.shape[1] - 1) < place, numbers[:, :-1], numbers[:, 1:])
        numbers = kept.scatter(1, place, made.where(fits, 1))
    return numbers[:, 0], whole


def longest(num: int, width: int) -> int:
    """Characters of the longest expression of `num` numbers of `width` digits."""
    return num * width + _num_signs(num)


def written(
    numbers: Int64[Tensor, "N num"], merge: Int64[Tensor, "N"], operations: Int64[Tensor, "N steps"], length: int
) -> Int64[Tensor, "N length"]:
    """Each expression as ids of ALPHABET with as few parentheses as it needs, and len(ALPHABET) from its end on.

    merge: places in ``merges``. length: one more than ``longest`` of such numbers.
    """
    num = numbers.shape[1]
    width = (length - 1 - _num_signs(num)) // num
    digit = len(OPERATIONS) ** torch.arange(num - 2, -1, -1)
    symbols = _forms(num)[merge, (operations * digit).sum(1)]
    is_number = symbols == _NUMBER
    value = numbers.gather(1, (is_number.cumsum(1) - 1).clamp(min=0))
    power = 10 ** torch.arange(width - 1, -1, -1)
    ids = torch.where(is_number[..., None], value[..., None] // power % 10, symbols[..., None]).flatten(1)
    shown = torch.where(is_number[..., None], value[..., None] >= power, (symbols >= 0)[..., None] & (power == 1))
    shown = shown.flatten(1)
    place = torch.where(shown, shown.cumsum(1) - 1, length)  # what is not shown goes behind the end
    return ids.new_full((len(ids), length + 1), len(ALPHABET)).scatter(1, place, ids)[:, :length]


def aligned(numbers: Int64[Tensor, "N num"], width: int) -> Int64[Tensor, "N num width"]:
    """Numbers as `width` ids of ALPHABET each, with spaces before them."""
    power = 10 ** torch.arange(width - 1, -1, -1)
    return torch.where(numbers[..., None] >= power, numbers[..., None] // power % 10, ALPHABET.index(" "))


def _num_signs(num: int) -> int:
    """Operations, and parentheses around what is neither a number nor the whole."""
    return (num - 1) + 2 * (num - 2)


@lru_cache(maxsize=4)
def _forms(num: int) -> Int64[Tensor, "T operations S"]:
    """Every expression as ids of ALPHABET with a sign in place of each number, by merge and operations."""
    size = num + _num_signs(num)
    every = list(product(OPERATIONS, repeat=num - 1))
    forms = [[_form(num, places, used) for used in every] for places in merges(num).tolist()]
    ids = {character: number for number, character in enumerate(ALPHABET)} | {"n": _NUMBER}
    return torch.tensor([[[ids[c] for c in form] + [_NOTHING] * (size - len(form)) for form in row] for row in forms])


def _form(num: int, places: list[int], operations: tuple[str, ...]) -> str:
    """An expression with `n` in place of each number.

    >>> _form(3, [1, 0], ("-", "-"))
    'n-(n-n)'
    """
    parts = [("n", 3)] * num  # text, and how tightly it holds together
    for place, operation in zip(places, operations, strict=True):
        (left, left_bond), (right, right_bond) = parts[place : place + 2]
        bond = 1 if operation in "+-" else 2
        left = f"({left})" if left_bond < bond else left
        right = f"({right})" if right_bond < bond or (right_bond == bond and operation in "-/") else right
        parts[place : place + 2] = [(left + operation + right, bond)]
    return parts[0][0]
