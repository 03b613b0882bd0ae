"""Picture files of any size and kind as squares of bytes, laid down once in a cache on disk."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int64, UInt8

from onpath.data.cache import kept

Side = Annotated[int, "32"]
"""Of a square in pixels, and one that a message may name."""
_FORMAT = 1
_MANIFEST, _PIXELS, _LABELS = "manifest.json", "pixels.bin", "labels.npy"
_TOGETHER = 32  # pictures that are decoded at a time, which may be large
_NAMED = 5  # broken pictures that a message names


@dataclass(frozen=True, eq=False)
class Squares:
    """N pictures as squares of bytes, and what became of them.

    pixels: memory-mapped. labels: class numbers, -1 where a picture has none. class_names: what these count. small:
    pictures that were smaller than the square, and so were enlarged.
    """

    pixels: UInt8[np.ndarray, "N S S C"]
    labels: Int64[np.ndarray, "N"]
    class_names: tuple[str, ...] = ()
    small: int = 0

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of them."""
        if not self.small:
            return ()
        count, side = self.pixels.shape[:2]
        return (f"{self.small} of {count} pictures are smaller than {side} x {side} and are enlarged",)


@dataclass(frozen=True)
class Framing:
    """How a picture becomes a square of `size` with `channels` 1 (grey) or 3 (RGB).

    It is turned upright as its exif says, and the largest square in its middle is resized with an antialiasing bicubic
    filter. Transparent parts are laid on white; 16 bits are rounded to 8.
    """

    size: int
    channels: int = 3

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; allowed are 1 or more pixels")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; allowed are 1 (grey) and 3 (RGB)")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an example."""
        return self.channels, self.size, self.size

    def square(self, picture: Any) -> tuple[UInt8[np.ndarray, "S S C"], bool]:
        """A PIL image as a square, and whether it was enlarged. ValueError for pixels whose range nobody tells."""
        pillow = pil("Image")
        upright = _plain(pil("ImageOps").exif_transpose(picture))
        width, height = upright.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        coloured = upright.convert("L" if self.channels == 1 else "RGB")
        box = (left, top, left + side, top + side)
        resized = coloured.resize((self.size, self.size), pillow.Resampling.BICUBIC, box=box)
        return np.asarray(resized).reshape(self.size, self.size, self.channels), side < self.size


def pil(module: str) -> Any:
    """A module of Pillow; ValueError where it is not installed."""
    try:
        return importlib.import_module(f"PIL.{module}")
    except ImportError as error:
        raise ValueError(f'pillow is needed to read pictures ({error}): pip install "onpath[images]"') from error


def _plain(picture: Any) -> Any:
    """A picture with 8 bits a channel and nothing transparent."""
    pillow = pil("Image")
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range nobody tells")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        if not 0 <= levels.min() <= levels.max() < 2**16:
            raise ValueError("its pixels have 32 bits, whose range nobody tells")
        return pillow.fromarray(((levels * 255 + 2**15 - 1) // (2**16 - 1)).astype(np.uint8))
    if picture.has_transparency_data:
        coloured = picture.convert("RGBA")
        return pillow.alpha_composite(pillow.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return picture


Decoded = tuple[UInt8[np.ndarray, "S S C"], bool]


def decoded(pictures: Iterable[tuple[str, Any]], framing: Framing, where: str) -> Iterator[Decoded]:
    """Squares of pictures in their order; each is (its name for messages, a path, an open file or a PIL image).

    All are tried; ValueError at the end that counts the broken ones and names the first.
    """
    broken: list[str] = []
    number = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for batch in _batches(pictures, _TOGETHER):
            number += len(batch)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of large pictures, and of torn exif
                tried = list(pool.map(lambda pair: _tried(pair[1], framing), batch))
            for (name, _), (square, error) in zip(batch, tried, strict=True):
                if square is None:
                    broken.append(f"{name} ({error})")
                elif not broken:
                    yield square
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise ValueError(
            f"{where}: {len(broken)} of {number} pictures cannot be read: {', '.join(broken[:_NAMED])}{more}; whole "
            "PNG, JPEG or WebP files of 8 or 16 bits are needed; repair these, or take them away"
        )


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _tried(picture: Any, framing: Framing) -> tuple[Decoded | None, str]:
    pillow = pil("Image")
    try:
        if isinstance(picture, pillow.Image):
            return framing.square(picture), ""
        with pillow.open(picture) as opened:
            return framing.square(opened), ""
    except Exception as error:  # each format has exceptions of its own
        reason = str(error).partition("\n")[0].partition(" '")[0].partition(" <")[0].rstrip(":. ")
        return None, reason or type(error).__name__


Labelled = tuple[Sequence[str], Iterator[tuple[Decoded, Any]]]
"""Names of classes where numbers have any, and each square with its class: a number, a name, or None for all."""


def squares(folder: Path, made_from: Mapping[str, Any], make: Callable[[], Labelled]) -> Squares:
    """The squares that the cache in `folder` holds under `made_from`, laid down first where it holds none.

    made_from: all that they depend on, as JSON, see ``data.cache.kept``.
    """

    def write(place: Path, told: Mapping[str, Any]) -> None:
        labels: list[Any] = []
        given, rows = make()
        small, shape = 0, (0, 0, 0)
        with (place / _PIXELS).open("wb") as file:
            for (pixels, enlarged), label in rows:
                file.write(pixels.tobytes())
                labels.append(label)
                small, shape = small + enlarged, pixels.shape
            file.flush()
            os.fsync(file.fileno())
        names, numbers = _numbered(labels, given)
        np.save(place / _LABELS, numbers)
        manifest = {"made_from": told, "shape": [len(labels), *shape], "class_names": names, "small": small}
        (place / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    return kept(folder, {"images": _FORMAT, **made_from}, _opened, write)


def _numbered(labels: list[Any], names: Sequence[str]) -> tuple[list[str], Int64[np.ndarray, "N"]]:
    """Names of the classes, and the number of each label among them."""
    if not labels or labels[0] is None:
        return [], np.full(len(labels), -1)
    if all(isinstance(label, int) for label in labels):
        names = names or [str(number) for number in range(max(labels) + 1)]
        return list(names), np.array(labels, dtype=np.int64)
    names = sorted({str(label) for label in labels})
    places = {name: number for number, name in enumerate(names)}
    return names, np.array([places[str(label)] for label in labels], dtype=np.int64)


def _opened(place: Path, made_from: Mapping[str, Any]) -> Squares | None:
    """What lies there, None unless it is whole and made from that."""
    try:
        manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
        shape, labels = tuple(manifest["shape"]), np.load(place / _LABELS)
        whole = (place / _PIXELS).stat().st_size == int(np.prod(shape)) and len(labels) == shape[0]
        if manifest["made_from"] != made_from or not whole:
            return None
        pixels = np.memmap(place / _PIXELS, np.uint8, "r", shape=shape) if shape[0] else np.zeros(shape, np.uint8)
        return Squares(pixels, labels, tuple(manifest["class_names"]), manifest["small"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
