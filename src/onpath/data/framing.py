"""Rows of text as tokens: prompts and conversations as their model reads them, errors with the row's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from onpath.data.prompts import has_marker, masked_ids
from onpath.data.text_files import cut, missing, text_of
from onpath.data.tokenizers import Tokenizer

_TOGETHER = 256  # rows that are tokenised together
_Text = TypeVar("_Text")

Turns = str | list[dict[str, str]]
"""A prompt, or the turns of a conversation before its response."""


def check_format(prompt_format: str) -> None:
    """ValueError unless a prompt can be written into it."""
    if "{prompt}" not in prompt_format:
        raise ValueError(
            f"prompt_format is {prompt_format!r}; {{prompt}} must stand in it, where the prompt belongs; "
            "write it like 'Question: {prompt}\\nAnswer: '"
        )


def require_end(codec: Tokenizer, what: str) -> None:
    """ValueError for a tokenizer without an end token, which `what` need."""
    if codec.end_id is None:
        raise ValueError(
            f"data.tokenizer: {what} need an end token, and this tokenizer has none; set data.tokenizer.end=true "
            "(characters, bytes), or name a token of its vocabulary in data.tokenizer.end_token"
        )


def turns_of(row: Mapping[str, Any], column: str, where: str, least: int = 1) -> list[dict[str, str]]:
    """The conversation in a column of a row, of `least` turns; ValueError where there is none."""
    if column not in row:
        raise ValueError(missing(row, column, where, "the conversations in `messages`"))
    turns = row[column]
    if not isinstance(turns, list) or len(turns) < least or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(
            f'{where}: {column!r} is {cut(turns)}; a list of {"two" if least == 2 else "one"} or more {{"role": …, '
            '"content": …} is needed; repair the row'
        )
    return [{name: text_of(turn, name, where) for name in ("role", "content")} for turn in turns]


def framed(ids: list[int], codec: Tokenizer, begin: bool) -> list[int]:
    """The tokens of a prompt behind the begin token, where rows have one and a chat template has not put it there."""
    first = [codec.begin_id] if begin and codec.begin_id is not None else []
    return ids if ids[:1] == first else first + ids


def framed_request(prompt: str, turns: Turns, codec: Tokenizer, begin: bool) -> list[int]:
    """The framed tokens of a prompt that a user has typed, [MASK] where it leaves positions free; turns: made of it."""
    if isinstance(turns, str):
        return framed(masked_ids(codec, turns), codec, begin)
    if has_marker(prompt):
        raise ValueError(
            f"prompt: {cut(prompt)} holds free positions, which a chat template cannot; they are possible with "
            "columns of prompts and responses"
        )
    return framed(codec.chat(turns), codec, begin)


def text_in(turns: Turns) -> str:
    """All that is said in them."""
    return turns if isinstance(turns, str) else "".join(turn["content"] for turn in turns)


def encoded_turns(prompts: Sequence[Turns], codec: Tokenizer, begin: bool) -> list[list[int]]:
    """The framed tokens of each prompt: text as it is, conversations by the chat template."""
    texts = iter(codec.encode_many([prompt for prompt in prompts if isinstance(prompt, str)]))
    found = (next(texts) if isinstance(prompt, str) else codec.chat(prompt) for prompt in prompts)
    return [framed(ids, codec, begin) for ids in found]


def encoded_rows(
    rows: Iterable[tuple[str, _Text]], encode: Callable[[list[_Text]], list[tuple[list[int], ...]]], codec: Tokenizer
) -> Iterator[tuple[list[int], ...]]:
    """The tokens of the texts of each row, `encode` taking some rows together.

    rows: (where it stands, its texts). ValueError with that place for one that cannot be encoded, or holds a [MASK].
    """
    left = iter(rows)
    while group := list(islice(left, _TOGETHER)):
        try:
            found = encode([texts for _, texts in group])
        except ValueError:
            _locate(group, encode)
            raise
        for (where, _), parts in zip(group, found, strict=True):
            if any(codec.mask_id in ids for ids in parts):
                raise ValueError(
                    f"{where}: the text holds the tokenizer's [MASK], which must never stand in a text; take it out"
                )
            yield parts


def _locate(group: list[tuple[str, _Text]], encode: Callable[[list[_Text]], list[tuple[list[int], ...]]]) -> None:
    """ValueError with the place of the row that cannot be encoded."""
    for where, texts in group:
        try:
            encode([texts])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
