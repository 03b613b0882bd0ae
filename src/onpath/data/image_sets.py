"""MNIST, Fashion-MNIST and CIFAR-10 from their official files, with their official test images."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from onpath.data.image_files import (
    CIFAR_TEST,
    CIFAR_TRAIN,
    Stamp,
    cifar10,
    cifar10_folder,
    idx_files,
    labelled_idx,
    stamp,
)
from onpath.data.images import Pictures, StoredImages
from onpath.types import ImageSpec

Part = tuple[UInt8[np.ndarray, "N H W C"], Int64[np.ndarray, "N"]]
"""The images and classes of the official training or test files."""

_SIDE = 28


@dataclass(frozen=True)
class OfficialImages(StoredImages):
    """A data set with official training and test files: what its kinds share.

    path: the folder of the files. labels: whether the class is a condition. validation_examples: so many images at the
    end of the training files are never trained on.
    """

    path: str
    labels: bool = True
    validation_examples: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.validation_examples < 0:
            raise ValueError(f"validation_examples is {self.validation_examples}; allowed are 0 or more")

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Of the classes in the files, whether or not they are a condition."""

    @property
    @abstractmethod
    def _shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an example."""

    @abstractmethod
    def _part(self, test: bool) -> Part:
        """The whole training or test files."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.class_names if self.labels else ()

    def spec(self) -> ImageSpec:
        return ImageSpec(self._shape, num_classes=len(self.classes), cond={"label": ()} if self.labels else {})

    @cached_property
    def _pictures(self) -> Pictures:
        pixels, labels = self._part(self.split == "test")
        first, last = 0, len(pixels)
        if self.split != "test":
            cut = last - self.validation_examples
            if cut < 1:
                raise ValueError(
                    f"validation_examples is {self.validation_examples}, but {self.path} holds {last} training images "
                    f"in all; allowed are 0 to {last - 1}; lower it"
                )
            first, last = (cut, last) if self.split == "validation" else (0, cut)
        if first == last:
            raise ValueError(
                "validation_examples is 0, so there are no images to validate on; set data.validation_examples to 1 or "
                "more, or training.validation_examples=0"
            )
        return Pictures(pixels, labels, np.arange(first, last))


@dataclass(frozen=True)
class IdxImages(OfficialImages):
    """Grey images of 28×28 in the four idx files of MNIST, unpacked or as .gz: what the kinds share.

    size: 28, or a divisor of it, to which each image is averaged down over areas. pad: so many black pixels are put
    around that; 2 makes 32×32. The rest: ``OfficialImages``.
    """

    size: int = _SIDE
    pad: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1 or _SIDE % self.size:
            raise ValueError(f"size is {self.size}; allowed are the divisors of {_SIDE}: 28, 14, 7, 4, 2, 1")
        if self.pad < 0:
            raise ValueError(f"pad is {self.pad}; allowed are 0 or more pixels on each side")

    @property
    @abstractmethod
    def _home(self) -> str:
        """Where the files are to be had."""

    @property
    def _shape(self) -> tuple[int, int, int]:
        side = self.size + 2 * self.pad
        return 1, side, side

    def _part(self, test: bool) -> Part:
        found = idx_files(Path(self.path).expanduser(), self._home)
        files = (found[2], found[3]) if test else (found[0], found[1])
        changed = tuple(map(stamp, files))
        return _idx_part(files, changed, len(self.class_names), self._home, self.size, self.pad)


@lru_cache(maxsize=4)
def _idx_part(
    files: tuple[Path, Path], _changed: tuple[Stamp, ...], num_classes: int, home: str, size: int, pad: int
) -> Part:
    pixels, labels = labelled_idx(*files, num_classes, home)
    if pixels.shape[1:] != (_SIDE, _SIDE):
        raise ValueError(
            f"{files[0]}: its images are {pixels.shape[1]} x {pixels.shape[2]}; {_SIDE} x {_SIDE} are needed; get the "
            f"files of {home}"
        )
    if size < _SIDE:
        pixels = averaged(pixels, _SIDE // size)
    return np.pad(pixels, ((0, 0), (pad, pad), (pad, pad)))[..., None], labels


def averaged(pixels: UInt8[np.ndarray, "N H W"], factor: int) -> UInt8[np.ndarray, "N h w"]:
    """Images whose every pixel is the mean of factor × factor, rounded to the nearest level, halves upwards.

    >>> averaged(np.array([[[0, 1], [2, 3]]], np.uint8), 2).tolist()
    [[[2]]]
    """
    count, height, width = pixels.shape
    blocks = pixels.reshape(count, height // factor, factor, width // factor, factor)
    return ((blocks.sum((2, 4), dtype=np.uint32) + factor**2 // 2) // factor**2).astype(np.uint8)


@dataclass(frozen=True)
class MNIST(IdxImages):
    """Handwritten digits, 60,000 to train and 10,000 to test: grey, 28×28, ten classes.

    path: the folder of the four official files. Fields: ``IdxImages`` and ``OfficialImages``. Source: LeCun, Cortes and
    Burges 1998.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    @property
    def _home(self) -> str:
        return "https://ossci-datasets.s3.amazonaws.com/mnist"


@dataclass(frozen=True)
class FashionMNIST(IdxImages):
    """Pictures of clothes, 60,000 to train and 10,000 to test: grey, 28×28, ten classes.

    path: the folder of the four official files. Fields: ``IdxImages`` and ``OfficialImages``. Source: Fashion-MNIST,
    arXiv:1708.07747; MIT licence.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        clothes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag")
        return (*clothes, "Ankle boot")

    @property
    def features(self) -> str | None:
        return "fashion_mnist" if (self.size, self.pad) == (_SIDE, 0) else None

    @property
    def _home(self) -> str:
        return "https://github.com/zalandoresearch/fashion-mnist"


@dataclass(frozen=True)
class Cifar10(OfficialImages):
    """Photographs of ten kinds of things, 50,000 to train and 10,000 to test: RGB, 32×32.

    path: the folder of the binary version, or the one around it. flip: whether half of the training examples are
    mirrored, drawn anew each epoch. The rest: ``OfficialImages``. Source: "Learning Multiple Layers of Features from
    Tiny Images", Krizhevsky 2009.
    """

    flip: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    @property
    def features(self) -> str:
        return "cifar10"

    @property
    def _flips(self) -> bool:
        return self.flip

    @property
    def _shape(self) -> tuple[int, int, int]:
        return 3, 32, 32

    def _part(self, test: bool) -> Part:
        folder = cifar10_folder(Path(self.path).expanduser())
        return _cifar10(tuple(stamp(folder / name) for name in (CIFAR_TEST if test else CIFAR_TRAIN)))


@lru_cache(maxsize=2)
def _cifar10(stamps: tuple[Stamp, ...]) -> Part:
    return cifar10(tuple(Path(path) for path, _, _ in stamps))
