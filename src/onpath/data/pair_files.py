"""Pairs of a prompt and a response on disk or in a dataset: found, checked row by row, and tokenised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from onpath.data.cache import cache_folder
from onpath.data.corpus import Corpus, Documents, cached, collected
from onpath.data.framing import Turns, check_format, encoded_rows, encoded_turns, text_in, turns_of
from onpath.data.row_places import RowPlace
from onpath.data.text_files import text_of
from onpath.data.tokenizers import Tokenizer

_IN_MEMORY = 2**26  # bytes of a file from which its tokens are kept in the cache


@dataclass(frozen=True)
class PairText:
    """Where a row has its prompt and its response, and how it is asked: see ``TextPairs``, whose fields these are."""

    prompt: str = "prompt"
    response: str = "response"
    messages: str = ""
    prompt_format: str = "{prompt}"
    chat: bool = False

    def __post_init__(self) -> None:
        check_format(self.prompt_format)
        if (self.chat or self.messages) and self.prompt_format != "{prompt}":
            raise ValueError(
                f"prompt_format is {self.prompt_format!r}, but prompts are framed by the chat template; leave one out"
            )

    def asked(self, prompt: str) -> Turns:
        """A prompt as it is framed."""
        if self.chat or self.messages:
            return [{"role": "user", "content": prompt}]
        return self.prompt_format.replace("{prompt}", prompt)

    def texts(self, row: Mapping[str, Any], where: str) -> tuple[Turns, str]:
        """(prompt, or the turns before the response; response) of a row; ValueError where they are not there."""
        if self.messages:
            turns, response = self._turns(row, where)
        else:
            text, response = (text_of(row, name, where) for name in (self.prompt, self.response))
            turns = self.asked(text)
        if not response.strip():
            raise ValueError(f"{where}: the response is empty; a text is needed; repair the row, or take it out")
        return turns, response

    def _turns(self, row: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
        told = turns_of(row, self.messages, where, least=2)
        if told[-1]["role"] != "assistant":
            raise ValueError(
                f"{where}: the last turn is by {told[-1]['role']!r}; it must be by 'assistant', as it is the response; "
                "cut the conversation behind its last answer"
            )
        return told[:-1], told[-1]["content"]


@lru_cache(maxsize=4)
def characters_of(place: RowPlace, text: PairText) -> frozenset[str]:
    """Every character of its prompts and responses."""
    found: set[str] = set()
    for where, row in place.rows():
        turns, response = text.texts(row, where)
        found |= {*response, *text_in(turns)}
    return frozenset(found)


@lru_cache(maxsize=4)
def pair_corpus(place: RowPlace, text: PairText, codec: Tokenizer, begin: bool, cache: str) -> Corpus:
    """Prompts and responses in turn, as the documents of a corpus; ValueError with file and line of a bad one."""
    if not cache and place.hub is None and place.num_bytes < _IN_MEMORY:
        corpus = collected(_documents(place, text, codec, begin), codec.num_words)
    else:
        made_from = {**place.made_from(), "columns": repr(text), "begin": begin, "codec": codec.identity}
        corpus = cached(cache_folder(cache), made_from, lambda: _documents(place, text, codec, begin), codec.num_words)
    if not corpus.num_documents:
        raise ValueError(f"{place.path}: holds no pair; write one JSON object a line, with a prompt and a response")
    return corpus


def _documents(place: RowPlace, text: PairText, codec: Tokenizer, begin: bool) -> Documents:
    def encoded(pairs: list[tuple[Turns, str]]) -> list[tuple[list[int], ...]]:
        prompts = encoded_turns([turns for turns, _ in pairs], codec, begin)
        return list(zip(prompts, codec.encode_many([response for _, response in pairs]), strict=True))

    texts = ((where, text.texts(row, where)) for where, row in place.rows())
    for prompt, response in encoded_rows(texts, encoded, codec):
        yield (prompt, True)
        yield (response, True)
