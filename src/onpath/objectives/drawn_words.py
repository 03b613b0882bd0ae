"""What a distribution over words says of one of them, with as few passes over the vocabulary as it takes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_LEAST = -1e4  # of a log-probability: where it is -inf, p·log p is 0, not NaN


def scored(logits: Float[Tensor, "N V"], targets: Int64[Tensor, "N"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Log-probability of each row's target, with gradient, and the entropy of the row in nats, without."""
    return _Scored.apply(logits, targets)


def log_softmax(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """Log-probabilities of all words, finite where a word is left out by a logit of -inf."""
    words = logits.log_softmax(-1)
    return words.clamp_min(_LEAST) if words.requires_grad else words.clamp_min_(_LEAST)


class _Scored(torch.autograd.Function):
    """Keeps probabilities alone for the backward, which is their difference to the target."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        words, place = logits.log_softmax(-1), targets[:, None]
        found = words.gather(1, place)[:, 0]
        shares = words.exp()
        with torch.autocast(logits.device.type, enabled=False):  # which would round both to bf16
            entropy = -torch.einsum("nv,nv->n", shares, words.clamp_min_(_LEAST))
        ctx.save_for_backward(shares, place)
        ctx.mark_non_differentiable(entropy)
        return found, entropy

    @staticmethod
    def backward(ctx: Any, above: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
        shares, place = ctx.saved_tensors
        return (shares * -above[:, None]).scatter_add_(1, place, above[:, None]), None
