"""Pictures of Hugging Face datasets as training examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from onpath.data.cache import cache_folder
from onpath.data.hub import HubPlace
from onpath.data.image_decoding import Decoded, Framing, Labelled, Side, Squares, decoded, pil, squares
from onpath.data.images import Pictures, Shares, StoredImages, hashed_places
from onpath.types import ImageSpec


@dataclass(frozen=True)
class HubImages(StoredImages):
    """A dataset of the Hugging Face hub, or of its library's files, whose rows hold pictures.

    name, subset, revision: see ``data.hub_text.HubText``. size: side of the square that each picture becomes, see
    ``data.image_decoding.Framing``; channels: 3 for RGB, 1 for grey. image: the column of pictures. label: that of
    classes, numbers or names; "" for none. class_names: the classes in the order in which `label` counts them, () for
    those of the training split. flip: whether half of the training examples are mirrored, drawn anew each epoch.
    train_split, validation_split, test_split: names of its splits; where one is "", a share of the training split is
    held out for it, by a hash of the row's number. max_examples: of each split, 0 for all; streaming needs one.
    cache: folder for the decoded pixels, laid down once; else ONPATH_CACHE, ~/.cache/onpath.
    """

    name: str
    size: Side
    channels: int = 3
    image: str = "image"
    label: str = "label"
    class_names: tuple[str, ...] = ()
    flip: bool = False
    subset: str = ""
    revision: str = ""
    train_split: str = "train"
    validation_split: str = ""
    test_split: str = ""
    validation_share: float = 0.1
    test_share: float = 0.1
    streaming: bool = False
    max_examples: int = 0
    cache: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._framing, self._shares
        if self.max_examples < 0 or (self.streaming and not self.max_examples):
            raise ValueError(
                f"max_examples is {self.max_examples} and streaming is {str(self.streaming).lower()}; allowed are 1 or "
                "more, or 0 (no limit) without streaming"
            )
        if self.class_names and not self.label:
            raise ValueError("class_names is set, but label names no column of classes; leave one of them out")

    @property
    def _framing(self) -> Framing:
        return Framing(self.size, self.channels)

    @property
    def _shares(self) -> Shares:
        """Of the training split; none of it where a split of its own is held out."""
        own = (self.validation_split, self.validation_share), (self.test_split, self.test_share)
        for _, share in own:
            Shares(share, 0.0)
        return Shares(*(0.0 if name else share for name, share in own))

    @property
    def _flips(self) -> bool:
        return self.flip

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return self.class_names or (self._stock(self.train_split).class_names if self.label else ())

    def settled(self) -> Mapping[str, Any]:
        return {"class_names": self.classes} if self.classes else {}

    def spec(self) -> ImageSpec:
        cond = {"label": ()} if self.label else {}
        return ImageSpec(self._framing.shape, num_classes=len(self.classes), cond=cond)

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._stock(self.train_split).remarks

    def _stock(self, split: str) -> Squares:
        place = HubPlace(self.name, split, self.subset, self.revision, self.streaming)
        told = _Stock(place, self.image, self.label, self.max_examples, self._framing)
        return _stock(told, place.files, cache_folder(self.cache))

    @cached_property
    def _pictures(self) -> Pictures:
        own = {"validation": self.validation_split, "test": self.test_split}.get(self.split, "")
        stock = self._stock(own or self.train_split)
        rows = np.arange(len(stock.pixels))
        if not own:
            rows = self._shares.rows(hashed_places(len(rows)), self.split, self.name)
        return Pictures(stock.pixels, self._labels(stock, own or self.train_split) if self.label else None, rows)

    def _labels(self, stock: Squares, split: str) -> Int64[np.ndarray, "N"]:
        numbers = {name: number for number, name in enumerate(self.classes)}
        strange = [
            name for n, name in enumerate(stock.class_names) if name not in numbers and (stock.labels == n).any()
        ]
        if strange:
            raise ValueError(
                f"data: the dataset {self.name}, split {split}, holds the class {strange[0]!r}, and the classes are "
                f"{', '.join(self.classes)}; name all of them in class_names"
            )
        return np.array([numbers.get(name, -1) for name in stock.class_names], dtype=np.int64)[stock.labels]


@dataclass(frozen=True)
class _Stock:
    """The pictures of a split, up to a number of them."""

    place: HubPlace
    image: str
    label: str
    max_examples: int
    framing: Framing

    def made_from(self) -> dict[str, Any]:
        framing = {"size": self.framing.size, "channels": self.framing.channels}
        columns = {"image": self.image, "label": self.label, "max_examples": self.max_examples}
        return {**self.place.made_from(), **columns, **framing}

    def make(self) -> Labelled:
        names = self.place.class_names(self.label) if self.label else ()
        return names, self._rows(names)

    def _rows(self, names: tuple[str, ...]) -> Iterator[tuple[Decoded, Any]]:
        labels: list[Any] = []

        def pictures() -> Iterator[tuple[str, Any]]:
            for number, row in islice(self.place.rows(), self.max_examples or None):
                where = f"{self.place.where}, row {number}"
                labels.append(_class(self._cell(row, self.label, where), names, where) if self.label else None)
                yield f"row {number}", _picture(self._cell(row, self.image, where), where, self.image)

        for number, square in enumerate(decoded(pictures(), self.framing, self.place.where)):
            yield square, labels[number]
        if not labels:
            raise ValueError(f"data: the dataset {self.place.where} holds no row; choose another split")

    def _cell(self, row: Mapping[str, Any], column: str, where: str) -> Any:
        if column not in row:
            spare = ', or data.label="" for pictures without classes' if column == self.label else ""
            raise ValueError(
                f"data: {where}: there is no column {column!r}, but {', '.join(row)}; set data.image and data.label to "
                f"the columns of pictures and classes{spare}"
            )
        return row[column]


def _picture(cell: Any, where: str, column: str) -> Any:
    """What Pillow opens: a picture as `datasets` hands it out, its file's bytes, or an array of levels."""
    if isinstance(cell, pil("Image").Image):
        return cell
    if isinstance(cell, Mapping) and isinstance(cell.get("bytes"), bytes):
        cell = cell["bytes"]
    if isinstance(cell, bytes):
        return BytesIO(cell)
    if isinstance(cell, Mapping) and isinstance(cell.get("path"), str):
        return cell["path"]
    raise ValueError(
        f"data: {where}: the column {column!r} holds {type(cell).__name__}; a picture or the bytes of its file is "
        "needed; set data.image to another column, or cast it to datasets.Image()"
    )


def _class(cell: Any, names: tuple[str, ...], where: str) -> Any:
    if isinstance(cell, str) or (isinstance(cell, int) and 0 <= cell < (len(names) or 2**31)):
        return cell
    allowed = f"0 to {len(names) - 1}" if names else "numbers from 0 and names"
    raise ValueError(
        f"data: {where}: the class is {cell!r}; allowed are {allowed}; choose another split or column, or label=''"
    )


@lru_cache(maxsize=4)
def _stock(told: _Stock, _changed: tuple[tuple[str, int, int], ...], cache: Path) -> Squares:
    return squares(cache, told.made_from(), told.make)
