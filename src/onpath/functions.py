"""What a user has written, by its place: `package.module:name`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any


def imported(place: str, where: str) -> Any:
    """What stands at `package.module:name`. where: with which a message begins.

    ValueError where it cannot be imported; what its module raises otherwise goes through, with a note.
    """
    module, _, path = place.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{where} cannot be imported ({error}); start in its folder, or put that on PYTHONPATH"
        ) from error
    except Exception as error:
        error.add_note(f"{where} cannot be imported for this reason")
        raise
    return found


def function_at(place: str, subject: str, needed: str) -> Callable[..., Any]:
    """The function at `package.module:function`.

    subject: what asks for it, with which a message begins. needed: what the function is of, in words.
    ValueError where the place is none, cannot be imported or holds no function; what its module raises otherwise goes
    through.

    >>> function_at("math:fsum", "reward", "numbers")([1, 2])
    3.0
    """
    where = f"{subject}: function {place!r}"
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", place):
        raise ValueError(f"{where} is not a place of a function; write it as package.module:function")
    found = imported(place, where)
    if not callable(found) or isinstance(found, type):
        raise ValueError(f"{where} is {found!r}, which is not a function; name a function of {needed}")
    return found  # type: ignore[no-any-return]
