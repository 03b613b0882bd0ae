"""Which positions a step reveals first: scores of the orders, and the choice of the highest."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.masking import uniform_draws
from onpath.sampling.counts import AdaptiveCount
from onpath.sampling.tokens import Drawn
from onpath.types import Batch

Order = Literal["random", "confidence", "margin", "entropy", "left_to_right"]
BLIND = ("random", "left_to_right")  # orders that are known before the forward


def blind_scores(order: Order, batch: Batch, key: rng.Key) -> Float[Tensor, "B L"]:
    """Scores of an order that does not look at what the network says."""
    if order == "random":
        return uniform_draws(key.fold("order"), batch)
    length = batch.x.shape[1]
    return -torch.arange(length, device=batch.x.device, dtype=torch.float32).expand(batch.x.shape)


def sighted_scores(order: Order, drawn: Drawn) -> Float[Tensor, "N"]:
    """Scores of N rows from what the network says of them."""
    if drawn.margin is None or drawn.entropy is None or order == "confidence":
        return drawn.confidence
    return drawn.margin if order == "margin" else -drawn.entropy


def gumbel(key: rng.Key, batch: Batch) -> Float[Tensor, "B L"]:
    """Standard Gumbel noise, one draw a position."""
    return -(-(uniform_draws(key, batch) + 2.0**-25).log()).log()


def admitted(
    count: AdaptiveCount,
    scores: Float[Tensor, "B L"],
    confidence: Float[Tensor, "B L"],
    entropy: Float[Tensor, "B L"],
) -> Bool[Tensor, "B L"]:
    """Positions that an adaptive count reveals, going by falling score; the first of each row always."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = _inverse(order)
    chosen = count.admit(confidence.gather(1, order), entropy.gather(1, order))
    return chosen.gather(1, ranks) | (ranks == 0)


def first(scores: Float[Tensor, "B L"], count: Int64[Tensor, "B"]) -> Bool[Tensor, "B L"]:
    """True at the ``count[b]`` highest scores of row b, ties from the left; cheaper where `count` is on the CPU."""
    length = scores.shape[1]
    word = (scores.float() + 0.0).view(torch.int32)  # adding 0 makes one zero of the two
    rising = (word ^ (word >> 31 & 0x7FFFFFFF)).long()  # integers in the order of the floats
    unique = rising * length - torch.arange(length, device=scores.device)
    if count.device.type != "cpu":  # the widest is not known here
        return _inverse(unique.argsort(dim=1, descending=True)) < count[:, None]
    widest = int(count.max())
    index = unique.topk(widest, dim=1).indices
    chosen = torch.arange(widest, device=scores.device) < count.to(scores.device)[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, chosen)


def _inverse(order: Int64[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    ranks = torch.empty_like(order)
    return ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
