"""Sudoku puzzles as examples: the clues are given, the blanks are to be filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.data.prompts import masked_ids
from onpath.data.puzzles import SPLITS, Puzzles, Split, require_split
from onpath.data.sudoku_grids import blank_sets, has_one_solution, orbits
from onpath.data.tokenizers import MASK_SIGN, Characters
from onpath.rng import Key, bits
from onpath.types import Batch, Spec

_NUM_ORBITS = {4: 12, 6: 39168}
_SHARES = {4: (8, 2, 2), 6: (26112, 6528, 6528)}
_BLANKS = {4: 8, 6: 16}
_MOST_BLANKS = {4: 12, 6: 22}  # 4: with more, no orbit has one solution; 6: with more, next to no set of blanks has
_ATTEMPTS = (1, 4, 16)  # sets of blanks that are tried at once: first, second and every further time


@dataclass(frozen=True)
class Sudoku(Puzzles):
    """Sudoku puzzles; a row is the grid, cell by cell, token d for digit d + 1: clues are given, blanks are free.

    side: 4, with boxes of 2 x 2, or 6, with boxes of 2 rows and 3 columns. blanks: cells to fill; None takes 8 of 16,
    or 16 of 36. unique: whether each puzzle has one solution; every such set of blanks is equally likely in its grid.
    num_orbits: how many grids, counted up to relabelling of digits, train, validation and test puzzles are made of.
    None takes 8, 2 and 2 of 12, or as large shares of the 39,168 of side 6. `seed` decides which they are, so weights
    to begin with are from a run with the same seed, or have met what is tested.

    >>> batch = Sudoku().examples(torch.arange(4))
    >>> batch.x.shape, batch.num_free.tolist()
    (torch.Size([4, 16]), [8, 8, 8, 8])
    """

    side: Literal[4, 6] = 4
    blanks: int | None = None
    unique: bool = True
    num_orbits: tuple[int, int, int] | None = None
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.side not in _NUM_ORBITS:
            raise ValueError(f"side is {self.side}; allowed are 4 and 6")
        require_split(self.split)
        most = _MOST_BLANKS[self.side] if self.unique else self.side**2 - 1
        if not 1 <= self._num_blanks <= most:
            raise ValueError(
                f"blanks is {self.blanks}; allowed are 1 to {most} of the {self.side**2} cells"
                + (" where each puzzle is to have one solution; set unique=False for more" if self.unique else "")
            )
        counts, total = self._num_orbits, _NUM_ORBITS[self.side]
        if len(counts) != 3 or min(counts) < 1 or sum(counts) > total:
            raise ValueError(
                f"num_orbits is {self.num_orbits}; needed are three numbers of 1 or more, for train, validation and "
                f"test, that together are at most {total:,}, the grids of side {self.side} up to relabelling"
            )

    @cached_property
    def codec(self) -> Characters:
        return Characters("123456"[: self.side])

    @property
    def remarks(self) -> tuple[str, ...]:
        train, validation, test = self._num_orbits
        return (
            f"of {_NUM_ORBITS[self.side]:,} grids up to relabelling of digits, train puzzles are made of {train:,}, "
            f"validation of {validation:,} others, test of {test:,} others",
        )

    @property
    def orbits(self) -> Int64[Tensor, "N"]:
        """Which grids the puzzles of this split are made of, as places in ``sudoku_grids.orbits``."""
        counts, number = self._num_orbits, SPLITS.index(self.split)
        return _order(self.seed, self.side)[sum(counts[:number]) : sum(counts[: number + 1])]

    @property
    def _num_blanks(self) -> int:
        return _BLANKS[self.side] if self.blanks is None else self.blanks

    @property
    def _num_orbits(self) -> tuple[int, int, int]:
        return _SHARES[self.side] if self.num_orbits is None else self.num_orbits

    def spec(self) -> Spec:
        return Spec(length=self.side**2, num_words=self.side, mask_id=self.side, line_length=self.side)

    def at_split(self, split: str) -> Sudoku:
        return replace(self, split=split)

    def framed(self, prompt: str) -> list[int]:
        """The cells of a puzzle: digits, and `.` or what marks a free position at blanks; white space adds nothing."""
        ids = masked_ids(self.codec, "".join(prompt.split()).replace(".", MASK_SIGN))
        if len(ids) == self.side**2:
            return ids
        raise ValueError(
            f"prompt: {prompt!r} has {len(ids)} cells, and a puzzle {self.side**2}; write them row by row, each a "
            f"digit of {self.codec.alphabet}, or `.` where it is blank"
        )

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        key, chosen, relabelled = Key(self.seed, f"sudoku/{self.split}"), self.orbits, _relabelled(self.side)
        words = bits(key.fold("grid"), ids, (2,))
        orbit = chosen[words[:, 0] * len(chosen) >> 32]
        grid = torch.from_numpy(orbits(self.side)[orbit.numpy()]).long()
        x = relabelled[words[:, 1] * len(relabelled) >> 32].gather(1, grid)
        given = ~self._blank(orbit, grid, key.fold("blanks"), ids)
        return Batch.of_tokens(x, ids, given=given).to(device)

    def _blank(
        self, orbit: Int64[Tensor, "B"], grid: Int64[Tensor, "B L"], key: Key, ids: Int64[Tensor, "B"]
    ) -> Bool[Tensor, "B L"]:
        if self.side == 4:
            sets, first, count = _listed(self._num_blanks, self.unique)
            place = first[orbit] + (bits(key, ids) * count[orbit] >> 32)
            return (sets[place][:, None] >> torch.arange(16) & 1).bool()
        if not self.unique:
            return _drawn(self._num_blanks, key, ids, 1)[:, 0]
        different, copy = ids.unique(return_inverse=True)  # a group of rollouts is of one puzzle
        grids = torch.empty(len(different), self.side**2, dtype=torch.int64).index_put((copy,), grid)
        return _tried(grids, self._num_blanks, key, different)[copy]

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """`givens`: the cells of each puzzle, `.` at the blanks. `solution`: those of its grid."""
        batch = self.examples(ids)
        digits = batch.x + ord("1")
        return {"givens": _strings(digits.masked_fill(batch.free(), ord("."))), "solution": _strings(digits)}


def _strings(codes: Int64[Tensor, "B L"]) -> list[str]:
    """Rows of ASCII codes as text."""
    return codes.numpy().astype(np.uint8).view(f"S{codes.shape[1]}")[:, 0].astype(str).tolist()


@lru_cache(maxsize=4)
def _order(seed: int, side: int) -> Int64[Tensor, "N"]:
    """The orbits in the order in which splits take them."""
    return bits(Key(seed, "sudoku/orbits"), torch.arange(_NUM_ORBITS[side])).argsort(stable=True)


@lru_cache(maxsize=2)
def _relabelled(side: int) -> Int64[Tensor, "P side"]:
    """What each digit becomes, for every relabelling."""
    return torch.tensor(list(permutations(range(side))))


@lru_cache(maxsize=8)
def _listed(blanks: int, unique: bool) -> tuple[Int64[Tensor, "N"], Int64[Tensor, "12"], Int64[Tensor, "12"]]:
    """The sets of blanks of 4 x 4 cells, where those of each orbit start, and how many they are."""
    sets, count = (torch.from_numpy(part) for part in blank_sets(blanks, unique))
    return sets, count.cumsum(0) - count, count


def _drawn(blanks: int, key: Key, ids: Int64[Tensor, "B"], num: int) -> Bool[Tensor, "B num 36"]:
    """`num` sets of so many of 36 cells for each example, all sets equally likely."""
    words = bits(key, ids, (num, 36)) << 6 | torch.arange(36)  # no two alike
    return words <= words.kthvalue(blanks, dim=2, keepdim=True).values


def _tried(grid: Int64[Tensor, "B 36"], blanks: int, key: Key, ids: Int64[Tensor, "B"]) -> Bool[Tensor, "B 36"]:
    """For each example the first drawn set of blanks that leaves one solution."""
    found = torch.empty_like(grid, dtype=torch.bool)
    left, time = torch.arange(len(ids)), 0
    while len(left):
        num = _ATTEMPTS[min(time, len(_ATTEMPTS) - 1)]
        drawn = _drawn(blanks, key.at(time), ids[left], num)
        grids = grid[left].repeat_interleave(num, 0)
        one = torch.from_numpy(has_one_solution(grids.numpy(), drawn.flatten(0, 1).numpy(), 6)).view(-1, num)
        some = one.any(1)
        found[left[some]] = drawn[some, one[some].int().argmax(1)]
        left, time = left[~some], time + 1
    return found
