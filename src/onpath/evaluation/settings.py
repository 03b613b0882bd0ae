"""What an evaluation measures: a section of the config, of one kind for each subject."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from onpath.data.source import Source
from onpath.records import Trace
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Sampler
from onpath.types import Denoiser

Row = dict[str, Any]
"""{set, mode, metric, value, ci95, n}: one result, with its 95 % interval (None where it has none) over n units."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a network with everything that it generates with, and where its examples come from.

    process and spec are those of tokens or of images, as `source` is.
    """

    denoiser: Denoiser
    process: Any
    sampler: Sampler
    grid: Grid
    source: Source
    spec: Any
    seed: int = 0
    device: torch.device = torch.device("cpu")


class Measurement(Protocol):
    """Anything that measures a subject."""

    def measure(self, subject: Subject) -> list[Row]: ...


class Evaluation(ABC):
    """Settings of an evaluation, and the measurement itself."""

    drift: Measurement | None = None
    """What is measured beside it: how far own states have drifted from those of training; None for nothing."""

    @abstractmethod
    def require(self, subject: Subject) -> None:
        """ValueError where this cannot be measured of `subject`; asked before a training begins."""

    @abstractmethod
    def measure(self, subject: Subject) -> list[Row]:
        """Every result."""

    @abstractmethod
    def traces(self, subject: Subject, num: int) -> list[Trace]:
        """How the first `num` generations come about, step by step, for the report."""


Kind = TypeVar("Kind", bound=Source)


def source_of(subject: Subject, family: type[Kind], kind: str) -> Kind:
    """The source of what is measured, of the family that an evaluation of this kind can measure; else ValueError."""
    if not isinstance(subject.source, family):
        raise ValueError(
            f"evaluation: kind {kind} measures {kind}, and the run was trained on {type(subject.source).__name__}; "
            "leave evaluation.kind out"
        )
    return subject.source


def row(set_name: str, mode: str, metric: str, value: float, ci95: tuple[float, float] | None, n: int) -> Row:
    """A result as evaluation.json holds it."""
    interval = None if ci95 is None else list(ci95)
    return {"set": set_name, "mode": mode, "metric": metric, "value": value, "ci95": interval, "n": n}
