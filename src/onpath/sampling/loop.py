"""The one denoising loop, and the sampler noun that it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.base import Process
from onpath.sampling.grids import Grid
from onpath.sampling.states import State, taken
from onpath.schedules import DATA, Schedule
from onpath.types import Batch, Denoiser, Noised, Noisy


@dataclass(frozen=True)
class Knobs:
    """Settings that may differ from row to row of one forward; None leaves the sampler's own.

    temperature, guidance: (B,) on the device of the batch. reveal: (B,) int64 on the CPU, reveals at each step.
    order_ids: (B,) int64 by which an order or a coin that does not look at the network is drawn, instead of the row's
    own id; rows of the same one are revealed in the same order. lockstep: of the whole walk, see ``State``.
    """

    temperature: Float[Tensor, "B"] | None = None
    guidance: Float[Tensor, "B"] | None = None
    reveal: Int64[Tensor, "B"] | None = None
    order_ids: Int64[Tensor, "B"] | None = None
    lockstep: bool = False

    def ordered(self, batch: Batch) -> Batch:
        """The batch with the ids by which an order is drawn."""
        return batch if self.order_ids is None else replace(batch, ids=self.order_ids)

    def rows(self, index: Int64[Tensor, "N"]) -> Knobs:
        by_row = {f.name: taken(getattr(self, f.name), index) for f in fields(self) if f.name != "lockstep"}
        return replace(self, **by_row)


Settings = tuple[rng.Key, Knobs]


class Sampler(ABC):
    """How to go from t to s. Frozen; ``init`` and a pure ``step`` carry everything in the state."""

    @property
    def fixed_counts(self) -> bool:
        """Whether a step reveals a number of positions that is fixed ahead, which the bound of its walk must know."""
        return False

    def times(self, grid: Grid, schedule: Schedule) -> tuple[float, ...]:
        """The times of a walk on `grid`, from noise to data."""
        return grid.times(schedule)

    def repairable(self, process: Process, state: State) -> State:
        """The state at which the text of the request stands in full, to be corrected; ValueError for most samplers."""
        raise ValueError(
            f"repair: {type(self).__name__} cannot correct a text; take Unmasking(remask=Proofread()), with a network "
            "that was trained to predict [MASK] for a wrong token"
        )

    @abstractmethod
    def init(self, process: Process, denoiser: Denoiser, start: Noisy | Noised, batch: Batch, knobs: Knobs) -> State:
        """Where a walk begins: at the prior, or at any other state of the process; the request is encoded."""

    @abstractmethod
    def step(
        self, process: Process, denoiser: Denoiser, state: State, times: tuple[Any, Any], key: rng.Key, knobs: Knobs
    ) -> State:
        """The state at s from the one at t; `times` is (t, s), floats or (B,) CPU tensors with s < t."""


def walk(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    grid: Grid,
    batch: Batch,
    key: rng.Key,
    knobs: Knobs | None = None,
) -> Iterator[Any]:
    """Yields the ``State`` at every time of the grid, the prior first: the denoising loop of the whole package.

    It ends early where every row is known to be finished.
    """
    knobs = knobs or Knobs()
    with torch.no_grad():
        state = sampler.init(process, denoiser, process.prior(batch, key), batch, knobs)
    times = sampler.times(grid, process.schedule)
    yield from _steps(denoiser, process, sampler, times, replace(state, num_steps=len(times) - 1), (key, knobs))


def roll(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    times: Float[Tensor, "T B"],
    num_steps: Int64[Tensor, "B"],
    state: State,
    key: rng.Key,
) -> Iterator[Any]:
    """Yields the rows of `state` as they arrive at the end of their own walks, those with most steps last.

    times: (T, B) fp64 on the CPU; row b walks from times[0, b] through times[num_steps[b], b]. num_steps: (B,) on the
    CPU, 1 or more, falling with b, so that each step is one forward of the rows that still walk: the number of
    forwards is the longest walk, and that of rows through the network the sum of all.
    """
    active = [int((num_steps > step).sum()) for step in range(int(num_steps[0]))]
    states = _steps(denoiser, process, sampler, list(times[: len(active) + 1]), state, (key, Knobs()), active)
    next(states)
    remaining = state.batch.size
    for step, state in enumerate(states, start=1):
        staying = active[step] if step < len(active) else 0
        if staying < remaining:
            yield state.rows(torch.arange(staying, remaining))
        remaining = staying
    if remaining:  # finished before their time
        yield state.rows(torch.arange(remaining))


def repair(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    batch: Batch,
    key: rng.Key,
    passes: int = 4,
    knobs: Knobs | None = None,
) -> Iterator[Any]:
    """Yields the states of a walk that starts at the text of `batch` and corrects it; given positions are kept.

    Each of `passes` steps reads the text, masks what the sampler's ``Proofread`` doubts, and fills what the step
    before had masked; a last step fills what is left. A row in which nothing is doubted any more costs no more
    forwards, and the walk ends early where that is every row. ValueError where the sampler has no ``Proofread``.

    >>> # *_, state = repair(network, process, Unmasking(remask=Proofread()), batch, Key(0)); text = state.x
    """
    if passes < 1:
        raise ValueError(f"repair: passes is {passes}; it must be 1 or more, 4 is usual")
    knobs = knobs or Knobs()
    with torch.no_grad():
        start = sampler.init(process, denoiser, process.prior(batch, key), batch, knobs)
        state = sampler.repairable(process, start)
    times = (*(1.0 - step / (passes + 1) for step in range(passes + 1)), DATA)
    yield from _steps(denoiser, process, sampler, times, replace(state, num_steps=passes + 1), (key, knobs))


def _steps(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    times: Sequence[Any],
    state: State,
    settings: Settings,
    active: Sequence[int] | None = None,
) -> Iterator[State]:
    """The loop. active: rows that take part in each step, the first so many; those that do not have left for good."""
    key, knobs = settings
    yield state
    for index, (t, s) in enumerate(pairwise(times)):
        if state.is_finished:
            return
        if active is not None:
            num_rows = active[index]
            if num_rows < state.batch.size:
                state, knobs = state.rows(torch.arange(num_rows)), knobs.rows(torch.arange(num_rows))
            t, s = t[:num_rows], s[:num_rows]
        with torch.no_grad():
            state = sampler.step(process, denoiser, state, (t, s), key.at(index), knobs)
        yield state


def sample(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    grid: Grid,
    batch: Batch,
    key: rng.Key,
    knobs: Knobs | None = None,
) -> Any:
    """The state at the data end of the grid. `batch` says what is given, padded and conditioned on.

    >>> # state = sample(policy, process, Unmasking(), UniformGrid(10), batch, Key(0)); plans = state.x
    """
    return last(walk(denoiser, process, sampler, grid, batch, key, knobs))


def last(states: Iterator[Any]) -> Any:
    """The state at the end of a walk, of which one at a time is kept."""
    return deque(states, maxlen=1).pop()
