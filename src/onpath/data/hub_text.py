"""Text of Hugging Face datasets as training examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any, Literal

from onpath.data.cache import cache_folder
from onpath.data.corpus import Corpus, Documents, cached, tokenised
from onpath.data.hub import HubPlace
from onpath.data.rows import Rows, RowText
from onpath.data.text_files import Passage, text_of
from onpath.data.tokenizers import Characters, Tokenizer


@dataclass(frozen=True)
class HubText(RowText):
    """A dataset of the Hugging Face hub, or of its library's files, as rows of `length` tokens.

    name: on the hub, a folder of `save_to_disk`, or a .parquet, .jsonl, .csv or .arrow file or folder. subset: the
    configuration of a dataset that has several. revision: of the hub. column: that holds the text.
    train_split, validation_split: names of its splits; without the second, the last `validation_share` of the first is
    validated on. streaming: read it as it comes, without a copy of the dataset, up to `max_documents` or `max_tokens`
    (0 for no limit), one of which must be set then.
    Tokens are laid down once in a cache (`cache`, else ONPATH_CACHE, else ~/.cache/onpath), streamed ones too, so that
    any step can be read at random. length, documents, begin: see ``data.text.TextFile``.
    """

    name: str
    subset: str = ""
    revision: str = ""
    column: str = "text"
    train_split: str = "train"
    validation_split: str = ""
    streaming: bool = False
    max_documents: int = 0
    max_tokens: int = 0
    tokenizer: Tokenizer = Characters()
    length: int = 128
    documents: bool = False
    validation_share: float = 0.1
    begin: bool = False
    cache: str = ""
    seed: int = 0
    split: Literal["train", "validation", "test"] = "train"

    def __post_init__(self) -> None:
        _ = self._cutting
        if self.max_documents < 0 or self.max_tokens < 0:
            raise ValueError(
                f"max_documents is {self.max_documents} and max_tokens is {self.max_tokens}; allowed are 0 (no limit) "
                "or more"
            )
        if self.streaming and not (self.max_documents or self.max_tokens):
            raise ValueError(
                "streaming is true without a limit, so the cache would take the whole dataset; set max_documents or "
                "max_tokens, or streaming: false"
            )

    def _text(self, split: str) -> _Text:
        place = HubPlace(self.name, split, self.subset, self.revision, self.streaming)
        return _Text(place, self.column, self.max_documents, self.max_tokens)

    @cached_property
    def codec(self) -> Tokenizer:
        if isinstance(self.tokenizer, Characters) and not self.tokenizer.alphabet:
            splits = [self.train_split, *([self.validation_split] if self.validation_split else [])]
            found = [_characters(self._text(split)) for split in splits]
            return replace(self.tokenizer, alphabet="".join(sorted(frozenset().union(*found))))
        return self.tokenizer

    @cached_property
    def _rows(self) -> Rows:
        """The rows of this split."""
        other = self.validation_split if self.split != "train" else ""
        text = self._text(other or self.train_split)
        self._cutting.require(self.codec)
        corpus = _corpus(text, self.codec, self.cache)
        return self._cutting.rows(corpus, self.codec, text.place.where, apart=bool(self.validation_split))

    def settled(self) -> Mapping[str, Any]:
        return {"tokenizer": {"alphabet": self.codec.alphabet}} if isinstance(self.codec, Characters) else {}

    def at_split(self, split: str) -> HubText:
        return replace(self, split=split)


@dataclass(frozen=True)
class _Text:
    """The text of a split, up to a number of documents or tokens, 0 for all."""

    place: HubPlace
    column: str
    max_documents: int
    max_tokens: int

    def passages(self) -> Iterator[Passage]:
        """Each document; ValueError where there is none."""
        found = False
        for number, row in islice(self.place.rows(), self.max_documents or None):
            text = text_of(row, self.column, f"{self.place.where}, row {number}")
            if text:
                found = True
                yield Passage(text, True, self.place.where, number, row="row")
        if not found:
            raise ValueError(f"{self.place.where}: holds no text in the column {self.column!r}; choose another one")

    def documents(self, codec: Tokenizer) -> Documents:
        """Their tokens, up to the limit."""
        total = 0
        for ids, ends in tokenised(self.passages(), codec):
            yield ids, ends
            total += len(ids)
            if ends and self.max_tokens and total >= self.max_tokens:
                return


@lru_cache(maxsize=4)
def _characters(text: _Text) -> frozenset[str]:
    return frozenset().union(*(set(passage.text) for passage in text.passages()))


@lru_cache(maxsize=4)
def _corpus(text: _Text, codec: Tokenizer, cache: str) -> Corpus:
    limits = {"max_documents": text.max_documents, "max_tokens": text.max_tokens}
    made_from = {**text.place.made_from(), "column": text.column, **limits, "codec": codec.identity}
    return cached(cache_folder(cache), made_from, lambda: text.documents(codec), codec.num_words)
