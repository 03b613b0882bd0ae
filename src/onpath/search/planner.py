"""What a search asks of the network: plans from places, many at once, and what comes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from onpath import rng
from onpath.processes.masking import Masking
from onpath.sampling.blocks import Blocks
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, sample, walk
from onpath.sampling.orders import Order
from onpath.sampling.states import TokenState
from onpath.sampling.unmasking import Unmasking
from onpath.search.evaluators import Evaluator, Exact
from onpath.search.problems import Judged, Place, Problem
from onpath.types import Batch, Denoiser

_FREE = -1


@dataclass(frozen=True)
class Meta:
    """How a plan is sampled, the choice of an expansion in MCTD: guidance weight, temperature, order and steps, None
    for as many as the problem has it.

    Source: the meta-actions of MCTD, arXiv:2502.07202.
    """

    guidance: float = 0.0
    temperature: float = 1.0
    order: Order = "confidence"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0 or (self.steps is not None and self.steps < 1):
            raise ValueError(
                f"meta: temperature is {self.temperature} and steps is {self.steps}; needed are a temperature of 0 "
                "(greedy) or more and 1 step or more"
            )

    @property
    def cost(self) -> int:
        """Forwards: rows through the network; a guided step has two."""
        return self.num_steps * (2 if self.guidance else 1)

    @property
    def num_steps(self) -> int:
        """Those that were set; one where none were."""
        return self.steps or 1

    @property
    def deterministic(self) -> bool:
        """Whether asking twice gives the same plan."""
        return self.temperature == 0 and self.order != "random"


@dataclass(frozen=True)
class Pyramid:
    """How much of a plan is masked at a depth of the tree: of its segment s, counted from 1, clip((s - depth)·slope).

    Positions are those that the task leaves free, from the left.
    segment: positions. slope: 1 has whole segments stand, one more at each depth; with .5 half of the next one stands
    as well, and so on, the surest tokens of each.
    Source: the pyramid schedule of Diffusion Forcing, arXiv:2407.01392, as MCTD denoises by it, arXiv:2502.07202.

    >>> Pyramid(4, 0.5).masked(1, 12)
    (0, 2, 4)
    """

    segment: int = 8
    slope: float = 1.0

    def __post_init__(self) -> None:
        if self.segment < 1 or not 0.0 < self.slope <= 1.0:
            raise ValueError(
                f"pyramid: segment is {self.segment} and slope {self.slope}; needed are 1 position or more, and a "
                "slope above 0 and at most 1"
            )

    def masked(self, depth: int, length: int) -> tuple[int, ...]:
        """Masked positions of each segment of a plan of so many positions."""
        firsts = range(0, length, self.segment)
        sizes = [min(self.segment, length - first) for first in firsts]
        shares = [min(1.0, max(0.0, (number + 1 - depth) * self.slope)) for number in range(len(sizes))]
        return tuple(math.ceil(share * size) for share, size in zip(shares, sizes, strict=True))

    def window(self, depth: int, length: int) -> int:
        """Positions from the left up to the first segment that is masked as a whole."""
        return next(
            (
                first
                for first, count in zip(range(0, length, self.segment), self.masked(depth, length), strict=True)
                if count == min(self.segment, length - first)
            ),
            length,
        )

    def depth(self, part: Sequence[int]) -> int:
        """How many segments of a part of a plan stand, -1 being masked."""
        return next((at // self.segment for at, token in enumerate(part) if token == _FREE), len(part))


@dataclass(frozen=True)
class Ask:
    """A plan from a place.

    number: of this ask in its search, which keys its draws. kept: tokens that stand already, -1 where the plan is free.
    pyramid, depth, finish: for plans that come about in two parts: under `meta` until the plan stands as the pyramid
    has it at this depth, the rest greedily in `finish` steps.
    """

    place: Place
    meta: Meta
    number: int
    kept: tuple[int, ...] | None = None
    pyramid: Pyramid | None = None
    depth: int = 0
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

    segment: positions after which the ends of a plan are told, None is what the problem has. evaluator: by what plans
    are valued. Draws depend on the key, the task and the number of the ask alone, so a search does not depend on its
    company.
    """

    denoiser: Denoiser
    process: Masking
    sampler: Unmasking
    grid: Grid
    problem: Problem
    segment: int | None = None
    evaluator: Evaluator = Exact()
    key: rng.Key = rng.Key(purpose="search")
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        if self.segment is not None and self.segment < 1:
            raise ValueError(f"planner: segment is {self.segment}; it must be 1 position or more, 4 is usual")

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """The answers, in the order of the asks."""
        found: dict[int, Answer] = {}

        def shape(index: int) -> tuple[object, ...]:
            ask = asks[index]
            return ask.meta.num_steps, ask.meta.order, ask.meta.guidance != 0, ask.pyramid, ask.depth, self._sizes(ask)

        for _, group in groupby(sorted(range(len(asks)), key=lambda i: (str(shape(i)), i)), key=shape):
            places = list(group)
            found.update(zip(places, self._answered([asks[place] for place in places]), strict=True))
        return [found[index] for index in range(len(asks))]

    def _answered(self, asks: list[Ask]) -> list[Answer]:
        """Answers to asks that differ in their rows alone."""
        batch = self._request(asks, [ask.kept for ask in asks])
        first, parts = asks[0], None
        state = self._walked(first, batch, self._knobs(asks))
        if first.pyramid is not None:
            free = torch.tensor([self.problem.given(ask.place) for ask in asks]) == _FREE
            shown = _shown(state, batch, free.to(self.device), first.pyramid, first.depth)
            parts = [tuple(row) for row in shown.tolist()]
            state = self._finished(asks, parts, first.finish)
        plans, sure = state.x.cpu(), state.confidence.cpu()
        judged = self.judged([ask.place for ask in asks], plans, sure)
        return [
            Answer(tuple(plan), one, tuple(by), None if parts is None else parts[row])
            for row, (plan, one, by) in enumerate(zip(plans.tolist(), judged, sure.tolist(), strict=True))
        ]

    def judged(self, places: Sequence[Place], plans: Int64[Tensor, "N L"], sure: Float[Tensor, "N L"]) -> list[Judged]:
        """What comes of each plan, with the value that the evaluator gives it."""
        found = self.problem.judge(places, plans, sure, self.segment or self.problem.segment)
        if self.evaluator.is_exact:
            return found
        values = self.evaluator(self.problem, places, plans, sure, found)
        return [replace(one, value=value) for one, value in zip(found, values, strict=True)]

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

    def _sizes(self, ask: Ask) -> tuple[int, ...]:
        """Steps to finish a plan in two parts, the positions that the task leaves free, those of them that are masked,
        and those that its first part reveals: all of the segments that shall be masked no longer as a whole."""
        if ask.pyramid is None:
            return ()
        given = self.problem.given(ask.place)
        kept = [token for token, before in zip(ask.kept or given, given, strict=True) if before == _FREE]
        window = ask.pyramid.window(ask.depth, len(kept))
        return ask.finish, len(kept), kept.count(_FREE), kept[:window].count(_FREE)

    def _walked(self, ask: Ask, batch: Batch, knobs: Knobs) -> TokenState:
        meta = ask.meta
        sampler = replace(self.sampler, order=meta.order)
        if ask.pyramid is None:
            grid = self.grid.with_steps(meta.num_steps)
            return sample(self.denoiser, self.process, sampler, grid, batch, self.key, knobs)
        blocks = Blocks(self._sizes(ask)[-1], stop_at_end=False)
        number = int(blocks.number(batch.free_counts())[0])
        grid = self.grid.with_steps(meta.num_steps * number)
        walked = walk(self.denoiser, self.process, replace(sampler, blocks=blocks), grid, batch, self.key, knobs)
        states = [state for _, state in zip(range(meta.num_steps + 1), walked, strict=False)]
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


def _shown(
    state: TokenState, batch: Batch, free: Bool[Tensor, "N L"], pyramid: Pyramid, depth: int
) -> Int64[Tensor, "N L"]:
    """The tokens of a state, -1 where masked, and in each segment where the network was least sure, until as many are
    masked there as the pyramid has it; what stood before stays. free: what the tasks leave free, as many in each row.
    """
    places = free.nonzero()[:, 1].view(len(free), -1)
    length, segment = places.shape[1], pyramid.segment
    left = torch.tensor(pyramid.masked(depth, length), device=state.x.device)
    doubt = torch.where(state.masked, -1.0, torch.where(batch.free(), state.confidence, torch.inf)).gather(1, places)
    padded = functional.pad(doubt, (0, segment * len(left) - length), value=torch.inf)
    rank = padded.unflatten(1, (len(left), segment)).argsort(dim=-1, stable=True).argsort(-1)
    hidden = (rank < left[:, None]).flatten(1)[:, :length]
    return state.x.masked_fill(torch.zeros_like(free).scatter(1, places, hidden), _FREE).cpu()
