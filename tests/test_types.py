"""The carriers: what is free, what moves, what adds up."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from onpath.types import Batch, Loss, Nets, Noisy
from worlds import TableDenoiser

X = torch.arange(12).view(3, 4)
GIVEN = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
PADDING = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)


def batch() -> Batch:
    return Batch.of_tokens(X, torch.tensor([5, 6, 7]), given=GIVEN, padding=PADDING, cond={"c": torch.arange(3)})


def test_free_is_neither_given_nor_padding() -> None:
    expected = torch.tensor([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(batch().free(), expected)
    assert batch().free_counts().tolist() == [2, 2, 2]
    plain = Batch.of_tokens(X, torch.arange(3))
    assert plain.free().all() and plain.num_free is None and plain.free_counts().tolist() == [4, 4, 4]
    only_padding = Batch.of_tokens(X, torch.arange(3), padding=PADDING)
    assert only_padding.free_counts().tolist() == [3, 4, 2]


def test_blocked_positions_need_their_count() -> None:
    # without it every denominator and every masked fraction would silently be those of a free batch
    with pytest.raises(ValueError, match="of_tokens"):
        Batch(x=X, ids=torch.arange(3), given=GIVEN)


def test_rows_keep_everything() -> None:
    for index in (torch.tensor([2, 0]), slice(1, 3)):
        part = batch().rows(index)
        assert torch.equal(part.x, X[index]) and torch.equal(part.ids, batch().ids[index])
        assert torch.equal(part.given, GIVEN[index]) and torch.equal(part.padding, PADDING[index])
        assert torch.equal(part.num_free, batch().num_free[index])
        assert torch.equal(part.cond["c"], torch.arange(3)[index])


def test_moving_keeps_ids_and_counts_on_the_cpu() -> None:
    moved = batch().to("meta")
    assert moved.x.device.type == moved.given.device.type == moved.cond["c"].device.type == "meta"
    assert moved.ids.device.type == moved.num_free.device.type == "cpu"


def test_conditions_carry_the_padding() -> None:
    assert set(batch().conditions()) == {"c", "padding"}
    assert set(Batch.of_tokens(X, torch.arange(3)).conditions()) == set()


def test_carriers_are_frozen() -> None:
    for carrier in (batch(), Noisy(X, GIVEN), Loss(torch.tensor(1.0), 1.0), Nets(TableDenoiser(torch.zeros(3, 1, 2)))):
        with pytest.raises(dataclasses.FrozenInstanceError):
            carrier.x = None


def test_mean_of_a_loss() -> None:
    assert float(Loss(torch.tensor(6.0), 4.0).mean) == 1.5
    assert float(Loss(torch.tensor(6.0), torch.tensor(4)).mean) == 1.5
