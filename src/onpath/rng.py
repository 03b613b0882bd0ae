"""Counter-based random numbers: every draw is a pure function of (seed, purpose, step, example id, position).

No state is kept, so nothing has to be saved for an exact resume, a row of a batch draws what it would draw
alone, and neither rank nor world size nor batch layout can change a draw. The same integers come out on CPU
and GPU: everything is int64 arithmetic on 32-bit words, with multipliers below 2**31 so that no product
overflows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_WORD = 0xFFFFFFFF
_WEYL = 0x1E3779B1  # odd, spreads consecutive counters over the word before the first multiplication
_MULTIPLIERS = (0x7FEB352D, 0x46D7A4CB, 0x2C1B3C6D)


@dataclass(frozen=True)
class Key:
    """Names a stream of draws. `step` may be a 0-d int64 tensor, so that a captured CUDA graph can advance it.

    >>> key = Key(seed=0).fold("corrupt").at(3)
    >>> uniform(key, torch.tensor([7, 8]), (2,)).shape
    torch.Size([2, 2])
    """

    seed: int = 0
    purpose: str = ""
    step: int | Tensor = 0

    def fold(self, purpose: str) -> Key:
        """The sub-stream named `purpose` of this stream."""
        return replace(self, purpose=f"{self.purpose}/{purpose}")

    def at(self, step: int | Tensor) -> Key:
        """The same stream at another step."""
        return replace(self, step=step)


def _mix(word: Any) -> Any:
    """A bijection of 32-bit words (an int or a tensor) whose every output bit depends on every input bit.

    A tensor is changed in place, which is three times as fast: it must be nobody else's.
    """
    for shift, multiplier in zip((17, 11, 15), _MULTIPLIERS, strict=True):
        word ^= word >> shift
        word *= multiplier
        word &= _WORD
    word ^= word >> 14
    return word


def _words(key: Key) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{key.seed}|{key.purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def bits(key: Key, ids: Int64[Tensor, "B"], shape: tuple[int, ...] = ()) -> Int64[Tensor, "B *shape"]:
    """Independent 32-bit words as int64 in [0, 2**32), shape (B, *shape), on the device of `ids`.

    Row b depends on `key` and ``ids[b]`` alone. Source: the mixer is a chain of xor-shift-multiply rounds as in
    Steele, Lea and Flood 2014 (SplitMix); a row is keyed by two words, so 2**32 rows do not share a stream.
    """
    first, second = _words(key)
    step: Any = key.step  # an int stays one: as a tensor it would have to be sent to a GPU, which waits for it
    low, high = ids & _WORD, (ids >> 32) & _WORD
    a = _mix(_mix((step & _WORD) ^ first) ^ low)
    b = _mix(_mix((((step >> 32) & _WORD) + high * _WEYL & _WORD) ^ second) + (low ^ (step & _WORD)) * _WEYL & _WORD)
    count = 1
    for side in shape:
        count *= side
    counter = torch.arange(1, count + 1, device=ids.device) * _WEYL & _WORD
    words = _mix(_mix(counter ^ b[:, None]) + a[:, None] & _WORD)
    return words.view(len(ids), *shape)


def uniform(key: Key, ids: Int64[Tensor, "B"], shape: tuple[int, ...] = ()) -> Float[Tensor, "B *shape"]:
    """fp32 uniforms in [0, 1), multiples of 2**-24, shape (B, *shape)."""
    return (bits(key, ids, shape) >> 8).to(torch.float32) * 2.0**-24


def normal(key: Key, ids: Int64[Tensor, "B"], shape: tuple[int, ...] = ()) -> Float[Tensor, "B *shape"]:
    """fp32 standard normals, shape (B, *shape), the same on CPU and GPU up to the last bits; none exceeds 6.8.

    Source: Box and Muller 1958; a pair of words makes a pair of normals.
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    words = bits(key, ids, (2, pairs))
    radius = (-2.0 * ((words[:, 0].double() + 0.5) * 2.0**-32).log()).sqrt()
    angle = words[:, 1].double() * (2.0 * math.pi * 2.0**-32)
    both = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return both[:, :count].float().view(len(ids), *shape)


def integers(key: Key, ids: Int64[Tensor, "B"], shape: tuple[int, ...], high: int) -> Int64[Tensor, "B *shape"]:
    """Integers in [0, high), shape (B, *shape); the bias is below high / 2**32."""
    if not 1 <= high <= 2**31:
        raise ValueError(f"integers: high is {high}; allowed are 1 to 2**31")
    return bits(key, ids, shape) * high >> 32
