"""What a user asks a text model to write: prompts with free positions behind and inside, ragged in one batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath.data.tokenizers import MASK_SIGN, Tokenizer
from onpath.types import Batch

Side = Literal["right", "left"]
_MARKER = re.compile(rf"\[MASK(?::(\d+))?\]|({MASK_SIGN}+)")
_MOST = 2**20


def masked_ids(codec: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which `[MASK:8]`, or eight `▒`, stands for eight free positions.

    >>> from onpath.data.tokenizers import Bytes
    >>> masked_ids(Bytes(), "a[MASK:2]b▒")
    [97, 256, 256, 98, 256]
    """
    ids: list[int] = []
    end = 0
    for marker in _MARKER.finditer(text):
        count = len(marker[2]) if marker[2] else int(marker[1] or 1)
        if not 1 <= count <= _MOST:
            raise ValueError(
                f"prompt: {marker[0]!r} asks for {count} free positions; allowed are 1 to {_MOST}; correct the number"
            )
        ids += [*_encoded(codec, text[end : marker.start()]), *[codec.mask_id] * count]
        end = marker.end()
    return ids + _encoded(codec, text[end:])


def has_marker(text: str) -> bool:
    """Whether a text holds free positions."""
    return _MARKER.search(text) is not None


def _encoded(codec: Tokenizer, text: str) -> list[int]:
    try:
        return codec.encode(text) if text else []
    except ValueError as error:
        raise ValueError(f"prompt: {text!r} cannot be encoded: {error}") from error


@dataclass(frozen=True)
class Canvas:
    """How long the rows of a request are.

    length: tokens of each row, its prompt among them. num_new_tokens: free positions behind each prompt, so that rows
    differ in length and are padded to the longest, on `padding_side`. At most one of the two; with neither, a prompt
    with free positions inside stands alone, and any other fills a row of `default` tokens.
    """

    default: int
    length: int | None = None
    num_new_tokens: int | None = None
    padding_side: Side = "right"

    def __post_init__(self) -> None:
        if self.length is not None and self.num_new_tokens is not None:
            raise ValueError(
                f"prompt: length is {self.length} and num_new_tokens is {self.num_new_tokens}; give one of them"
            )
        for name, value in (("length", self.length), ("num_new_tokens", self.num_new_tokens)):
            if value is not None and not 1 <= value <= _MOST:
                raise ValueError(f"prompt: {name} is {value}; allowed are 1 to {_MOST}; change it")

    def row(self, ids: Sequence[int], mask_id: int, prompt: str) -> list[int]:
        """A prompt and the free positions behind it."""
        inside = mask_id in ids
        if self.num_new_tokens is not None:
            return [*ids, *[mask_id] * self.num_new_tokens]
        if self.length is None and inside:
            return list(ids)
        length = self.length or self.default
        if len(ids) > length or (len(ids) == length and not inside):
            raise ValueError(
                f"prompt: {_cut(prompt)} has {len(ids)} tokens, and its row {length}, so there is no room for an "
                f"answer; allowed are prompts of up to {length - 1}; shorten it, or ask for a longer row"
            )
        return [*ids, *[mask_id] * (length - len(ids))]


def request(
    codec: Tokenizer, prompts: Sequence[str], framed: Sequence[Sequence[int]], ids: Int64[Tensor, "B"], canvas: Canvas
) -> Batch:
    """A batch to generate from: the prompts given, the rest [MASK] and free, padded to the longest row.

    prompts: as typed, for messages. framed: their tokens, [MASK] where a position inside is free. ids: of the draws.
    """
    if not prompts or len(prompts) != len(ids):
        raise ValueError(
            f"prompt: there are {len(prompts)} prompts and {len(ids)} ids; give one prompt or more, an id for each"
        )
    rows = [canvas.row(row, codec.mask_id, prompt) for row, prompt in zip(framed, prompts, strict=True)]
    width = max(map(len, rows))
    x = torch.full((len(rows), width), codec.pad_id)
    padding = torch.ones_like(x, dtype=torch.bool)
    for index, row in enumerate(rows):
        first = width - len(row) if canvas.padding_side == "left" else 0
        x[index, first : first + len(row)] = torch.tensor(row, dtype=torch.int64)
        padding[index, first : first + len(row)] = False
    given = (x != codec.mask_id) & ~padding
    ragged = len({len(row) for row in rows}) > 1
    return Batch.of_tokens(x, ids, given=given, padding=padding if ragged else None)


def _cut(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r} …"
