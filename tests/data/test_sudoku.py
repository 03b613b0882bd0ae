"""Sudoku: the grids by their known numbers, uniqueness by brute force, splits that share no grid."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from onpath.data.sudoku import Sudoku
from onpath.data.sudoku_grids import blank_sets, has_one_solution, orbits

IDS = torch.arange(200)
WIDTH = {4: 2, 6: 3}


def solutions(cells: list[int], side: int) -> Iterator[list[int]]:
    """All solutions by plain backtracking; 0 is a blank, digits count from 1."""
    if 0 not in cells:
        yield cells
        return
    place = cells.index(0)
    row, column = divmod(place, side)
    top, left = row // 2 * 2, column // WIDTH[side] * WIDTH[side]
    seen = set(cells[row * side : (row + 1) * side]) | set(cells[column::side])
    seen |= {cells[(top + r) * side + left + c] for r in range(2) for c in range(WIDTH[side])}
    for digit in range(1, side + 1):
        if digit not in seen:
            yield from solutions([*cells[:place], digit, *cells[place + 1 :]], side)


def canonical(x: Tensor, side: int) -> set[tuple[int, ...]]:
    """Grids relabelled so that the first row is 0, 1, …"""
    return {tuple(row[:side].index(digit) for digit in row) for row in x.tolist()}


def uniform(counts: np.ndarray) -> bool:
    """Whether counts are as even as chance makes them: chi-square within five standard deviations."""
    expected = counts.sum() / counts.size
    assert expected > 5
    return abs(((counts - expected) ** 2 / expected).sum() - (counts.size - 1)) < 5 * math.sqrt(2 * counts.size)


@pytest.mark.parametrize(("side", "num", "grids"), [(4, 12, 288), (6, 39168, 28200960)])
def test_the_numbers_of_grids(side: int, num: int, grids: int) -> None:
    found = orbits(side)
    assert found.shape == (num, side**2) and num * math.factorial(side) == grids
    assert len({row.tobytes() for row in found}) == num and (found[:, :side] == np.arange(side)).all()
    square = found.reshape(num, side, side)
    boxes = square.reshape(num, side // 2, 2, side // WIDTH[side], WIDTH[side]).swapaxes(2, 3).reshape(num, side, side)
    for units in (square, square.swapaxes(1, 2), boxes):
        assert (np.sort(units, axis=2) == np.arange(side)).all()
    if side == 4:  # as many as there are completions of a grid of blanks
        assert sum(1 for _ in solutions([0] * 16, 4)) == grids


@pytest.mark.parametrize(("side", "blanks"), [(4, 8), (4, 12), (6, 16), (6, 20)])
def test_every_puzzle_has_one_solution(side: int, blanks: int) -> None:
    source = Sudoku(side=side, blanks=blanks, split="test")  # type: ignore[arg-type]
    batch = source.examples(IDS[:40])
    assert batch.given is not None and batch.free_counts().tolist() == [blanks] * 40
    for x, given in zip(batch.x, batch.given, strict=True):
        assert list(solutions(((x + 1) * given).tolist(), side)) == [(x + 1).tolist()]


@pytest.mark.parametrize(("side", "blanks"), [(4, 9), (6, 20), (6, 24)])
def test_uniqueness_equals_brute_force(side: int, blanks: int) -> None:
    batch = Sudoku(side=side, blanks=blanks, unique=False).examples(IDS[:60])  # type: ignore[arg-type]
    assert batch.given is not None
    counts = [len(list(solutions(c, side))) for c in ((batch.x + 1) * batch.given).tolist()]
    assert 1 in counts and max(counts) > 1
    found = has_one_solution(batch.x.numpy(), ~batch.given.numpy(), side)
    assert found.tolist() == [count == 1 for count in counts]


@pytest.mark.parametrize("blanks", [5, 10, 12])
def test_all_sets_of_blanks_of_a_grid_are_listed(blanks: int) -> None:
    every, _ = blank_sets(blanks, unique=False)
    every = every[: len(every) // 12]
    sets, count = blank_sets(blanks, unique=True)
    for orbit, allowed in enumerate(np.split(sets, count.cumsum()[:-1])):
        grid = np.repeat(orbits(4)[orbit][None], len(every), 0)
        single = has_one_solution(grid, (every[:, None] >> np.arange(16) & 1).astype(bool), 4)
        assert every[single].tolist() == allowed.tolist()


def test_blanks_grids_and_digits_are_drawn_evenly() -> None:
    source = Sudoku(blanks=12, num_orbits=(2, 1, 1), seed=1)
    batch = source.examples(torch.arange(40000))
    rows = batch.x.tolist()
    grids, which = np.unique([[r[:4].index(digit) for digit in r] for r in rows], axis=0, return_inverse=True)
    assert len(grids) == 2 and uniform(np.bincount(which))
    assert uniform(np.unique(batch.x[:, :4].numpy(), axis=0, return_counts=True)[1])
    masks = (batch.free().numpy() << np.arange(16)).sum(1)
    _, counts = blank_sets(12, unique=True)
    for orbit in range(2):
        found = np.unique(masks[which == orbit], return_counts=True)[1]
        place = next(p for p, row in enumerate(orbits(4)) if (row == grids[orbit]).all())
        assert len(found) == counts[place] and uniform(found)
    pairs = Sudoku(side=6, blanks=2, unique=False).examples(torch.arange(10000)).free().long()
    together = (pairs.T @ pairs).numpy()[np.triu_indices(36, 1)]
    assert len(together) == 630 and uniform(together)


@pytest.mark.parametrize("source", [Sudoku(), Sudoku(num_orbits=(2, 5, 5)), Sudoku(side=6)])
def test_splits_share_no_grid(source: Sudoku) -> None:
    parts = [source.at_split(split) for split in ("train", "validation", "test")]
    seen = [canonical(part.examples(torch.arange(400)).x, source.side) for part in parts]
    assert all(seen[a].isdisjoint(seen[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    numbers = torch.cat([part.orbits for part in parts])
    assert len(numbers.unique()) == len(numbers) == len(orbits(source.side))
    if source.side == 4:
        assert [len(grids) for grids in seen] == [len(part.orbits) for part in parts]


def test_a_group_of_one_puzzle_is_made_once_and_is_the_same() -> None:
    source = Sudoku(side=6)
    ids = torch.tensor([9, 3, 9, 9, 0, 3])
    batch, one_by_one = source.examples(ids), [source.examples(ids[row : row + 1]) for row in range(6)]
    assert torch.equal(batch.x, torch.cat([one.x for one in one_by_one]))
    assert torch.equal(batch.free(), torch.cat([one.free() for one in one_by_one]))


def test_seeds_differ_and_columns_tell_the_puzzle() -> None:
    source, other = Sudoku(), Sudoku(seed=1)
    assert not torch.equal(source.orbits, other.orbits)
    batch, columns = source.examples(IDS), source.columns(IDS)
    assert not torch.equal(batch.x, other.examples(IDS).x)
    assert batch.given is not None and all(list(map(type, texts)) == [str] * 200 for texts in columns.values())
    for x, given, givens, solution in zip(batch.x, batch.given, columns["givens"], columns["solution"], strict=True):
        assert source.words(x.tolist()) == solution and len(solution) == 16
        assert source.words(x.masked_fill(~given, 4).tolist()) == givens.replace(".", "▒")
    assert len(source.remarks) == 1 and "8" in source.remarks[0]


@pytest.mark.parametrize("puzzle", ["1.3▒ 3▒.. \n ..[MASK:2] 4..1", "1▒3▒3▒▒▒▒▒▒▒4▒▒1"])
def test_a_puzzle_as_prompt(puzzle: str) -> None:
    batch = Sudoku().request([puzzle, "." * 16], torch.arange(2))
    assert batch.x.tolist()[0] == [0, 4, 2, 4, 2, 4, 4, 4, 4, 4, 4, 4, 3, 4, 4, 0]
    assert batch.free_counts().tolist() == [11, 16] and batch.padding is None


@pytest.mark.parametrize(
    ("prompt", "asked", "message"),
    [
        ("1.3.", {}, "has 4 cells, and a puzzle 16"),
        ("5" + "." * 15, {}, "not among the 4"),
        ("1234341221434321", {}, "no room"),
        ("." * 16, {"length": 20}, "length is 20"),
        ("." * 16, {"num_new_tokens": 2}, "leave both out"),
    ],
)
def test_what_is_no_puzzle_is_refused(prompt: str, asked: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sudoku().request([prompt], torch.arange(1), **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blanks": 13}, "allowed are 1 to 12"),
        ({"blanks": 0}, "blanks is 0"),
        ({"side": 6, "blanks": 23}, "allowed are 1 to 22"),
        ({"blanks": 16, "unique": False}, "allowed are 1 to 15"),
        ({"num_orbits": (8, 2, 3)}, "at most 12"),
        ({"num_orbits": (12, 0, 0)}, "1 or more"),
    ],
)
def test_settings_that_make_no_puzzles(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sudoku(**settings)  # type: ignore[arg-type]
