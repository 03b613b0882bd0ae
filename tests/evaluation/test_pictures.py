"""PNG files are read back by another decoder, bit for bit; sheets hold every image where it belongs."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
import torch
from torch import Tensor

from onpath.evaluation.pictures import picture, png, sheet

Image = pytest.importorskip("PIL.Image")


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def decoded(data: bytes) -> np.ndarray:
    image = Image.open(BytesIO(data))
    image.load()  # checks every checksum
    assert image.format == "PNG"
    return np.asarray(image)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (3, 17), (50, 2)])
def test_pillow_reads_what_was_written(height: int, width: int) -> None:
    grey, coloured = pixels(height, width, 1), pixels(height, width, 3)
    assert (decoded(png(grey)) == grey[..., 0].numpy()).all()
    assert (decoded(png(coloured)) == coloured.numpy()).all()


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels; 1"):
        png(pixels(2, 2, 4))


def test_a_sheet_has_each_image_in_its_place() -> None:
    images = pixels(2, 3, 4, 5, 1)
    whole = sheet(images)
    assert whole.shape == (2 * 5 - 1, 3 * 6 - 1, 1)
    for row in range(2):
        for column in range(3):
            assert torch.equal(whole[row * 5 : row * 5 + 4, column * 6 : column * 6 + 5], images[row, column])
    assert (whole[4] == 128).all()


def test_a_picture_is_what_its_data_say() -> None:
    images = pixels(1, 4, 8, 8, 3)
    found = picture("cats", images)
    shown = decoded(base64.b64decode(found["png"]))
    assert (found["label"], found["width"], found["height"]) == ("cats", 35, 8) and shown.shape == (8, 35, 3)
    assert (shown == sheet(images).numpy()).all()


def test_large_images_are_averaged_down() -> None:
    flat = torch.full((1, 2, 100, 130, 1), 77, dtype=torch.uint8)
    found = picture("", flat)
    assert found["height"] == 34 and found["width"] == 2 * 44 + 1
    shown = decoded(base64.b64decode(found["png"]))
    assert shown[0, 0] == 77 and shown[-1, -1] == 77 and shown[0, 44] == 128
