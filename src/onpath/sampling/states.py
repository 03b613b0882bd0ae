"""Where a generation stands: everything that a step needs, carried from step to step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from onpath.types import Batch

_WHOLE = ("batch", "memo")  # fields whose rows are taken in a way of their own, or are the same in every state
Own = TypeVar("Own", bound="State")


@dataclass(frozen=True, kw_only=True)
class State(ABC):
    """Where a generation of any kind stands.

    x: (B, …). num_forwards: (B,) int64 on the CPU, rows through the network (guided ones count twice). batch, memo: the
    request and its encoding. num_branches: 2 where guided, else 1; the memo has that many times B rows, those of the
    conditional branch first. num_steps: of the whole walk, None where a step is taken without one. lockstep: every row
    goes through the network in every step, needed or not, as processes must that hold shards of it.
    """

    x: Shaped[Tensor, "B *rest"]
    num_forwards: Int64[Tensor, "B"]
    step: int
    batch: Batch
    memo: Any
    num_branches: int = 1
    num_steps: int | None = None
    lockstep: bool = False

    @property
    @abstractmethod
    def is_finished(self) -> bool:
        """Whether no step would change anything any more, as far as it is known without stalling a GPU."""

    def rows(self: Own, index: Int64[Tensor, "N"]) -> Own:
        """The state of the rows at `index` (int64 on the CPU)."""
        memo_index = torch.cat([index + branch * self.batch.size for branch in range(self.num_branches)])
        return replace(
            self,
            **{name: taken(value, index) for name, value in self._by_row().items()},
            batch=self.batch.rows(index),
            memo=taken(self.memo, memo_index),
        )

    def merged(self: Own, part: Own, index: Int64[Tensor, "N"]) -> Own:
        """This state with the rows at `index` taken from `part`."""
        other = part._by_row()
        put = {name: _put(value, other.get(name), index) for name, value in self._by_row().items()}
        return replace(self, **put, step=part.step)

    def _by_row(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _WHOLE}
        return {name: value for name, value in values.items() if isinstance(value, Tensor | tuple) or value is None}


@dataclass(frozen=True, kw_only=True)
class TokenState(State):
    """Where a generation of tokens stands; x is (B, L).

    masked: (B, L). num_masked: (B,) int64 on the CPU, where the counts are fixed ahead, else None.
    revealed_at: (B, L) step of the last reveal, -1 where given or masked. confidence: (B, L) probability of
    the token at that reveal, 1 where it follows from an end token. log_prob: (B, L) log of the probability with which
    that token was drawn, see ``tokens.Drawn``; 0 where none was. proposed: (B, L) the token that the last forward of
    the row drew at each position it was asked for, revealed or not. unsettled: (B,) rows in which a later step may mask
    again what is revealed; None where none does, or where the counts tell it.
    """

    masked: Bool[Tensor, "B L"]
    num_masked: Int64[Tensor, "B"] | None
    revealed_at: Int64[Tensor, "B L"]
    confidence: Float[Tensor, "B L"]
    log_prob: Float[Tensor, "B L"]
    proposed: Int64[Tensor, "B L"]
    unsettled: Bool[Tensor, "B"] | None = None

    @property
    def is_finished(self) -> bool:
        if self.lockstep:
            return False
        if self.num_masked is not None:
            return not self.num_masked.any()
        if self.masked.device.type != "cpu":
            return False
        return not self.masked.any() and (self.unsettled is None or not self.unsettled.any())


@dataclass(frozen=True, kw_only=True)
class ImageState(State):
    """Where a generation of images stands; x is (B, C, H, W).

    images: predictions of x0 at the last points of the walk, the latest first, as many as the solver looks back.
    times: their times, (B,) fp64 on the CPU. before: the state at the latest of these points, which a corrector
    starts from again; None where there is none.
    """

    images: tuple[Float[Tensor, "B *rest"], ...] = ()
    times: tuple[Float[Tensor, "B"], ...] = ()
    before: Float[Tensor, "B *rest"] | None = None

    @property
    def is_finished(self) -> bool:
        return False


def taken(value: Any, index: Int64[Tensor, "N"]) -> Any:
    """The rows at `index` of a tensor, or of every tensor of a tuple, nested or not; None stays None."""
    if isinstance(value, tuple):
        return tuple(taken(part, index) for part in value)
    return None if value is None else value[index.to(value.device, non_blocking=True)]


def _put(whole: Any, rows: Any, index: Int64[Tensor, "N"]) -> Any:
    if isinstance(whole, tuple):
        return tuple(_put(w, r, index) for w, r in zip(whole, rows, strict=True))
    if whole is None or rows is None:
        return None
    return whole.index_copy(0, index.to(whole.device, non_blocking=True), rows)
