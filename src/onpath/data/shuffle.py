"""The row that an example id means in its epoch: computed alone, or looked up in an order of the epoch."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng

_ROUNDS = 12  # with 6, orders of a handful of rows are measurably uneven
_KEPT = 2**22  # rows up to which an epoch's order is kept: 32 MB, and a lookup costs a thousandth


def permuted(ids: Int64[Tensor, "B"], num_rows: int, key: rng.Key) -> Int64[Tensor, "B"]:
    """The row, of `num_rows`, that each example id means: every epoch of ids visits every row once, in its own order.

    Nothing is stored, so it costs the same for a thousand rows as for a billion. Source: a balanced Feistel network
    that walks until it is back inside the range, "Ciphers with Arbitrary Finite Domains", Black and Rogaway 2002.

    >>> import torch
    >>> sorted(permuted(torch.arange(10, 15), 5, rng.Key()).tolist())
    [0, 1, 2, 3, 4]
    """
    if not 1 <= num_rows <= 2**60:
        raise ValueError(f"shuffle: num_rows is {num_rows}; allowed are 1 to 2**60")
    half = max(1, -(-(num_rows - 1).bit_length() // 2))
    epochs, rows = ids // num_rows, _feistel(ids % num_rows, ids // num_rows, half, key)
    while (outside := rows >= num_rows).any():
        rows[outside] = _feistel(rows[outside], epochs[outside], half, key)
    return rows


def _feistel(value: Int64[Tensor, "B"], epoch: Int64[Tensor, "B"], half: int, key: rng.Key) -> Int64[Tensor, "B"]:
    """A bijection of words of 2·half bits for each epoch."""
    low = (1 << half) - 1
    left, right = value >> half, value & low
    for number in range(_ROUNDS):
        drawn = rng.bits(key.fold("shuffle").at(number), right | epoch << 32)
        left, right = right, left ^ (drawn & low)
    return left << half | right


def shuffled(ids: Int64[Tensor, "B"], num_rows: int, key: rng.Key) -> Int64[Tensor, "B"]:
    """As ``permuted``, in another order and by a table of the epoch, as long as that is small.

    >>> sorted(shuffled(torch.arange(10, 15), 5, rng.Key()).tolist())
    [0, 1, 2, 3, 4]
    """
    if not 1 <= num_rows <= _KEPT:
        return permuted(ids, num_rows, key)
    rows, epochs = torch.empty_like(ids), ids // num_rows
    for epoch in torch.unique(epochs).tolist():
        at = epochs == epoch
        rows[at] = _order(num_rows, key.fold("epochs"), epoch)[ids[at] % num_rows]
    return rows


@lru_cache(maxsize=4)
def _order(num_rows: int, key: rng.Key, epoch: int) -> Int64[Tensor, "N"]:
    return rng.bits(key.at(epoch), torch.arange(num_rows)).argsort(stable=True)
