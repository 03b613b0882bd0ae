"""From text to token ids and back: characters, bytes, and the tokenizers of trained models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

MASK_SIGN = "▒"
"""How [MASK] is shown where people read it."""


class Tokenizer(ABC):
    """Ids 0 … num_words - 1 may be emitted; `mask_id` is never part of a text."""

    @property
    @abstractmethod
    def num_words(self) -> int:
        """How many ids a network may emit."""

    @property
    def mask_id(self) -> int:
        """The id of [MASK]: one of its own behind the words, unless the tokenizer has one."""
        return self.num_words

    @property
    def end_id(self) -> int | None:
        """The id that ends a text, None where there is none."""
        return None

    @property
    def pad_id(self) -> int:
        """The id at padded positions, which nothing reads."""
        return 0

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any that frame it; ValueError where it cannot be written with these words."""

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself, `MASK_SIGN` for [MASK]."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids together."""
        return "".join(self.pieces(ids))


@dataclass(frozen=True)
class Characters(Tokenizer):
    """One id for each character of `alphabet`, in its order.

    alphabet: different characters; empty lets the source take those of its training text, in the order of Unicode.

    >>> Characters("abc").encode("cab")
    [2, 0, 1]
    """

    alphabet: str = ""

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) < len(self.alphabet):
            twice = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
            raise ValueError(f"characters: alphabet holds {twice} twice; give each character once")

    @property
    def num_words(self) -> int:
        return len(self.alphabet)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {character: index for index, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise ValueError(
                f"characters: the text holds {error.args[0]!r}, which is not among the {len(self.alphabet)} of the "
                f"alphabet ({self.alphabet!r}); leave it out, or train with an alphabet that has it"
            ) from error

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.alphabet[i] if i < len(self.alphabet) else MASK_SIGN for i in ids]
