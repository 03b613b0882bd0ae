"""How far the states that a model reaches by itself have drifted from those that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.evaluation.drift_probes import Columns, ImageProbe, Probe, TokenProbe
from onpath.evaluation.settings import Row, Subject, row
from onpath.evaluation.statistics import Z95, ratio
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.rollouts import evaluating
from onpath.sampling.loop import Knobs, last, roll, walk
from onpath.sampling.unmasking import Unmasking
from onpath.types import Batch

Offset = int | Literal["all"]


@dataclass(frozen=True)
class Drift:
    """Own states beside forward states, over times and lengths of the walk.

    From the state of the forward process some steps of the run's grid nearer to noise, the run's own sampler walks to
    time t; there the network is compared with itself at the forward state of t, of the same example and noise.

    times: each is put at the nearest point of the grid, so 0 and 1 stand for the last and the first point at which a
      sampler asks the network after its first forward. offsets: lengths of the walk in steps of the grid; one that
      would begin beyond noise begins there. `all`: from the prior, as a generation does.
    split, num_examples: the first so many examples. batch_size: how many walk together, which changes no figure.
    """

    times: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    offsets: tuple[Offset, ...] = (1, 2, 5, 10, "all")
    num_examples: int = 256
    split: Literal["validation", "test", "train"] = "validation"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if not self.times or not all(0.0 <= t <= 1.0 for t in self.times):
            raise ValueError(f"drift: times is {self.times}; needed are some within 0 (data) and 1 (noise)")
        if not self.offsets or not all(offset == "all" or offset >= 1 for offset in self.offsets):
            raise ValueError(f"drift: offsets is {self.offsets}; needed are numbers of steps of 1 or more, or all")
        if self.num_examples < 2 or self.batch_size < 1:
            raise ValueError(
                f"drift: num_examples is {self.num_examples} and batch_size {self.batch_size}; needed are 2 or more "
                "examples, for an interval, and a batch_size of 1 or more"
            )

    def measure(self, subject: Subject) -> list[Row]:
        """Rows {set, mode, metric, value, ci95, n, t, offset}, modes such as `drift t=.5 +5` and `drift t=.5 all`.

        loss: at own states, at offset 0 at forward states: squared error of the predicted image by value, clipped to
        the range of the images, or nats by masked token. loss_ratio: own over forward. floor: the ratio that a
        calibrated network would have there. excess: ratio minus floor. bias: power of the predicted noise, or
        entropy of the predicted tokens, own over forward, minus 1. wrong: of tokens, the share of revealed ones that
        differ from the example.
        None for a grid of one step, which has no state between its ends. ValueError for a process of one's own, of
        which it is not known what to compare.
        """
        if not isinstance(subject.process, Gaussian | Masking):
            raise ValueError(
                f"drift: the process is {type(subject.process).__name__}; it is measured of gaussian and masking ones"
            )
        times = subject.sampler.times(subject.grid, subject.process.schedule)
        places = self._places(times)
        found: dict[tuple[int, Offset], list[Columns]] = {}
        with evaluating(subject.denoiser):
            for probe in self._probes(subject, times) if places else ():
                for key, columns in _examined(probe, places, self._offsets(subject)):
                    found.setdefault(key, []).append(columns)
        rows = []
        for (place, offset), parts in sorted(found.items(), key=lambda item: (item[0][0], str(item[0][1]).zfill(9))):
            columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            rows += _rows(self.split, times[place], offset, columns)
        return rows

    def _places(self, times: tuple[float, ...]) -> list[int]:
        inner = range(1, len(times) - 1)
        nearest = {min(inner, key=lambda i: abs(times[i] - t)) for t in self.times} if inner else set()
        return sorted(nearest)

    def _offsets(self, subject: Subject) -> tuple[Offset, ...]:
        """Blocks are walked from the prior only: which one is at work is a matter of the whole walk."""
        in_blocks = isinstance(subject.sampler, Unmasking) and subject.sampler.blocks is not None
        return ("all",) if in_blocks else self.offsets

    def _probes(self, subject: Subject, times: tuple[float, ...]) -> Iterator[Probe]:
        key = rng.Key(subject.seed).fold("drift")
        if not isinstance(subject.process, Gaussian):
            yield from (TokenProbe(subject, batch, times, key) for batch in self._batches(subject))
            return
        ends = [batch.x.aminmax() for batch in self._batches(subject)]
        limits = min(float(low) for low, _ in ends), max(float(high) for _, high in ends)
        yield from (ImageProbe(subject, batch, times, key, limits) for batch in self._batches(subject))

    def _batches(self, subject: Subject) -> Iterator[Batch]:
        source = subject.source.at_split(self.split)
        if not source.has_answers:
            raise ValueError(
                f"drift: {type(source).__name__} are prompts without answers, so there are no states of training to "
                "compare with; measure a run on data with answers"
            )
        size = min(self.num_examples, source.num_examples or self.num_examples)
        for ids in torch.arange(size).split(self.batch_size):
            yield source.examples(ids, subject.device).to(subject.device)


BRIEF = Drift(times=(0.1, 0.25, 0.5, 0.75), offsets=(1, 5, "all"), num_examples=32)
"""What an evaluation measures by the way."""


def _examined(
    probe: Probe, places: list[int], offsets: tuple[Offset, ...]
) -> Iterator[tuple[tuple[int, Offset], Columns]]:
    """What is read off at every place and offset; offset 0 are the forward states."""
    whole = _generated(probe, set(places)) if "all" in offsets else {}
    for place in places:
        yield (place, 0), probe.plain(place)
        seen: dict[int, Columns] = {}
        for offset in offsets:
            if offset == "all":
                yield (place, offset), probe.compared(place, 0, whole[place])
                continue
            source = max(0, place - offset)
            if source not in seen:
                own = _walked(probe, source, place, probe.key.fold(f"walk {source} {place}"))
                seen[source] = probe.compared(place, source, own)
            yield (place, offset), seen[source]


def _generated(probe: Probe, places: set[int]) -> dict[int, Any]:
    """The states of a generation at some places; where it ends before its time, the last one."""
    subject, kept = probe.subject, {}
    state = None
    walks = walk(subject.denoiser, subject.process, subject.sampler, subject.grid, probe.batch, probe.key)
    for place, state in enumerate(walks):
        if place in places:
            kept[place] = state
        if place == max(places):
            break
    return kept | {place: state for place in places - kept.keys()}


def _walked(probe: Probe, source: int, place: int, key: rng.Key) -> Any:
    """The state at `place` that the run's sampler reaches from the forward state at `source`."""
    subject, batch = probe.subject, probe.batch
    parts = (subject.denoiser, subject.process, subject.sampler)
    start = subject.sampler.init(subject.process, subject.denoiser, probe.forward_state(source), batch, Knobs())
    times = torch.stack([probe.times_at(at) for at in range(source, place + 1)])
    return last(roll(*parts, times, torch.full((batch.size,), place - source), start, key))


def _rows(split: str, t: float, offset: Offset, columns: Columns) -> list[Row]:
    n, units = len(columns["units"]), columns["units"]
    place = {"t": t, "offset": offset}
    mode = f"drift t={_short(t)} {offset if offset == 'all' else f'+{offset}'}"

    def measured(metric: str, above: Float[Tensor, "B"], below: Float[Tensor, "B"], minus: float = 0.0) -> list[Row]:
        if not float(below.sum()):
            return []
        value, se = ratio(above, below)
        value -= minus
        return [{**row(split, mode, metric, value, (value - Z95 * se, value + Z95 * se), n), **place}]

    if offset == 0:
        return measured("loss", columns["forward_loss"], units)
    own, forward, floor = columns["own_loss"], columns["forward_loss"], columns["floor"]
    rows = measured("loss", own, units) + measured("loss_ratio", own, forward) + measured("floor", floor, forward)
    rows += measured("excess", own - floor, forward)
    rows += measured("bias", columns["own_spread"], columns["forward_spread"], minus=1.0)
    return rows + (measured("wrong", columns["wrong"], columns["revealed"]) if "wrong" in columns else [])


def _short(t: float) -> str:
    """A time without its leading zero: .5"""
    return f"{t:.3g}".removeprefix("0") or "0"
