"""Sudoku puzzles as examples: the clues are given, the blanks are to be filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.data.source import TextSource
from onpath.data.sudoku_grids import orbits, sets_of, solvable
from onpath.data.tokenizers import Characters
from onpath.rng import Key, bits, integers
from onpath.types import Batch, Spec

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Sudoku(TextSource):
    """Sudoku puzzles without end, made when they are asked for; example n is a pure function of n.

    A row is the grid, cell by cell: token d is digit d + 1, the clues are given, the blanks are free.
    side: 4, with boxes of 2 x 2, or 6, with boxes of 2 rows and 3 columns. blanks: cells to fill; None takes 8 of 16,
    or 16 of 36. unique: whether a puzzle has one solution.
    num_orbits: grids up to relabelling of digits that train, validation and test puzzles are made of; no grid occurs
    in two of them, whatever its digits. None takes 8, 2 and 2 of 12, or as large shares of the 39,168 of side 6.

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
        if self.side not in (4, 6):
            raise ValueError(f"side is {self.side}; allowed are 4 and 6")
        if self.split not in get_args(Split):
            raise ValueError(f"split is {self.split!r}; allowed are {', '.join(get_args(Split))}")

    @cached_property
    def codec(self) -> Characters:
        return Characters("123456"[: self.side])

    def spec(self) -> Spec:
        return Spec(length=self.side**2, num_words=self.side, mask_id=self.side)

    def at_split(self, split: str) -> Sudoku:
        return replace(self, split=split)

    @property
    def orbits_of_split(self) -> Int64[Tensor, "N"]:
        """The orbits of this split, as places in ``sudoku_grids.orbits``; they depend on `seed` and `num_orbits`."""
        sizes = self._sizes
        first = sum(sizes[: get_args(Split).index(self.split)])
        order = bits(Key(self.seed, "sudoku/orbits"), torch.arange(len(orbits(self.side)))).argsort(stable=True)
        return order[first : first + sizes[get_args(Split).index(self.split)]]

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.num_orbits or ((8, 2, 2) if self.side == 4 else (26112, 6528, 6528))

    @property
    def _num_blanks(self) -> int:
        return self.blanks or (8 if self.side == 4 else 16)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        key, chosen = Key(self.seed, f"sudoku/{self.split}"), self.orbits_of_split
        orbit = chosen[integers(key.fold("orbit"), ids, (), len(chosen))]
        digits = bits(key.fold("digits"), ids, (self.side,)).argsort(dim=1, stable=True)
        canonical = torch.from_numpy(orbits(self.side)[orbit.numpy()]).long().flatten(1)
        blank = self._blanks(orbit, key.fold("blanks"), ids)
        return Batch.of_tokens(digits.gather(1, canonical), ids, given=~blank).to(device)

    def _blanks(self, orbit: Int64[Tensor, "B"], key: Key, ids: Int64[Tensor, "B"]) -> Bool[Tensor, "B L"]:
        sets, first, count = _sets(self._num_blanks, self.unique)
        place = first[orbit] + (bits(key, ids) * count[orbit] >> 32)
        return (sets[place][:, None] >> torch.arange(16) & 1).bool()

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """`givens`: the cells of each puzzle, `.` at the blanks. `solution`: those of its grid."""
        batch = self.examples(ids)
        assert batch.given is not None
        digits = batch.x + ord("1")
        return {"givens": _strings(digits.where(batch.given, ord("."))), "solution": _strings(digits)}


def _strings(codes: Int64[Tensor, "B L"]) -> list[str]:
    """Rows of ASCII codes as text."""
    return codes.numpy().astype(np.uint8).view(f"S{codes.shape[1]}")[:, 0].astype(str).tolist()


@lru_cache(maxsize=8)
def _sets(blanks: int, unique: bool) -> tuple[Int64[Tensor, "N"], Int64[Tensor, "12"], Int64[Tensor, "12"]]:
    """The sets of blanks that an orbit of 4 x 4 cells allows, one orbit after the other; where each starts, and how
    many there are."""
    masks = sets_of(blanks)
    allowed = solvable()[:, masks] if unique else np.ones((12, len(masks)), dtype=bool)
    count = torch.from_numpy(allowed.sum(1))
    orbit_sets = torch.from_numpy(masks[allowed.nonzero()[1]])
    return orbit_sets, count.cumsum(0) - count, count
