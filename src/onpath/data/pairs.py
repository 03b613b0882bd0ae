"""Supervised pairs: a prompt that is given, and the response that is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.data.corpus import Corpus
from onpath.data.pair_files import Columns, PairPlace, characters_of, framed, pair_corpus
from onpath.data.prompts import Side, has_marker
from onpath.data.shuffle import permuted
from onpath.data.source import TextSource
from onpath.data.text_files import cut
from onpath.data.tokenizers import Characters, Tokenizer
from onpath.types import Batch, Spec

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class TextPairs(TextSource):
    """Prompts and responses as rows of `length` tokens: the prompt is given, the response and its end are scored.

    path: a .jsonl file (or .gz of one), or `hub:NAME#SPLIT` for a dataset (see ``data.hub``), with `subset`.
    tokenizer: one with an end token. columns: where the texts stand, and how a prompt is framed.
    end: `supervised`: one end token is scored, and what follows is padding, which is never attended or scored; `fill`:
    the rest of the row is end tokens, all of them scored, as LLaDA does (arXiv:2502.09992, Section 2.3), which teaches
    a network to end an answer of its own accord on a canvas that is too long.
    padding_side: where `supervised` pads. overflow: what becomes of an example that is longer than a row: `refuse` it,
    `drop` it, or `cut` its response (without an end token then; one without room for any response is dropped).
    validation_share: the last part of the examples, never trained on; `test` is the same part. validation_path: pairs
    to validate on instead. begin: whether each prompt begins with the tokenizer's begin token. cache: see ``TextFile``;
    datasets and files over 64 MiB are kept there.
    """

    path: str
    tokenizer: Tokenizer = Characters(end=True)
    length: int = 256
    columns: Columns = Columns()
    subset: str = ""
    end: Literal["supervised", "fill"] = "supervised"
    padding_side: Side = "right"
    overflow: Literal["refuse", "drop", "cut"] = "refuse"
    validation_share: float = 0.1
    validation_path: str | None = None
    begin: bool = False
    cache: str = ""
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.length < 3:
            raise ValueError(f"length is {self.length}; allowed are 3 or more: a prompt, a response and its end")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; allowed is 0 up to, but not, 1")
        if self.end == "fill" and self.padding_side == "left":
            raise ValueError(
                "padding_side is 'left', but end is 'fill', which leaves nothing to pad; leave padding_side out, or "
                "set end: supervised"
            )

    @cached_property
    def codec(self) -> Tokenizer:
        if isinstance(self.tokenizer, Characters) and not self.tokenizer.alphabet:
            places = [self._place(path) for path in (self.path, self.validation_path) if path is not None]
            found = frozenset().union(*(characters_of(place, self.columns) for place in places))
            return replace(self.tokenizer, alphabet="".join(sorted(found)))
        return self.tokenizer

    def _place(self, path: str) -> PairPlace:
        return PairPlace.of(path, self.subset)

    @cached_property
    def _examples(self) -> _Examples:
        """The examples of this split that fit."""
        held_out = self.split != "train"
        path = self.validation_path if held_out and self.validation_path is not None else self.path
        _ = self.spec()  # says what the tokenizer lacks
        corpus = pair_corpus(self._place(path), self.columns, self.codec, self.begin, self.cache)
        return _fitting(corpus, self, path)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many examples of this split there are, and how many of them were `cut` or `dropped` as too long."""
        return self._examples.counts

    @property
    def remarks(self) -> tuple[str, ...]:
        told = self.counts
        if not (told["cut"] or told["dropped"]):
            return ()
        changed = f"{told['cut']:,} of them cut, {told['dropped']:,} more left out"
        return (f"{told['examples']:,} examples, {changed}: longer than {self.length} tokens with their end",)

    @property
    def num_examples(self) -> int:
        return len(self._examples.prompt)

    @property
    def end_id(self) -> int | None:
        return self.codec.end_id

    def settled(self) -> Mapping[str, Any]:
        return {"tokenizer": {"alphabet": self.codec.alphabet}} if isinstance(self.codec, Characters) else {}

    def spec(self) -> Spec:
        codec = self.codec
        if codec.end_id is None:
            raise ValueError(
                "data.tokenizer: pairs need an end token, and this tokenizer has none; set data.tokenizer.end=true "
                "(characters, bytes), or name a token of its vocabulary in data.tokenizer.end_token"
            )
        return Spec(length=self.length, num_words=codec.num_words, mask_id=codec.mask_id)

    def at_split(self, split: str) -> TextPairs:
        return replace(self, split=split)

    def framed(self, prompt: str) -> list[int]:
        if not (self.columns.chat or self.columns.messages):
            ids = super().framed(self.columns.prompt_format.replace("{prompt}", prompt))
            return framed(ids, self.codec, self.begin)
        if has_marker(prompt):
            raise ValueError(
                f"prompt: {cut(prompt)} holds free positions, which a chat template cannot; they are possible with "
                "columns of prompts and responses"
            )
        return framed(self.codec.chat([{"role": "user", "content": prompt}]), self.codec, self.begin)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        found, length, codec = self._examples, self.length, self.codec
        shuffled = self.split == "train"
        key = rng.Key(self.seed, "pairs")
        rows = permuted(ids, self.num_examples, key) if shuffled else ids % self.num_examples
        prompt, size, ended = found.prompt[rows], found.size[rows], found.ended[rows]
        total = size + ended.long()
        shift = length - total if self.padding_side == "left" else torch.zeros_like(total)
        place = torch.arange(length) - shift[:, None]  # from the first token of the prompt
        inside = (place >= 0) & (place < size[:, None])
        text = found.corpus.take((found.start[rows][:, None] + place.clamp(min=0)).clamp(max=found.last))
        assert codec.end_id is not None
        x = torch.where(inside, text, codec.end_id)
        given = (place >= 0) & (place < prompt[:, None])
        if self.end == "fill":
            return Batch.of_tokens(x, ids, given=given).to(device)
        padding = (place < 0) | (place >= total[:, None])
        return Batch.of_tokens(x.masked_fill(padding, codec.pad_id), ids, given=given, padding=padding).to(device)


@dataclass(frozen=True, eq=False)
class _Examples:
    """start: place of each example's first token; prompt, size: tokens of the prompt, and of prompt and response;
    ended: whether an end token follows (a cut response has none)."""

    corpus: Corpus
    start: Int64[Tensor, "N"]
    prompt: Int64[Tensor, "N"]
    size: Int64[Tensor, "N"]
    ended: Tensor
    counts: Mapping[str, int]

    @property
    def last(self) -> int:
        return len(self.corpus.tokens) - 1


def _fitting(corpus: Corpus, source: TextPairs, path: str) -> _Examples:
    """The examples of a split, those longer than a row treated as the source says."""
    offsets = torch.from_numpy(np.array(corpus.offsets))  # a copy, for the cache cannot be written to
    start, middle, stop = offsets[:-1:2], offsets[1::2], offsets[2::2]
    held_out = source.split != "train"
    share = 0.0 if source.validation_path is not None else source.validation_share
    first_held_out = round(len(start) * (1.0 - share))
    if source.validation_path is None or not held_out:
        chosen = slice(first_held_out, None) if held_out else slice(0, first_held_out)
        start, middle, stop = start[chosen], middle[chosen], stop[chosen]
    prompt, size = middle - start, stop - start
    fits, room = size < source.length, prompt < source.length
    if source.overflow == "refuse" and not bool(fits.all()):
        worst = int(size.argmax())
        raise ValueError(
            f"{path}: example {worst + 1} of the {source.split} part has {int(size[worst]) + 1} tokens with its end, "
            f"and {int((~fits).sum())} of {len(fits)} do not fit into rows of length {source.length}; allowed are "
            f"{source.length} tokens; set length={int(size[worst]) + 1}, or overflow: drop or cut"
        )
    kept = fits if source.overflow != "cut" else room
    if not bool(kept.any()):
        raise ValueError(
            f"{path}: its {source.split} part has {len(fits)} examples, of which none is left in rows of length "
            f"{source.length}; one at least is needed; change validation_share, raise length, or bring more examples"
        )
    counts = {
        "examples": int(kept.sum()),
        "cut": int((kept & ~fits).sum()),
        "dropped": int((~kept).sum()),
    }
    size = torch.where(fits, size, source.length)
    return _Examples(corpus, start[kept], prompt[kept], size[kept], fits[kept], counts)
