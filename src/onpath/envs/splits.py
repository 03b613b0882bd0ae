"""Which mazes are for training, which for validation, which for a test: by a hash of what a maze looks like."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.rng import Key, bits

Split = Literal["train", "validation", "test"]
_SHARES = {"validation": (0.0, 0.1), "test": (0.1, 0.2), "train": (0.2, 1.0)}


def belongs(split: str, number: Int64[Tensor, "N"], key: Key) -> Bool[Tensor, "N"]:
    """Whether the mazes with these numbers are of the split: about 80 % train, 10 % validation, 10 % test.

    A maze and its mirror images are in one split where they have one number. ValueError for another split.
    """
    if split not in _SHARES:
        raise ValueError(f"layouts: split is {split!r}; allowed are {', '.join(sorted(_SHARES))}")
    low, high = _SHARES[split]
    place = bits(key, number).double() / 2**32
    return (place >= low) & (place < high)
