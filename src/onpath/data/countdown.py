"""Countdown as examples: numbers and a target are given, an expression that makes it is the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.data.expressions import ALPHABET, OPERATIONS, aligned, longest, merges, values, written
from onpath.data.puzzles import SPLITS, Puzzles, Split, require_split
from onpath.data.tokenizers import Characters
from onpath.rng import Key, bits
from onpath.types import Batch, Spec

_LIMITS = {"num_numbers": (2, 4), "largest": (2, 999), "max_target": (1, 9999)}
_ATTEMPTS = (8, 16, 32, 64)  # problems that are tried at once: first, second, third and every further time
_MOST_TIMES = 400
_HELD_OUT = 0.1  # share of problems of validation, and of test
_PROBLEM = re.compile(r"\s*(\d+(?:[\s,]+\d+)*)\s*=\s*(\d+)\s*:?(?:\s|▒|\[MASK(?::\d+)?\])*")


@dataclass(frozen=True)
class CountdownPuzzles(Puzzles):
    """Countdown by character: a row is ` 3  7 12= 29:12+7*3-4` and ends up to its length; all behind `:` is free.

    The expression makes the target of every number, each once, with as few parentheses as it needs; as in the game,
    each of its steps makes a whole number above 0. It is drawn: numbers of 1 to `largest`, which may repeat, an order,
    a tree and operations, again and again until a target of 1 to `max_target` comes out, so what is easily made is
    frequent. Numbers and target are right-aligned, so they stand at the same places in every row.
    operations: which of `+-*/` may occur.
    A problem, its numbers in whatever order, is in one split only: a hash gives 80 % of all to train, 10 % to
    validation and 10 % to test, the same for every seed and setting.

    >>> source = CountdownPuzzles()
    >>> source.words(source.examples(torch.arange(1)).x[0].tolist())
    ' 5 20 16= 41:20+16+5'
    >>> source.columns(torch.arange(1))
    {'numbers': [[5, 20, 16]], 'target': [41]}
    """

    num_numbers: Literal[2, 3, 4] = 3
    largest: int = 20
    max_target: int = 100
    operations: str = OPERATIONS
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        require_split(self.split)
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed are {low} to {high}")
        used = set(self.operations)
        if not used or not used <= set(OPERATIONS) or len(used) < len(self.operations):
            raise ValueError(
                f"operations is {self.operations!r}; needed are one or more of {OPERATIONS}, each once, such as '+-'"
            )

    @cached_property
    def codec(self) -> Characters:
        return Characters(ALPHABET, end=True)

    @property
    def end_id(self) -> int | None:
        return self.codec.end_id

    @property
    def remarks(self) -> tuple[str, ...]:
        share = round(100 * _HELD_OUT)
        return (f"a problem is in one split only: {share} % are for validation and {share} % for test, by a hash",)

    @property
    def prompt_length(self) -> int:
        """Tokens of each row that are given."""
        return self.num_numbers * (self._width + 1) + len(str(self.max_target)) + 1

    @property
    def _width(self) -> int:
        return len(str(self.largest))

    def spec(self) -> Spec:
        length = self.prompt_length + longest(self.num_numbers, self._width) + 1  # an end at least
        return Spec(length=length, num_words=self.codec.num_words, mask_id=self.codec.mask_id)

    def at_split(self, split: str) -> CountdownPuzzles:
        return replace(self, split=split)

    def framed(self, prompt: str) -> list[int]:
        """The tokens of a problem such as `3 7 12 = 29`, as it stands in training."""
        found = _PROBLEM.fullmatch(prompt)
        numbers = [int(number) for number in re.findall(r"\d+", found[1])] if found else []
        target = int(found[2]) if found else 0
        fits = len(numbers) == self.num_numbers and all(1 <= number <= self.largest for number in numbers)
        if not fits or not 1 <= target <= self.max_target:
            raise ValueError(
                f"prompt: {prompt!r} is no problem of these data; write {self.num_numbers} numbers of 1 to "
                f"{self.largest} and a target of 1 to {self.max_target}, such as "
                f"{' '.join(map(str, range(1, self.num_numbers + 1)))} = {self.num_numbers}"
            )
        return self._asked(torch.tensor([numbers]), torch.tensor([[target]]))[0].tolist()

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        made, spec = self._problems(ids), self.spec()
        asked = self._asked(made.numbers, made.target)
        answer = written(made.ordered, made.merge[:, 0], made.operations, spec.length - asked.shape[1])
        given = (torch.arange(spec.length) < asked.shape[1]).expand(len(ids), -1)
        return Batch.of_tokens(torch.cat([asked, answer], 1), ids, given=given).to(device)

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """`numbers`, a list for each id, and `target`."""
        made = self._problems(ids)
        return {"numbers": made.numbers.tolist(), "target": made.target[:, 0].tolist()}

    def _asked(self, numbers: Int64[Tensor, "B num"], target: Int64[Tensor, "B 1"]) -> Int64[Tensor, "B P"]:
        """The tokens of problems."""
        between = torch.tensor([ALPHABET.index(" ")] * (self.num_numbers - 1) + [ALPHABET.index("=")])
        spaced = torch.cat([aligned(numbers, self._width), between.expand(len(numbers), -1)[..., None]], 2)
        aim = aligned(target, len(str(self.max_target)))
        colon = torch.full((len(numbers), 1), ALPHABET.index(":"))
        return torch.cat([spaced.flatten(1), aim.flatten(1), colon], 1)

    def _problems(self, ids: Int64[Tensor, "B"]) -> _Problems:
        """For each id the first of its draws that is a problem of this split."""
        key = Key(self.seed, f"countdown/{self.split}")
        ids, copy = ids.unique(return_inverse=True)  # a group of rollouts is of one problem
        found = torch.empty(len(ids), sum(_columns(self.num_numbers)), dtype=torch.int64)
        left = torch.arange(len(ids))
        for time in range(_MOST_TIMES):
            num = _ATTEMPTS[min(time, len(_ATTEMPTS) - 1)]
            drawn, fits = self._drawn(key.at(time), ids[left], num)
            some = fits.any(1)
            found[left[some]] = drawn[some, fits[some].int().argmax(1)]
            left = left[~some]
            if not len(left):
                return _Problems(*found[copy].split(_columns(self.num_numbers), 1))
        raise ValueError(
            f"countdown: {len(left)} of {len(ids)} examples of the {self.split} split have found no problem in "
            f"{_ATTEMPTS[-1] * _MOST_TIMES:,} draws, so there are none or next to none; raise largest or max_target, "
            "or allow more operations"
        )

    def _drawn(
        self, key: Key, ids: Int64[Tensor, "B"], times: int
    ) -> tuple[Int64[Tensor, "B times columns"], Bool[Tensor, "B times"]]:
        """`times` draws for each example, as the fields of a problem side by side, and which are of this split."""
        num, trees, orders = self.num_numbers, merges(self.num_numbers), _orders(self.num_numbers)
        words = bits(key, ids, (times, 2 * num + 1)).flatten(0, 1)
        numbers = (words[:, :num] * self.largest >> 32) + 1
        merge, order = words[:, num] * len(trees) >> 32, words[:, num + 1] * len(orders) >> 32
        allowed = torch.tensor([OPERATIONS.index(operation) for operation in self.operations])
        operations = allowed[words[:, num + 2 :] * len(allowed) >> 32]
        ordered = numbers.gather(1, orders[order])
        target, whole = values(ordered, trees[merge], operations)
        fits = whole & (target <= self.max_target)
        problems = fits.nonzero()[:, 0]
        fits[problems] = _split_numbers(numbers[problems], target[problems]) == SPLITS.index(self.split)
        drawn = torch.cat([numbers, target[:, None], ordered, merge[:, None], operations], 1)
        return drawn.view(len(ids), times, -1), fits.view(len(ids), times)


@dataclass(frozen=True, eq=False)
class _Problems:
    """numbers: in the order in which they are asked. ordered: in that of the expression. merge: the place of its tree
    in ``merges``. operations: places in OPERATIONS, in the order of the joins."""

    numbers: Int64[Tensor, "B num"]
    target: Int64[Tensor, "B 1"]
    ordered: Int64[Tensor, "B num"]
    merge: Int64[Tensor, "B 1"]
    operations: Int64[Tensor, "B steps"]


def _columns(num: int) -> list[int]:
    """How many columns each field of a problem takes."""
    return [num, 1, num, 1, num - 1]


@lru_cache(maxsize=4)
def _orders(num: int) -> Int64[Tensor, "P num"]:
    return torch.tensor(list(permutations(range(num))))


def _split_numbers(numbers: Int64[Tensor, "N num"], target: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
    """The split of each problem, as its place in SPLITS; the order of the numbers does not matter."""
    problem = target
    for place, number in enumerate(numbers.sort(dim=1, descending=True).values.unbind(1)):
        problem = problem + number * 10 ** (4 + 3 * place)
    share = bits(Key(purpose="countdown/split"), problem).double() / 2**32
    return (share < 2 * _HELD_OUT).long() + (share < _HELD_OUT).long()
