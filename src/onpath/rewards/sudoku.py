"""Rewards of Sudoku: a puzzle solved, or the share of its blank cells that are right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt32

from onpath.rewards.base import Reward, check_scales

_BLANKS = (ord("."), ord("▒"))


@dataclass(frozen=True)
class SudokuSolved(Reward):
    """`scale` where the finished grid is valid and keeps the givens, else 0; any solution counts, not one alone.

    Columns: `canvas`, the finished grid, and `givens`, the puzzle, each cell by cell in rows as text of the digits 1 to
    9, with `.` or `▒` for blanks. box: rows and columns of a box; None takes the box nearest to a square, such as 2 x 2
    for 4 x 4 cells and 2 x 3 for 6 x 6.
    ValueError where grids have no such boxes, differ in size, or givens hold anything else.

    >>> SudokuSolved()(prompts=[""], completions=[""], completion_ids=[[]], canvas=["1234341221434321"],
    ...                givens=["1..4..12......2."])
    [1.0]
    """

    scale: float = 1.0
    box: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)
        if self.box is not None and (min(self.box) < 1 or math.prod(self.box) > 9):
            raise ValueError(f"{self.name}: box is {self.box}; rows and columns of 1 to 9 cells in all are needed")

    def __call__(self, *, canvas: Sequence[str], givens: Sequence[str], **columns: Any) -> list[float | None]:
        grids, puzzles = _cells(self.name, canvas=canvas, givens=givens)
        kept, _ = _kept(self.name, grids, puzzles)
        solved = _valid(grids, _box(self.name, grids.shape[1], self.box))
        return np.where(kept & solved, self.scale, 0.0).tolist()


@dataclass(frozen=True)
class SudokuCells(Reward):
    """`scale` times the share of blank cells that are filled as in the column `solution`; 0 where givens are altered.

    Columns: `canvas`, `givens` and `solution`, as those of ``SudokuSolved``. Guessing among the digits of 4 x 4 cells
    makes a quarter right.
    ValueError where grids differ in size, givens hold anything but digits and blanks, or leave no cell blank.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)

    def __call__(
        self, *, canvas: Sequence[str], givens: Sequence[str], solution: Sequence[str], **columns: Any
    ) -> list[float | None]:
        grids, puzzles, solutions = _cells(self.name, canvas=canvas, givens=givens, solution=solution)
        kept, blank = _kept(self.name, grids, puzzles)
        if not blank.any(1).all():
            raise ValueError(
                f"{self.name}: the column `givens` of completion {int((~blank.any(1)).argmax())} has no blank cell; "
                "write `.` where a cell is to be filled"
            )
        share = ((grids == solutions) & blank).sum(1) / blank.sum(1)
        return np.where(kept, self.scale * share, 0.0).tolist()


def _cells(reward: str, **columns: Sequence[str]) -> list[UInt32[np.ndarray, "N cells"]]:
    """Each column as (N, cells) code points; ValueError where two texts differ in length."""
    sizes = {name: sorted({len(text) for text in texts}) for name, texts in columns.items()}
    found = {size for lengths in sizes.values() for size in lengths}
    if len(found) > 1:
        raise ValueError(
            f"{reward}: the grids have {sizes} cells; all columns must be of one size, a character for each cell"
        )
    cells = max(found, default=0)
    encoded = ["".join(texts).encode("utf-32-le", "surrogatepass") for texts in columns.values()]
    return [np.frombuffer(code, dtype="<u4").astype(np.uint32).reshape(-1, cells) for code in encoded]


def _kept(
    reward: str, grids: UInt32[np.ndarray, "N cells"], puzzles: UInt32[np.ndarray, "N cells"]
) -> tuple[Bool[np.ndarray, "N"], Bool[np.ndarray, "N cells"]]:
    """Which grids keep the givens of their puzzle, and which cells of it are blank."""
    blank = np.isin(puzzles, _BLANKS)
    odd = ~blank & ((puzzles < ord("1")) | (puzzles > ord("9")))
    if odd.any():
        row, cell = np.argwhere(odd)[0]
        raise ValueError(
            f"{reward}: cell {cell} of the column `givens` of completion {row} is {chr(puzzles[row, cell])!r}; allowed "
            "are the digits 1 to 9, and `.` or `▒` for a blank"
        )
    return (blank | (grids == puzzles)).all(1), blank


def _box(reward: str, cells: int, box: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of a box of a grid with so many cells."""
    side = math.isqrt(cells)
    rows = max((n for n in range(2, math.isqrt(side) + 1) if side % n == 0), default=1)
    height, width = box or (rows, side // rows if rows else 0)
    if side**2 != cells or height * width != side or side not in range(2, 10) or (box is None and rows == 1):
        raise ValueError(
            f"{reward}: a grid has {cells} cells and box is {box}; allowed are 16, 36, 64 or 81 cells, or a box whose "
            "rows times columns are the side of the grid"
        )
    return height, width


def _valid(grids: UInt32[np.ndarray, "N cells"], box: tuple[int, int]) -> Bool[np.ndarray, "N"]:
    """Which grids have every digit once in each row, column and box."""
    height, width = box
    side = height * width
    rows = grids.reshape(-1, side, side)
    boxes = rows.reshape(-1, width, height, height, width).swapaxes(2, 3).reshape(-1, side, side)
    units = np.stack([rows, rows.swapaxes(1, 2), boxes], axis=1)
    return (np.sort(units, axis=-1) == ord("1") + np.arange(side)).all((1, 2, 3))
