"""The Sudoku grids of 4 x 4 and 6 x 6 cells up to relabelling of their digits, and which puzzles have one solution."""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import numpy as np
from jaxtyping import Bool, Int64, UInt8

BOXES = {4: (2, 2), 6: (2, 3)}
"""Rows and columns of a box by side."""


@lru_cache(maxsize=2)
def orbits(side: int) -> UInt8[np.ndarray, "N side side"]:
    """The grids whose first row is 0, 1, …, in lexical order; read-only.

    Each stands for the `side`! grids that relabelling makes of it: 12 of them for the 288 grids of 4 x 4 cells, and
    39,168 for the 28,200,960 of 6 x 6.
    """
    height, width = BOXES[side]
    rows = np.array(list(permutations(range(side))), dtype=np.uint8)
    digits = np.bitwise_or.reduce(1 << rows.reshape(len(rows), -1, width).astype(np.int64), axis=2)
    apart = ~(rows[:, None] == rows).any(2)  # no digit twice in a column
    boxed = apart & ~(digits[:, None] & digits).any(2)  # nor in a box
    found = np.zeros((1, 1), dtype=np.int64)  # row 0 is 0, 1, …
    for number in range(1, side):
        fits = np.ones((len(found), len(rows)), dtype=bool)
        for above in range(number):
            fits &= (boxed if above // height == number // height else apart)[found[:, above]]
        grid, row = fits.nonzero()
        found = np.concatenate([found[grid], row[:, None]], axis=1)
    grids = rows[found]
    grids.flags.writeable = False
    return grids


@lru_cache(maxsize=1)
def solvable() -> Bool[np.ndarray, "12 65536"]:
    """For each orbit of 4 x 4 cells, the sets of blanks, as bit masks of cells, that leave one solution; read-only.

    Another grid is a solution where it differs from this one in blanks only, so a set fails if it holds the places in
    which some other grid differs.
    """
    canonical = orbits(4)
    relabelled = np.array(list(permutations(range(4))), dtype=np.uint8)[:, canonical.reshape(12, 16)].reshape(288, 16)
    differs = (canonical.reshape(12, 1, 16) != relabelled) @ (1 << np.arange(16))
    several = np.zeros((12, 2**16), dtype=bool)
    orbit, other = differs.nonzero()
    several[orbit, differs[orbit, other]] = True
    for cell in range(16):
        halves = several.reshape(12, -1, 2, 2**cell)
        halves[:, :, 1] |= halves[:, :, 0]  # a set fails where one of its subsets does
    single = ~several
    single.flags.writeable = False
    return single


def sets_of(size: int) -> Int64[np.ndarray, "N"]:
    """The bit masks of 16 cells with `size` of them set."""
    masks = np.arange(2**16)
    return masks[((masks[:, None] >> np.arange(16)) & 1).sum(1) == size]
