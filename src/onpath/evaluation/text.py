"""What is measured of a text model: how many bits its text costs, and what its samples look like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.data.source import TextSource
from onpath.evaluation.settings import Evaluation, Row, Subject
from onpath.evaluation.statistics import Z95
from onpath.evaluation.traces import events
from onpath.objectives.nelbo import Bound, ContinuousNELBO, TrajectoryNELBO
from onpath.records import Trace
from onpath.sampling.loop import State, walk
from onpath.types import Batch

_CHUNK = 64  # examples that go through the network together


@dataclass(frozen=True)
class TextEvaluation(Evaluation):
    """The likelihood bound of held-out text, and scores of samples beside those of the text itself.

    sets: `validation`, `test` or `train` examples. num_examples: the first so many of each, 0 for all.
    draws: states and their complements for each example; the standard error is mostly that of the examples.
    num_samples: texts generated, 0 for none. steps: numbers of denoising steps to generate in.
    """

    sets: tuple[Literal["validation", "test", "train"], ...] = ("validation",)
    num_examples: int = 0
    draws: int = 8
    num_samples: int = 64
    steps: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        if not self.sets or self.num_examples < 0 or self.draws < 1 or self.num_samples < 0:
            raise ValueError(
                f"evaluation: sets is {self.sets}, num_examples is {self.num_examples}, draws is {self.draws} and "
                f"num_samples is {self.num_samples}; needed are a set, draws of 1 or more, and 0 or more of the others"
            )
        if not all(step >= 1 for step in self.steps):
            raise ValueError(f"evaluation: steps is {self.steps}; each must be 1 or more")

    def require(self, subject: Subject) -> None:
        _text_source(subject)
        for steps in self.steps:
            subject.grid.with_steps(steps)

    def measure(self, subject: Subject) -> list[Row]:
        rows: list[Row] = []
        for name in self.sets:
            rows += likelihood(subject, name, self.num_examples, self.draws)
        return rows

    def traces(self, subject: Subject, num: int) -> list[Trace]:
        source = _text_source(subject)
        batch = Batch.of_tokens(torch.zeros(num, subject.spec.length, dtype=torch.int64), torch.arange(num))
        states = list(
            walk(
                subject.denoiser,
                subject.process,
                subject.sampler,
                subject.grid,
                batch.to(subject.device),
                rng.Key(subject.seed).fold("traces"),
            )
        )
        return [_trace(states, row, source, "samples") for row in range(num)]


def likelihood(subject: Subject, set_name: str, num_examples: int = 0, draws: int = 8) -> list[Row]:
    """The bound on the negative log-likelihood of the examples of a set: nats and bits per token, bits per character
    and byte, each with its standard error `se` over examples. What is given (a prompt) is neither paid nor counted.
    """
    source = _text_source(subject).at_split(set_name)
    size = source.num_examples or num_examples
    if not size:
        raise ValueError("evaluation: the data never end and num_examples is 0; set evaluation.num_examples")
    ids = torch.arange(min(num_examples or size, size))
    nats, units = [], []
    for part in ids.split(_CHUNK):
        batch = source.examples(part, subject.device).to(subject.device)
        with torch.no_grad():
            found = bound(subject).of_examples(subject.denoiser, batch, rng.Key(subject.seed).fold("evaluate"), draws)
        nats.append(found.cpu())
        units.append(_units(batch, cast(TextSource, source)))
    cost, counts = torch.cat(nats), torch.cat(units)
    bits = cost / math.log(2)
    columns = {
        "nats_per_token": (cost, counts[:, 0]),
        "bits_per_token": (bits, counts[:, 0]),
        "bits_per_character": (bits, counts[:, 1]),
        "bits_per_byte": (bits, counts[:, 2]),
    }
    return [ratio_row(set_name, "nelbo", name, above, below) for name, (above, below) in columns.items()]


def bound(subject: Subject) -> Bound:
    """The bound that fits the schedule: continuous where its ends are 1 and 0, else that of the sampler's own steps."""
    process = subject.process
    if process.schedule.end_points() == (1.0, 0.0):
        return ContinuousNELBO(process)
    return TrajectoryNELBO(process, subject.grid, 0, subject.sampler.fixed_counts)


def ratio_row(set_name: str, mode: str, metric: str, above: Float[Tensor, "B"], below: Float[Tensor, "B"]) -> Row:
    """A ratio of sums over examples with its standard error and 95 % interval.

    The error is that of the residuals above - ratio·below (delta method), for examples of unequal size.
    """
    above, below, n = above.double(), below.double(), len(above)
    ratio = float(above.sum() / below.sum())
    se = float((above - ratio * below).square().sum().sqrt() * math.sqrt(n / max(1, n - 1)) / below.sum())
    interval = [ratio - Z95 * se, ratio + Z95 * se]
    return {"set": set_name, "mode": mode, "metric": metric, "value": ratio, "ci95": interval, "se": se, "n": n}


def _units(batch: Batch, source: TextSource) -> Int64[Tensor, "B 3"]:
    """Free tokens of each example, and the characters and bytes that they are written with."""
    counts = []
    for tokens, free in zip(batch.x.cpu(), batch.free().cpu(), strict=True):
        text = source.words(tokens[free].tolist())
        counts.append((int(free.sum()), len(text), len(text.encode())))
    return torch.tensor(counts)


def _text_source(subject: Subject) -> TextSource:
    if not isinstance(subject.source, TextSource):
        raise ValueError(
            f"evaluation: kind text measures text, and the run was trained on {type(subject.source).__name__}; set "
            "evaluation.kind=plans"
        )
    return subject.source


def _trace(states: list[State], row: int, source: TextSource, mode: str) -> Trace:
    def word(token: int) -> str:
        return source.codec.pieces([token])[0]

    return Trace(
        kind="text",
        set="generated",
        mode=mode,
        task=row,
        length=states[0].x.shape[1],
        generations=[
            {
                "after": 0,
                "steps": len(states) - 1,
                "events": events(states, row, lambda token: source.codec.pieces([token])[0]),
            }
        ],
    )
