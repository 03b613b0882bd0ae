"""Searches by the names that the command line gives them, with settings over their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onpath.components import component, described
from onpath.evaluation.search import METHODS
from onpath.overrides import override
from onpath.search.base import Search

PREFIX = "search."


def named(
    names: Sequence[str], overrides: Iterable[str] = (), condition_dropout: float | None = None
) -> dict[str, Search]:
    """The searches of these names.

    overrides: ``search.field=value`` over the settings of those that have such a field. condition_dropout: that of the
    objective of a run, where it has one. ValueError for a name that there is not, a setting that none of them has, a
    value that it cannot be, or guidance of a network that was never trained without its condition.

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
    for search in found.values():
        guided = [meta for meta in getattr(search, "metas", ()) if meta.guidance]
        if guided and condition_dropout == 0:
            raise ValueError(
                f"search: metas asks for guidance {guided[0].guidance}, but objective.condition_dropout of the run is "
                "0, so the network never learned what to do without its condition; train with "
                "objective.condition_dropout=0.1, or leave guidance out"
            )
    fields = {field for name in names for field in described(METHODS[name], "search")}
    for text in settings:
        field = text.partition("=")[0].partition(".")[0]
        if field not in fields:
            raise ValueError(
                f"search: {PREFIX}{text} would have no effect: none of {', '.join(names)} has the setting {field}; "
                f"they have {', '.join(sorted(fields - {'kind'}))}"
            )
    return found
