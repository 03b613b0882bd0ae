"""What is costly to read, laid down once in a folder of its own: written aside, then renamed, so whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

_FORMAT = 1
_Kept = TypeVar("_Kept")


def cache_folder(folder: str = "") -> Path:
    """Where it is kept: the folder given, that of ONPATH_CACHE, or ~/.cache/onpath."""
    return Path(folder or os.environ.get("ONPATH_CACHE", "") or "~/.cache/onpath").expanduser()


def kept(
    folder: Path,
    made_from: Mapping[str, Any],
    opened: Callable[[Path, Mapping[str, Any]], _Kept | None],
    write: Callable[[Path, Mapping[str, Any]], None],
) -> _Kept:
    """What lies in `folder` under `made_from`, laid down first where nothing does.

    made_from: all that it depends on, as JSON. opened: reads the place given, None unless it is whole and made from
    that. write: fills the new folder given. Of several processes one writes and the others wait for it. What is torn,
    or was made from something else, is written anew.
    """
    from filelock import FileLock

    told = json.loads(json.dumps(made_from))
    key = hashlib.blake2b(json.dumps([_FORMAT, told], sort_keys=True).encode(), digest_size=12).hexdigest()
    place = folder / key
    found = opened(place, told)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        found = opened(place, told)
        if found is None:
            _lay_down(place, told, write)
            found = opened(place, told)
    assert found is not None
    return found


def _lay_down(place: Path, told: Mapping[str, Any], write: Callable[[Path, Mapping[str, Any]], None]) -> None:
    aside = place.with_name(f"{place.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        write(aside, told)
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
