"""Tokenised text: one long array and where its documents end, in memory, or laid down once in a cache on disk."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from onpath.data.cache import kept
from onpath.data.text_files import Passage
from onpath.data.tokenizers import Tokenizer

_TOGETHER = 2**20  # characters that are tokenised together
_MANIFEST, _TOKENS, _OFFSETS = "manifest.json", "tokens.bin", "offsets.npy"

Documents = Iterable[tuple[Sequence[int] | np.ndarray, bool]]
"""Tokens in order, piece by piece, and whether a document ends behind each piece."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """T tokens of D documents, one after the other.

    tokens: (T,) uint16, or uint32 for vocabularies over 65,536 words; memory-mapped where it lies in a cache.
    offsets: (D + 1,) int64, document d is tokens[offsets[d] : offsets[d + 1]].
    """

    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def take(self, places: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
        """The tokens at these places, which may lie anywhere."""
        return torch.from_numpy(self.tokens[places.numpy()].astype(np.int64))

    def laid_out(
        self, start: Int64[Tensor, "B"], used: Int64[Tensor, "B"], length: int, padding_side: str = "right"
    ) -> tuple[Int64[Tensor, "B L"], Int64[Tensor, "B L"]]:
        """(place, token) at each position of rows of `length`, of which row b uses ``used[b]`` positions from its
        text's beginning ``start[b]`` on, the others being padding; places count from that beginning."""
        shift = length - used if padding_side == "left" else torch.zeros_like(used)
        place = torch.arange(length) - shift[:, None]
        return place, self.take((start[:, None] + place.clamp(min=0)).clamp(max=len(self.tokens) - 1))


def tokenised(passages: Iterable[Passage], codec: Tokenizer) -> Documents:
    """The tokens of passages, about a million characters at a time; documents end with the end token where there is
    one. ValueError with file and line where a text cannot be written in these tokens."""
    end = () if codec.end_id is None else (codec.end_id,)
    own_mask = codec.mask_id < codec.num_words
    for group in _grouped(passages):
        try:
            encoded = codec.arrays([passage.text for passage in group])
        except ValueError as error:
            raise ValueError(f"{_where(group, codec)}: {error}") from error
        for passage, ids in zip(group, encoded, strict=True):
            if own_mask and codec.mask_id in ids:
                raise ValueError(
                    f"{passage.where()}: the text holds the tokenizer's [MASK], which must never stand in a text; "
                    "leave it out, or name another token in data.tokenizer.mask_token"
                )
            yield (ids, False)
            if passage.ends:
                yield (end, True)


def _grouped(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    group: list[Passage] = []
    size = 0
    for passage in passages:
        group.append(passage)
        size += len(passage.text)
        if size >= _TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _where(group: Sequence[Passage], codec: Tokenizer) -> str:
    """The file and line of the first text that cannot be encoded."""
    for passage in group:
        for number, line in enumerate(passage.text.split("\n")):
            try:
                codec.encode(line + "\n" * ("\n" in passage.text))
            except ValueError:
                return passage.where(number)
    return group[0].where()


def collected(documents: Documents, num_words: int) -> Corpus:
    """A corpus in memory."""
    kind = _dtype(num_words)
    parts = [np.zeros(0, kind)]
    offsets, total = array("q", [0]), 0
    for ids, ends in documents:
        parts.append(np.asarray(ids, dtype=kind))
        total += len(ids)
        if ends:
            offsets.append(total)
    return Corpus(np.concatenate(parts), np.array(offsets))


def cached(folder: Path, made_from: Mapping[str, Any], documents: Callable[[], Documents], num_words: int) -> Corpus:
    """The corpus that the cache in `folder` holds under `made_from`, laid down first where it holds none.

    made_from: all that its tokens depend on, as JSON, see ``data.cache.kept``.
    """

    def write(place: Path, told: Mapping[str, Any]) -> None:
        _write(place, told, documents(), _dtype(num_words))

    return kept(folder, made_from, _opened, write)


def _dtype(num_words: int) -> np.dtype:
    return np.dtype(np.uint16 if num_words <= 2**16 else np.uint32)


def _opened(place: Path, made_from: Mapping[str, Any]) -> Corpus | None:
    """What lies there, None unless it is whole and made from that."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        num_tokens, dtype = manifest["num_tokens"], np.dtype(manifest["dtype"])
        offsets = np.load(place / _OFFSETS, mmap_mode="r")
        whole = (place / _TOKENS).stat().st_size == num_tokens * dtype.itemsize
        if manifest["made_from"] != made_from or not whole or offsets[-1] != num_tokens:
            return None
        tokens = np.memmap(place / _TOKENS, dtype, "r") if num_tokens else np.zeros(0, dtype)
        return Corpus(tokens, offsets)
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None


def _write(place: Path, made_from: Mapping[str, Any], documents: Documents, dtype: np.dtype) -> None:
    offsets, total = array("q", [0]), 0
    with (place / _TOKENS).open("wb") as file:
        for ids, ends in documents:
            file.write(np.asarray(ids, dtype=dtype).tobytes())
            total += len(ids)
            if ends:
                offsets.append(total)
        file.flush()
        os.fsync(file.fileno())
    np.save(place / _OFFSETS, np.array(offsets))
    told = {"made_from": made_from, "num_tokens": total, "num_documents": len(offsets) - 1, "dtype": dtype.name}
    (place / _MANIFEST).write_text(json.dumps(told, indent=1), encoding="utf-8")
