"""Latents of images, encoded once and kept in a file, as training examples."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from onpath import rng
from onpath.data.image_files import stamp
from onpath.data.images import Shares, Split, hashed_places, places
from onpath.data.source import ImageSource
from onpath.types import Batch, ImageSpec

_LATENTS, _LABEL = "latents", "label"
_RESERVED = ("drop", "padding", "documents")
_LOOKED_AT = 256  # rows from which the spread of latents is told
_NEEDED = f"a .safetensors or .npz file with the array `{_LATENTS}` (N, C, H, W), as save_latents writes it"


@dataclass(frozen=True)
class Latents(ImageSource):
    """Latents (N, C, H, W) of images, and conditions of the same N, from a .safetensors or .npz file.

    path: the file, see ``save_latents``; .safetensors is mapped into memory, not read. Its arrays beside `latents` are
    conditions by their names: `label` (N,) counts classes, others such as text embeddings are (N, …).
    scale, shift: x = (latents - shift) * scale, so a VAE's `scaling_factor` and `shift_factor`, where what the file
    holds is what its encoder put out. num_classes: of `label`; 0 for the largest of the file and one.
    validation_share, test_share: held out by a hash of the row's number.
    """

    path: str
    scale: float = 1.0
    shift: float = 0.0
    num_classes: int = 0
    validation_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        _ = self._shares
        if self.scale == 0:
            raise ValueError("scale is 0, which leaves nothing of the latents; allowed is any other number")
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}; allowed are 1 or more, or 0 for what the file holds")

    @property
    def _shares(self) -> Shares:
        return Shares(self.validation_share, self.test_share)

    @property
    def _arrays(self) -> Mapping[str, Tensor]:
        return _read(*stamp(Path(self.path).expanduser()))

    @cached_property
    def _rows(self) -> Int64[np.ndarray, "R"]:
        return self._shares.rows(hashed_places(len(self._arrays[_LATENTS])), self.split, self.path)

    @property
    def num_examples(self) -> int:
        return len(self._rows)

    def at_split(self, split: str) -> Latents:
        return replace(self, split=split)

    def spec(self) -> ImageSpec:
        channels, height, width = self._arrays[_LATENTS].shape[1:]
        cond = {name: tuple(array.shape[1:]) for name, array in self._arrays.items() if name != _LATENTS}
        return ImageSpec((channels, height, width), num_classes=self._num_classes, cond=cond)

    @property
    def _num_classes(self) -> int:
        if _LABEL not in self._arrays:
            if self.num_classes:
                raise ValueError(
                    f"num_classes is {self.num_classes}, but {self.path} holds no array `{_LABEL}`; leave it out, or "
                    "save the latents with their labels"
                )
            return 0
        found = int(self._arrays[_LABEL].max()) + 1
        if self.num_classes and self.num_classes < found:
            raise ValueError(
                f"num_classes is {self.num_classes}, but {self.path} holds the label {found - 1}; allowed are {found} "
                "or more, or 0 for what the file holds"
            )
        return self.num_classes or found

    @property
    def remarks(self) -> tuple[str, ...]:
        seen = (self._arrays[_LATENTS][:_LOOKED_AT].float() - self.shift) * self.scale
        spread = float(seen.std())
        if 0.5 <= spread <= 2:
            return ()
        return (
            f"latents have a standard deviation of {spread:.3g}, where diffusion expects about 1; is data.scale the "
            "scaling_factor of their VAE?",
        )

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        key = rng.Key(self.seed, "images")
        rows = torch.from_numpy(self._rows)[places(ids, len(self._rows), self.split, key)]
        picked = {name: array[rows] for name, array in self._arrays.items()}
        finite = picked[_LATENTS].isfinite().flatten(1).all(1)
        if not finite.all():
            raise ValueError(
                f"{self.path}: the latents of row {int(rows[~finite][0])} hold NaN or infinity; finite numbers are "
                "needed; encode that image again, in float32 where float16 overflows"
            )
        moved = {name: _plain(array.to(device, non_blocking=True)) for name, array in picked.items()}
        x = (moved.pop(_LATENTS) - self.shift) * self.scale
        return Batch(x, ids.cpu(), cond=moved)

    def pixels(self, x: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B H W C"]:
        raise ValueError(
            "data: these are latents, which only the decoder of their VAE can show; give it x / scale + shift "
            f"(scale {self.scale}, shift {self.shift})"
        )


def save_latents(path: str | Path, latents: Float[Tensor, "N C H W"], **conditions: Shaped[Tensor, "N ..."]) -> None:
    """Writes latents, as the encoder put them out, and conditions of the same N, as ``Latents`` reads them.

    path: ends in .safetensors. conditions: `label` (N,) of class numbers, and others such as text embeddings, by the
    names under which a network's `encode` takes them. ValueError where they do not go together.
    """
    place = Path(path)
    if place.suffix != ".safetensors":
        raise ValueError(f"{path}: the ending is {place.suffix!r}; .safetensors is needed; rename it")
    arrays = {name: array.detach().cpu().contiguous() for name, array in {_LATENTS: latents, **conditions}.items()}
    _require(str(path), arrays)
    aside = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        save_file(arrays, aside)
        aside.rename(place)
    finally:
        aside.unlink(missing_ok=True)


def _plain(array: Tensor) -> Tensor:
    return array.float() if array.is_floating_point() else array.long()


@lru_cache(maxsize=4)
def _read(path: str, _changed_ns: int, _size: int) -> Mapping[str, Tensor]:
    """The arrays of a file; ValueError where it is none, or where they do not go together."""
    place = Path(path)
    if not place.is_file():
        where = "" if place.is_absolute() else f" in {Path.cwd()}"
        raise ValueError(f"{path}: there is no such file{where}; {_NEEDED} is needed; check data.path")
    if place.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"{path}: the ending is {place.suffix!r}; {_NEEDED} is needed; convert it")
    arrays = _safetensors(place) if place.suffix == ".safetensors" else _npz(place)
    _require(path, arrays)
    return arrays


def _safetensors(place: Path) -> dict[str, Tensor]:
    try:
        with safe_open(place, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{place}: is torn or no safetensors file ({error}); {_NEEDED} is needed; write it again"
        ) from error


def _npz(place: Path) -> dict[str, Tensor]:
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{place}: is torn, no npz file, or holds more than numbers ({error}); {_NEEDED} is needed; write it again"
        ) from error


def _require(path: str, arrays: Mapping[str, Tensor]) -> None:
    """ValueError unless these are latents with conditions."""
    latents = arrays.get(_LATENTS)
    if latents is None:
        raise ValueError(f"{path}: holds {', '.join(arrays) or 'nothing'}; {_NEEDED} is needed; rename the array")
    if latents.ndim != 4 or not latents.is_floating_point() or 0 in latents.shape:
        raise ValueError(
            f"{path}: `{_LATENTS}` is {tuple(latents.shape)} of {str(latents.dtype)[6:]}; (N, C, H, W) of "
            "floating-point numbers is needed, N 1 or more; write it again with save_latents"
        )
    for name, array in arrays.items():
        if name in _RESERVED or not name.isidentifier():
            raise ValueError(f"{path}: a condition cannot be named {name!r}, which has another meaning; rename it")
        if not array.ndim or len(array) != len(latents):
            raise ValueError(
                f"{path}: `{name}` is {tuple(array.shape)}, but there are {len(latents)} latents; a row for each is "
                "needed; leave the array out, or save it with its latents"
            )
    label = arrays.get(_LABEL)
    if label is not None and (label.ndim != 1 or label.is_floating_point() or int(label.min()) < 0):
        raise ValueError(
            f"{path}: `{_LABEL}` is {tuple(label.shape)} of {str(label.dtype)[6:]} with the least value "
            f"{label.min().item()}; (N,) of class numbers from 0 is needed; give another condition another name"
        )
