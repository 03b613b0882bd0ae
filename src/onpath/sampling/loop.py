"""The one denoising loop, and the sampler noun that it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.masking import Masking
from onpath.sampling.grids import Grid
from onpath.schedules import DATA
from onpath.types import Batch, Denoiser


@dataclass(frozen=True)
class Knobs:
    """Settings that may differ from row to row of one forward; None leaves the sampler's own.

    temperature, guidance: (B,) on the device of the batch. reveal: (B,) int64 on the CPU, reveals at each step.
    """

    temperature: Float[Tensor, "B"] | None = None
    guidance: Float[Tensor, "B"] | None = None
    reveal: Int64[Tensor, "B"] | None = None

    def rows(self, index: Int64[Tensor, "N"]) -> Knobs:
        return Knobs(**{f.name: _pick(getattr(self, f.name), index) for f in fields(self)})


@dataclass(frozen=True)
class State:
    """Where a generation stands.

    x: (B, L) tokens. masked: (B, L). num_masked: (B,) int64 on the CPU, where the counts are fixed ahead, else None.
    revealed_at: (B, L) step of the last reveal, -1 where given or masked. confidence: (B, L) probability of
    the token at that reveal, 1 where it follows from an end token. num_forwards: (B,) int64 on the CPU, rows through
    the network (guided ones count twice). batch, memo: the request and its encoding. num_branches: 2 where guided, else
    1; the memo has that many times B rows, those of the conditional branch first. num_steps: of the whole walk, None
    where a step is taken without one. unsettled: (B,) rows in which a later step may mask again what is revealed; None
    where none does, or where the counts tell it.
    """

    x: Int64[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]
    num_masked: Int64[Tensor, "B"] | None
    revealed_at: Int64[Tensor, "B L"]
    confidence: Float[Tensor, "B L"]
    num_forwards: Int64[Tensor, "B"]
    step: int
    batch: Batch
    memo: Any
    num_branches: int = 1
    num_steps: int | None = None
    unsettled: Bool[Tensor, "B"] | None = None

    def rows(self, index: Int64[Tensor, "N"]) -> State:
        """The state of the rows at `index` (int64 on the CPU)."""
        memo_index = torch.cat([index + branch * self.batch.size for branch in range(self.num_branches)])
        return replace(
            self,
            x=_pick(self.x, index),
            masked=_pick(self.masked, index),
            num_masked=_pick(self.num_masked, index),
            revealed_at=_pick(self.revealed_at, index),
            confidence=_pick(self.confidence, index),
            num_forwards=_pick(self.num_forwards, index),
            unsettled=_pick(self.unsettled, index),
            batch=self.batch.rows(index),
            memo=_map_memo(self.memo, memo_index),
        )

    def merged(self, part: State, index: Int64[Tensor, "N"]) -> State:
        """This state with the rows at `index` taken from `part`."""

        def put(whole: Tensor | None, rows: Tensor | None) -> Tensor | None:
            if whole is None or rows is None:
                return None
            return whole.index_copy(0, index.to(whole.device), rows)

        return replace(
            self,
            x=put(self.x, part.x),
            masked=put(self.masked, part.masked),
            num_masked=put(self.num_masked, part.num_masked),
            revealed_at=put(self.revealed_at, part.revealed_at),
            confidence=put(self.confidence, part.confidence),
            num_forwards=put(self.num_forwards, part.num_forwards),
            unsettled=put(self.unsettled, part.unsettled),
            step=part.step,
        )


class Sampler(ABC):
    """How to go from t to s. Frozen; ``init`` and a pure ``step`` carry everything in the state."""

    @property
    def fixed_counts(self) -> bool:
        """Whether a step reveals a number of positions that is fixed ahead, which the bound of its walk must know."""
        return False

    def repairable(self, process: Masking, state: State) -> State:
        """The state at which the text of the request stands in full, to be corrected; ValueError for most samplers."""
        raise ValueError(
            f"repair: {type(self).__name__} cannot correct a text; take Unmasking(remask=Proofread()), with a network "
            "that was trained to predict [MASK] for a wrong token"
        )

    @abstractmethod
    def init(self, process: Masking, denoiser: Denoiser, batch: Batch, knobs: Knobs) -> State:
        """The state at the prior, the request encoded."""

    @abstractmethod
    def step(
        self, process: Masking, denoiser: Denoiser, state: State, times: tuple[Any, Any], key: rng.Key, knobs: Knobs
    ) -> State:
        """The state at s from the one at t; `times` is (t, s), floats or (B,) CPU tensors with s < t."""


def walk(
    denoiser: Denoiser,
    process: Masking,
    sampler: Sampler,
    grid: Grid,
    batch: Batch,
    key: rng.Key,
    knobs: Knobs | None = None,
) -> Iterator[State]:
    """Yields the state at every time of the grid, the prior first: the denoising loop of the whole package.

    It ends early where every row is known to be finished.
    """
    knobs = knobs or Knobs()
    with torch.no_grad():
        state = sampler.init(process, denoiser, batch, knobs)
    times = grid.times(process.schedule)
    yield from _steps(denoiser, process, sampler, times, replace(state, num_steps=len(times) - 1), (key, knobs))


def repair(
    denoiser: Denoiser,
    process: Masking,
    sampler: Sampler,
    batch: Batch,
    key: rng.Key,
    passes: int = 4,
    knobs: Knobs | None = None,
) -> Iterator[State]:
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
        state = sampler.repairable(process, sampler.init(process, denoiser, batch, knobs))
    times = (*(1.0 - step / (passes + 1) for step in range(passes + 1)), DATA)
    yield from _steps(denoiser, process, sampler, times, replace(state, num_steps=passes + 1), (key, knobs))


def _steps(
    denoiser: Denoiser,
    process: Masking,
    sampler: Sampler,
    times: tuple[float, ...],
    state: State,
    settings: tuple[rng.Key, Knobs],
) -> Iterator[State]:
    key, knobs = settings
    yield state
    for index, step in enumerate(pairwise(times)):
        if _is_finished(state):
            return
        with torch.no_grad():
            state = sampler.step(process, denoiser, state, step, key.at(index), knobs)
        yield state


def _is_finished(state: State) -> bool:
    """Whether nothing is masked any more or will be again, as far as it is known without stalling a GPU."""
    if state.num_masked is not None:
        return not state.num_masked.any()
    if state.masked.device.type != "cpu":
        return False
    return not state.masked.any() and (state.unsettled is None or not state.unsettled.any())


def sample(
    denoiser: Denoiser,
    process: Masking,
    sampler: Sampler,
    grid: Grid,
    batch: Batch,
    key: rng.Key,
    knobs: Knobs | None = None,
) -> State:
    """The state at the data end of the grid. `batch` says what is given, padded and conditioned on.

    >>> # state = sample(policy, process, Unmasking(), UniformGrid(10), batch, Key(0)); plans = state.x
    """
    return last(walk(denoiser, process, sampler, grid, batch, key, knobs))


def last(states: Iterator[State]) -> State:
    """The state at the end of a walk, of which one at a time is kept."""
    return deque(states, maxlen=1).pop()


def _pick(tensor: Tensor | None, index: Int64[Tensor, "N"]) -> Any:
    return None if tensor is None else tensor[index.to(tensor.device)]


def _map_memo(memo: Any, index: Int64[Tensor, "N"]) -> Any:
    if isinstance(memo, tuple):
        return tuple(_map_memo(part, index) for part in memo)
    return _pick(memo, index)
