"""A folder of pictures: pixels as Pillow alone makes them, splits by path, classes by subfolder, one cache."""

from __future__ import annotations

import dataclasses
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pictures
from onpath.data.image_decoding import Framing
from onpath.data.image_folder import ImageFolder

GENERATOR = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    pictures.write_folder(root)
    return root


def source(folder: Path, **fields: Any) -> ImageFolder:
    return ImageFolder(str(folder), **{"size": 6, "cache": str(folder.parent / "cache"), **fields})


def numbers(made: ImageFolder) -> list[int]:
    """The pictures of a split by their number, which their red tells."""
    batch = made.examples(torch.arange(made.num_examples))
    return sorted(made.pixels(batch.x)[:, 0, 0, 0].tolist())


def test_splits_are_apart_cover_all_and_stay_when_pictures_come(folder: Path) -> None:
    splits = {name: numbers(source(folder, split=name)) for name in ("train", "validation", "test")}
    assert sorted(chain(*splits.values())) == list(range(60)) and all(splits.values())
    assert len(splits["train"]) > 36
    for name, before in splits.items():
        assert numbers(source(folder, split=name, seed=5)) == before
    for number in range(60, 90):
        Image.fromarray(np.full((6, 6, 3), number, np.uint8)).save(folder / "emu" / f"{number}.png")
    for name, before in splits.items():
        assert set(before) <= set(numbers(source(folder, split=name)))


def test_a_class_is_a_subfolder(folder: Path) -> None:
    made = source(folder)
    batch = made.examples(torch.arange(made.num_examples))
    assert made.classes == ("cat", "dog", "emu") and made.spec().num_classes == 3
    assert torch.equal(made.pixels(batch.x)[:, 3, 3, 1].long(), batch.cond["label"])
    other = source(folder, class_names=("emu", "cat", "dog"))
    assert torch.equal(other.examples(batch.ids).cond["label"], torch.tensor([1, 2, 0])[batch.cond["label"]])
    assert source(folder, labels=False).spec().cond == {} == source(folder, labels=False).examples(batch.ids).cond


def test_the_classes_are_kept_and_need_no_folder_later(folder: Path) -> None:
    made = source(folder)
    found = made.settled()
    flat = source(folder / "cat", validation_share=0.0)
    none = flat.settled()
    shutil.rmtree(folder)
    again = dataclasses.replace(made, **found)
    assert again.classes == ("cat", "dog", "emu") and again.spec().num_classes == 3 and again.settled() == found
    assert (
        dataclasses.replace(flat, **none).spec().num_classes == 0
        and dataclasses.replace(flat, **none).settled() == none
    )


def write(path: Path, picture: Any, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def squared(path: Path, size: int, channels: int = 3) -> np.ndarray:
    with Image.open(path) as picture:
        return Framing(size, channels).square(picture)[0]


RGB = noise(40, 40, 3)


@pytest.mark.parametrize("size", [10, 17, 40, 64])
def test_a_square_is_resized_as_pillow_does(tmp_path: Path, size: int) -> None:
    picture = Image.fromarray(RGB)
    wanted = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    assert np.array_equal(squared(write(tmp_path / "a.png", picture), size), wanted)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (70, 20), (31, 32)])
def test_the_middle_is_taken(tmp_path: Path, height: int, width: int) -> None:
    picture = Image.fromarray(noise(height, width, 3))
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    got = squared(write(tmp_path / "a.png", picture), side)
    if left % 1 == top % 1 == 0:
        whole = np.asarray(picture)[int(top) : int(top) + side, int(left) : int(left) + side]
        assert np.array_equal(got, whole)
    mean = np.asarray(picture).astype(float)[int(top) : int(top) + side, int(left) : int(left) + side].mean()
    assert abs(got.mean() - mean) < 3


def test_a_fine_pattern_becomes_grey_and_no_moire(tmp_path: Path) -> None:
    board = ((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8)
    small = squared(write(tmp_path / "a.png", Image.fromarray(board)), 16, 1)
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_kinds_of_pixels(tmp_path: Path) -> None:
    grey = noise(8, 8)
    one = squared(write(tmp_path / "grey.png", Image.fromarray(grey)), 8)
    assert np.array_equal(one, np.repeat(grey[..., None], 3, 2))
    levels = GENERATOR.integers(0, 2**16, (8, 8)).astype(np.uint16)
    sixteen = squared(write(tmp_path / "deep.png", Image.fromarray(levels)), 8, 1)
    assert np.array_equal(sixteen[..., 0], np.round(levels / 65535 * 255 + 1e-12))
    palette = Image.fromarray(RGB[:8, :8]).quantize(16)
    assert np.array_equal(squared(write(tmp_path / "p.png", palette), 8), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(grey > 127)
    assert np.array_equal(squared(write(tmp_path / "b.png", bilevel), 8, 1)[..., 0], (grey > 127) * 255)
    cmyk = squared(write(tmp_path / "c.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0))), 8)
    assert cmyk[4, 4, 0] > 200 and cmyk[4, 4, 1:].max() < 50  # red
    luma = np.asarray(Image.fromarray(RGB).convert("L"))
    assert np.array_equal(squared(write(tmp_path / "l.png", Image.fromarray(RGB)), 40, 1)[..., 0], luma)
    lossless = squared(write(tmp_path / "w.webp", Image.fromarray(RGB), lossless=True), 40)
    assert np.array_equal(lossless, RGB)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    rgba = np.concatenate([RGB[:8, :8], np.zeros((8, 8, 1), np.uint8)], 2)
    rgba[:4, :, 3] = 255
    picture = Image.fromarray(rgba)
    picture = picture.quantize(16) if mode == "P" else picture.convert(mode)
    square = squared(write(tmp_path / "a.png", picture), 8)
    assert (square[4:] == 255).all() and (square[:4] < 255).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    seen = noise(12, 12)
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a.T, 2), 8: lambda a: np.rot90(a, 3)}  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](seen)))
    exif = stored.getexif()
    exif[0x0112] = orientation
    square = squared(write(tmp_path / "a.png", stored, exif=exif), 12, 1)
    assert np.array_equal(square[..., 0], seen)


def test_the_cache_is_laid_down_once_and_follows_the_files(folder: Path) -> None:
    cache = folder.parent / "cache"
    first = source(folder)
    for fields in ({"seed": 3}, {"flip": True}, {"labels": False}, {"validation_share": 0.3}, {"split": "test"}):
        assert source(folder, **fields).num_examples
    assert len(list(cache.glob("*/pixels.bin"))) == 1 and isinstance(first._pictures.pixels, np.memmap)
    (pixels,) = cache.glob("*/pixels.bin")
    assert pixels.stat().st_size == 60 * 6 * 6 * 3
    source(folder, size=3).examples(torch.arange(1))
    (folder / "cat" / "0.png").unlink()
    assert sum(source(folder, split=split).num_examples for split in ("train", "validation", "test")) == 59
    assert len(list(cache.glob("*/pixels.bin"))) == 3


def test_half_is_mirrored(folder: Path) -> None:
    pixels = noise(6, 6, 3)
    for file in folder.rglob("*.png"):
        Image.fromarray(pixels).save(file)
    batch = source(folder, flip=True).examples(torch.arange(200))
    plain = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    mirrored = [torch.allclose(x, plain.flip(-1)) for x in batch.x]
    assert 70 < sum(mirrored) < 130 and all(
        m or torch.allclose(x, plain) for m, x in zip(mirrored, batch.x, strict=True)
    )


def test_small_pictures_are_remarked_on(folder: Path) -> None:
    assert (
        source(folder).remarks == () and "60 of 60 pictures are smaller than 9 x 9" in source(folder, size=9).remarks[0]
    )


def refusal(made: ImageFolder) -> str:
    with pytest.raises(ValueError) as caught:
        made.examples(torch.arange(2))
    return str(caught.value)


def test_broken_pictures_are_counted_and_named_and_nothing_is_kept(folder: Path) -> None:
    good = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(good[: len(good) // 2])
    for number in range(6):
        (folder / "dog" / f"text{number}.jpg").write_text("no picture")
    Image.fromarray(noise(9, 9).astype(np.float32)).save(folder / "emu" / "float.tiff")
    (folder / "emu" / "float.tiff").rename(folder / "emu" / "float.png")
    message = refusal(source(folder))
    assert "8 of 67 pictures cannot be read" in message and "and 3 more" in message and "take them away" in message
    assert "cat/0.png" in message and "dog/text0.jpg (cannot identify image file)" in message
    assert not list((folder.parent / "cache").glob("*/pixels.bin"))


def test_pictures_in_the_folder_itself(folder: Path) -> None:
    for file in list(folder.rglob("*.png")):
        file.rename(folder / file.name)
    assert source(folder).classes == () and numbers(source(folder)) != []
    assert "has no class" in refusal(source(folder, labels=True))
    (folder / "7.png").rename(folder / "cat" / "7.png")
    assert "beside the subfolders cat" in refusal(source(folder)) and source(folder, labels=False).num_examples
    assert "a picture lies in the folder itself" in refusal(source(folder, class_names=("cat",)))


def test_folders_that_hold_nothing(folder: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refusal(source(tmp_path / "pictrues"))
    (tmp_path / "empty").mkdir()
    assert "holds no picture; needed are files ending in .png" in refusal(source(tmp_path / "empty"))
    (tmp_path / "empty" / "a.gif").write_text("")
    (tmp_path / "empty" / ".hidden.png").write_text("")
    assert "holds no picture (but 1 x .gif)" in refusal(source(tmp_path / "empty"))
    assert "a picture lies in the subfolder 'dog'" in refusal(source(folder, class_names=("cat", "emu")))
    assert "falls into the test split" in refusal(source(folder, test_share=0, split="test"))


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 0},
        {"channels": 2},
        {"validation_share": 1.0},
        {"test_share": -0.1},
        {"validation_share": 0.6, "test_share": 0.5},
        {"labels": False, "class_names": ("a",)},
        {"class_names": ("a", "a")},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_fields_are_checked_at_once(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        ImageFolder(**{"path": "anywhere", "size": 8, **fields})
