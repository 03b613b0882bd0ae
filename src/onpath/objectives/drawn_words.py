"""What a distribution over words says of one of them, with as few passes over the vocabulary as it takes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_LEAST = -1e4  # of a log-probability: where it is -inf, p·log p is 0, not NaN


def scored(
    logits: Float[Tensor, "N V"], targets: Int64[Tensor, "N K"]
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N"]]:
    """Log-probabilities of each row's targets, with gradient, and the entropy of the row in nats, without."""
    return _Scored.apply(logits, targets)


@torch.no_grad()
def drawn(logits: Float[Tensor, "N V"], targets: Int64[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """The log-probabilities of ``scored``, to the bit, so that a ratio of equal weights is 1; without gradient."""
    below, _, most = _compared(logits)
    return _of_targets(below, most, targets)


def log_softmax(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
    """Log-probabilities of all words, finite where a word is left out by a logit of -inf."""
    words = logits.log_softmax(-1)
    return words.clamp_min(_LEAST) if words.requires_grad else words.clamp_min_(_LEAST)


class _Scored(torch.autograd.Function):
    """Keeps probabilities alone for the backward, which is their difference to the targets."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        below, shares, most = _compared(logits)
        found = _of_targets(below, most, targets)
        entropy = -most - torch.linalg.vecdot(shares, below.clamp_min_(_LEAST))
        ctx.save_for_backward(shares, targets)
        ctx.mark_non_differentiable(entropy)
        return found, entropy

    @staticmethod
    def backward(ctx: Any, above: Tensor, _: Tensor | None) -> tuple[Tensor, None]:
        shares, targets = ctx.saved_tensors
        return (shares * -above.sum(1, keepdim=True)).scatter_add_(1, targets, above), None


def _compared(logits: Float[Tensor, "N V"]) -> tuple[Tensor, Tensor, Float[Tensor, "N"]]:
    """Logits below the greatest of the row, probabilities, and the log of the greatest of these.

    One exponential a word: the likeliest has probability 1/Σ exp(x - max x), which is the sum that a log needs.
    """
    below = logits - logits.amax(-1, keepdim=True)
    shares = below.softmax(-1)
    return below, shares, shares.amax(-1).log()


def _of_targets(below: Tensor, most: Tensor, targets: Tensor) -> Float[Tensor, "N K"]:
    return below.gather(1, targets) + most[:, None]
