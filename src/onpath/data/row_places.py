"""Rows with columns on disk or in a dataset: where they are, and what tells whether they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpath.data.hub import HubPlace
from onpath.data.text_files import json_rows

_HUB = "hub:"


@dataclass(frozen=True)
class RowPlace:
    """Where rows are: a .jsonl file or a dataset, with (path, time of the last change in ns, bytes) of its files."""

    path: str
    subset: str
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, path: str, subset: str = "") -> RowPlace:
        """What `path` names, a file or ``hub:NAME#SPLIT``; ValueError where there is no such file."""
        hub = _hub(path, subset)
        if hub is not None:
            return cls(path, subset, hub.files)
        if subset:
            raise ValueError(
                f"data.subset is {subset!r}, but data.path is {path!r}, a file; only a dataset (hub:NAME#SPLIT) "
                "has subsets; leave subset out"
            )
        file = Path(path)
        if not file.is_file():
            where = "" if file.is_absolute() else f" in {Path.cwd()}"
            raise ValueError(
                f"{path}: there is no such file{where}; give the path of a .jsonl file with one object a line, or "
                "hub:NAME#SPLIT for a dataset"
            )
        if not file.name.endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(
                f"{path}: the ending is {''.join(file.suffixes[-2:])!r}; rows with columns are kept in files ending in "
                ".jsonl or .jsonl.gz; convert it, one object a line"
            )
        stat = file.stat()
        return cls(path, subset, ((path, stat.st_mtime_ns, stat.st_size),))

    @property
    def hub(self) -> HubPlace | None:
        """The dataset, where it is one."""
        return _hub(self.path, self.subset)

    @property
    def num_bytes(self) -> int:
        """Of its files, packed where they are packed."""
        return sum(size for _, _, size in self.files)

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(where it stands, row) of each row."""
        hub = self.hub
        if hub is not None:
            for number, row in hub.rows():
                yield f"{hub.where}, row {number}", row
        else:
            for line, row in json_rows(Path(self.path)):
                yield f"{self.path}, line {line}", row

    def made_from(self) -> dict[str, Any]:
        """What tells whether the rows have changed."""
        hub = self.hub
        return {"files": self.files} if hub is None else hub.made_from()


def _hub(path: str, subset: str) -> HubPlace | None:
    if not path.startswith(_HUB):
        return None
    name, _, split = path.removeprefix(_HUB).partition("#")
    return HubPlace(name, split or "train", subset)


def part_of(num_rows: int, split: str, validation_share: float) -> slice:
    """The rows of a split: the last share of them is held out from training."""
    first = round(num_rows * (1.0 - validation_share))
    return slice(0, first) if split == "train" else slice(first, None)
