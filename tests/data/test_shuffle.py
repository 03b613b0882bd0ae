"""Shuffling: every epoch visits every row once, in an order of its own, whatever the batches are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onpath.data.shuffle import permuted, shuffled
from onpath.rng import Key
from statistical import chi_square_p

KEY = Key(3, "text")

either_way = pytest.mark.parametrize("order", [permuted, shuffled])


@either_way
@settings(max_examples=20, deadline=None)
@given(num_rows=st.integers(1, 400), epoch=st.integers(0, 2**33))
def test_an_epoch_is_a_permutation(order: Any, num_rows: int, epoch: int) -> None:
    rows = order(epoch * num_rows + torch.arange(num_rows), num_rows, KEY)
    assert torch.equal(rows.sort().values, torch.arange(num_rows))


@either_way
def test_epochs_seeds_and_purposes_have_orders_of_their_own(order: Any) -> None:
    ids = torch.arange(500)
    orders = [order(ids + 500 * epoch, 500, key) for epoch in (0, 1) for key in (KEY, Key(4, "text"), KEY.fold("x"))]
    for n, one in enumerate(orders):
        for other in orders[:n]:
            assert (one == other).float().mean() < 0.02


@either_way
def test_a_row_does_not_depend_on_its_batch_and_a_batch_may_reach_over_epochs(order: Any) -> None:
    ids = torch.arange(90, 130)
    whole = order(ids, 100, KEY)
    assert whole.tolist() == [int(order(ids[n : n + 1], 100, KEY)) for n in range(len(ids))]
    assert torch.equal(order(torch.arange(100, 200), 100, KEY)[:30], whole[10:])


def test_every_place_gets_every_row_equally_often() -> None:
    epochs, num_rows = 20_000, 5
    orders = permuted(torch.arange(epochs * num_rows), num_rows, KEY).view(epochs, num_rows)
    even = torch.full((num_rows,), epochs / num_rows)
    assert min(chi_square_p(orders[:, place].bincount(minlength=num_rows), even) for place in range(num_rows)) > 0.001
    neighbours = (orders[:, 0] * num_rows + orders[:, 1]).bincount(minlength=num_rows**2)
    expected = (1 - torch.eye(num_rows)) * epochs / (num_rows * (num_rows - 1))
    assert chi_square_p(neighbours, expected) > 0.001


def test_a_trillion_rows_need_no_list_of_them() -> None:
    num_rows = 10**12 + 39
    rows = permuted(torch.arange(4000) * 250_000_007, num_rows, KEY)
    assert len(rows.unique()) == 4000 and int(rows.min()) >= 0 and int(rows.max()) < num_rows
    assert (rows.double() / num_rows).mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 4000) ** 0.5)


@either_way
def test_no_row_is_refused(order: Any) -> None:
    with pytest.raises(ValueError, match="num_rows is 0; allowed are 1 to"):
        order(torch.arange(1), 0, KEY)


def test_of_very_many_rows_no_list_is_kept() -> None:
    ids, num_rows = torch.arange(50), 2**40
    assert torch.equal(shuffled(ids, num_rows, KEY), permuted(ids, num_rows, KEY))
