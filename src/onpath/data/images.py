"""Images as training examples: what all sources of stored images share, and the digits that ship with the package."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from onpath import rng
from onpath.data.shuffle import shuffled
from onpath.data.source import ImageSource
from onpath.types import Batch, ImageSpec

Split = Literal["train", "validation", "test"]
_DIGITS_TEST, _DIGITS_VALIDATION = 500, 100


@dataclass(frozen=True, eq=False)
class Pictures:
    """N images as bytes, what they show, and which of them are of a split.

    pixels: of all N, memory-mapped where there are many; nobody writes into them. labels: class numbers, None where
    there are none. rows: places in `pixels` of the R images of the split. top: the level that becomes 1.0; 0 becomes
    -1.0.
    """

    pixels: UInt8[np.ndarray, "N H W C"]
    labels: Int64[np.ndarray, "N"] | None
    rows: Int64[np.ndarray, "R"]
    top: int = 255


@dataclass(frozen=True, kw_only=True)
class StoredImages(ImageSource):
    """Images that lie in an array: what their kinds share, whose fields say where it comes from.

    In training every epoch visits each image once in an order of its own; held-out images come in their own order.
    """

    seed: int = 0
    split: Split = "train"

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split is {self.split!r}; allowed are {', '.join(get_args(Split))}")

    @property
    @abstractmethod
    def _pictures(self) -> Pictures:
        """The images of this split."""

    @property
    def _flips(self) -> bool:
        """Whether half of the training examples are mirrored, left to right."""
        return False

    @property
    def num_examples(self) -> int:
        return len(self._pictures.rows)

    def at_split(self, split: str) -> StoredImages:
        return replace(self, split=split)

    def spec(self) -> ImageSpec:
        _, height, width, channels = self._pictures.pixels.shape
        cond = {"label": ()} if self.classes else {}
        return ImageSpec((channels, height, width), num_classes=len(self.classes), cond=cond)

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        pictures, key = self._pictures, rng.Key(self.seed, "images")
        rows = pictures.rows[places(ids, len(pictures.rows), self.split, key).numpy()]
        pixels = torch.from_numpy(pictures.pixels[rows]).to(device, non_blocking=True)
        if self._flips and self.split == "train":
            pixels = torch.where(
                mirrored(ids, key).to(device, non_blocking=True)[:, None, None, None], pixels.flip(2), pixels
            )
        x = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        x = x.div_(pictures.top / 2).sub_(1.0)  # in place, which is seven times as fast
        if pictures.labels is None or not self.classes:
            return Batch(x, ids.cpu())
        return Batch(
            x, ids.cpu(), cond={"label": torch.from_numpy(pictures.labels[rows]).to(device, non_blocking=True)}
        )


def places(ids: Int64[Tensor, "B"], num_rows: int, split: str, key: rng.Key) -> Int64[Tensor, "B"]:
    """The row of a split that each id means: shuffled anew each epoch in training, else one after the other."""
    return shuffled(ids, num_rows, key) if split == "train" else ids % num_rows


def hashed_places(num_rows: int) -> Float[np.ndarray, "N"]:
    """A number in [0, 1) for each row, which its number decides, for ``Shares``."""
    return rng.uniform(rng.Key(purpose="images/split"), torch.arange(num_rows)).double().numpy()


def mirrored(ids: Int64[Tensor, "B"], key: rng.Key) -> Tensor:
    """(B,) bool, True for half of the ids: those whose image is mirrored. An id names an epoch too."""
    return rng.bits(key.fold("flip"), ids) % 2 == 1


@dataclass(frozen=True)
class Shares:
    """Which of N images, each at a place in [0, 1) of its own, are held out: test the lowest, then validation."""

    validation_share: float
    test_share: float

    def __post_init__(self) -> None:
        for name, share in (("validation_share", self.validation_share), ("test_share", self.test_share)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; allowed is 0 up to, but not, 1")
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share is {self.validation_share} and test_share is {self.test_share}; together they must "
                "stay below 1, so that something is left to train on; lower one of them"
            )

    def rows(self, place: Float[np.ndarray, "N"], split: str, where: str) -> Int64[np.ndarray, "R"]:
        """The rows of a split; ValueError where it has none."""
        cut = self.test_share + self.validation_share
        low, high = {"test": (0.0, self.test_share), "validation": (self.test_share, cut), "train": (cut, 1.0)}[split]
        rows = np.flatnonzero((place >= low) & (place < high))
        if not len(rows):
            raise ValueError(
                f"{where}: none of its {len(place)} images falls into the {split} split at validation_share "
                f"{self.validation_share} and test_share {self.test_share}; change these, or bring more images"
            )
        return rows


@dataclass(frozen=True)
class Digits(StoredImages):
    """The 1,797 handwritten digits of the UCI repository, 8×8 with 17 levels of grey, which ship with the package.

    labels: whether the class is a condition. 1,197 images are trained on, 100 validate and 500 test; which ones does
    not depend on the seed. Source: Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998 (the test part
    of it), https://doi.org/10.24432/C50P49, CC BY 4.0.

    >>> batch = Digits().examples(torch.arange(4))
    >>> batch.x.shape, batch.cond["label"].shape
    (torch.Size([4, 1, 8, 8]), torch.Size([4]))
    """

    labels: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple("0123456789") if self.labels else ()

    @property
    def features(self) -> str:
        return "digits"

    @cached_property
    def _pictures(self) -> Pictures:
        levels, labels = _digits()
        order = rng.bits(rng.Key(purpose="digits/split"), torch.arange(len(levels))).argsort(stable=True).numpy()
        test, validation, train = np.split(order, [_DIGITS_TEST, _DIGITS_TEST + _DIGITS_VALIDATION])
        rows = np.sort({"test": test, "validation": validation, "train": train}[self.split])
        return Pictures(levels, labels, rows, top=16)


@cache
def _digits() -> tuple[UInt8[np.ndarray, "N 8 8 1"], Int64[np.ndarray, "N"]]:
    with (resources.files("onpath.data") / "digits.npz").open("rb") as file, np.load(file) as arrays:
        return arrays["levels"][..., None], arrays["labels"].astype(np.int64)
