"""What messages about a config are made of: a type and an example in words, the nearest known name."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from onpath.kinds import FAMILIES


def near(name: Any, allowed: Iterable[str]) -> str:
    """A question after the most similar of the allowed names, "" where none is similar."""
    found = difflib.get_close_matches(str(name).strip().lower(), list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def literals(hint: Any) -> list[str]:
    """The words that a type allows anywhere in it."""
    if typing.get_origin(hint) is typing.Literal:
        return [word for word in typing.get_args(hint) if isinstance(word, str)]
    return [word for part in typing.get_args(hint) for word in literals(part)]


def unknown(path: str, name: str, allowed: Collection[str], wired: frozenset[str] = frozenset()) -> str:
    """The message for a name that is not one of those allowed; `wired`: those that the run fills in."""
    hint = f"{near(name, allowed) or '.'} Rename it, or remove it"
    if name in wired:
        hint = "; it is set by the run itself, once for all its parts (one seed, one schedule, one grid): remove it"
    known = f"allowed are {', '.join(allowed)}" if allowed else "there is nothing to set beside its kind"
    return f"config: {path}: {name!r} is not known; {known}{hint}"


def words(hint: Any) -> str:
    """A type as people say it."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if hint in FAMILIES:
        return "one of " + ", ".join(FAMILIES[hint])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(map(words, inner))
    if typing.get_origin(hint) is tuple:
        return f"a list of {words(inner[0])}" if inner[-1] is ... else f"a list [{', '.join(map(words, inner))}]"
    if hint is types.NoneType:
        return "null"
    if typing.get_origin(hint) is typing.Annotated:
        return words(inner[0])
    return hint.__name__ if isinstance(hint, type) and not inner else str(hint).replace("typing.", "")


_EXAMPLES: Mapping[Any, str] = {int: "1", float: "0.5", bool: "true", str: "text"}


def example(hint: Any) -> str:
    """A value of a type as it is written in a config: ``Annotated[int, "32"]`` brings one where others mislead."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return inner[1]
    if typing.get_origin(hint) is typing.Literal:
        return str(inner[0])
    if typing.get_origin(hint) is tuple:
        return f"[{', '.join(example(part) for part in inner if part is not ...)}]"
    if hint in FAMILIES:
        return next(iter(FAMILIES[hint]))
    return _EXAMPLES.get(hint, example(inner[0]) if inner else "…")


def joined(path: str, name: Any) -> str:
    """The path of a setting in a section.

    >>> joined("training", "steps"), joined("", "seed")
    ('training.steps', 'seed')
    """
    return f"{path}.{name}" if path else str(name)


def is_coerced(given: Any, parsed: Any) -> bool:
    """Whether a text or a truth value was taken for a number, or a number for a truth value."""
    if isinstance(parsed, list | tuple) and isinstance(given, list | tuple):
        return any(map(is_coerced, given, parsed))
    if isinstance(parsed, bool) or isinstance(given, bool):
        return type(given) is not type(parsed)
    return isinstance(parsed, int | float) and not isinstance(given, int | float)
