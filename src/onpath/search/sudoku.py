"""Sudoku as a problem of search: cells are committed the surest first, and judged by the rules alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath.data.sudoku_grids import WIDTHS
from onpath.search.problems import Judged, Place, Problem
from onpath.types import Batch

_BLANK = -1


@dataclass(frozen=True)
class SudokuProblem(Problem):
    """Fill each puzzle so that every row, column and box holds every digit once.

    A state is the grid with the cells that are committed, -1 where it is blank; a token is a digit, from 0 on. A plan
    leads to the state in which the surest `segment` of its new cells stand as well.
    puzzles: (B, L) int64, cell by cell, -1 at blanks; L is 16 or 36. value: 1 where the grid is solved, else half the
    share of rows, columns and boxes that hold every digit.
    """

    puzzles: Int64[Tensor, "B L"]

    def __post_init__(self) -> None:
        if self.puzzles.shape[1] not in (16, 36):
            raise ValueError(f"sudoku: puzzles have {self.puzzles.shape[1]} cells; allowed are 16 and 36")

    @property
    def size(self) -> int:
        return len(self.puzzles)

    @property
    def length(self) -> int:
        return self.puzzles.shape[1]

    @property
    def segment(self) -> int:
        return 1

    @property
    def steps(self) -> int:
        return 4

    @property
    def side(self) -> int:
        return round(self.length**0.5)

    @cached_property
    def units(self) -> Int64[Tensor, "U side"]:
        """The cells of every row, column and box."""
        side, width = self.side, WIDTHS[self.side]
        cells = torch.arange(self.length).view(side, side)
        boxes = cells.view(side // 2, 2, side // width, width).transpose(1, 2).reshape(side, side)
        return torch.cat([cells, cells.T, boxes])

    def start(self, task: int) -> Place:
        return Place(task, tuple(self.puzzles[task].tolist()))

    def given(self, place: Place) -> tuple[int, ...]:
        cells: tuple[int, ...] = place.state
        return cells

    def request(self, places: Sequence[Place], ids: Int64[Tensor, "N"]) -> Batch:
        cells = self._cells(places)
        return Batch.of_tokens(cells.clamp_min(0), ids, given=cells != _BLANK)

    def judge(
        self, places: Sequence[Place], plans: Int64[Tensor, "N L"], sure: Float[Tensor, "N L"], segment: int
    ) -> list[Judged]:
        whole = self._whole(plans)
        share = whole.float().mean(1)
        blank = self._cells(places) == _BLANK
        order = torch.where(blank, sure, -torch.inf).argsort(dim=1, descending=True, stable=True)
        rows = zip(places, plans.tolist(), whole.all(1).tolist(), share.tolist(), order.tolist(), strict=True)
        return [
            Judged(1.0 if solved else 0.5 * part, solved, 0, self.length, self._ends(place, plan, first, segment))
            for place, plan, solved, part, first in rows
        ]

    def _ends(self, place: Place, plan: list[int], order: list[int], segment: int) -> tuple[tuple[Place, int], ...]:
        """The state with the surest cells committed, unless nothing would be left to fill."""
        if place.state.count(_BLANK) <= segment:
            return ()
        state = list(place.state)
        for cell in order[:segment]:
            state[cell] = plan[cell]
        return ((Place(place.task, tuple(state)), 0),)

    def moves(self, place: Place) -> list[tuple[int, Place]]:
        """Every digit in the first blank cell that no row, column or box of it holds."""
        if _BLANK not in place.state:
            return []
        cell = place.state.index(_BLANK)
        seen = {place.state[other] for unit in self.units.tolist() if cell in unit for other in unit}
        return [
            (digit, Place(place.task, (*place.state[:cell], digit, *place.state[cell + 1 :])))
            for digit in range(self.side)
            if digit not in seen
        ]

    def whole(self, way: tuple[int, ...], plan: tuple[int, ...]) -> tuple[int, ...]:
        return plan  # which holds all cells, those that were committed before it included

    def best_cost(self, task: int) -> int:
        return 0

    def _cells(self, places: Sequence[Place]) -> Int64[Tensor, "N L"]:
        return torch.tensor([place.state for place in places])

    def _whole(self, plans: Int64[Tensor, "N L"]) -> Bool[Tensor, "N U"]:
        """Which units of each grid hold every digit once."""
        return (plans[:, self.units].sort(-1).values == torch.arange(self.side)).all(-1)
