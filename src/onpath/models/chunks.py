"""Logits that are read chunk by chunk, their gradients formed while they are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onpath.types import Readout

_PIECES = 8  # of a chunk on a CPU, read one by one: the temporaries of a piece come cheaper than those of a chunk
_PRODUCT = 1 << 19  # numbers of a product in bf16 that are turned to fp32 at once on a CPU: they are still in its cache


@dataclass(frozen=True, eq=False)
class LinearHead:
    """hidden (…, D) times the transposed weight (V', D), its first `num_words` columns: logits (…, V).

    As a head of ``apply_readout`` it tells that it is linear, so that pieces share a product for its gradient.
    """

    weight: Tensor
    num_words: int

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)[..., : self.num_words]

    def fixed(self) -> LinearHead:
        """Without a gradient, the weight in the type that products have here: autocast would turn it at each call."""
        weight, device = self.weight.detach(), self.weight.device.type
        if torch.is_autocast_enabled(device):
            weight = weight.to(torch.get_autocast_dtype(device))
        return LinearHead(weight, self.num_words)


def read_and_form(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    rows: Tensor,
    readout: Readout,
    chunk: int,
    weights: Sequence[Tensor],
) -> Any:
    """What `readout` makes of the logits at `rows`, the gradients by hidden and `weights` formed beside it."""
    trained = [weight for weight in weights if weight.requires_grad]
    if isinstance(head, LinearHead):
        chunks: _Chunks | _LinearChunks = _LinearChunks(readout, rows, chunk, head)
    else:
        chunks = _Chunks(lambda hidden, rows: readout(head(hidden), rows), rows, chunk, trained)
    columns = _GradientsInForward.apply(chunks, hidden, *trained)
    return columns if len(columns) > 1 else columns[0]


@dataclass(frozen=True, eq=False)
class _Chunks:
    """What is read chunk by chunk, and the weights that its reading depends on beside the hidden states."""

    read: Callable[[Tensor, Tensor], Any]
    rows: Tensor
    chunk: int
    weights: Sequence[Tensor]

    def gradients(self, hidden: Tensor, above: Tensor | None) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
        """The results of each chunk, and the gradients by hidden and weights of the first ones weighed by `above`."""
        sums = [torch.zeros_like(weight) for weight in self.weights]
        columns, by_hidden = [], torch.zeros_like(hidden)
        for first in range(0, len(hidden), self.chunk):
            part = slice(first, first + self.chunk)
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                found = self.read(leaf, self.rows[part])
            found = found if isinstance(found, tuple) else (found,)
            columns.append(tuple(column.detach() for column in found))
            if not found[0].requires_grad:
                continue
            weighed = torch.ones_like(found[0]) if above is None else above[part]
            grown = torch.autograd.grad(found[0], [leaf, *self.weights], weighed, allow_unused=True)
            for total, gradient in zip([by_hidden[part], *sums], grown, strict=True):
                if gradient is not None:
                    total += gradient
        return columns, [by_hidden, *sums]


@dataclass(frozen=True, eq=False)
class _LinearChunks:
    """The same for a linear head: gradients by the logits come piece by piece, and the products with them by chunk."""

    readout: Readout
    rows: Tensor
    chunk: int
    head: LinearHead

    def gradients(self, hidden: Tensor, above: Tensor | None) -> tuple[list[tuple[Tensor, ...]], list[Tensor]]:
        head, number = self.head.fixed(), self.head.num_words
        total = _Total(self.head.weight, number) if self.head.weight.requires_grad else None
        columns, by_hidden = [], torch.zeros_like(hidden)
        step = piece_of(self.chunk, hidden)
        for first in range(0, len(hidden), self.chunk):
            part = slice(first, first + self.chunk)
            logits = head(hidden[part].detach()).detach()
            at = logits.split(step), self.rows[part].split(step), (None,) * len(logits)
            if above is not None:
                at = *at[:2], above[part].split(step)
            found = [self._read(*piece) for piece in zip(*at, strict=False)]
            columns += [results for results, _ in found]
            if not all(formed for _, formed in found):
                continue
            with torch.autocast(hidden.device.type, enabled=False):
                by_hidden[part] = logits @ head.weight[:number].to(logits.dtype)
                if total is not None:
                    total.add(logits, hidden[part].detach().to(logits.dtype))
        return columns, [by_hidden] if total is None else [by_hidden, total.value]

    def _read(self, logits: Tensor, rows: Tensor, above: Tensor | None) -> tuple[tuple[Tensor, ...], bool]:
        """The results; where the first has a gradient, that by the logits is written over them."""
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            found = self.readout(leaf, rows)
        found = found if isinstance(found, tuple) else (found,)
        results = tuple(column.detach().clone() for column in found)
        if not found[0].requires_grad:
            return results, False
        weighed = torch.ones_like(found[0]) if above is None else above
        logits.copy_(torch.autograd.grad(found[0], leaf, weighed)[0])
        return results, True


class _Total:
    """The gradient of a weight whose first `number` rows are read, summed over chunks in the type of the weight."""

    def __init__(self, weight: Tensor, number: int) -> None:
        self.value, self.number = torch.zeros_like(weight), number

    def add(self, by_logits: Tensor, hidden: Tensor) -> None:
        total = self.value[: self.number]
        if total.dtype == hidden.dtype:
            total.addmm_(by_logits.T, hidden)
            return
        step = max(1, _PRODUCT // hidden.shape[1]) if hidden.device.type == "cpu" else self.number
        for rows, words in zip(total.split(step), by_logits.split(step, dim=1), strict=True):
            rows += words.T @ hidden


def piece_of(chunk: int, like: Tensor) -> int:
    """Rows of which logits exist at once."""
    return max(2, chunk // _PIECES // 2 * 2) if like.device.type == "cpu" else chunk


class _GradientsInForward(torch.autograd.Function):
    """Reads in chunks; the backward only scales what the forward has formed, where each row counts alike."""

    @staticmethod
    def forward(ctx: Any, chunks: _Chunks | _LinearChunks, hidden: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        columns, ctx.formed = chunks.gradients(hidden, None)
        ctx.chunks, ctx.autocast = chunks, torch.is_autocast_enabled(hidden.device.type)
        ctx.save_for_backward(hidden)
        results = tuple(torch.cat(column) for column in zip(*columns, strict=True))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Any, ...]:
        (hidden,) = ctx.saved_tensors
        formed, ctx.formed = ctx.formed, None  # scaled where they lie, so that a second backward forms them anew
        if formed is not None and all(stride == 0 for stride in above.stride()):  # as behind a sum: one number for all
            scale = above[(0,) * above.dim()]
            return None, *(gradient.mul_(scale.to(gradient.dtype)) for gradient in formed)
        with torch.autocast(hidden.device.type, enabled=ctx.autocast):
            return None, *ctx.chunks.gradients(hidden, above)[1]
