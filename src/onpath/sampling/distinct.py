"""Inputs that are the same go through the network once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.sampling.states import taken
from onpath.types import Denoiser, Readout


@dataclass
class Distinct:
    """A denoiser that reads equal inputs once and answers for each of them; inputs that nothing is asked of it skips.

    Rollouts of a prompt begin at the same state, and go on through the same ones for as long as they reveal the same
    tokens at the same places.
    label: (B,) int64 on the CPU, the same for rows that share conditions and padding. num_asked, num_read: rows of
    inputs so far, and how many of them went through the network. Finding equal ones waits for a GPU.

    >>> from onpath.models.transformer import TokenTransformer
    >>> from onpath.types import Spec
    >>> once = Distinct(TokenTransformer(Spec(4, 5, 5), width=8, num_heads=2, depth=1), label=torch.zeros(3).long())
    >>> x = torch.tensor([[5, 1, 2, 3], [5, 1, 2, 3], [5, 1, 2, 0]])
    >>> answers = once(x, torch.full((3,), 0.25), once.encode(), rows=torch.tensor([0, 4, 8]), readout=lambda z, at: at)
    >>> answers, once.num_read
    (tensor([0, 4, 8]), 2)
    """

    denoiser: Denoiser
    label: Int64[Tensor, "B"]
    num_asked: int = 0
    num_read: int = 0

    def encode(self, **cond: Tensor) -> Any:
        return self.label, self.denoiser.encode(**cond)

    def __call__(
        self,
        x: Int64[Tensor, "M L"],
        t: Tensor,
        memo: tuple[Int64[Tensor, "B"], Any],
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """What `readout` says at `rows`. x and rows may be on the CPU wherever the network is; t is where it is."""
        assert rows is not None and readout is not None, "what is asked must be known"
        label, inner = memo
        device, length = t.device, x.shape[1]
        asked, place = torch.unique(rows.cpu() // length, return_inverse=True)
        first, of_asked = _folded(x.cpu()[asked], label[asked % len(label)])
        self.num_asked += len(asked)
        self.num_read += len(first)
        if len(first) == len(x):  # each of its own: as without
            return self.denoiser(x.to(device), t, inner, rows=rows.to(device), readout=readout)
        index = asked[first]
        memo_rows = taken(inner, index % len(label))
        states, shares = (part[index.to(part.device)] for part in (x, t))
        flat = of_asked[place] * length + rows.cpu() % length
        one, back = torch.unique(flat, return_inverse=True)
        count, order = back.bincount(minlength=len(one)), back.argsort(stable=True)
        ends, originals = count.cumsum(0), rows.cpu()[order].to(device, non_blocking=True)

        def answer(logits: Tensor, at: Tensor) -> Any:
            """For a chunk of what was asked: each row as often as it stands for."""
            low = int(torch.searchsorted(one, at[:1].cpu()))
            high = low + len(at)
            begin, end = int(ends[low] - count[low]), int(ends[high - 1])
            if end - begin > len(at):
                times = count[low:high].to(logits.device, non_blocking=True)
                logits = logits.repeat_interleave(times, dim=0, output_size=end - begin)
            return readout(logits, originals[begin:end])

        found = self.denoiser(states.to(device), shares, memo_rows, rows=one.to(device), readout=answer)
        restored = torch.empty_like(order).scatter_(0, order, torch.arange(len(order))).to(device, non_blocking=True)
        return tuple(part[restored] for part in found) if isinstance(found, tuple) else found[restored]


def _folded(x: Int64[Tensor, "M L"], label: Int64[Tensor, "M"]) -> tuple[Int64[Tensor, "U"], Int64[Tensor, "M"]]:
    """(first, which): the first row of each set of equal ones, in the order of the rows, and the set of each row."""
    words = torch.cat([label[:, None], x], dim=1)
    _, which = torch.unique(digest(words), return_inverse=True)
    first = _firsts(which)
    if not torch.equal(words[first][which], words):  # two rows with one digest, once in 2**63
        _, which = torch.unique(words, dim=0, return_inverse=True)
        first = _firsts(which)
    in_order = first.argsort()
    rank = torch.empty_like(in_order).scatter_(0, in_order, torch.arange(len(first)))
    return first[in_order], rank[which]


def digest(words: Int64[Tensor, "M L"]) -> Int64[Tensor, "M"]:
    """A number of each row that is the same for equal rows, in [0, 2**63)."""
    factors = rng.bits(rng.Key(0, "digest"), torch.arange(words.shape[1]), (2,))
    odd = (factors[:, 0] << 31 ^ factors[:, 1]) | 1
    return ((words + 1) * odd).sum(1) & 0x7FFF_FFFF_FFFF_FFFF  # the product wraps around, as it may


def _firsts(which: Int64[Tensor, "M"]) -> Int64[Tensor, "U"]:
    size = int(which.max()) + 1 if len(which) else 0
    return which.new_full((size,), len(which)).scatter_reduce(0, which, torch.arange(len(which)), "amin")
