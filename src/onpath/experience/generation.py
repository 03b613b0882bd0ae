"""Rollouts of prompts by the ordinary sampling loop, kept with all that a loss must know of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.data.source import ActionSource, Source, TextSource
from onpath.processes.masking import Masking, reveal_chance
from onpath.rollouts import evaluating
from onpath.sampling.counts import AncestralCount
from onpath.sampling.distinct import Distinct
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, Sampler, walk
from onpath.sampling.states import TokenState
from onpath.sampling.unmasking import Unmasking
from onpath.types import Batch, Denoiser, Experience


@dataclass(frozen=True)
class Rollouts:
    """Finished rollouts, not judged yet: the advantages of `experience` are 0.

    prompts, completions: as people read them. completion_ids: tokens up to the end token. columns: what else a reward
    is told. forwards: (N,) rows that went through the network for each, and shares of rows that several had in
    common. seconds: that all of this took.
    """

    experience: Experience
    prompts: list[str]
    completions: list[str]
    completion_ids: list[list[int]]
    columns: Mapping[str, Sequence[Any]]
    forwards: Float[Tensor, "N"]
    seconds: float

    @property
    def lengths(self) -> Float[Tensor, "N"]:
        """Tokens of each completion."""
        return torch.tensor([len(ids) for ids in self.completion_ids]).float()

    @property
    def num_forwards(self) -> float:
        """Rows that went through the network in all."""
        return float(self.forwards.sum())


@dataclass(frozen=True)
class Generator:
    """Makes rollouts of the prompts of a source: completions, by any sampler of tokens.

    batch_size: rollouts that go through the network together, 0 for all. lockstep: each of them in every step.
    keeps_proposals: whether what each step drew and did not reveal is kept as well. shares_orders: whether rollouts of
    the same prompt reveal their places in the same order; states that they share then go through the network once.
    """

    process: Masking
    sampler: Sampler
    grid: Grid
    source: Source
    batch_size: int = 0
    lockstep: bool = False
    keeps_proposals: bool = False
    shares_orders: bool = False

    def rollouts(
        self,
        denoiser: Denoiser,
        ids: Int64[Tensor, "N"],
        examples: Int64[Tensor, "N"],
        key: rng.Key,
        device: torch.device,
    ) -> Rollouts:
        """Rollouts numbered `ids`, which key their draws, of the prompts `examples`; evaluation mode, no gradient."""
        begun, size = time.perf_counter(), self.batch_size or len(ids)
        request = replace(self.source.prompts(examples), ids=ids)
        parts = []
        with evaluating(denoiser):
            for first in range(0, len(ids), size):
                part = slice(first, first + size)
                parts.append(self._walked(denoiser, request.rows(part), examples[part], key, device))
        state = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        times = self._times
        nothing = torch.zeros(len(ids))
        experience = Experience(
            batch=replace(request, x=state["tokens"]),
            tokens=state["tokens"],
            revealed_at=state["revealed_at"],
            num_steps=len(times) - 1,
            log_prob=state["log_prob"],
            advantage=nothing,
            peers=nothing[:, None],
            reward=nothing,
            group=examples,
            chance=self._chance(times),
            proposed=state.get("proposed"),
        )
        seconds = time.perf_counter() - begun
        texts, columns = self._texts(experience), self._columns(experience, examples)
        return Rollouts(experience, *texts, columns, state["forwards"], seconds)

    @property
    def _times(self) -> tuple[float, ...]:
        return self.sampler.times(self.grid, self.process.schedule)

    def _walked(
        self, denoiser: Denoiser, batch: Batch, examples: Int64[Tensor, "N"], key: rng.Key, device: torch.device
    ) -> dict[str, Tensor]:
        """What is kept of the walk of a batch, on the CPU."""
        steps, state, share = [], None, 1.0
        knobs = Knobs(lockstep=self.lockstep)
        if self.shares_orders:
            knobs = Knobs(lockstep=self.lockstep, order_ids=examples.to(device))
            denoiser = Distinct(denoiser, examples)
        for state in walk(denoiser, self.process, self.sampler, self.grid, batch.to(device), key, knobs):
            if self.keeps_proposals:
                steps.append(state.proposed)
        assert isinstance(state, TokenState)
        kept = {"tokens": state.x, "revealed_at": state.revealed_at, "log_prob": state.log_prob}
        if steps:
            steps += [state.proposed] * (len(self._times) - len(steps))  # of a walk that ended early
            kept["proposed"] = torch.stack(steps[1:], dim=1)
        if isinstance(denoiser, Distinct):
            share = denoiser.num_read / denoiser.num_asked
        kept["forwards"] = state.num_forwards * share
        return {name: value.cpu() for name, value in kept.items()}

    def _chance(self, times: Sequence[float]) -> Float[Tensor, "K"] | None:
        """With which each step reveals a masked position, where it goes by coins."""
        if not (isinstance(self.sampler, Unmasking) and isinstance(self.sampler.count, AncestralCount)):
            return None
        ratio = self.process.schedule.mask_ratio(torch.tensor(times, dtype=torch.float64))
        return reveal_chance(ratio[:-1], ratio[1:]).float()

    def _texts(self, experience: Experience) -> tuple[list[str], list[str], list[list[int]]]:
        """Prompts and completions as text, completions as token ids up to their end."""
        padding, mask_id, end_id = experience.batch.padding, self.process.mask_id, self.source.end_id
        kept = torch.ones_like(experience.free) if padding is None else ~padding
        shown = torch.where(experience.free, mask_id, experience.tokens)
        prompts = [self.words(row) for row in _picked(shown, kept)]
        ids = [
            row[: row.index(end_id)] if end_id in row else row for row in _picked(experience.tokens, experience.free)
        ]
        return prompts, [self.words(row) for row in ids], ids

    def _columns(self, experience: Experience, examples: Int64[Tensor, "N"]) -> Mapping[str, Sequence[Any]]:
        return {"canvas": [self.words(row) for row in experience.tokens.tolist()], **self.source.columns(examples)}

    def words(self, tokens: Sequence[int]) -> str:
        """Tokens as people read them."""
        assert isinstance(self.source, TextSource | ActionSource)
        return self.source.words(tokens)


def _picked(tokens: Int64[Tensor, "N L"], kept: Bool[Tensor, "N L"]) -> list[list[int]]:
    """The kept tokens of each row."""
    sizes = kept.sum(1).tolist()
    return [part.tolist() for part in tokens[kept].split(sizes)]
