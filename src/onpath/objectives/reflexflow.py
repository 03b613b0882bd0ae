"""The two terms of ReflexFlow: against drift, and for what a drifted prediction misses."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "B *rest"]


def anti_drift(velocity: Images, away: Images) -> Float[Tensor, "B"]:
    """|v/|v| - d/|d||² of each example, 0 to 4: whether the predicted velocity points along `away`, d = x - x0.

    On the path of flow matching d = s·(noise - x0), so the direction asked for is that of its target; at a drifted
    state it is the one that leads back to the image. A velocity of 0 has no direction: 1, and no gradient.
    Source: arXiv:2512.04904, anti-drift rectification.

    >>> anti_drift(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([2.])
    """
    return (_direction(velocity) - _direction(away)).square().flatten(1).sum(1)


def compensation(clean: Images, drifted: Images, alpha: float) -> Images:
    """Weights 1 + alpha·e/mean(e) with e = |clean - drifted| and the mean by example; no gradient, mean 1 + alpha.

    1 everywhere for an example whose two predictions are equal. Source: arXiv:2512.04904, frequency compensation.

    >>> compensation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]), alpha=1.0)
    tensor([[1., 3.]])
    """
    error = (clean - drifted).detach().abs()
    mean = error.flatten(1).mean(1).view(-1, *(1,) * (error.dim() - 1))
    return 1.0 + alpha * torch.where(mean > 0, error / mean.clamp_min(torch.finfo(mean.dtype).tiny), 0.0)


def _direction(vector: Images) -> Images:
    norm = vector.flatten(1).norm(dim=1)
    # a network that begins at 0 points nowhere: divided by a small number it would get a gradient of any size
    norm = torch.where(norm > 1e-12, norm, torch.inf)
    return vector / norm.view(-1, *(1,) * (vector.dim() - 1))
