"""The Sudoku grids of 4 x 4 and 6 x 6 cells up to relabelling of their digits, and which puzzles have one solution."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt8

WIDTHS = {4: 2, 6: 3}
"""Columns of a box by side; it has 2 rows."""


@lru_cache(maxsize=2)
def orbits(side: int) -> UInt8[np.ndarray, "N L"]:
    """The grids whose first row is 0, 1, …, cell by cell in lexical order; read-only.

    Each stands for the `side`! grids that relabelling makes of it: 12 of them for the 288 grids of 4 x 4 cells, and
    39,168 for the 28,200,960 of 6 x 6.
    """
    rows = np.array(list(permutations(range(side))), dtype=np.uint8)
    digits = np.bitwise_or.reduce(1 << rows.reshape(len(rows), -1, WIDTHS[side]).astype(np.int64), axis=2)
    bands = np.stack(((digits[:, None] & digits) == 0).all(2).nonzero(), axis=1)  # pairs of rows with whole boxes
    taken = (1 << (rows.astype(np.int64) + side * np.arange(side))).sum(1)  # a bit for each digit in each column
    keys = taken[bands].sum(1)
    found, used = bands[bands[:, 0] == 0], keys[bands[:, 0] == 0]
    for _ in range(side // 2 - 2):
        grid, band = ((used[:, None] & keys) == 0).nonzero()
        found, used = np.concatenate([found[grid], bands[band]], axis=1), used[grid] | keys[band]
    grid, band = _equal((1 << side * side) - 1 - used, keys)  # the last band has what is left
    grids = rows[np.concatenate([found[grid], bands[band]], axis=1)].reshape(-1, side * side)
    grids.flags.writeable = False
    return grids


def _equal(
    wanted: Int64[np.ndarray, "N"], keys: Int64[np.ndarray, "M"]
) -> tuple[Int64[np.ndarray, "K"], Int64[np.ndarray, "K"]]:
    """The places of all pairs of equal numbers."""
    order = keys.argsort(kind="stable")
    first, last = (np.searchsorted(keys, wanted, side=side, sorter=order) for side in ("left", "right"))
    count = last - first
    before = np.repeat(count.cumsum() - count, count)
    place = np.repeat(np.arange(len(wanted)), count)
    return place, order[first[place] + np.arange(len(place)) - before]


@lru_cache(maxsize=1)
def _solvable() -> Bool[np.ndarray, "12 65536"]:
    """For each orbit of 4 x 4 cells, the sets of blanks, as bit masks of cells, that leave one solution.

    Another grid is a solution where it differs from this one in blanks only, so a set fails if it holds all the places
    in which some other grid differs.
    """
    canonical = orbits(4)
    relabelled = np.array(list(permutations(range(4))), dtype=np.uint8)[:, canonical].reshape(288, 16)
    differs = (canonical[:, None] != relabelled) @ (1 << np.arange(16))
    several = np.zeros((12, 2**16), dtype=bool)
    orbit, other = differs.nonzero()
    several[orbit, differs[orbit, other]] = True
    for cell in range(16):
        halves = several.reshape(12, -1, 2, 2**cell)
        halves[:, :, 1] |= halves[:, :, 0]  # a set fails where one of its subsets does
    return ~several


def blank_sets(blanks: int, unique: bool) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "12"]]:
    """The sets of so many blanks, as bit masks of cells, that each orbit of 4 x 4 cells allows, one orbit after the
    other; and how many each has."""
    masks = np.arange(2**16)
    masks = masks[np.bitwise_count(masks) == blanks]
    allowed = _solvable()[:, masks] if unique else np.ones((12, len(masks)), dtype=bool)
    return masks[allowed.nonzero()[1]], allowed.sum(1)


def has_one_solution(
    grids: Integer[np.ndarray, "N L"], blank: Bool[np.ndarray, "N L"], side: int
) -> Bool[np.ndarray, "N"]:
    """Whether no other grid than `grids` (digits 0, 1, …) agrees with it on the cells that are not `blank`.

    Exact, and all puzzles at once: cells are narrowed down to what rows, columns and boxes leave; what is open then is
    tried out, cell by cell, with every digit that is left.
    """
    full = np.uint8(2**side - 1)
    truth = np.ascontiguousarray((np.uint8(1) << grids.astype(np.uint8)).T)
    cells, puzzle = np.where(blank.T, full, truth), np.arange(len(grids))
    single = np.ones(len(grids), dtype=bool)
    while len(puzzle):
        _narrow(cells, side)
        possible = _possible(cells, side)
        sizes = np.bitwise_count(cells)
        solved = (sizes == 1).all(0)
        single[puzzle[possible & solved & (cells != truth[:, puzzle]).any(0)]] = False
        going_on = possible & ~solved & single[puzzle]
        puzzle, cells, sizes = puzzle[going_on], cells[:, going_on], sizes[:, going_on]
        tried = np.where(sizes > 1, sizes, side + 1).argmin(0)  # the open cell with the fewest digits left
        left = cells[tried, np.arange(len(puzzle))]
        branch, digit = (left[:, None] >> np.arange(side, dtype=np.uint8) & 1).nonzero()
        puzzle, cells = puzzle[branch], cells[:, branch]
        cells[tried[branch], np.arange(len(branch))] = 1 << digit
    return single


def _narrow(cells: UInt8[np.ndarray, "L N"], side: int) -> None:
    """Strikes from the digits (bits) of each cell, in place, what its row, column and box rule out, until nothing
    changes: the digits of cells that have one, and beside a digit that fits nowhere else all others."""
    before = None
    while before is None or (before != cells).any():
        before = cells.copy()
        for members in _units(cells, side):
            once, twice, fixed = (np.zeros_like(members[0]) for _ in range(3))
            for cell in members:
                twice |= once & cell
                once |= cell
                fixed |= np.where(cell & (cell - 1), 0, cell)
            once &= ~twice
            for cell in members:
                only = cell & once
                np.copyto(cell, np.where(only, only, cell & ~fixed), where=(cell & (cell - 1)) != 0)


def _possible(cells: UInt8[np.ndarray, "L N"], side: int) -> Bool[np.ndarray, "N"]:
    """Where every row, column and box still has room for every digit."""
    room = np.ones(cells.shape[1], dtype=bool)
    for members in _units(cells, side):
        digits = members[0].copy()
        for cell in members[1:]:
            digits |= cell
        room &= (digits == 2**side - 1).reshape(-1, len(room)).all(0)
    return room


def _units(cells: UInt8[np.ndarray, "L N"], side: int) -> Iterator[list[Any]]:
    """All rows, then columns, then boxes, as lists of their cells, first to last; each a view with the units first."""
    width = WIDTHS[side]
    grid = cells.reshape(side, side, -1)
    boxes = cells.reshape(side // 2, 2, side // width, width, -1)
    yield [grid[:, place] for place in range(side)]
    yield [grid[place] for place in range(side)]
    yield [boxes[:, row, :, column] for row in range(2) for column in range(width)]
