"""Sudoku rewards against all grids of 4 x 4 cells, and against grids of other sizes that are known to be right."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch

from onpath.data.sudoku import Sudoku
from onpath.rewards.sudoku import SudokuCells, SudokuSolved

NINE = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
NINE_GIVENS = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SIX = "123456456123231564564231312645645312"  # boxes of 2 rows and 3 columns
GRID = "1234341221434321"
SOLVED = SudokuSolved()


def solved(canvas: list[str], givens: list[str], reward: SudokuSolved = SOLVED) -> list[float]:
    return reward(prompts=[""], completions=[""], completion_ids=[[]], canvas=canvas, givens=givens)


def cells(canvas: list[str], givens: list[str], solution: list[str], scale: float = 1.0) -> list[float]:
    return SudokuCells(scale)(completions=[""], canvas=canvas, givens=givens, solution=solution)


def is_valid(grid: str) -> bool:
    rows = [grid[4 * i : 4 * i + 4] for i in range(4)]
    columns = [grid[i::4] for i in range(4)]
    boxes = [grid[i : i + 2] + grid[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return all(sorted(unit) == list("1234") for unit in rows + columns + boxes)


@pytest.fixture(scope="module")
def all_grids() -> list[str]:
    """The 24³ grids of 4 x 4 cells whose rows are right, the first being 1234; all others are these, relabelled."""
    rows = ["".join(row) for row in permutations("1234")]
    return ["1234" + "".join(grid) for grid in product(rows, repeat=3)]


def test_288_grids_are_valid(all_grids: list[str]) -> None:
    valid = solved(all_grids, ["." * 16] * len(all_grids))
    assert sum(valid) == 12 and valid == [float(is_valid(grid)) for grid in all_grids]
    right = [grid for grid, value in zip(all_grids, valid, strict=True) if value]
    relabelled = {grid.translate(str.maketrans("1234", "".join(p))) for grid in right for p in permutations("1234")}
    assert len(relabelled) == 288 and set(solved(list(relabelled), ["." * 16] * 288)) == {1.0}


def test_any_solution_counts_that_keeps_the_givens(all_grids: list[str]) -> None:
    valid = [grid for grid in all_grids if is_valid(grid)]
    found = solved(valid, ["1234" + "." * 3 + "1" + "." * 8] * 12)
    assert found == [float(grid[7] == "1") for grid in valid] and 1 < sum(found) < 12


@pytest.mark.parametrize(
    ("grid", "givens"), [(NINE, NINE_GIVENS), (SIX, SIX[:9] + "▒" * 27), (GRID, "1..4" + "." * 12)]
)
def test_one_changed_cell_is_wrong(grid: str, givens: str) -> None:
    side = int(len(grid) ** 0.5)
    changed = [grid[:i] + str(int(grid[i]) % side + 1) + grid[i + 1 :] for i in range(len(grid))]
    odd = [grid[:-1] + sign for sign in "0.▒x٣"]
    canvas = [grid, *changed, *odd]
    assert solved(canvas, [givens] * len(canvas)) == [1.0] + [0.0] * (len(canvas) - 1)
    blanks = sum(sign in ".▒" for sign in givens)
    share = [0.0 if sign not in ".▒" else (blanks - 1) / blanks for sign in givens]
    last = (blanks - 1) / blanks if givens[-1] in ".▒" else 0.0
    assert cells(canvas, [givens] * len(canvas), [grid] * len(canvas)) == pytest.approx([1.0, *share, *[last] * 5])


def test_altered_givens_score_nothing_even_in_a_valid_grid() -> None:
    other = GRID.translate(str.maketrans("1234", "2341"))
    assert is_valid(other)
    assert solved([other, GRID], ["1" + "." * 15] * 2) == [0.0, 1.0]
    assert cells([other, GRID], ["1" + "." * 15] * 2, [GRID] * 2) == [0.0, 1.0]


def test_boxes_lie_or_stand() -> None:
    upright = "".join(SIX[row * 6 + column] for column in range(6) for row in range(6))
    blank = "." * 36
    for box, right in (((3, 2), upright), ((2, 3), SIX), (None, SIX)):
        assert solved([SIX, upright], [blank] * 2, SudokuSolved(box=box)) == [float(right == g) for g in (SIX, upright)]
    latin = "123234345"
    assert solved(["123231312"], ["." * 9], SudokuSolved(box=(1, 3))) == [1.0]
    assert solved([latin], ["." * 9], SudokuSolved(box=(1, 3))) == [0.0]


def test_scales_are_honoured() -> None:
    givens = "12.." + "." * 12
    half = GRID[:2] + "43" + "".join(GRID[4:9]) + "2" * 7
    right = sum(a == b for a, b in zip(half[2:], GRID[2:], strict=True))
    assert solved([GRID, half], [givens] * 2, SudokuSolved(scale=2.5)) == [2.5, 0.0]
    assert cells([GRID, half], [givens] * 2, [GRID] * 2, scale=0.2) == pytest.approx([0.2, 0.2 * right / 14])


def test_puzzles_of_the_data_and_guesses_at_them() -> None:
    source, ids = Sudoku(), torch.arange(400)
    columns = source.columns(ids)
    canvas = list(columns["solution"])
    assert solved(canvas, columns["givens"]) == cells(canvas, columns["givens"], columns["solution"]) == [1.0] * 400
    digits = torch.randint(1, 5, (400, 16), generator=torch.Generator().manual_seed(0))
    pairs = zip(digits.tolist(), columns["givens"], strict=True)
    guessed = ["".join(str(d) if g == "." else g for d, g in zip(row, puzzle, strict=True)) for row, puzzle in pairs]
    shares = cells(guessed, columns["givens"], columns["solution"])
    assert np.mean(shares) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 3200) ** 0.5)  # chance


@pytest.mark.parametrize(
    ("canvas", "givens", "box", "message"),
    [
        ([GRID], ["." * 15], None, r"the grids have \{'canvas': \[16\], 'givens': \[15\]\} cells"),
        ([GRID, SIX], ["." * 16, "." * 36], None, "all columns must be of one size"),
        (["12345"], ["....."], None, "a grid has 5 cells"),
        (["1" * 25], ["." * 25], None, "a grid has 25 cells and box is None; allowed are 16, 36, 64 or 81"),
        ([GRID], ["." * 16], (2, 3), r"a grid has 16 cells and box is \(2, 3\)"),
        ([GRID], ["1_______________"], None, "cell 1 of the column `givens` of completion 0 is '_'"),
    ],
)
def test_columns_that_are_no_puzzles_are_refused(
    canvas: list[str], givens: list[str], box: tuple[int, int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"sudoku_solved: .*{message}"):
        solved(canvas, givens, SudokuSolved(box=box))


def test_what_leaves_nothing_to_do_is_refused() -> None:
    with pytest.raises(ValueError, match="givens` of completion 1 has no blank cell"):
        cells([GRID] * 2, ["." * 16, GRID], [GRID] * 2)
    with pytest.raises(ValueError, match=r"sudoku_solved: box is \(4, 4\); rows and columns of 1 to 9 cells"):
        SudokuSolved(box=(4, 4))
