"""Reads and checks the official files of MNIST, Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

_BYTES = 0x08  # the code of unsigned bytes in an idx file
_RECORD = 1 + 3 * 32 * 32  # of a CIFAR-10 file: the class, then the red, green and blue plane
CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
CIFAR_TEST = ("test_batch.bin",)

Stamp = tuple[str, int, int]
"""A path, the time of its last change in ns, and its bytes: what changes with the contents."""


def stamp(path: Path) -> Stamp:
    """Of a file that need not be there."""
    stat = path.stat() if path.is_file() else None
    return str(path), stat.st_mtime_ns if stat else 0, stat.st_size if stat else 0


def idx_files(folder: Path, where: str) -> tuple[Path, ...]:
    """The four files of a data set in the layout of MNIST, with .gz or unpacked: images and labels to train on, then to
    test. ValueError with `where` they are to be had, where one is missing."""
    parts = [(part, kind) for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    names = [f"{part}-{kind}-ubyte" for part, kind in parts]
    found = []
    for name in names:
        packed, plain = folder / f"{name}.gz", folder / name
        if not packed.is_file() and not plain.is_file():
            beside = "" if folder.is_dir() else "; there is no such folder"
            raise ValueError(
                f"{packed}: there is no such file{beside}; needed are the official files {', '.join(names)}, unpacked "
                f"or with .gz, in one folder: get them from {where} and set data.path to the folder"
            )
        found.append(packed if packed.is_file() else plain)
    return tuple(found)


def labelled_idx(
    images: Path, labels: Path, num_classes: int, where: str
) -> tuple[UInt8[np.ndarray, "N H W"], Int64[np.ndarray, "N"]]:
    """The images of an idx file and their classes, from ``idx_files``.

    ValueError where a file is torn or of another kind, and where the two do not belong together.
    """
    pixels, found = _idx(images, 3, where), _idx(labels, 1, where)
    if len(pixels) != len(found):
        raise ValueError(
            f"{labels}: holds {len(found)} labels, but {images.name} {len(pixels)} images; as many are needed; take "
            "both files from the same place"
        )
    _require_classes(labels, found, num_classes)
    return pixels, found.astype(np.int64)


def _idx(path: Path, num_dims: int, where: str) -> UInt8[np.ndarray, "..."]:
    """The array of unsigned bytes in an idx file, the format of http://yann.lecun.com/exdb/mnist."""
    data = _unpacked(path, where)
    magic, needed = data[:4], bytes([0, 0, _BYTES, num_dims])
    if magic != needed:
        raise ValueError(
            f"{path}: begins with {magic.hex(' ') or 'nothing'}; an idx file of {num_dims} "
            f"dimension{'s' * (num_dims > 1)} begins with {needed.hex(' ')}; it is torn or another file; get it again"
        )
    header, body = data[4 : 4 + 4 * num_dims], len(data) - 4 - 4 * num_dims
    shape = tuple(int(size) for size in np.frombuffer(header[: len(header) // 4 * 4], ">u4"))
    if body < 1 or math.prod(shape) != body:
        raise ValueError(
            f"{path}: says that it holds {' x '.join(map(str, shape))} bytes and holds {max(body, 0)}; get it again"
        )
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def _unpacked(path: Path, where: str) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path}: cannot be unpacked ({error}); a whole .gz file is needed; it is torn, so get it again from "
            f"{where}"
        ) from error


def cifar10_folder(path: Path) -> Path:
    """The folder of the binary version at or in `path`; ValueError where there is none, or only the pickles."""
    inner = path / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else path
    get = "get cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and set data.path"
    if (folder / "data_batch_1").is_file() or (path / "cifar-10-batches-py").is_dir():
        raise ValueError(
            f"{path}: holds the Python version of CIFAR-10, whose files are pickles, which can run any code when they "
            f"are read and so never are; the binary version is needed: {get}"
        )
    missing = [name for name in (*CIFAR_TRAIN, *CIFAR_TEST) if not (folder / name).is_file()]
    if missing:
        what = "there is no such folder" if not folder.is_dir() else f"there is no {missing[0]} in it"
        raise ValueError(
            f"{path}: {what}; needed are data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version "
            f"of CIFAR-10: {get}"
        )
    return folder


def cifar10(files: tuple[Path, ...]) -> tuple[UInt8[np.ndarray, "N 32 32 3"], Int64[np.ndarray, "N"]]:
    """The images and classes of such files, one after the other. ValueError where one is torn or another file."""
    parts = [_cifar10(path) for path in files]
    return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([labels for _, labels in parts])


def _cifar10(path: Path) -> tuple[UInt8[np.ndarray, "N 32 32 3"], Int64[np.ndarray, "N"]]:
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % _RECORD:
        raise ValueError(
            f"{path}: holds {len(data)} bytes; a multiple of {_RECORD} (a class and 32 x 32 x 3 levels for each image) "
            "is needed; it is torn or another file, so unpack it again"
        )
    records = data.reshape(-1, _RECORD)
    _require_classes(path, records[:, 0], 10)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64)


def _require_classes(path: Path, labels: np.ndarray, num_classes: int) -> None:
    if len(labels) and int(labels.max()) >= num_classes:
        row = int((labels >= num_classes).argmax())
        raise ValueError(
            f"{path}: the class of image {row} is {labels[row]}; allowed are 0 to {num_classes - 1}; it is another "
            "data set or torn, so get it again"
        )
