"""Stored images: every one once an epoch, splits that are apart and cover all, pixels as a reading by hand has them."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

import onpath.data.images as images
from onpath.data.images import Digits

SPLITS = ("train", "validation", "test")


def by_hand() -> tuple[np.ndarray, np.ndarray]:
    """The levels and labels of the digits, without numpy's own reader of archives."""
    with zipfile.ZipFile(Path(images.__file__).parent / "digits.npz") as archive:
        parts = [np.load(BytesIO(archive.read(f"{name}.npy"))) for name in ("levels", "labels")]
    return parts[0], parts[1]


def rows(x: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in x]


def test_digits_are_those_of_the_file_and_every_split_has_its_own() -> None:
    levels, labels = by_hand()
    assert levels.shape == (1797, 8, 8) and levels.min() == 0 and levels.max() == 16
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as its authors count
    whole = []
    for split, size in zip(SPLITS, (1197, 100, 500), strict=True):
        source = Digits(split=split)
        assert source.num_examples == size
        batch = source.examples(torch.arange(size))
        whole += list(zip(rows(batch.x[:, 0]), batch.cond["label"].tolist(), strict=True))
    wanted = [
        ((level / np.float32(8) - 1).tobytes(), label) for level, label in zip(levels, labels.tolist(), strict=True)
    ]
    assert sorted(whole) == sorted(wanted)


def test_the_split_of_the_digits_does_not_depend_on_the_seed() -> None:
    for split in SPLITS:
        one, other = (Digits(split=split, seed=seed) for seed in (0, 7))
        ids = torch.arange(one.num_examples)
        assert sorted(rows(one.examples(ids).x)) == sorted(rows(other.examples(ids).x))
        assert torch.equal(one.examples(ids).x, other.examples(ids).x) == (split != "train")


def test_every_epoch_visits_each_image_once_in_its_own_order() -> None:
    source = Digits()
    size = source.num_examples
    first, second = (source.examples(torch.arange(epoch * size, (epoch + 1) * size)).x for epoch in (0, 3))
    assert sorted(rows(first)) == sorted(rows(second)) and not torch.equal(first, second)
    held = source.at_split("test")
    assert torch.equal(held.examples(torch.arange(500)).x, held.examples(torch.arange(500, 1000)).x)


def test_labels_can_be_left_out() -> None:
    with_labels, without = Digits(), Digits(labels=False)
    assert with_labels.spec().num_classes == 10 and with_labels.spec().cond == {"label": ()}
    assert without.spec().num_classes == 0 and without.classes == () and without.spec().cond == {}
    assert not without.examples(torch.arange(3)).cond


def test_images_to_look_at_are_the_levels() -> None:
    levels, _ = by_hand()
    shown = Digits(split="test").pixels(Digits(split="test").examples(torch.arange(5)).x)
    assert shown.dtype == torch.uint8 and shown.shape == (5, 8, 8, 1)
    wanted = np.round(np.arange(17) * 255 / 16 + 1e-9)
    assert set(shown.flatten().tolist()) <= {int(v) for v in wanted} | {127, 128}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tensors_are_where_they_are_asked_for_and_ids_are_not(device: str) -> None:
    batch = Digits().examples(torch.arange(3), device)
    assert {batch.x.device.type, batch.cond["label"].device.type} == {device} and batch.ids.device.type == "cpu"
