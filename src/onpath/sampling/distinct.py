"""Inputs that are the same go through the network once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.sampling.states import taken
from onpath.types import Denoiser, Readout


@dataclass(frozen=True)
class Folded:
    """What is asked of inputs, equal ones as one; on the CPU.

    states: (U,) the inputs that are read, None for all (M, L) of them. memory: (U,) the row of each in what was
    encoded. rows: (R,) flat places in those states, sorted. places: (R, K) the flat places in all inputs that each row
    answers for, M·L where it answers for fewer.
    """

    states: Int64[Tensor, "U"] | None
    memory: Int64[Tensor, "U"] | None
    rows: Int64[Tensor, "R"]
    places: Int64[Tensor, "R K"]

    @classmethod
    def of(cls, x: Int64[Tensor, "M L"], label: Int64[Tensor, "B"], rows: Int64[Tensor, "N"]) -> Folded:
        """What is asked at the flat places `rows` of x; label: the same where conditions and padding are."""
        length = x.shape[1]
        asked, place = torch.unique(rows // length, return_inverse=True)
        first, of_asked = _folded(x[asked], label[asked % len(label)])
        if len(first) == len(x):  # each of its own
            rows = rows.sort().values
            return cls(None, None, rows, rows[:, None])
        one, back = torch.unique(of_asked[place] * length + rows % length, return_inverse=True)
        count, order = back.bincount(minlength=len(one)), back.argsort(stable=True)
        rank = torch.arange(len(order)) - (count.cumsum(0) - count)[back[order]]
        places = rows.new_full((len(one), int(rank.max()) + 1 if len(rank) else 1), x.numel())
        places[back[order], rank] = rows[order]
        return cls(asked[first], asked[first] % len(label), one, places)

    def read(
        self, denoiser: Denoiser, x: Int64[Tensor, "M L"], t: Float[Tensor, "M"], memo: Any, readout: Readout
    ) -> Any:
        """What `readout` says of logits (R', V) and of their numbers among `rows`, for chunks of them.

        x may be on the CPU wherever the network is; t is where it is.
        """
        device, rows = t.device, self.rows.to(t.device, non_blocking=True)
        if self.states is not None and self.memory is not None:
            memo = taken(memo, self.memory)
            x, t = (part[self.states.to(part.device)] for part in (x, t))

        def numbered(logits: Tensor, at: Tensor) -> Any:
            return readout(logits, torch.searchsorted(rows, at))

        return denoiser(x.to(device), t, memo, rows=rows, readout=numbered)


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
        device, asked = t.device, rows.cpu()
        folded = Folded.of(x.cpu(), label, asked)
        self.num_asked += len(torch.unique(asked // x.shape[1]))
        self.num_read += len(x) if folded.states is None else len(folded.states)
        if folded.states is None:  # as without
            return self.denoiser(x.to(device), t, inner, rows=rows.to(device), readout=readout)
        used = folded.places < x.numel()

        def answer(logits: Tensor, at: Tensor) -> Any:
            """For a chunk of what was asked: each row as often as it stands for."""
            at = at.cpu()
            own, times = folded.places[at][used[at]], used[at].sum(1)
            if len(own) > len(at):
                times = times.to(logits.device, non_blocking=True)
                logits = logits.repeat_interleave(times, dim=0, output_size=len(own))
            return readout(logits, own.to(logits.device, non_blocking=True))

        found = folded.read(self.denoiser, x, t, inner, answer)
        restored = torch.empty_like(asked)
        restored[asked.argsort(stable=True)] = folded.places[used].argsort(stable=True)
        restored = restored.to(device, non_blocking=True)
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
