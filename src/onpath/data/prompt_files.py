"""Prompts with columns beside them on disk or in a dataset: checked row by row, and tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from onpath.data.corpus import Corpus, Documents, collected
from onpath.data.framing import Turns, check_format, encoded_rows, encoded_turns, text_in, turns_of
from onpath.data.row_places import RowPlace
from onpath.data.text_files import cut, missing, text_of
from onpath.data.tokenizers import Tokenizer

RESERVED = ("prompts", "completions", "completion_ids", "canvas")
"""What a reward is called with beside the columns of the data."""


@dataclass(frozen=True)
class PromptText:
    """How a row is asked: see ``Prompts``, whose fields these are."""

    column: str
    prompt_format: str = "{prompt}"
    chat: bool = False
    system: str = ""

    def __post_init__(self) -> None:
        check_format(self.prompt_format)
        if self.system and not self.chat:
            raise ValueError(
                f"system is {cut(self.system)}, but chat is false, and a prompt without a chat has no system turn; set "
                "chat: true, or write it into prompt_format"
            )

    def asked(self, prompt: str) -> Turns:
        """A prompt of text as it is framed."""
        text = self.prompt_format.replace("{prompt}", prompt)
        return [*self._system, {"role": "user", "content": text}] if self.chat else text

    def turns(self, row: Mapping[str, Any], where: str) -> Turns:
        """The prompt of a row as it is framed; ValueError where there is none."""
        if self.column not in row:
            raise ValueError(missing(row, self.column, where, "the prompts in `data.prompt`"))
        if isinstance(row[self.column], list):
            return self._conversation(row, where)
        text = text_of(row, self.column, where)
        if not text.strip():
            raise ValueError(f"{where}: the prompt is empty; a text is needed; repair the row, or take it out")
        return self.asked(text)

    @property
    def _system(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _conversation(self, row: Mapping[str, Any], where: str) -> Turns:
        told = turns_of(row, self.column, where)
        for trouble, what, advice in (
            (not self.chat, "is a conversation, but chat is false", "set data.chat=true"),
            (
                self.prompt_format != "{prompt}",
                f"is a conversation, and prompt_format, {self.prompt_format!r}, is for prompts of text",
                "leave prompt_format out",
            ),
            (
                bool(self.system) and told[0]["role"] == "system",
                f"begins with a system turn, and system is {cut(self.system)}; one of them is needed",
                "leave data.system out",
            ),
            (
                told[-1]["role"] == "assistant",
                "ends with a turn by 'assistant', which a prompt leaves to the network",
                "cut the conversation before it",
            ),
        ):
            if trouble:
                raise ValueError(f"{where}: {self.column!r} {what}; {advice}")
        return [*self._system, *told]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """corpus: N prompts as its documents. columns: what stands beside them, N values by name, None where a row has
    none."""

    corpus: Corpus
    columns: Mapping[str, Sequence[Any]]


@lru_cache(maxsize=4)
def characters_beside(place: RowPlace, text: PromptText) -> frozenset[str]:
    """Every character of its prompts, and of the columns of text beside them, which may hold what is to be answered."""
    found: set[str] = set()
    for where, row in place.rows():
        found |= {*text_in(text.turns(row, where))}
        found.update(*(value for name, value in row.items() if name != text.column and isinstance(value, str)))
    return frozenset(found)


@lru_cache(maxsize=4)
def prompt_rows(place: RowPlace, text: PromptText, codec: Tokenizer, begin: bool) -> PromptRows:
    """The prompts and what stands beside them, in memory; ValueError with file and line of a bad row."""
    beside: list[Mapping[str, Any]] = []

    def asked() -> Iterator[tuple[str, Turns]]:
        for where, row in place.rows():
            _require_free_names(row, where)
            beside.append({name: value for name, value in row.items() if name != text.column})
            yield where, text.turns(row, where)

    def documents() -> Documents:
        for (prompt,) in encoded_rows(asked(), lambda group: [(p,) for p in encoded_turns(group, codec, begin)], codec):
            yield (prompt, True)

    corpus = collected(documents(), codec.num_words)
    if not beside:
        raise ValueError(f"{place.path}: holds no prompt; write one JSON object a line, with its prompt and columns")
    names = dict.fromkeys(name for row in beside for name in row)
    return PromptRows(corpus, {name: [row.get(name) for row in beside] for name in names})


def _require_free_names(row: Mapping[str, Any], where: str) -> None:
    taken = [name for name in row if name in RESERVED]
    if taken:
        raise ValueError(
            f"{where}: there is a column {taken[0]!r}, which is what a reward is handed by that name; allowed is any "
            f"other name than {', '.join(RESERVED)}; rename it, for instance to {taken[0] + '_given'!r}"
        )
