"""Pictures on disk for tests: the official layouts, folders, datasets and latents, all of seeded noise."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from onpath.data.latents import save_latents

TRAIN, TEST = 60, 12


def idx(array: np.ndarray) -> bytes:
    """The idx format: two zeros, the type 8, the number of dimensions, each as a big-endian word, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def levels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_idx(folder: Path) -> None:
    """Sixty and twelve images of 28×28, ten classes; one file of the four is unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", TRAIN), ("t10k", TEST)):
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(levels(count, count, 28, 28))))
        labels = idx(levels(count + 1, count) % 10)
        packed = name == "train"
        (folder / f"{name}-labels-idx1-ubyte{'.gz' * packed}").write_bytes(gzip.compress(labels) if packed else labels)


def cifar_records(number: int) -> np.ndarray:
    records = levels(number, 7, 3073)
    records[:, 0] %= 10
    return records


def write_cifar(folder: Path) -> None:
    """Five files of seven images to train on, and one to test."""
    inner = folder / "cifar-10-batches-bin"
    inner.mkdir(parents=True)
    for number in range(5):
        (inner / f"data_batch_{number + 1}.bin").write_bytes(cifar_records(number).tobytes())
    (inner / "test_batch.bin").write_bytes(cifar_records(5).tobytes())


def write_folder(folder: Path) -> None:
    """Sixty pictures of 6×6 in three classes, whose red is their number and whose green is their class."""
    from PIL import Image

    for number in range(60):
        pixels = np.zeros((6, 6, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = number, number % 3
        place = folder / ("cat", "dog", "emu")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")


def write_hub(folder: Path) -> None:
    """Forty pictures with classes by number as parquet."""
    from datasets import ClassLabel, Dataset, Features, disable_progress_bars
    from datasets import Image as Pictures
    from PIL import Image

    disable_progress_bars()
    images = [Image.fromarray(levels(number, 5, 5, 3)) for number in range(40)]
    features = Features({"image": Pictures(), "label": ClassLabel(names=["odd", "even"])})
    Dataset.from_dict({"image": images, "label": [n % 2 for n in range(40)]}, features=features).to_parquet(folder)


def write_latents(path: Path) -> None:
    """Forty latents with a class and six vectors of text each."""
    label = torch.from_numpy(levels(2, 40) % 4)
    text = torch.from_numpy(levels(3, 40, 6, 8)).float()
    save_latents(path, torch.from_numpy(levels(1, 40, 4, 3, 3)).half() / 50, label=label, text=text)


def write_all(folder: Path) -> None:
    write_idx(folder / "idx")
    write_cifar(folder / "cifar")
    write_folder(folder / "folder")
    write_hub(folder / "pictures.parquet")
    write_latents(folder / "latents.safetensors")
