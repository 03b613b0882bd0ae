"""A folder of pictures as training examples."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from onpath.data.cache import cache_folder
from onpath.data.image_decoding import Framing, Labelled, Side, Squares, decoded, squares
from onpath.data.image_files import Stamp, stamp
from onpath.data.images import Pictures, Shares, StoredImages
from onpath.types import ImageSpec

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class ImageFolder(StoredImages):
    """PNG, JPEG and WebP files in a folder, or in one subfolder for each class.

    path: the folder. size: side of the square that each picture becomes, see ``data.image_decoding.Framing``; channels:
    3 for RGB, 1 for grey. labels: whether the class is a condition; None where there are subfolders. class_names: the
    subfolders in the order in which `label` counts them, () for all by name.
    flip: whether half of the training examples are mirrored, drawn anew each epoch.
    validation_share, test_share: of the pictures, which are never trained on; a hash of its path below the folder says
    which split a picture is in, so that one stays where it is when others come.
    cache: folder for the decoded pixels, laid down once; else ONPATH_CACHE, ~/.cache/onpath.
    """

    path: str
    size: Side
    channels: int = 3
    labels: bool | None = None
    class_names: tuple[str, ...] = ()
    flip: bool = False
    validation_share: float = 0.1
    test_share: float = 0.1
    cache: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._framing, self._shares
        if self.labels is False and self.class_names:
            raise ValueError("class_names is set, but labels is false; leave one of them out")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError(
                f"class_names is {', '.join(self.class_names)}; each class is needed once; remove the other"
            )

    @property
    def _framing(self) -> Framing:
        return Framing(self.size, self.channels)

    @property
    def _shares(self) -> Shares:
        return Shares(self.validation_share, self.test_share)

    @property
    def _flips(self) -> bool:
        return self.flip

    @cached_property
    def _files(self) -> tuple[Stamp, ...]:
        """Each picture by its path below the folder, in the order of these."""
        return _found(Path(self.path).expanduser(), self.path)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if self.labels is False:
            return ()
        if self.class_names:
            return self.class_names
        parts = [path.split("/") for path, _, _ in self._files]
        flat = [part[0] for part in parts if len(part) == 1]
        names = tuple(sorted({part[0] for part in parts if len(part) > 1}))
        if names and not flat:
            return names
        if self.labels is None and not names:
            return ()
        beside = f" beside the subfolders {', '.join(names[:3])}" if names else ""
        raise ValueError(
            f"{self.path}: {flat[0]} lies in the folder itself{beside}, so it has no class; put each picture into the "
            "subfolder of its class, or set data.labels=false"
        )

    def settled(self) -> Mapping[str, Any]:
        return {"labels": bool(self.classes), "class_names": self.classes}

    def spec(self) -> ImageSpec:
        cond = {"label": ()} if self.classes else {}
        return ImageSpec(self._framing.shape, num_classes=len(self.classes), cond=cond)

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._squares.remarks

    @property
    def _squares(self) -> Squares:
        folder = str(Path(self.path).expanduser())
        return _squares(folder, self._files, self._framing, cache_folder(self.cache))

    @cached_property
    def _pictures(self) -> Pictures:
        names = [path for path, _, _ in self._files]
        rows = self._shares.rows(np.array([_place(name) for name in names]), self.split, self.path)
        return Pictures(self._squares.pixels, self._labels(names) if self.classes else None, rows)

    def _labels(self, names: list[str]) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(self.classes)}
        found = Counter(name.split("/")[0] if "/" in name else "" for name in names)
        if strange := [name for name in found if name not in numbers]:
            lies = f"in the subfolder {strange[0]!r}" if strange[0] else "in the folder itself"
            raise ValueError(
                f"{self.path}: a picture lies {lies}, and class_names is {', '.join(self.classes)}; name every "
                "subfolder that holds pictures, or take it away"
            )
        return np.array([numbers[name.split("/")[0]] for name in names], dtype=np.int64)


def _found(folder: Path, given: str) -> tuple[Stamp, ...]:
    """Path below the folder, time of the last change in ns, and bytes of each picture."""
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "there is no such folder"
        where = "" if folder.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(
            f"{given}: {what}{where}; a folder is needed that holds {', '.join(_ENDINGS)} files, or one subfolder of "
            "them for each class; check data.path"
        )
    places = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    shown = [place for place in places if not any(part[0] == "." for part in place.relative_to(folder).parts)]
    pictures = [place for place in shown if place.suffix.lower() in _ENDINGS]
    if not pictures:
        others = Counter(place.suffix.lower() or "no ending" for place in shown).most_common(3)
        counted = ", ".join(f"{count} x {ending}" for ending, count in others)
        beside = f" (but {counted})" if others else ""
        raise ValueError(
            f"{given}: holds no picture{beside}; needed are files ending in {', '.join(_ENDINGS)}, in it or in one "
            "subfolder for each class; check data.path, or convert them"
        )
    return tuple(sorted((place.relative_to(folder).as_posix(), *stamp(place)[1:]) for place in pictures))


def _place(name: str) -> float:
    """A number in [0, 1) that the path decides, written alike on every system."""
    digest = hashlib.blake2b(unicodedata.normalize("NFC", name).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


@lru_cache(maxsize=4)
def _squares(folder: str, files: tuple[Stamp, ...], framing: Framing, cache: Path) -> Squares:
    digest = hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()
    made_from = {"folder": folder, "files": digest, "size": framing.size, "channels": framing.channels}

    def make() -> Labelled:
        pictures = ((name, Path(folder) / name) for name, _, _ in files)
        return (), ((square, None) for square in decoded(pictures, framing, folder))

    return squares(cache, made_from, make)
