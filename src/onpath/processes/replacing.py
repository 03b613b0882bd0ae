"""Spoiling text by wrong words beside masks: what a network that proofreads is trained and judged on."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.types import Batch


def replaced_words(
    batch: Batch, where: Bool[Tensor, "B L"], num_words: int, mask_id: int, key: rng.Key
) -> Int64[Tensor, "B L"]:
    """The tokens of a batch with another word, uniform over all others and never [MASK], at the positions `where`.

    >>> batch = Batch.of_tokens(torch.tensor([[0, 1, 2]]), torch.tensor([5]))
    >>> new = replaced_words(batch, torch.tensor([[True, False, True]]), 3, 3, rng.Key(0))
    >>> (new != batch.x).tolist()
    [[True, False, True]]
    """
    inside = mask_id < num_words  # [MASK] is one of the ids that a head may emit, and is skipped
    count = num_words - inside
    offset = 1 + rng.integers(key, batch.ids.to(batch.x.device), (batch.x.shape[1],), max(1, count - 1))
    place = batch.x - (batch.x > mask_id).long() if inside else batch.x
    other = (place + offset) % count
    other = other + (other >= mask_id).long() if inside else other
    return torch.where(where, other, batch.x)


def coins(
    batch: Batch, shares: tuple[Float[Tensor, "B"], Float[Tensor, "B"]], key: rng.Key
) -> tuple[Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Two disjoint random sets of free positions, in which each lies with the probabilities `shares`, whose sum is at
    most 1."""
    draws = rng.uniform(key, batch.ids.to(batch.x.device), (batch.x.shape[1],))
    first, second = (share.to(draws.device)[:, None] for share in shares)
    free = batch.free()
    return (draws < first) & free, (draws >= first) & (draws < first + second) & free
