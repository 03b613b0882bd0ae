"""Text files as training examples: windows of plain text, or whole documents packed into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

from onpath.data.cache import cache_folder
from onpath.data.corpus import Corpus, cached, collected, tokenised
from onpath.data.rows import Rows, RowText
from onpath.data.text_files import TextPlace, place_of
from onpath.data.tokenizers import Characters, Tokenizer

Split = Literal["train", "validation", "test"]
_IN_MEMORY = 2**26  # bytes of text from which its tokens are kept in the cache


@dataclass(frozen=True)
class TextFile(RowText):
    """A text file, or a folder of them, as rows of `length` tokens.

    path: .txt or .jsonl in UTF-8, each as .gz too, or a folder of such; `onpath:tinyshakespeare.txt.gz` ships with the
    package. tokenizer: see ``data.tokenizers``. length: tokens of a row.
    documents: False makes windows, at random places in training and one after the other else; True packs documents one
    after the other into rows, each with its end token, and keeps them apart: a row of the epoch is visited once, and
    a document that reaches over the end of a row goes on in the next as a document of its own.
    column: of a .jsonl row that holds a document. separator: what stands between the documents of a .txt file, such as
    `<|endoftext|>`; without one a file is a document.
    validation_share: the last part of the text, whole documents where there are several, never trained on; `test` is
    the same part. validation_path: files to validate on instead.
    begin: whether each row begins with the tokenizer's begin token, which is given.
    cache: folder for tokenised text over 64 MiB, or with any size where it is set; else ONPATH_CACHE, ~/.cache/onpath.
    """

    path: str
    tokenizer: Tokenizer = Characters()
    length: int = 128
    documents: bool = False
    column: str = "text"
    separator: str = ""
    validation_share: float = 0.1
    validation_path: str | None = None
    begin: bool = False
    cache: str = ""
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        _ = self._cutting

    @cached_property
    def codec(self) -> Tokenizer:
        if isinstance(self.tokenizer, Characters) and not self.tokenizer.alphabet:
            places = [self._place(path) for path in (self.path, self.validation_path) if path is not None]
            return replace(self.tokenizer, alphabet="".join(sorted(set().union(*map(_characters, places)))))
        return self.tokenizer

    @cached_property
    def _rows(self) -> Rows:
        """The rows of this split."""
        other = self.validation_path if self.split != "train" else None
        path = self.path if other is None else other
        self._cutting.require(self.codec)
        corpus = _corpus(self._place(path), self.codec, self.cache)
        return self._cutting.rows(corpus, self.codec, path, apart=self.validation_path is not None)

    def settled(self) -> Mapping[str, Any]:
        return {"tokenizer": {"alphabet": self.codec.alphabet}} if isinstance(self.codec, Characters) else {}

    def at_split(self, split: str) -> TextFile:
        return replace(self, split=split)

    def _place(self, path: str) -> TextPlace:
        return place_of(path, self.column, self.separator)


@lru_cache(maxsize=4)
def _characters(place: TextPlace) -> frozenset[str]:
    return frozenset().union(*(set(passage.text) for passage in place.passages()))


@lru_cache(maxsize=4)
def _corpus(place: TextPlace, codec: Tokenizer, cache: str) -> Corpus:
    """The tokens of these files, in memory where they are few."""
    if not cache and place.num_bytes < _IN_MEMORY:
        return collected(tokenised(place.passages(), codec), codec.num_words)
    made_from = {"files": place.files, "column": place.column, "separator": place.separator, "codec": codec.identity}
    return cached(cache_folder(cache), made_from, lambda: tokenised(place.passages(), codec), codec.num_words)
