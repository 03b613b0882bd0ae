"""Datasets of the Hugging Face hub, and what `datasets` writes to disk, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from onpath.models.pretrained import extra

_LOADERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow", ".txt": "text"}


@dataclass(frozen=True)
class HubPlace:
    """A split of a dataset.

    name: on the hub, a folder that `save_to_disk` wrote, a folder of parquet, JSONL, CSV or Arrow files, or one such
    file. subset: the configuration of a dataset that has several. streaming: read as it comes, and never kept whole.
    """

    name: str
    split: str = "train"
    subset: str = ""
    revision: str = ""
    streaming: bool = False

    @property
    def where(self) -> str:
        """The dataset as messages name it."""
        return f"{self.name}{f' ({self.subset})' if self.subset else ''}, split {self.split}"

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number from 0, columns) of each row; ValueError at the first that cannot be read."""
        rows, number = iter(_loaded(self, self.files)), 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # the network and each format have exceptions of their own
                raise ValueError(_refusal(self, f"row {number} cannot be read", error)) from error
            yield number, dict(row)
            number += 1

    @property
    def files(self) -> tuple[tuple[str, int, int], ...]:
        """(path, time of the last change in ns, bytes) of its files, where they are on this machine."""
        path = Path(self.name).expanduser()
        found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in found)

    def class_names(self, column: str) -> tuple[str, ...]:
        """Of a column of class numbers, where the dataset names them; else ()."""
        features = _loaded(self, self.files).features or {}
        return tuple(getattr(features.get(column), "names", None) or ())

    def made_from(self) -> dict[str, Any]:
        """What tells whether the rows have changed: files by size and time, a dataset of the hub by its fingerprint.

        A streamed one has none, so that it is told by name and revision.
        """
        told: dict[str, Any] = {"name": self.name, "split": self.split, "subset": self.subset}
        files = self.files
        fingerprint = None if files or self.streaming else _loaded(self, files)._fingerprint
        return {**told, "revision": self.revision, "files": files, "fingerprint": fingerprint}


@lru_cache(maxsize=4)
def _loaded(place: HubPlace, files: tuple[tuple[str, int, int], ...]) -> Any:
    """The dataset; ValueError with what to do where there is none."""
    try:
        datasets = extra("datasets")
        shown = datasets.utils.logging.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            return _opened(place, datasets)
        finally:
            if shown:
                datasets.enable_progress_bars()
    except Exception as error:  # the hub, the network and each format have exceptions of their own
        raise ValueError(_refusal(place, "cannot be loaded", error)) from error


def _refusal(place: HubPlace, what: str, error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return (
        f"data: the dataset {place.where} {what}: {reason}; allowed are a name on the Hugging Face hub (with its "
        f"subset, where it has several), a folder of save_to_disk, or files in {', '.join(_LOADERS)}; check "
        "the spelling of name, subset and split, and whether the network is there"
    )


def _opened(place: HubPlace, datasets: Any) -> Any:
    path = Path(place.name).expanduser()
    if not path.exists() and (path.suffix in _LOADERS or place.name.startswith((".", "~", "/"))):
        raise FileNotFoundError(f"there is no such file or folder in {Path.cwd()}")
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        found = datasets.load_from_disk(str(path))
        if isinstance(found, dict):
            if place.split not in found:
                raise ValueError(f"there is no split {place.split!r}, but {', '.join(found)}")
            found = found[place.split]
        return found
    if path.is_file():
        if path.suffix not in _LOADERS:
            raise ValueError(f"its ending is {path.suffix!r}")
        if place.split != "train":
            raise ValueError(f"a single file has the split 'train' alone, and not {place.split!r}")
        return datasets.load_dataset(_LOADERS[path.suffix], data_files=str(path), split="train", streaming=True)
    return datasets.load_dataset(
        str(path) if path.is_dir() else place.name,
        place.subset or None,
        split=place.split,
        revision=place.revision or None,
        streaming=place.streaming or path.is_dir(),  # files here are read as they are: a copy would serve nobody
    )
