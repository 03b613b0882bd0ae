"""Plain text as windows of a fixed length."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.data.source import TextSource
from onpath.data.tokenizers import Characters, Tokenizer
from onpath.types import Batch, Spec

Split = Literal["train", "validation", "test"]
_SHIPPED = "onpath:"


@dataclass(frozen=True)
class TextFile(TextSource):
    """Windows of a text file: at random places in training, one after the other otherwise.

    path: a text file in UTF-8, or .gz of one; `onpath:tinyshakespeare.txt.gz` ships with the package.
    tokenizer: see ``data.tokenizers``. length: tokens of a window.
    validation_share: the last part of the text, never trained on.
    """

    path: str
    tokenizer: Tokenizer = Characters()
    length: int = 128
    validation_share: float = 0.1
    seed: int = 0
    split: Split = "train"

    @cached_property
    def _text(self) -> str:
        name = self.path.removeprefix(_SHIPPED)
        place = resources.files("onpath.data") / name if name != self.path else Path(self.path)
        raw = place.read_bytes()
        return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()

    @cached_property
    def codec(self) -> Tokenizer:
        if self.tokenizer == Characters():
            return Characters("".join(sorted(set(self._text))))
        return self.tokenizer

    @cached_property
    def tokens(self) -> Int64[Tensor, "T"]:
        """The tokens of this split, one after the other."""
        ids = torch.tensor(self.codec.encode(self._text))
        cut = round(len(ids) * (1.0 - self.validation_share))
        return ids[:cut] if self.split == "train" else ids[cut:]

    @property
    def num_examples(self) -> int:
        return len(self.tokens) // self.length

    def settled(self) -> Mapping[str, Any]:
        return {"tokenizer": {"alphabet": self.codec.alphabet}} if isinstance(self.codec, Characters) else {}

    def spec(self) -> Spec:
        codec = self.codec
        return Spec(length=self.length, num_words=codec.num_words, mask_id=codec.mask_id)

    def at_split(self, split: str) -> TextFile:
        return replace(self, split=split)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        if self.split == "train":
            last = len(self.tokens) - self.length
            start = rng.integers(rng.Key(self.seed, "text"), ids, (), last + 1)
        else:
            start = ids * self.length
        return Batch.of_tokens(self.tokens[start[:, None] + torch.arange(self.length)].to(device), ids)
