"""Pairs of a prompt and a response on disk or in a dataset: found, checked row by row, and tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from onpath.data.cache import cache_folder
from onpath.data.corpus import Corpus, Documents, cached, collected
from onpath.data.hub import HubPlace
from onpath.data.text_files import cut, json_rows, text_of
from onpath.data.tokenizers import Tokenizer

_HUB = "hub:"
_IN_MEMORY = 2**26  # bytes of a file from which its tokens are kept in the cache
_TOGETHER = 256  # pairs that are tokenised together

Turns = str | list[dict[str, str]]
"""A prompt, or the turns of a conversation before its response."""


@dataclass(frozen=True)
class Columns:
    """Where a row has its prompt and its response, and how the prompt is framed.

    prompt, response: names of columns of text. messages: name of a column of conversations in their place, whose last
    turn, by the assistant, is the response. chat: whether prompts are framed by the tokenizer's chat template.
    prompt_format: what a prompt is written into else, like ``Question: {prompt}``.
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

    def texts(self, row: Mapping[str, Any], where: str) -> tuple[Turns, str]:
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
class PairPlace:
    """Where pairs are: a .jsonl file and what tells whether it has changed, or a dataset."""

    path: str
    subset: str
    changed_ns: int
    num_bytes: int

    @classmethod
    def of(cls, path: str, subset: str = "") -> PairPlace:
        """What `path` names, a file or ``hub:NAME#SPLIT``; ValueError where there is no such file."""
        if path.startswith(_HUB):
            return cls(path, subset, 0, 0)
        if subset:
            raise ValueError(
                f"data.subset is {subset!r}, but data.path is {path!r}, a file; only a dataset (hub:NAME#SPLIT) "
                "has subsets; leave subset out"
            )
        file = Path(path)
        if not file.is_file():
            where = "" if file.is_absolute() else f" in {Path.cwd()}"
            raise ValueError(
                f"{path}: there is no such file{where}; give the path of a .jsonl file of pairs, or hub:NAME#SPLIT for "
                "a dataset"
            )
        if not file.name.endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(
                f"{path}: the ending is {''.join(file.suffixes[-2:])!r}; pairs are kept in files ending in .jsonl or "
                ".jsonl.gz; convert it, one object a line"
            )
        stat = file.stat()
        return cls(path, subset, stat.st_mtime_ns, stat.st_size)

    @property
    def hub(self) -> HubPlace | None:
        """The dataset, where it is one."""
        if not self.path.startswith(_HUB):
            return None
        name, _, split = self.path.removeprefix(_HUB).partition("#")
        return HubPlace(name, split or "train", self.subset)

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(where it stands, row) of each row."""
        hub = self.hub
        if hub is not None:
            for number, row in hub.rows():
                yield f"{hub.where}, row {number}", row
        else:
            for line, row in json_rows(Path(self.path)):
                yield f"{self.path}, line {line}", row

    def made_from(self) -> dict[str, Any]:
        """What tells whether the rows have changed."""
        hub = self.hub
        return {"file": [self.path, self.changed_ns, self.num_bytes]} if hub is None else hub.made_from()


@lru_cache(maxsize=4)
def characters_of(place: PairPlace, columns: Columns) -> frozenset[str]:
    """Every character of its prompts and responses."""
    found: set[str] = set()
    for where, row in place.rows():
        turns, response = columns.texts(row, where)
        found |= {*response, *(turns if isinstance(turns, str) else "".join(turn["content"] for turn in turns))}
    return frozenset(found)


@lru_cache(maxsize=4)
def pair_corpus(place: PairPlace, columns: Columns, codec: Tokenizer, begin: bool, cache: str) -> Corpus:
    """Prompts and responses in turn, as the documents of a corpus; ValueError with file and line of a bad one."""
    if not cache and place.hub is None and place.num_bytes < _IN_MEMORY:
        corpus = collected(_documents(place, columns, codec, begin), codec.num_words)
    else:
        made_from = {**place.made_from(), "columns": repr(columns), "begin": begin, "codec": codec.identity}
        corpus = cached(
            cache_folder(cache), made_from, lambda: _documents(place, columns, codec, begin), codec.num_words
        )
    if not corpus.num_documents:
        raise ValueError(f"{place.path}: holds no pair; write one JSON object a line, with a prompt and a response")
    return corpus


def _documents(place: PairPlace, columns: Columns, codec: Tokenizer, begin: bool) -> Documents:
    rows = place.rows()
    while group := list(islice(rows, _TOGETHER)):
        pairs = [columns.texts(row, where) for where, row in group]
        try:
            prompts, responses = _encoded(pairs, codec, begin)
        except ValueError:
            for (where, _), pair in zip(group, pairs, strict=True):
                _located(where, pair, codec, begin)
            raise
        for (where, _), prompt, response in zip(group, prompts, responses, strict=True):
            if codec.mask_id in prompt or codec.mask_id in response:
                raise ValueError(
                    f"{where}: the text holds the tokenizer's [MASK], which must never stand in a text; take it out"
                )
            yield (prompt, True)
            yield (response, True)


def _located(where: str, pair: tuple[Turns, str], codec: Tokenizer, begin: bool) -> None:
    """ValueError with the row's place where it cannot be encoded."""
    try:
        _encoded([pair], codec, begin)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _encoded(pairs: list[tuple[Turns, str]], codec: Tokenizer, begin: bool) -> tuple[list[list[int]], list[list[int]]]:
    plain = [turns for turns, _ in pairs if isinstance(turns, str)]
    chats = [turns for turns, _ in pairs if not isinstance(turns, str)]
    prompts = codec.encode_many(plain) if plain else [codec.chat(turns) for turns in chats]  # one kind in all rows
    return [framed(ids, codec, begin) for ids in prompts], codec.encode_many([response for _, response in pairs])


def framed(ids: list[int], codec: Tokenizer, begin: bool) -> list[int]:
    """The tokens of a prompt behind the begin token, where rows have one and a chat template has not put it there."""
    first = [codec.begin_id] if begin and codec.begin_id is not None else []
    return ids if ids[:1] == first else first + ids
