"""Prompts without answers, for policy optimisation: what is asked, and what a reward is told beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.data.corpus import Corpus
from onpath.data.framing import framed_request, require_end
from onpath.data.prompt_files import PromptRows, PromptText, characters_beside, prompt_rows
from onpath.data.prompts import Side, has_marker
from onpath.data.row_places import RowPlace, part_of
from onpath.data.shuffle import permuted
from onpath.data.source import TextSource
from onpath.data.tokenizers import Characters, Tokenizer
from onpath.types import Batch, Spec

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Prompts(TextSource):
    """Prompts with any columns beside them, as TRL keeps them: each is given, and positions behind it are free.

    A row is a prompt and `max_completion_length` free positions, padded to `length` tokens whatever stands beside it
    in a batch. There is nothing to learn from such a row itself; a reward reads the columns, by their names.

    path: a .jsonl file (or .gz of one), or `hub:NAME#SPLIT` for a dataset (see ``data.hub``), with `subset`.
    tokenizer: one with an end token; an empty alphabet of characters takes those of prompts and text columns.
    length: tokens of a row. max_completion_length: free positions of a row; a prompt may have so many fewer tokens.
    prompt: name of the column that is asked: text, or with `chat` a conversation, a list of {"role", "content"}, as
    well. prompt_format: what a prompt of text is written into. chat: frame it, as the turn of a user, by the chat
    template of the tokenizer. system: a system turn before each chat. padding_side: where rows are padded.
    overflow: what becomes of a prompt that is too long: `refuse` it, or `drop` it.
    validation_share: the last part of the prompts, never trained on; `test` is the same part. validation_path: prompts
    to validate on instead. begin: whether each prompt begins with the tokenizer's begin token.

    In a config, with a reward that compares with the column `answer`:

        data:
          kind: prompts
          path: hub:openai/gsm8k#train
          validation_path: hub:openai/gsm8k#test
          subset: main
          prompt: question
          chat: true
          tokenizer: {kind: huggingface, name: GSAI-ML/LLaDA-8B-Instruct, mask_token: "<|mdm_mask|>"}
          length: 512
          max_completion_length: 256
    """

    path: str
    tokenizer: Tokenizer = Characters(end=True)
    length: int = 512
    max_completion_length: int = 256
    prompt: str = "prompt"
    prompt_format: str = "{prompt}"
    chat: bool = False
    system: str = ""
    subset: str = ""
    padding_side: Side = "left"
    overflow: Literal["refuse", "drop"] = "refuse"
    validation_share: float = 0.1
    validation_path: str | None = None
    begin: bool = False
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length is {self.max_completion_length}; allowed are 1 or more")
        if self.length <= self.max_completion_length:
            raise ValueError(
                f"length is {self.length}, but {self.max_completion_length} positions of it are free "
                f"(max_completion_length), so there is no room for a prompt; allowed are "
                f"{self.max_completion_length + 1} or more; raise length, or lower max_completion_length"
            )
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; allowed is 0 up to, but not, 1")
        _ = self._text

    @property
    def _text(self) -> PromptText:
        return PromptText(self.prompt, self.prompt_format, self.chat, self.system)

    @cached_property
    def codec(self) -> Tokenizer:
        if isinstance(self.tokenizer, Characters) and not self.tokenizer.alphabet:
            places = [RowPlace.of(path, self.subset) for path in (self.path, self.validation_path) if path is not None]
            found = frozenset().union(*(characters_beside(place, self._text) for place in places))
            return replace(self.tokenizer, alphabet="".join(sorted(found)))
        return self.tokenizer

    @cached_property
    def _asked(self) -> _Asked:
        """The prompts of this split that fit."""
        other = self.validation_path if self.split != "train" else None
        path = self.path if other is None else other
        _ = self.spec()  # says what the tokenizer lacks
        return _fitting(prompt_rows(RowPlace.of(path, self.subset), self._text, self.codec, self.begin), self, path)

    @property
    def has_answers(self) -> bool:
        return False

    @property
    def remarks(self) -> tuple[str, ...]:
        kept, dropped = self.num_examples, self._asked.num_dropped
        room = self.length - self.max_completion_length
        return (f"{kept:,} prompts, {dropped:,} more left out: longer than {room} tokens",) if dropped else ()

    @property
    def num_examples(self) -> int:
        return len(self._asked.row)

    @property
    def end_id(self) -> int | None:
        return self.codec.end_id

    def settled(self) -> Mapping[str, Any]:
        return {"tokenizer": {"alphabet": self.codec.alphabet}} if isinstance(self.codec, Characters) else {}

    def spec(self) -> Spec:
        codec = self.codec
        require_end(codec, "prompts")
        return Spec(length=self.length, num_words=codec.num_words, mask_id=codec.mask_id)

    def at_split(self, split: str) -> Prompts:
        return replace(self, split=split)

    def framed(self, prompt: str) -> list[int]:
        return framed_request(prompt, self._text.asked(prompt), self.codec, self.begin)

    def request(
        self,
        prompts: Sequence[str],
        ids: Int64[Tensor, "B"],
        length: int | None = None,
        *,
        num_new_tokens: int | None = None,
        padding_side: Side = "right",
    ) -> Batch:
        """As of any text; with neither length nor num_new_tokens, `max_completion_length` positions are free."""
        if length is None and num_new_tokens is None and not any(map(has_marker, prompts)):
            num_new_tokens = self.max_completion_length
        return super().request(prompts, ids, length, num_new_tokens=num_new_tokens, padding_side=padding_side)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        """The prompts, [MASK] at the free positions behind them."""
        found, rows = self._asked, self._rows(ids)
        size = found.size[rows]
        used = size + self.max_completion_length
        place, text = found.corpus.laid_out(found.start[rows], used, self.length, self.padding_side)
        padding = (place < 0) | (place >= used[:, None])
        given = ~padding & (place < size[:, None])
        x = torch.where(given, text, self.codec.mask_id).masked_fill(padding, self.codec.pad_id)
        return Batch.of_tokens(x, ids, given=given, padding=padding).to(device)

    def prompts(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        """The examples, which are prompts already; their padding tells nothing."""
        return self.examples(ids, device)

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """Every other column of the file, None where a row has none."""
        rows = self._asked.row[self._rows(ids)].tolist()
        return {name: [values[row] for row in rows] for name, values in self._asked.columns.items()}

    def _rows(self, ids: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
        if self.split != "train":
            return ids % self.num_examples
        return permuted(ids, self.num_examples, rng.Key(self.seed, "prompts"))


@dataclass(frozen=True, eq=False)
class _Asked:
    """row: of the file; start: place of each prompt's first token; size: its tokens. columns: of all rows."""

    corpus: Corpus
    row: Int64[Tensor, "N"]
    start: Int64[Tensor, "N"]
    size: Int64[Tensor, "N"]
    columns: Mapping[str, Sequence[Any]]
    num_dropped: int


def _fitting(found: PromptRows, source: Prompts, path: str) -> _Asked:
    """The prompts of a split, those that are too long treated as the source says."""
    offsets = torch.from_numpy(found.corpus.offsets)
    row = torch.arange(found.corpus.num_documents)
    if source.validation_path is None:
        row = row[part_of(len(row), source.split, source.validation_share)]
    size, room = offsets[row + 1] - offsets[row], source.length - source.max_completion_length
    fits = size <= room
    if source.overflow == "refuse" and not bool(fits.all()):
        worst = int(size.argmax())
        raise ValueError(
            f"{path}: prompt {int(row[worst]) + 1} has {int(size[worst])} tokens, and {int((~fits).sum())} of "
            f"{len(fits)} of the {source.split} part leave less than max_completion_length="
            f"{source.max_completion_length} of length={source.length}; allowed are prompts of {room} tokens; set "
            f"length={int(size[worst]) + source.max_completion_length}, or overflow: drop"
        )
    if not bool(fits.any()):
        raise ValueError(
            f"{path}: its {source.split} part has {len(fits)} prompts, of which none is left with {room} tokens or "
            "fewer; one at least is needed; change validation_share, raise length, or bring more prompts"
        )
    row, size = row[fits], size[fits]
    return _Asked(found.corpus, row, offsets[row], size, found.columns, int((~fits).sum()))
