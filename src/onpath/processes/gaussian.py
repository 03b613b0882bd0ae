"""Gaussian diffusion and flow matching: x = a·x0 + s·noise, on the one schedule of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.processes.base import Process
from onpath.schedules import Schedule
from onpath.types import Batch, Noised

Path = Literal["flow", "vp"]
Prediction = Literal["eps", "v", "x0", "flow"]
Images = Float[Tensor, "B *rest"]
Times = Float[Tensor, "B"]


@dataclass(frozen=True)
class Gaussian(Process):
    """Images mixed with Gaussian noise along a schedule; what a network predicts is converted here and nowhere else.

    path: `flow` mixes by a = alpha, s = 1 - alpha (linear alpha is rectified flow); `vp`, which keeps the variance of
      standardised data, by a = √alpha, s = √(1 - alpha).
    prediction: what the network returns. `eps`: the noise; `x0`: the image; `v`: a·noise - s·x0; `flow`: noise - x0.
    Sources: flow, arXiv:2210.02747 and arXiv:2209.03003; vp and eps, arXiv:2006.11239; v, arXiv:2202.00512.

    >>> from onpath.schedules import LinearSchedule
    >>> process = Gaussian(LinearSchedule())
    >>> a, s = process.coefficients(torch.tensor([0.25])); (float(a), float(s))
    (0.75, 0.25)
    """

    schedule: Schedule
    path: Path = "flow"
    prediction: Prediction = "flow"

    def __post_init__(self) -> None:
        for name, allowed in (("path", get_args(Path)), ("prediction", get_args(Prediction))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"gaussian: {name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.prediction == "eps" and self.schedule.end_points()[1] <= 0.0:
            raise ValueError(
                "gaussian: prediction is eps, but alpha(1) is 0: there the input is all noise, and the image that a "
                "predicted noise stands for is divided by 0; take prediction: v or flow, or a schedule with alpha(1) "
                "above 0 such as {kind: betas} or {kind: cosine, alpha_min: 0.0001}"
            )

    def coefficients(self, t: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """(a, s) at t, in the dtype of t; (1, 0) for t < 0, the time of pure data."""
        a, s = self.schedule.alpha(t), self.schedule.mask_ratio(t)
        return (a, s) if self.path == "flow" else (a.sqrt(), s.sqrt())

    def log_ratio(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """lambda = ln(a/s), half the log signal-to-noise ratio; ±inf at the pure states."""
        a, s = self.coefficients(t)
        return a.log() - s.log()

    def draw(self, batch: Batch, key: rng.Key) -> Images:
        """Standard normal noise of the shape of the images, from their ids."""
        return rng.normal(key, batch.ids.to(batch.x.device), tuple(batch.x.shape[1:]))

    def prior(self, batch: Batch, key: rng.Key | None = None) -> Noised:
        """Noise alone, at t = 1."""
        noise = self.draw(batch, (key or rng.Key()).fold("prior"))
        return Noised(noise, torch.ones(batch.size, dtype=torch.float64), noise)

    def corrupt(self, batch: Batch, t: Times, key: rng.Key) -> Noised:
        """The images at times t (B,) in [0, 1], with noise from `key`; the same key gives the same noise at every t."""
        return self.mixed(batch.x, self.draw(batch, key), t)

    def mixed(self, x0: Images, noise: Images, t: Times) -> Noised:
        """a·x0 + s·noise at times t (B,)."""
        t = t.double().cpu()
        a, s = self._over(x0, t)
        return Noised(a * x0 + s * noise, t, noise)

    def target(self, x0: Images, noise: Images, t: Times) -> Images:
        """What a perfect network would return for a state made of this image and this noise."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x0
        if self.prediction == "flow":
            return noise - x0
        a, s = self._over(x0, t)
        return a * noise - s * x0

    def image_of(self, output: Images, x: Images, t: Times) -> Images:
        """The image x0 that a prediction for the state x stands for; with eps it is a division by a."""
        if self.prediction == "x0":
            return output
        a, s = self._over(x, t)
        if self.prediction == "eps":
            return (x - s * output) / a
        if self.prediction == "v":
            return (a * x - s * output) / (a * a + s * s)
        return (x - s * output) / (a + s)

    def gain(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """How far the image moves when the prediction moves by 1: its error in the image, by size."""
        a, s = self.coefficients(t.double())
        if self.prediction == "x0":
            return torch.ones_like(a)
        return s / {"eps": a, "v": a * a + s * s, "flow": a + s}[self.prediction]

    def residual(self, output: Images, x: Images, x0: Images, t: Times) -> Images:
        """s times (prediction - what would lead from x to x0), or that itself where x0 is predicted; never a division.

        The target at a state that a model has made itself: flow (x - x0)/s, eps (x - a·x0)/s, v (a·x - x0)/s.
        """
        a, s = self._over(x, t)
        if self.prediction == "x0":
            return output - x0
        if self.prediction == "eps":
            return s * output - (x - a * x0)
        if self.prediction == "v":
            return s * output - (a * x - (a * a + s * s) * x0)
        return s * output - (x - (a + s) * x0)

    def over(self, value: Float[Tensor, "B"], like: Images) -> Float[Tensor, "B *ones"]:
        """A number for each row, ready to be multiplied with images: the one place where (B,) becomes (B, 1, 1, 1)."""
        return value.to(like.device, like.dtype, non_blocking=True).view(-1, *(1,) * (like.dim() - 1))

    def _over(self, like: Images, t: Times) -> tuple[Tensor, Tensor]:
        a, s = self.coefficients(t.double())
        return self.over(a, like), self.over(s, like)
