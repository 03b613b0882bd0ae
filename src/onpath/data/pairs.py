"""Supervised pairs: a prompt that is given, and the response that is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.data.corpus import Corpus, collected
from onpath.data.hub import HubPlace
from onpath.data.prompts import Side, has_marker
from onpath.data.shuffle import permuted
from onpath.data.source import TextSource
from onpath.data.text_files import cut, json_rows, text_of
from onpath.data.tokenizers import Characters, Tokenizer
from onpath.types import Batch, Spec

Split = Literal["train", "validation", "test"]
_HUB = "hub:"


@dataclass(frozen=True)
class Columns:
    """Where a row has its prompt and its response, and how the prompt is framed.

    prompt, response: names of columns of text. messages: name of a column of conversations in their place, whose last
    turn, by the assistant, is the response. chat: whether prompts are framed by the tokenizer's chat template.
    prompt_format: what a prompt is written into else, like ``Question: {prompt}\\nAnswer: ``.
    """

    prompt: str = "prompt"
    response: str = "response"
    messages: str = ""
    chat: bool = False
    prompt_format: str = "{prompt}"

    def __post_init__(self) -> None:
        if "{prompt}" not in self.prompt_format:
            raise ValueError(
                f"prompt_format is {self.prompt_format!r}; {{prompt}} must stand in it, where the prompt belongs; "
                "write it like 'Question: {prompt}\\nAnswer: '"
            )
        if (self.chat or self.messages) and self.prompt_format != "{prompt}":
            raise ValueError(
                f"prompt_format is {self.prompt_format!r}, but prompts are framed by the chat template; leave one out"
            )

    def texts(self, row: Mapping[str, Any], where: str) -> tuple[str | list[dict[str, str]], str]:
        """(prompt, or the turns before the response; response) of a row; ValueError where they are not there."""
        if self.messages:
            turns, response = self._turns(row, where)
        else:
            text, response = (text_of(dict(row), name, where) for name in (self.prompt, self.response))
            turns = [{"role": "user", "content": text}] if self.chat else self.prompt_format.replace("{prompt}", text)
        if not response.strip():
            raise ValueError(f"{where}: the response is empty; a text is needed; repair the row, or take it out")
        return turns, response

    def _turns(self, row: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
        if self.messages not in row:
            raise ValueError(
                f"{where}: the column {self.messages!r} is missing; there are {', '.join(map(repr, row)) or 'none'}; "
                "name the one that holds the conversations in `messages`"
            )
        turns = row[self.messages]
        if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
            raise ValueError(
                f'{where}: {self.messages!r} is {cut(turns)}; a list of two or more {{"role": …, "content": …}} is '
                "needed; repair the row"
            )
        told = [{name: text_of(turn, name, where) for name in ("role", "content")} for turn in turns]
        if told[-1]["role"] != "assistant":
            raise ValueError(
                f"{where}: the last turn is by {told[-1]['role']!r}; it must be by 'assistant', as it is the response; "
                "cut the conversation behind its last answer"
            )
        return told[:-1], told[-1]["content"]


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
    to validate on instead. begin: whether each prompt begins with the tokenizer's begin token.
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
            paths = [path for path in (self.path, self.validation_path) if path is not None]
            found = {c for path in paths for pair in self._pairs(path) for text in pair for c in text}
            return replace(self.tokenizer, alphabet="".join(sorted(found)))
        return self.tokenizer

    def _pairs(self, path: str) -> Iterator[tuple[str, str]]:
        for where, row in _rows_of(path, self.subset):
            turns, response = self.columns.texts(row, where)
            yield (turns if isinstance(turns, str) else "".join(turn["content"] for turn in turns)), response

    @cached_property
    def _examples(self) -> _Examples:
        """The examples of this split that fit."""
        held_out = self.split != "train"
        path = self.validation_path if held_out and self.validation_path is not None else self.path
        corpus = _tokens(_stamp(path), self.subset, self.columns, self.codec, self.begin)
        return _fitting(corpus, self, path)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many examples of this split there are, and how many of them were `cut` or `dropped` as too long."""
        return self._examples.counts

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
                "tokenizer: pairs need an end token, and this tokenizer has none; set tokenizer.end=true (characters, "
                "bytes), or name a token of its vocabulary in tokenizer.end_token"
            )
        return Spec(length=self.length, num_words=codec.num_words, mask_id=codec.mask_id)

    def at_split(self, split: str) -> TextPairs:
        return replace(self, split=split)

    def framed(self, prompt: str) -> list[int]:
        if not (self.columns.chat or self.columns.messages):
            begin = _begin(self.codec, self.begin)
            return begin + super().framed(self.columns.prompt_format.replace("{prompt}", prompt))
        if has_marker(prompt):
            raise ValueError(
                f"prompt: {cut(prompt)} holds free positions, which a chat template cannot; they are possible with "
                "columns of prompts and responses"
            )
        return _framed([{"role": "user", "content": prompt}], self.codec, self.begin)

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
    offsets = torch.from_numpy(np.asarray(corpus.offsets))
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


def _stamp(path: str) -> tuple[str, int, int]:
    """The file and what changes with its contents; a dataset by its name."""
    if path.startswith(_HUB):
        return path, 0, 0
    file = Path(path)
    if not file.is_file():
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(
            f"{path}: there is no such file{where}; give the path of a .jsonl file of pairs, or hub:NAME#SPLIT for a "
            "dataset"
        )
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(
            f"{path}: the ending is {''.join(file.suffixes[-2:])!r}; pairs are kept in files ending in .jsonl or "
            ".jsonl.gz; convert it, one object a line"
        )
    stat = file.stat()
    return path, stat.st_mtime_ns, stat.st_size


def _rows_of(path: str, subset: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, row) for each row of a file or a dataset."""
    if path.startswith(_HUB):
        name, _, split = path.removeprefix(_HUB).partition("#")
        place = HubPlace(name, split or "train", subset)
        for number, row in place.rows():
            yield f"{place.where}, row {number}", row
        return
    _stamp(path)
    for line, row in json_rows(Path(path)):
        yield f"{path}, line {line}", row


@lru_cache(maxsize=4)
def _tokens(stamp: tuple[str, int, int], subset: str, columns: Columns, codec: Tokenizer, begin: bool) -> Corpus:
    """Prompts and responses in turn, as the documents of a corpus."""

    def documents() -> Iterator[tuple[list[int], bool]]:
        for where, row in _rows_of(stamp[0], subset):
            turns, response = columns.texts(row, where)
            try:
                prompt, answer = _framed(turns, codec, begin), codec.encode(response)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if codec.mask_id in prompt or codec.mask_id in answer:
                raise ValueError(
                    f"{where}: the text holds the tokenizer's [MASK], which must never stand in a text; take it out"
                )
            yield (prompt, True)
            yield (answer, True)

    corpus = collected(documents(), codec.num_words)
    if not corpus.num_documents:
        raise ValueError(f"{stamp[0]}: holds no pair; write one JSON object a line, with a prompt and a response")
    return corpus


def _framed(turns: str | list[dict[str, str]], codec: Tokenizer, begin: bool) -> list[int]:
    """The tokens of a prompt, or of the turns before a response."""
    ids = codec.encode(turns) if isinstance(turns, str) else codec.chat(turns)
    first = _begin(codec, begin)
    return ids if ids[:1] == first else first + ids


def _begin(codec: Tokenizer, begin: bool) -> list[int]:
    return [codec.begin_id] if begin and codec.begin_id is not None else []
