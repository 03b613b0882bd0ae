"""Supervised pairs: a prompt that is given, and the response that is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.data.corpus import Corpus
from onpath.data.framing import framed_request, require_end
from onpath.data.pair_files import PairText, characters_of, pair_corpus
from onpath.data.prompts import Side
from onpath.data.row_places import RowPlace, part_of
from onpath.data.shuffle import permuted
from onpath.data.source import TextSource
from onpath.data.tokenizers import Characters, Tokenizer
from onpath.types import Batch, Spec

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class TextPairs(TextSource):
    """Prompts and responses as rows of `length` tokens: the prompt is given, the response and its end are scored.

    path: a .jsonl file (or .gz of one), or `hub:NAME#SPLIT` for a dataset (see ``data.hub``), with `subset`.
    tokenizer: one with an end token. prompt, response: names of the columns of text. messages: name of a column of
    conversations in their place, whose last turn, by the assistant, is the response. prompt_format: what a prompt is
    written into. chat: whether prompts are framed by the tokenizer's chat template instead.
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
    prompt: str = "prompt"
    response: str = "response"
    messages: str = ""
    prompt_format: str = "{prompt}"
    chat: bool = False
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
        _ = self._text

    @property
    def _text(self) -> PairText:
        return PairText(self.prompt, self.response, self.messages, self.prompt_format, self.chat)

    @cached_property
    def codec(self) -> Tokenizer:
        if isinstance(self.tokenizer, Characters) and not self.tokenizer.alphabet:
            places = [self._place(path) for path in (self.path, self.validation_path) if path is not None]
            found = frozenset().union(*(characters_of(place, self._text) for place in places))
            return replace(self.tokenizer, alphabet="".join(sorted(found)))
        return self.tokenizer

    def _place(self, path: str) -> RowPlace:
        return RowPlace.of(path, self.subset)

    @cached_property
    def _examples(self) -> _Examples:
        """The examples of this split that fit."""
        held_out = self.split != "train"
        path = self.validation_path if held_out and self.validation_path is not None else self.path
        _ = self.spec()  # says what the tokenizer lacks
        corpus = pair_corpus(self._place(path), self._text, self.codec, self.begin, self.cache)
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
        require_end(codec, "pairs")
        return Spec(length=self.length, num_words=codec.num_words, mask_id=codec.mask_id)

    def at_split(self, split: str) -> TextPairs:
        return replace(self, split=split)

    def framed(self, prompt: str) -> list[int]:
        return framed_request(prompt, self._text.asked(prompt), self.codec, self.begin)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        found, codec, rows = self._examples, self.codec, self._rows(ids)
        prompt, size, ended = found.prompt[rows], found.size[rows], found.ended[rows]
        total = size + ended.long()
        place, text = found.corpus.laid_out(found.start[rows], total, self.length, self.padding_side)
        inside = (place >= 0) & (place < size[:, None])
        assert codec.end_id is not None
        x = torch.where(inside, text, codec.end_id)
        given = (place >= 0) & (place < prompt[:, None])
        if self.end == "fill":
            return Batch.of_tokens(x, ids, given=given).to(device)
        padding = (place < 0) | (place >= total[:, None])
        return Batch.of_tokens(x.masked_fill(padding, codec.pad_id), ids, given=given, padding=padding).to(device)

    def prompts(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        """The prompts, every position behind them free, whatever the length of the response."""
        found, rows = self._examples, self._rows(ids)
        whole = torch.full_like(rows, self.length)
        place, text = found.corpus.laid_out(found.start[rows], whole, self.length)
        given = place < found.prompt[rows][:, None]
        return Batch.of_tokens(torch.where(given, text, self.codec.mask_id), ids, given=given).to(device)

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """`response`: the text of each response, cut where it was cut."""
        found, rows = self._examples, self._rows(ids)
        spans = torch.stack([found.prompt[rows], found.size[rows]], 1) + found.start[rows][:, None]
        return {"response": [self.words(found.corpus.tokens[a:b].tolist()) for a, b in spans.tolist()]}

    def _rows(self, ids: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
        if self.split != "train":
            return ids % self.num_examples
        return permuted(ids, self.num_examples, rng.Key(self.seed, "pairs"))


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


def _fitting(corpus: Corpus, source: TextPairs, path: str) -> _Examples:
    """The examples of a split, those longer than a row treated as the source says."""
    offsets = torch.from_numpy(np.array(corpus.offsets))  # a copy, for the cache cannot be written to
    start, middle, stop = offsets[:-1:2], offsets[1::2], offsets[2::2]
    if source.validation_path is None:
        chosen = part_of(len(start), source.split, source.validation_share)
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
