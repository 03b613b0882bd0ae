"""What is measured of a text model: how many bits its text costs, and what its samples look like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.data.source import TextSource
from onpath.evaluation.drift import BRIEF, Drift
from onpath.evaluation.proofreading import Proofreading, require_doubt
from onpath.evaluation.scores import perplexity_row, text_rows
from onpath.evaluation.settings import Evaluation, Row, Subject, source_of
from onpath.evaluation.statistics import Z95, ratio
from onpath.evaluation.traces import events
from onpath.objectives.nelbo import bound_of
from onpath.records import Trace
from onpath.sampling.loop import last, walk
from onpath.sampling.states import TokenState
from onpath.types import Batch

_CHUNK = 64  # examples that go through the network together


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """The likelihood bound of held-out text, and scores of samples beside those of the text itself.

    sets: `validation`, `test` or `train` examples. num_examples: the first so many of each, 0 for all.
    draws: states and their complements for each example; the standard error is mostly that of the examples.
    num_samples: texts generated, 0 for none, after the prompts of the examples where they have any. steps: numbers of
    denoising steps to generate in. copy_length: tokens of the runs that are looked up in the training text.
    causal: a causal language model of transformers by whose perplexity samples are scored, a folder or a hub name.
    proofreading: for a network that predicts [MASK]: wrong words found and repaired.
    drift: of own states, measured beside it; null leaves it out. Of prompts without answers only samples are measured.
    """

    sets: tuple[Literal["validation", "test", "train"], ...] = ("validation",)
    num_examples: int = 0
    draws: int = 4
    num_samples: int = 64
    steps: tuple[int, ...] = (16, 64)
    copy_length: int = 20
    causal: str | None = None
    proofreading: Proofreading | None = None
    drift: Drift | None = replace(BRIEF, num_examples=16)

    def __post_init__(self) -> None:
        if not self.sets or self.num_examples < 0 or self.draws < 1 or self.num_samples < 0 or self.copy_length < 1:
            raise ValueError(
                f"evaluation: sets is {self.sets}, num_examples is {self.num_examples}, draws is {self.draws}, "
                f"num_samples is {self.num_samples} and copy_length is {self.copy_length}; needed are a set, draws and "
                "copy_length of 1 or more, and 0 or more of the others"
            )
        if not all(step >= 1 for step in self.steps):
            raise ValueError(f"evaluation: steps is {self.steps}; each must be 1 or more")
        if self.causal is not None and not (self.num_samples and self.steps):
            raise ValueError(
                f"evaluation: causal is {self.causal!r}, but num_samples is {self.num_samples} and steps is "
                f"{self.steps}, so there are no samples for it to score; set them, or leave causal out"
            )

    def require(self, subject: Subject) -> None:
        _text_source(subject)
        if self.proofreading is not None:
            require_doubt(subject)

    def measure(self, subject: Subject) -> list[Row]:
        self.require(subject)
        grids = [(steps, subject.grid.with_steps(steps)) for steps in self.steps if self.num_samples]
        rows: list[Row] = []
        told = subject.source.has_answers
        for name in self.sets if told else ():
            rows += likelihood(subject, name, self.num_examples, self.draws)
            if self.proofreading is not None:
                batches = examples(subject, name, self.num_examples)
                rows += self.proofreading.measure(subject, name, batches)
        if grids and told:
            rows += self._scored(subject, "text", self._shown(subject))
        for steps, grid in grids:
            made = replace(subject, grid=grid)
            end = last(generation(made, self._request(made, self.num_samples)))
            rows += self._scored(subject, f"samples@{steps}", replace(end.batch, x=end.x))
        return rows

    def traces(self, subject: Subject, num: int) -> list[Trace]:
        source, states = _text_source(subject), list(generation(subject, self._request(subject, num)))
        return [_trace(states, one, source, f"samples@{len(states) - 1}") for one in range(num)]

    def _request(self, subject: Subject, num: int) -> Batch:
        """What is asked of the sampler: the prompts of the first examples, and everything else free."""
        return _text_source(subject).at_split(self.sets[0]).prompts(torch.arange(num))

    def _shown(self, subject: Subject) -> Batch:
        """As many held-out texts as samples, which they are to be compared with."""
        return _text_source(subject).at_split(self.sets[0]).examples(torch.arange(self.num_samples))

    def _scored(self, subject: Subject, mode: str, batch: Batch) -> list[Row]:
        source = _text_source(subject)
        training = cast(TextSource, source.at_split("train")).tokens
        texts = written(batch, source.end_id)
        set_name = self.sets[0] if mode == "text" else "generated"
        rows = text_rows(set_name, mode, texts, training, self.copy_length)
        if self.causal is not None:
            rows.append(perplexity_row(set_name, mode, [source.words(text.tolist()) for text in texts], self.causal))
        return rows


def examples(subject: Subject, set_name: str, num_examples: int = 0) -> Iterator[Batch]:
    """The first examples of a set, or all, in batches on the subject's device."""
    source = _text_source(subject).at_split(set_name)
    size = source.num_examples or num_examples
    if not size:
        raise ValueError("evaluation: the data never end and num_examples is 0; set evaluation.num_examples")
    for part in torch.arange(min(num_examples or size, size)).split(_CHUNK):
        yield source.examples(part, subject.device).to(subject.device)


def generation(subject: Subject, request: Batch) -> Iterator[TokenState]:
    """The states of generating with everything that belongs to the subject."""
    key = rng.Key(subject.seed).fold("evaluate").fold("samples")
    parts = (subject.denoiser, subject.process, subject.sampler, subject.grid)
    return walk(*parts, request.to(subject.device), key)


def likelihood(subject: Subject, set_name: str, num_examples: int = 0, draws: int = 8) -> list[Row]:
    """The bound on the negative log-likelihood of the examples of a set: nats and bits per token, bits per character
    and byte, each with its standard error `se` over examples. What is given (a prompt) is neither paid nor counted.
    """
    nats, units, key = [], [], rng.Key(subject.seed).fold("evaluate")
    bound = bound_of(subject.process, subject.grid, 0, subject.sampler.fixed_counts)
    for batch in examples(subject, set_name, num_examples):
        with torch.no_grad():
            nats.append(bound.of_examples(subject.denoiser, batch, key, draws).cpu())
        units.append(_units(batch, _text_source(subject)))
    cost, counts = torch.cat(nats), torch.cat(units).double()
    bits = cost / math.log(2)
    columns = {
        "nats_per_token": (cost, counts[:, 0]),
        "bits_per_token": (bits, counts[:, 0]),
        "bits_per_character": (bits, counts[:, 1]),
        "bits_per_byte": (bits, counts[:, 2]),
    }
    return [ratio_row(set_name, "nelbo", name, above, below) for name, (above, below) in columns.items()]


def ratio_row(set_name: str, mode: str, metric: str, above: Float[Tensor, "B"], below: Float[Tensor, "B"]) -> Row:
    """A ratio of sums over examples with its standard error and 95 % interval, see ``statistics.ratio``."""
    value, se = ratio(above, below)
    interval, n = [value - Z95 * se, value + Z95 * se], len(above)
    return {"set": set_name, "mode": mode, "metric": metric, "value": value, "ci95": interval, "se": se, "n": n}


def _units(batch: Batch, source: TextSource) -> Int64[Tensor, "B 3"]:
    """Free tokens of each example, and the characters and bytes that they are written with."""
    counts = []
    for tokens, free in zip(batch.x.cpu(), batch.free().cpu(), strict=True):
        text = source.words(tokens[free].tolist())
        counts.append((int(free.sum()), len(text), len(text.encode())))
    return torch.tensor(counts)


def _text_source(subject: Subject) -> TextSource:
    return source_of(subject, TextSource, "text")


def written(batch: Batch, end_id: int | None) -> list[Int64[Tensor, "T"]]:
    """The tokens of each row up to the first end that is not part of a prompt, without padding."""
    batch = batch.to("cpu")
    kept = torch.ones_like(batch.x, dtype=torch.bool)
    if end_id is not None:
        kept &= ((batch.x == end_id) & batch.free()).cumsum(1) == 0
    if batch.padding is not None:
        kept &= ~batch.padding
    return [row[keep] for row, keep in zip(batch.x, kept, strict=True)]


def _trace(states: list[TokenState], row: int, source: TextSource, mode: str) -> Trace:
    def word(token: int) -> str:
        return source.codec.pieces([token])[0]

    return Trace(
        kind="text",
        set="generated",
        mode=mode,
        task=row,
        length=states[0].x.shape[1],
        generations=[{"after": 0, "steps": len(states) - 1, "events": events(states, row, word)}],
    )
