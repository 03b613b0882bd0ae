"""What a search asks of the network: plans from places, many at once, and what comes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.masking import Masking
from onpath.sampling.blocks import Blocks
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.orders import Order
from onpath.sampling.states import TokenState
from onpath.sampling.unmasking import Unmasking
from onpath.search.problems import Judged, Place, Problem
from onpath.types import Batch, Denoiser

_FREE = -1


@dataclass(frozen=True)
class Meta:
    """How a plan is sampled, the choice of an expansion in MCTD: guidance weight, temperature, order and steps.

    Source: the meta-actions of MCTD, arXiv:2502.07202.
    """

    guidance: float = 0.0
    temperature: float = 1.0
    order: Order = "confidence"
    steps: int = 1

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.steps < 1:
            raise ValueError(
                f"meta: temperature is {self.temperature} and steps is {self.steps}; needed are a temperature of 0 "
                "(greedy) or more and 1 step or more"
            )

    @property
    def cost(self) -> int:
        """Forwards: rows through the network; a guided step has two."""
        return self.steps * (2 if self.guidance else 1)

    @property
    def deterministic(self) -> bool:
        """Whether asking twice gives the same plan."""
        return self.temperature == 0 and self.order != "random"


@dataclass(frozen=True)
class Ask:
    """A plan from a place.

    number: of this ask in its search, which keys its draws. kept: tokens that stand already, -1 where the plan is free.
    segment, finish: for plans that come about in two parts: so many free positions from the left under `meta`, the
    rest greedily in `finish` steps.
    """

    place: Place
    meta: Meta
    number: int
    kept: tuple[int, ...] | None = None
    segment: int = 0
    finish: int = 0

    @property
    def cost(self) -> int:
        return self.meta.cost + self.finish


@dataclass(frozen=True)
class Answer:
    """The plan to an ask, what it is worth, how sure the network was of each token, and of a plan in two parts the
    first one, -1 where it is free."""

    plan: tuple[int, ...]
    judged: Judged
    sure: tuple[float, ...]
    part: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Planner:
    """A trained network that answers asks, as many as there are in few forwards.

    segment: positions after which the ends of a plan are told. Draws depend on the key, the task and the number of the
    ask alone, so a search does not depend on its company.
    """

    denoiser: Denoiser
    process: Masking
    sampler: Unmasking
    grid: Grid
    problem: Problem
    segment: int = 4
    key: rng.Key = rng.Key(purpose="search")
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.segment < 1:
            raise ValueError(f"planner: segment is {self.segment}; it must be 1 position or more, 4 is usual")

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """The answers, in the order of the asks."""
        found: dict[int, Answer] = {}

        def shape(index: int) -> tuple[object, ...]:
            ask = asks[index]
            free = 0 if ask.kept is None or not ask.segment else ask.kept.count(_FREE)
            return ask.meta.steps, ask.meta.order, ask.meta.guidance != 0, ask.segment, ask.finish, free

        for _, group in groupby(sorted(range(len(asks)), key=lambda i: (str(shape(i)), i)), key=shape):
            places = list(group)
            found.update(zip(places, self._answered([asks[place] for place in places]), strict=True))
        return [found[index] for index in range(len(asks))]

    def _answered(self, asks: list[Ask]) -> list[Answer]:
        """Answers to asks that differ in their rows alone."""
        batch = self._request(asks, [ask.kept for ask in asks])
        first, parts = asks[0], None
        state = self._walked(first, batch, self._knobs(asks))
        if first.segment:
            shown = state.x.masked_fill(state.masked, _FREE).cpu()
            parts = [tuple(row) for row in shown.tolist()]
            state = self._finished(asks, parts, first.finish)
        plans, sure = state.x.cpu(), state.confidence.cpu()
        judged = self.problem.judge([ask.place for ask in asks], plans, sure, self.segment)
        return [
            Answer(tuple(plan), one, tuple(by), None if parts is None else parts[row])
            for row, (plan, one, by) in enumerate(zip(plans.tolist(), judged, sure.tolist(), strict=True))
        ]

    def _request(self, asks: list[Ask], kept: Sequence[tuple[int, ...] | None]) -> Batch:
        ids = torch.tensor([ask.place.task << 24 | ask.number for ask in asks])
        batch = self.problem.request([ask.place for ask in asks], ids)
        if any(one is not None for one in kept):
            tokens = torch.tensor([one or (_FREE,) * self.problem.length for one in kept])
            given = tokens != _FREE
            if batch.given is not None:
                tokens, given = torch.where(batch.given, batch.x, tokens), given | batch.given
            batch = Batch.of_tokens(tokens.clamp_min(0), ids, given=given, cond=batch.cond)
        return batch.to(self.device)

    def _knobs(self, asks: list[Ask]) -> Knobs:
        guided = asks[0].meta.guidance != 0
        return Knobs(
            temperature=torch.tensor([ask.meta.temperature for ask in asks], device=self.device),
            guidance=torch.tensor([ask.meta.guidance for ask in asks], device=self.device) if guided else None,
        )

    def _walked(self, ask: Ask, batch: Batch, knobs: Knobs) -> TokenState:
        meta = ask.meta
        sampler = replace(self.sampler, order=meta.order)
        if not ask.segment:
            grid = self.grid.with_steps(meta.steps)
            return sample(self.denoiser, self.process, sampler, grid, batch, self.key, knobs)
        blocks = Blocks(ask.segment, stop_at_end=False)
        number = int(blocks.number(batch.free_counts())[0])
        grid = self.grid.with_steps(meta.steps * number)
        walked = walk(self.denoiser, self.process, replace(sampler, blocks=blocks), grid, batch, self.key, knobs)
        states = [state for _, state in zip(range(meta.steps + 1), walked, strict=False)]
        return states[-1]

    def _finished(self, asks: list[Ask], parts: Sequence[tuple[int, ...]], steps: int) -> TokenState:
        greedy = replace(self.sampler, order="confidence", tokens=replace(self.sampler.tokens, temperature=0.0))
        batch, grid = self._request(asks, parts), self.grid.with_steps(steps)
        return sample(self.denoiser, self.process, greedy, grid, batch, self.key.fold("finish"))

    def look(self, places: Sequence[Place]) -> tuple[Float[Tensor, "N V"], Int64[Tensor, "N L"], Float[Tensor, "N L"]]:
        """From nothing but masks, one forward each: log-probabilities of the first token that is free, the likeliest
        tokens, and their probabilities."""
        batch = self.problem.request(places, torch.arange(len(places))).to(self.device)
        state, free = self.process.prior(batch, self.key), batch.free()
        rows = torch.arange(free.numel(), device=self.device)
        share = self.process.masked_fraction(batch, state.masked.sum(1))

        def readout(logits: Tensor, _: Tensor) -> Tensor:
            return self.process.words_only(logits.float()).log_softmax(-1)

        with torch.no_grad():
            memo = self.denoiser.encode(**batch.conditions())
            found = self.denoiser(state.x, share, memo, rows=rows, readout=readout)
        words = found.view(*free.shape, -1)
        first = words[torch.arange(batch.size), free.int().argmax(1)]
        likeliest = words.max(-1)
        plans = torch.where(free, likeliest.indices, state.x)
        return first.cpu(), plans.cpu(), likeliest.values.exp().cpu()
