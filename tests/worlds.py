"""Worlds small enough to enumerate, and denoisers that are lookup tables.

A state of a world of V words and L positions is a number in base V + 1, the digit V being [MASK].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import Any

import torch
from torch import Tensor

from onpath.models.blocks import apply_readout
from onpath.types import Batch


@dataclass(frozen=True)
class World:
    """A distribution over all sequences of `length` words out of `num_words`. joint: (V**L,) fp64."""

    num_words: int
    length: int
    joint: Tensor

    @classmethod
    def random(cls, seed: int, num_words: int = 2, length: int = 3) -> World:
        noise = torch.randn(num_words**length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return cls(num_words, length, (1.5 * noise).softmax(0))

    @property
    def mask_id(self) -> int:
        return self.num_words

    @property
    def sequences(self) -> Tensor:
        """(V**L, L) every clean sequence, in the order of `joint`."""
        return torch.tensor(list(product(range(self.num_words), repeat=self.length)))

    @property
    def states(self) -> Tensor:
        """((V+1)**L, L) every state, in the order of ``code``."""
        return torch.tensor(list(product(range(self.num_words + 1), repeat=self.length)))

    def code(self, x: Tensor) -> Tensor:
        """(…, L) -> (…,) the number of a state."""
        base = (self.num_words + 1) ** torch.arange(self.length - 1, -1, -1)
        return (x * base).sum(-1)

    def posterior(self) -> Tensor:
        """((V+1)**L, L, V) exact p(x_i = v | the revealed positions of the state), fp64."""
        states, sequences = self.states[:, None], self.sequences[None]
        agrees = ((states == sequences) | (states == self.mask_id)).all(-1)
        weights = agrees * self.joint
        one_hot = torch.nn.functional.one_hot(self.sequences, self.num_words).double()
        return torch.einsum("zs,slv->zlv", weights, one_hot) / weights.sum(-1)[:, None, None]

    def wrong(self, seed: int) -> Tensor:
        """((V+1)**L, L, V) a random denoiser that is nobody's posterior."""
        generator = torch.Generator().manual_seed(seed)
        shape = ((self.num_words + 1) ** self.length, self.length, self.num_words)
        return torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)

    def batch(self, x: Tensor, ids: Tensor | None = None) -> Batch:
        return Batch.of_tokens(x, torch.arange(len(x)) if ids is None else ids)


class TableDenoiser:
    """Looks probabilities up by state: ``table`` (num_states, L, V), a condition adds `shift` to the logits.

    Calls are recorded as `forwards`: (x, t, rows).
    """

    def __init__(self, table: Tensor, shift: float = 0.0, mask_logit: float | None = None) -> None:
        self.logits = table.clamp_min(1e-300).log()
        if mask_logit is not None:
            self.logits = torch.cat([self.logits, torch.full_like(self.logits[..., :1], mask_logit)], -1)
        self.shift = shift
        self.base = round(table.shape[0] ** (1 / table.shape[1]))
        self.forwards: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.num_encoded = 0

    def encode(self, c: Tensor | None = None, drop: Tensor | None = None, padding: Tensor | None = None) -> Any:
        self.num_encoded += 1
        if c is None:
            return None
        return c.double() if drop is None else torch.where(drop, 0.0, c.double())

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        self.forwards.append((x, t, rows))
        length = x.shape[1]
        code = (x * self.base ** torch.arange(length - 1, -1, -1)).sum(-1)
        logits = self.logits[code]
        if memo is not None:
            words = torch.arange(logits.shape[-1])
            logits = logits + self.shift * memo.repeat(len(x) // len(memo))[:, None, None] * words
        return read(logits, rows, readout)


class HashDenoiser:
    """Logits from a fixed table by a hash of the state: a row's logits depend on nothing but that row.

    Any length and vocabulary; `spread` is the size of the logits. Conditions `c` (B,) shift the hash.
    """

    def __init__(self, num_words: int, seed: int = 0, spread: float = 2.0, with_mask: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = spread * torch.randn(1009, num_words + with_mask, generator=generator)
        self.forwards: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.num_read = 0

    def encode(self, c: Tensor | None = None, drop: Tensor | None = None, padding: Tensor | None = None) -> Any:
        if c is None:
            return None
        return c if drop is None else torch.where(drop, 500, c)

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        self.forwards.append((x, t, rows))
        self.num_read += x.numel() if rows is None else len(rows)
        position = torch.arange(x.shape[1])
        state = (x * (position * 31 + 7)).sum(-1)
        if memo is not None:
            state = state + 17 * memo.repeat(len(x) // len(memo))
        return read(self.table[(state[:, None] * 13 + position * 101) % len(self.table)], rows, readout)


class RelativeDenoiser:
    """As ``HashDenoiser``, but a row's logits depend on its tokens from the first that is not padding on.

    So a row padded on the left is the same as the row alone. `with_mask` adds a logit for [MASK].
    """

    def __init__(self, num_words: int, mask_id: int, spread: float = 2.0, with_mask: bool = False) -> None:
        width = mask_id + 1 if with_mask else num_words
        self.table = spread * torch.randn(1009, width, generator=torch.Generator().manual_seed(0))
        self.forwards: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def encode(self, c: Tensor | None = None, drop: Tensor | None = None, padding: Tensor | None = None) -> Any:
        start = None if padding is None else padding.long().cumprod(1).sum(1)
        shift = None if c is None else (c if drop is None else torch.where(drop, 500, c))
        return start, shift, padding

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        self.forwards.append((x, t, rows))
        position = torch.arange(x.shape[1]).expand(x.shape)
        start, shift, padding = (None if m is None else m.repeat(len(x) // len(m), *[1] * (m.dim() - 1)) for m in memo)
        if start is not None and padding is not None:
            position, x = (position - start[:, None]) % x.shape[1], x.masked_fill(padding, 0)
        state = (x * (position * 31 + 7)).sum(-1)
        if shift is not None:
            state = state + 17 * shift
        return read(self.table[(state[:, None] * 13 + position * 101) % len(self.table)], rows, readout)


def read(logits: Tensor, rows: Tensor | None, readout: Callable[..., Any] | None) -> Any:
    """What every denoiser does with `rows` and `readout`."""
    if rows is None and readout is None:
        return logits
    flat = logits.flatten(0, 1)
    rows = torch.arange(len(flat)) if rows is None else rows
    return flat[rows] if readout is None else apply_readout(lambda hidden: hidden, flat[rows], rows, readout, 8192)


@dataclass(frozen=True)
class Chain:
    """The reverse process of a sampler in a world, by enumeration. table: the denoiser's probabilities."""

    world: World
    table: Tensor

    def ancestral(self, rho: float) -> Tensor:
        """(S, S) transition matrix in which each masked position is revealed with probability rho."""
        return self._transition(lambda masked, revealed: rho**revealed * (1 - rho) ** (masked - revealed))

    def fixed(self, number: int) -> Tensor:
        """(S, S) transition matrix that reveals `number` masked positions, a uniform subset (all if fewer)."""

        def chance(masked: int, revealed: int) -> float:
            return 1.0 / comb(masked, revealed) if revealed == min(number, masked) else 0.0

        return self._transition(chance)

    def remasked(self, reveal: float, sigma: float) -> Tensor:
        """(S, S) transition matrix: masked positions are revealed, revealed ones masked, each by a coin of its own."""

        def chance(masked: int, revealed: int, kept: int, again: int) -> float:
            shown = reveal**revealed * (1 - reveal) ** (masked - revealed)
            return shown * sigma**again * (1 - sigma) ** kept

        return self._exchange(chance)

    def exchanged(self, reveal: int, again: int) -> Tensor:
        """(S, S) transition matrix that reveals `reveal` masked positions and masks `again` revealed ones at random."""

        def chance(masked: int, revealed: int, kept: int, remasked: int) -> float:
            if revealed != min(reveal, masked) or remasked != min(again, kept + remasked):
                return 0.0
            return 1.0 / comb(masked, revealed) / comb(kept + remasked, remasked)

        return self._exchange(chance)

    def _exchange(self, chance: Callable[[int, int, int, int], float]) -> Tensor:
        states, mask = self.world.states.tolist(), self.world.mask_id
        matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
        for i, z in enumerate(states):
            for j, s in enumerate(states):
                if any(a != mask and b not in (mask, a) for a, b in zip(z, s, strict=True)):
                    continue
                revealed = [p for p, (a, b) in enumerate(zip(z, s, strict=True)) if a == mask and b != mask]
                again = [p for p, (a, b) in enumerate(zip(z, s, strict=True)) if a != mask and b == mask]
                kept = len(z) - z.count(mask) - len(again)
                probability = chance(z.count(mask), len(revealed), kept, len(again))
                for p in revealed:
                    probability *= float(self.table[i, p, s[p]])
                matrix[i, j] = probability
        return matrix

    def _transition(self, chance: Callable[[int, int], float]) -> Tensor:
        states, mask = self.world.states.tolist(), self.world.mask_id
        matrix = torch.zeros(len(states), len(states), dtype=torch.float64)
        for i, z in enumerate(states):
            for j, s in enumerate(states):
                if any(a not in (mask, b) for a, b in zip(z, s, strict=True)):
                    continue
                revealed = [p for p, (a, b) in enumerate(zip(z, s, strict=True)) if a == mask and b != mask]
                probability = chance(z.count(mask), len(revealed))
                for p in revealed:
                    probability *= float(self.table[i, p, s[p]])
                matrix[i, j] = probability
        return matrix

    def final(self, matrices: list[Tensor]) -> Tensor:
        """(V**L,) distribution over clean sequences after these transitions from the all-mask state."""
        state = torch.zeros(len(self.world.states), dtype=torch.float64)
        state[-1] = 1.0
        for matrix in matrices:
            state = state @ matrix
        clean = state[self.world.code(self.world.sequences)]
        assert abs(float(clean.sum()) - 1) < 1e-12, "the last step must reveal everything"
        return clean
