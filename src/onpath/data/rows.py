"""A corpus as rows of one length: windows at random places, one after the other, or packed documents."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.data.corpus import Corpus
from onpath.data.shuffle import permuted
from onpath.data.source import TextSource
from onpath.data.tokenizers import Tokenizer
from onpath.types import Batch, Spec

Layout = Literal["random", "consecutive", "shuffled"]
_IN_MEMORY = 2**26


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of `length` tokens from the tokens start … stop - 1 of a corpus.

    layout: `random` places (a window may begin anywhere), `consecutive` rows, or those `shuffled` anew each epoch.
    packed: whether rows know their documents: `Batch.documents` numbers them within a row, and the last row is padded.
    begin: whether each row begins with the tokenizer's begin token, which is given.
    """

    corpus: Corpus
    start: int
    stop: int
    length: int
    codec: Tokenizer
    layout: Layout
    packed: bool
    begin: bool
    key: rng.Key

    @property
    def _content(self) -> int:
        """Tokens of the corpus in a row."""
        return self.length - self.begin

    @property
    def num_rows(self) -> int:
        """Rows that hold all tokens once; unpacked ones leave out what does not fill a row at the end."""
        size = self.stop - self.start
        return -(-size // self._content) if self.packed else size // self._content

    def tokens(self) -> Int64[Tensor, "T"]:
        """The tokens from `start` on, without begin tokens and padding; 2**26 at most, as they come into memory."""
        return self.corpus.take(torch.arange(self.start, min(self.stop, self.start + _IN_MEMORY)))

    def batch(self, ids: Int64[Tensor, "B"], device: torch.device | str) -> Batch:
        """The rows that these example ids mean."""
        places = self._starts(ids)[:, None] + torch.arange(self._content)
        padding = places >= self.stop
        x = self.corpus.take(places.clamp(max=self.stop - 1)).masked_fill(padding, self.codec.pad_id)
        documents = self._documents(places, padding) if self.packed else None
        given = None
        if self.begin:
            x, padding = _behind(x, self.codec.begin_id), _behind(padding, False)
            documents = None if documents is None else torch.cat([documents[:, :1], documents], 1)
            given = torch.zeros_like(padding)
            given[:, 0] = True
        padded = padding if self.packed else None
        return Batch.of_tokens(x, ids, given=given, padding=padded, documents=documents).to(device)

    def _starts(self, ids: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
        if self.layout == "random":
            return self.start + rng.integers(self.key, ids, (), self.stop - self.start - self._content + 1)
        rows = permuted(ids, self.num_rows, self.key) if self.layout == "shuffled" else ids % self.num_rows
        return self.start + rows * self._content

    def _documents(self, places: Int64[Tensor, "B L"], padding: Tensor) -> Int64[Tensor, "B L"]:
        """The number of each position's document, from 0 in each row; padding belongs to the last."""
        found = np.searchsorted(self.corpus.offsets, places.clamp(max=self.stop - 1).numpy(), side="right")
        documents = torch.from_numpy(found.astype(np.int64))
        return documents - documents[:, :1]


def _behind(x: Tensor, value: int | bool | None) -> Tensor:
    return torch.cat([x.new_full((len(x), 1), 0 if value is None else value), x], 1)


@dataclass(frozen=True)
class Cutting:
    """How a source cuts its text into rows, see ``data.text.TextFile`` for what the fields mean."""

    length: int
    documents: bool
    begin: bool
    validation_share: float
    seed: int
    split: str

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length is {self.length}; allowed are 2 or more")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; allowed is 0 up to, but not, 1")

    def require(self, codec: Tokenizer) -> None:
        """ValueError where the tokenizer lacks a token that frames the text."""
        if self.documents and codec.end_id is None:
            raise ValueError(
                "data.documents is true, but the tokenizer has no end token to end them with; set "
                "data.tokenizer.end=true (characters, bytes) or data.tokenizer.end_token, or leave documents out"
            )
        if self.begin and codec.begin_id is None:
            raise ValueError(
                "data.begin is true, but the tokenizer has neither a begin nor an end token; set "
                "data.tokenizer.end=true (characters, bytes) or data.tokenizer.end_token, or leave begin out"
            )

    def rows(self, corpus: Corpus, codec: Tokenizer, name: str, apart: bool) -> Rows:
        """The rows of this split. apart: whether the text to validate on is another corpus, so that none is held out.

        ValueError where they are fewer than one.
        """
        self.require(codec)
        held_out, total = self.split != "train", len(corpus.tokens)
        cut = total if apart else _cut_at(corpus, self.validation_share)
        start, stop = (cut, total) if held_out and not apart else (0, cut)
        needed = 1 if self.documents else self.length - self.begin
        if stop - start < needed:
            raise ValueError(
                f"{name}: its {self.split} part has {stop - start} tokens of {total}; rows of length {self.length} "
                f"need {needed} or more; lower length, change validation_share, or bring more text"
            )
        layout = "consecutive" if held_out else "shuffled" if self.documents else "random"
        key = rng.Key(self.seed, "text")
        return Rows(corpus, start, stop, self.length, codec, layout, self.documents, self.begin, key)


def _cut_at(corpus: Corpus, share: float) -> int:
    """The token at which the last `share` of a corpus begins: between documents where there are two or more."""
    place = round(len(corpus.tokens) * (1.0 - share))
    if corpus.num_documents < 2 or share == 0:
        return place
    inner = np.asarray(corpus.offsets[1:-1])
    return int(inner[np.abs(inner - place).argmin()])


class RowText(TextSource):
    """Text that is cut into rows of one length: what its kinds share, whose fields say where it comes from.

    tokenizer, length, documents, begin, validation_share, seed, split: see ``data.text.TextFile``.
    """

    tokenizer: Tokenizer
    length: int
    documents: bool
    validation_share: float
    begin: bool
    seed: int
    split: str

    @property
    @abstractmethod
    def _rows(self) -> Rows:
        """The rows of this split."""

    @property
    def _cutting(self) -> Cutting:
        return Cutting(self.length, self.documents, self.begin, self.validation_share, self.seed, self.split)

    @property
    def tokens(self) -> Int64[Tensor, "T"]:
        """The tokens of this split one after the other, of large ones the first 2**26."""
        return self._rows.tokens()

    @property
    def num_examples(self) -> int:
        return self._rows.num_rows

    def spec(self) -> Spec:
        return Spec(length=self.length, num_words=self.codec.num_words, mask_id=self.codec.mask_id)

    def framed(self, prompt: str) -> list[int]:
        begin = [self.codec.begin_id] if self.begin and self.codec.begin_id is not None else []
        return begin + super().framed(prompt)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        return self._rows.batch(ids, device)
