"""What a network makes of its own states beside those of the forward process, example by example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.evaluation.settings import Subject
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import flat_rows, position_bits
from onpath.sampling.tokens import Categorical, draw
from onpath.types import Batch, Noised, Noisy

Columns = dict[str, Float[Tensor, "B"]]
"""Sums over the units (values, masked positions) of each example, fp64 on the CPU. units: how many. own_loss,
forward_loss: on the state that was walked to, and on the one of the forward process. floor: what the first would be of
a calibrated network. own_spread, forward_spread: what keeps its expectation where the walk is exact. Of tokens, wrong:
revealed tokens that differ from the example, of `revealed` ones."""


class Probe(ABC):
    """A batch of examples, the states of the forward process along a grid, and what is read off at any state.

    times: of the grid, the prior first; a state is asked for by its place in them. key: one noise or one order of
    positions for all times.
    """

    def __init__(self, subject: Subject, batch: Batch, times: tuple[float, ...], key: rng.Key) -> None:
        self.subject, self.batch, self.times, self.key = subject, batch, times, key
        self.memo = subject.denoiser.encode(**batch.conditions())

    @abstractmethod
    def forward_state(self, place: int) -> Any:
        """The state of the forward process at a place of the grid."""

    @abstractmethod
    def plain(self, place: int) -> Columns:
        """forward_loss and units at the state of the forward process."""

    @abstractmethod
    def compared(self, place: int, source: int, own: Any) -> Columns:
        """Everything about the state `own` at `place` that was walked to from the forward state at `source`."""

    def times_at(self, place: int) -> Float[Tensor, "B"]:
        return torch.full((self.batch.size,), self.times[place], dtype=torch.float64)


class ImageProbe(Probe):
    """Of images: squared error of the predicted image, and power of the predicted noise.

    limits: the least and the greatest value of the images. A predicted image is clipped to them before its error is
    taken: that never makes the error greater, leaves the prediction of a calibrated network as it is, a mean of images,
    and bounds the error where a prediction is divided by a number near 0 (eps near t = 1, by a). The noise stays that
    of the prediction as it is.
    The floor: an ODE solver makes the state a function of its source, so a calibrated network errs there by what its
    prediction moved since, and by what it did not know at the source: |D(own) - D(source)|² + |D(source) - x0|².
    """

    def __init__(
        self, subject: Subject, batch: Batch, times: tuple[float, ...], key: rng.Key, limits: tuple[float, float]
    ) -> None:
        super().__init__(subject, batch, times, key)
        self.limits = limits

    @cached_property
    def _noise(self) -> Tensor:
        return self.subject.process.prior(self.batch, self.key).noise

    @cached_property
    def _images(self) -> dict[int, Tensor]:
        return {}

    def forward_state(self, place: int) -> Noised:
        if place == 0:
            return Noised(self._noise, self.times_at(0), self._noise)
        return self.subject.process.mixed(self.batch.x, self._noise, self.times_at(place))

    def plain(self, place: int) -> Columns:
        return {"forward_loss": _power(self._image(place).clamp(*self.limits) - self.batch.x), "units": self._units}

    def compared(self, place: int, source: int, own: Any) -> Columns:
        image, before = self._predicted(own.x, place), self._image(source).clamp(*self.limits)
        clipped = image.clamp(*self.limits)
        forward = self.forward_state(place)
        return self.plain(place) | {
            "own_loss": _power(clipped - self.batch.x),
            "floor": _power(clipped - before) + _power(before - self.batch.x),
            "own_spread": _power(self._noise_of(own.x, image, place)),
            "forward_spread": _power(self._noise_of(forward.x, self._image(place), place)),
        }

    @property
    def _units(self) -> Float[Tensor, "B"]:
        return torch.full((self.batch.size,), float(self.batch.x[0].numel()), dtype=torch.float64)

    def _image(self, place: int) -> Tensor:
        """The image predicted at a state of the forward process."""
        if place not in self._images:
            self._images[place] = self._predicted(self.forward_state(place).x, place)
        return self._images[place]

    def _predicted(self, x: Tensor, place: int) -> Tensor:
        process, t = self.subject.process, self.times_at(place)
        output = self.subject.denoiser(x, t.clamp(0.0, 1.0).to(x.device, x.dtype), self.memo)
        return process.image_of(output.to(x.dtype), x, t)

    def _noise_of(self, x: Tensor, image: Tensor, place: int) -> Tensor:
        process: Gaussian = self.subject.process
        a, s = (process.over(c, x) for c in process.coefficients(self.times_at(place)))
        return (x - a * image) / s


class TokenProbe(Probe):
    """Of tokens: cross-entropy and entropy at the positions that the walk has left masked.

    The state to compare with has the same positions masked, and the example's own tokens everywhere else. The floor:
    what was revealed is drawn from what was known at the source, so a calibrated network pays there as much for tokens
    that it would itself have drawn at the source as for the true ones; one such draw for each position estimates it.
    """

    def forward_state(self, place: int) -> Noisy:
        process, batch, t = self.subject.process, self.batch, self.times_at(place)
        if self.subject.sampler.fixed_counts:
            counts = process.scheduled_count(t, batch.free_counts())
            return process.corrupt_count(batch, counts, self.key.fold("forward"))
        return process.corrupt(batch, t, self.key.fold("forward"))

    def plain(self, place: int) -> Columns:
        state = self.forward_state(place)
        (nats, _), _, units = self._read(state.x, state.masked, self.batch.x)
        return {"forward_loss": nats, "units": units}

    def compared(self, place: int, source: int, own: Any) -> Columns:
        before, x, masked = self.forward_state(source), self.batch.x, own.masked
        imagined = torch.where(masked & before.masked, self._imagined(source), x)
        (nats, of_imagined), entropy, units = self._read(own.x, masked, x, imagined)
        hidden = x.masked_fill(masked, self.subject.process.mask_id)
        (forward_nats, _), forward_entropy, _ = self._read(hidden, masked, x)
        revealed = before.masked & ~masked
        return {
            "units": units,
            "own_loss": nats,
            "forward_loss": forward_nats,
            "floor": of_imagined,
            "own_spread": entropy,
            "forward_spread": forward_entropy,
            "wrong": (revealed & (own.x != x)).sum(1).double().cpu(),
            "revealed": revealed.sum(1).double().cpu(),
        }

    def _read(
        self,
        x: Int64[Tensor, "B L"],
        masked: Bool[Tensor, "B L"],
        target: Int64[Tensor, "B L"],
        other: Int64[Tensor, "B L"] | None = None,
    ) -> tuple[tuple[Float[Tensor, "B"], Float[Tensor, "B"]], Float[Tensor, "B"], Float[Tensor, "B"]]:
        """Summed over the masked positions: cross-entropy of both targets, entropy, and their number."""
        counts = masked.sum(1)
        total = int(counts.sum())
        if total == 0:
            none = torch.zeros(len(x), dtype=torch.float64)
            return (none, none), none, none
        first, second = target.flatten(), (target if other is None else other).flatten()

        def readout(logits: Tensor, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = self.subject.process.words_only(logits.float())
            entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
            nats, others = (F.cross_entropy(logits, to[chunk], reduction="none") for to in (first, second))
            return nats, others, entropy

        rows = flat_rows(masked, total)
        example = rows // x.shape[1]
        sums = [_summed(part, example, len(x)) for part in self._asked(x, counts, rows, readout)]
        return (sums[0], sums[1]), sums[2], counts.double().cpu()

    def _imagined(self, source: int) -> Int64[Tensor, "B L"]:
        """What the network draws at the forward state of a place, for each masked position by itself."""
        if source not in self._drawn:
            state = self.forward_state(source)
            counts = state.masked.sum(1)
            rows = flat_rows(state.masked, int(counts.sum()))
            words = position_bits(self.key.fold("imagined"), self.batch).flatten()

            def readout(logits: Tensor, chunk: Tensor) -> Tensor:
                logits = self.subject.process.words_only(logits)
                return draw(logits, words[chunk], Categorical(), None, detailed=False).token

            x = self.batch.x
            tokens = self._asked(state.x, counts, rows, readout) if len(rows) else rows
            self._drawn[source] = x.flatten().index_copy(0, rows, tokens).view_as(x)
        return self._drawn[source]

    @cached_property
    def _drawn(self) -> dict[int, Tensor]:
        return {}

    def _asked(self, x: Tensor, counts: Int64[Tensor, "B"], rows: Int64[Tensor, "N"], readout: Any) -> Any:
        fraction = self.subject.process.masked_fraction(self.batch, counts)
        return self.subject.denoiser(x, fraction, self.memo, rows=rows, readout=readout)


def _power(x: Tensor) -> Float[Tensor, "B"]:
    return x.double().square().flatten(1).sum(1).cpu()


def _summed(values: Float[Tensor, "N"], example: Int64[Tensor, "N"], size: int) -> Float[Tensor, "B"]:
    return torch.zeros(size, dtype=torch.float64).index_add(0, example.cpu(), values.cpu().double())
