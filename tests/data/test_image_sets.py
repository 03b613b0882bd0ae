"""The official files of MNIST, Fashion-MNIST and CIFAR-10, against bytes that are written here by hand."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pictures
from onpath.data.image_sets import MNIST, Cifar10, FashionMNIST, averaged
from pictures import TEST, TRAIN, idx

PIXELS = {n: pictures.levels(n, n, 28, 28) for n in (TRAIN, TEST)}
LABELS = {n: pictures.levels(n + 1, n) % 10 for n in (TRAIN, TEST)}
RECORDS = np.stack([pictures.cifar_records(number) for number in range(6)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures.write_idx(tmp_path)
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    pictures.write_cifar(tmp_path)
    return tmp_path


def whole(source: Any) -> tuple[np.ndarray, list[int]]:
    batch = source.examples(torch.arange(source.num_examples))
    return batch.x.numpy(), batch.cond["label"].tolist()


def test_the_official_split_and_its_pixels(folder: Path) -> None:
    source = FashionMNIST(str(folder), validation_examples=8)
    x, labels = whole(source.at_split("test"))
    np.testing.assert_array_equal(x[:, 0], PIXELS[TEST].astype(np.float32) / np.float32(127.5) - 1)
    assert labels == LABELS[TEST].tolist()
    x, labels = whole(source.at_split("validation"))
    np.testing.assert_array_equal(x[:, 0], PIXELS[TRAIN][52:].astype(np.float32) / np.float32(127.5) - 1)
    assert labels == LABELS[TRAIN][52:].tolist()
    x, labels = whole(source)
    assert source.num_examples == 52 and sorted(labels) == sorted(LABELS[TRAIN][:52].tolist())
    seen = {((row + 1) * np.float32(127.5)).round().astype(np.uint8).tobytes() for row in x[:, 0]}
    assert seen == {row.tobytes() for row in PIXELS[TRAIN][:52]}
    shown = source.pixels(source.at_split("test").examples(torch.arange(TEST)).x)
    assert torch.equal(shown[..., 0], torch.from_numpy(PIXELS[TEST]))


@pytest.mark.parametrize("size", [14, 7, 4])
def test_smaller_images_are_means_over_areas(folder: Path, size: int) -> None:
    x, _ = whole(MNIST(str(folder), size=size, split="test", validation_examples=8))
    means = torch.nn.functional.avg_pool2d(torch.from_numpy(PIXELS[TEST]).double()[:, None], 28 // size)
    assert x.shape == (TEST, 1, size, size)
    assert np.abs((x.astype(np.float64) + 1) * 127.5 - means.numpy()).max() <= 0.5 + 1e-4  # a rounded level


def test_means_round_to_the_nearest() -> None:
    assert averaged(np.array([[[0, 0], [0, 1]], [[255, 255], [255, 254]]], np.uint8), 2).tolist() == [[[0]], [[255]]]


def test_padding_is_black_and_around(folder: Path) -> None:
    source = MNIST(str(folder), pad=2, split="test")
    x, _ = whole(source)
    assert source.spec().shape == x.shape[1:] == (1, 32, 32)
    inner = x[:, :, 2:-2, 2:-2]
    assert (x.sum() - inner.sum()) == -TEST * (32**2 - 28**2)
    assert np.array_equal(inner, whole(MNIST(str(folder), split="test"))[0])


def test_the_pinned_features_fit_whole_clothes_only(folder: Path) -> None:
    assert FashionMNIST(str(folder)).features == "fashion_mnist"
    assert FashionMNIST(str(folder), size=14).features is None and FashionMNIST(str(folder), pad=2).features is None
    assert MNIST(str(folder)).features is None and len(set(FashionMNIST(str(folder)).classes)) == 10


def test_the_shape_needs_no_file() -> None:
    assert FashionMNIST("nowhere", size=14).spec().shape == (1, 14, 14)
    assert Cifar10("nowhere").spec().shape == (3, 32, 32) and Cifar10("nowhere", labels=False).spec().num_classes == 0


def test_cifar_planes_become_channels(cifar: Path) -> None:
    for path in (cifar, cifar / "cifar-10-batches-bin"):
        x, labels = whole(Cifar10(str(path), split="test"))
        assert labels == RECORDS[5, :, 0].tolist()
        for row, record in zip(x, RECORDS[5], strict=True):
            for channel in range(3):
                plane = record[1 + 1024 * channel : 1 + 1024 * (channel + 1)].reshape(32, 32)
                np.testing.assert_array_equal(row[channel], plane.astype(np.float32) / np.float32(127.5) - 1)
    _, labels = whole(Cifar10(str(cifar), split="validation", validation_examples=9))
    assert labels == RECORDS[:5, :, 0].reshape(-1)[-9:].tolist()


def test_half_of_the_training_images_are_mirrored_anew_each_epoch(cifar: Path) -> None:
    plain, flipping = (Cifar10(str(cifar), flip=flip, validation_examples=5) for flip in (False, True))
    ids = torch.arange(300)  # ten epochs
    one, other = plain.examples(ids), flipping.examples(ids)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(one.x, other.x, strict=True)])
    mirrored = torch.tensor([torch.equal(a.flip(-1), b) for a, b in zip(one.x, other.x, strict=True)])
    assert bool((same ^ mirrored).all()) and 110 < int(same.sum()) < 190
    assert torch.equal(one.cond["label"], other.cond["label"])
    assert len(set(same.view(10, 30)[:, 0].tolist())) == 2
    held = flipping.at_split("validation")
    assert torch.equal(held.examples(ids).x, plain.at_split("validation").examples(ids).x)


def test_files_that_change_are_read_again(folder: Path) -> None:
    source = MNIST(str(folder), split="test")
    before, _ = whole(source)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(255 - PIXELS[TEST])))
    after, _ = whole(MNIST(str(folder), split="test"))
    np.testing.assert_allclose(after, -before, atol=1e-6)


def refusal(source: Any) -> str:
    with pytest.raises(ValueError) as caught:
        source.examples(torch.arange(2))
    return str(caught.value)


IMAGES, CLASSES = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"
GOOD = idx(PIXELS[TEST])


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (IMAGES, None, ("there is no such file", "train-images-idx3-ubyte", "github.com/zalando", "data.path")),
        (IMAGES, gzip.compress(GOOD)[:-20], ("cannot be unpacked", "torn", "get it again")),
        (IMAGES, b"no archive", ("cannot be unpacked", "a whole .gz file is needed")),
        (IMAGES, gzip.compress(idx(LABELS[TEST])), ("begins with 00 00 08 01", "begins with 00 00 08 03")),
        (IMAGES, gzip.compress(b""), ("begins with nothing", "00 00 08 03")),
        (IMAGES, gzip.compress(GOOD[:-5]), ("12 x 28 x 28", f"holds {12 * 784 - 5}", "get it again")),
        (IMAGES, gzip.compress(GOOD[:9]), ("says that it holds", "get it again")),
        (IMAGES, gzip.compress(idx(PIXELS[TEST][:9])), ("holds 12 labels", "9 images", "from the same place")),
        (IMAGES, gzip.compress(idx(PIXELS[TEST][:, :20])), ("are 20 x 28", "28 x 28 are needed")),
        (CLASSES, idx(LABELS[TEST] + 5), ("the class of image", "allowed are 0 to 9")),
    ],
)
def test_bad_idx_files_are_refused_by_name(
    folder: Path, name: str, content: bytes | None, parts: tuple[str, ...]
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    message = refusal(FashionMNIST(str(folder), split="test"))
    assert all(part in message for part in (*parts, "idx"))


def test_what_only_an_evaluation_reads_is_missed_before_a_training(folder: Path) -> None:
    (folder / CLASSES).unlink()
    assert f"{CLASSES}.gz: there is no such file" in refusal(FashionMNIST(str(folder), validation_examples=9))


def test_a_mistyped_folder_is_told_as_one(tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(MNIST(str(tmp_path / "fasion")))
    assert "there is no such folder" in refusal(Cifar10(str(tmp_path / "cifra")))


@pytest.mark.parametrize(
    "fields", [{"size": 13}, {"size": 0}, {"pad": -1}, {"validation_examples": -1}, {"split": "tset"}]
)
@pytest.mark.usefixtures("unchecked")
def test_fields_are_checked_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))} is .*; allowed are"):
        MNIST("anywhere", **fields)


def test_too_many_or_no_images_to_validate_on(folder: Path) -> None:
    assert "allowed are 0 to 59" in refusal(MNIST(str(folder)))
    assert "no images to validate on" in refusal(MNIST(str(folder), validation_examples=0, split="validation"))
    assert MNIST(str(folder), validation_examples=0).num_examples == TRAIN


def test_pickles_are_never_read(cifar: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (cifar / "exploded",))

    for file in (cifar / "cifar-10-batches-bin").iterdir():
        file.rename(file.with_suffix(""))
    (cifar / "cifar-10-batches-bin" / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    message = refusal(Cifar10(str(cifar)))
    assert "pickles" in message and "cifar-10-binary.tar.gz" in message and not (cifar / "exploded").exists()


def test_bad_cifar_files_are_refused_by_name(cifar: Path) -> None:
    file = cifar / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(RECORDS[2].tobytes()[:-1])
    message = refusal(Cifar10(str(cifar), validation_examples=3))
    assert "data_batch_3.bin: holds 21510 bytes" in message and "multiple of 3073" in message
    file.write_bytes(bytes([77]) + RECORDS[2].tobytes()[1:])
    assert "the class of image 0 is 77" in refusal(Cifar10(str(cifar), validation_examples=3))
    file.unlink()
    assert "there is no data_batch_3.bin in it" in refusal(Cifar10(str(cifar), validation_examples=3))
