"""Searches by the names that the command line gives them, with settings over their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onpath.components import component, described
from onpath.evaluation.search import METHODS
from onpath.overrides import override
from onpath.search.base import Search

PREFIX = "search."


def named(names: Sequence[str], overrides: Iterable[str] = ()) -> dict[str, Search]:
    """The searches of these names.

    overrides: ``search.field=value`` over the settings of those that have such a field. ValueError for a name that
    there is not, a setting that none of them has, or a value that it cannot be.

    >>> named(["mctd", "best_of_n"], ["search.uct.backup=mean"])["mctd"].uct.backup
    'mean'
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"search: {''.join(unknown[:1])!r} is not one; allowed are {', '.join(METHODS)}")
    found: dict[str, Search] = {}
    settings = [text.removeprefix(PREFIX) for text in overrides]
    for name in names:
        data = described(METHODS[name], "search")
        own = [text for text in settings if text.partition("=")[0].partition(".")[0] in data or len(names) == 1]
        found[name] = component(Search, override(data, own), "search")
    fields = {field for name in names for field in described(METHODS[name], "search")}
    for text in settings:
        field = text.partition("=")[0].partition(".")[0]
        if field not in fields:
            raise ValueError(
                f"search: {PREFIX}{text} would have no effect: none of {', '.join(names)} has the setting {field}; "
                f"they have {', '.join(sorted(fields - {'kind'}))}"
            )
    return found
