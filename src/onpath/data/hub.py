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
        """(number from 0, columns) of each row."""
        for number, row in enumerate(_loaded(self)):
            yield number, dict(row)

    def made_from(self) -> dict[str, Any]:
        """What tells whether the rows have changed: files by size and time, a dataset of the hub by its fingerprint.

        A streamed one has none, so that it is told by name and revision.
        """
        told: dict[str, Any] = {
            "name": self.name,
            "split": self.split,
            "subset": self.subset,
            "revision": self.revision,
        }
        if Path(self.name).exists():
            told["files"] = [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in _files(Path(self.name))]
        elif not self.streaming:
            told["fingerprint"] = _loaded(self)._fingerprint
        return told


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


@lru_cache(maxsize=4)
def _loaded(place: HubPlace) -> Any:
    """The dataset; ValueError with what to do where there is none."""
    datasets = extra("datasets")
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return _opened(place, datasets)
    except Exception as error:  # the hub, the network and each format have exceptions of their own
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"hub: the dataset {place.where} cannot be loaded: {reason or type(error).__name__}; allowed are a name on "
            "the Hugging Face hub (with its subset, where it has several), a folder of save_to_disk, or files in "
            f"{', '.join(_LOADERS)}; check the spelling of name, subset and split, and whether the network is there"
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _opened(place: HubPlace, datasets: Any) -> Any:
    path = Path(place.name)
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        found = datasets.load_from_disk(place.name)
        if isinstance(found, dict):
            if place.split not in found:
                raise ValueError(f"there is no split {place.split!r}, but {', '.join(found)}")
            found = found[place.split]
        return found
    if path.is_file():
        if path.suffix not in _LOADERS:
            raise ValueError(f"the ending is {path.suffix!r}")
        files = {place.split: str(path)}
        return datasets.load_dataset(
            _LOADERS[path.suffix], data_files=files, split=place.split, streaming=place.streaming
        )
    return datasets.load_dataset(
        place.name,
        place.subset or None,
        split=place.split,
        revision=place.revision or None,
        streaming=place.streaming,
    )
