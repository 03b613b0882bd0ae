"""From text to token ids and back: what a tokenizer is, characters and bytes."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

MASK_SIGN = "▒"
"""How [MASK] is shown where people read it."""
END_SIGN = "␃"
"""How an end token of our own is shown where people read it."""


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
    def begin_id(self) -> int | None:
        """The id that may stand before a text: that of the end, unless the tokenizer has one of its own."""
        return self.end_id

    @property
    def pad_id(self) -> int:
        """The id at padded positions, which nothing reads: that of the end, unless the tokenizer has one of its own."""
        return 0 if self.end_id is None else self.end_id

    @property
    def identity(self) -> str:
        """All that ids depend on, of text and of chats; the cache of tokenised text is kept under it."""
        return repr(self)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any that frame it; ValueError where it cannot be written with these words."""

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return [self.encode(text) for text in texts]

    def arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text as int64 (n,), which may be had much quicker than lists."""
        return [np.asarray(ids, dtype=np.int64) for ids in self.encode_many(texts)]

    @abstractmethod
    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id adds to the text, `MASK_SIGN` for [MASK]; together they read like the text.

        A character that takes several ids stands at the last of them.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids together; tokens that frame it (begin, end) add nothing."""
        return "".join(self.pieces([i for i in ids if i not in (self.begin_id, self.end_id)]))

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, framed as the tokenizer's model was trained to read it.

        messages: {"role", "content"} each. add_generation_prompt: append what opens the answer.
        ValueError for a tokenizer without a chat template.
        """
        raise ValueError(
            f"data.tokenizer: {type(self).__name__} has no chat template, which `messages` need; take kind: "
            "huggingface with the tokenizer of a chat model, or columns of prompts and responses"
        )


@dataclass(frozen=True)
class Characters(Tokenizer):
    """One id for each character of `alphabet`, in its order.

    alphabet: different characters; empty lets the source take those of its text, in the order of Unicode.
    end: whether there is an end token behind them, which pairs and packed documents need.

    >>> Characters("abc").encode("cab")
    [2, 0, 1]
    """

    alphabet: str = ""
    end: bool = False

    def __post_init__(self) -> None:
        if len(set(self.alphabet)) < len(self.alphabet):
            twice = sorted({c for c in self.alphabet if self.alphabet.count(c) > 1})
            raise ValueError(f"characters: alphabet holds {twice} twice; give each character once")

    @property
    def num_words(self) -> int:
        return len(self.alphabet) + self.end

    @property
    def end_id(self) -> int | None:
        return len(self.alphabet) if self.end else None

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

    @cached_property
    def _by_code(self) -> np.ndarray:
        """The id of each code point up to the last of the alphabet, -1 for those that are not in it."""
        table = np.full(max(map(ord, self.alphabet), default=0) + 1, -1)
        table[[ord(character) for character in self.alphabet]] = np.arange(len(self.alphabet))
        return table

    def arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = []
        for text in texts:
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
            ids = self._by_code[np.minimum(codes, len(self._by_code) - 1)]
            if (ids < 0).any() or (codes >= len(self._by_code)).any():
                self.encode(text)  # says which
            found.append(ids)
        return found

    def pieces(self, ids: Sequence[int]) -> list[str]:
        signs = (*self.alphabet, END_SIGN) if self.end else tuple(self.alphabet)
        return [signs[i] if i < len(signs) else MASK_SIGN for i in ids]


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """One id for each byte of the text in UTF-8: any text, in any language, in 256 words.

    end: whether there is an end token behind them, which pairs and packed documents need.

    >>> Bytes().encode("né")
    [110, 195, 169]
    >>> Bytes().pieces([110, 195, 169])
    ['n', '', 'é']
    """

    end: bool = False

    @property
    def num_words(self) -> int:
        return 256 + self.end

    @property
    def end_id(self) -> int | None:
        return 256 if self.end else None

    def encode(self, text: str) -> list[int]:
        # a lone half of a surrogate pair, which JSON can hold, is no character
        return list(text.encode("utf-8", errors="replace"))

    def arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        whole = (np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8) for text in texts)
        return [ids.astype(np.int64) for ids in whole]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        found: list[str] = []
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            if i < 256:
                found.append(decoder.decode(bytes([i])))
                continue
            if broken := decoder.decode(b"", final=True):  # a character that something else interrupts
                found[-1] += broken
            decoder.reset()
            found.append(END_SIGN if i == self.end_id else MASK_SIGN)
        if found and (broken := decoder.decode(b"", final=True)):
            found[-1] += broken
        return found
