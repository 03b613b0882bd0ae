"""Images as PNG, side by side, with nothing but zlib."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

_SIDE = 64  # pixels of an image in a report, at most


def png(pixels: UInt8[Tensor, "H W C"]) -> bytes:
    """A PNG file of grey (C = 1) or RGB (C = 3) pixels; ValueError for another C.

    Source: Portable Network Graphics, third edition, W3C 2025, Sections 5 and 11.

    >>> png(torch.zeros(2, 3, 1, dtype=torch.uint8))[1:4]
    b'PNG'
    """
    height, width, channels = pixels.shape
    if channels not in (1, 3):
        raise ValueError(f"png: pixels have {channels} channels; 1 (grey) or 3 (RGB) are needed")
    lines = pixels.cpu().reshape(height, width * channels)
    unfiltered = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), lines], dim=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(unfiltered.numpy().tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def sheet(pixels: UInt8[Tensor, "R N H W C"]) -> UInt8[Tensor, "height width C"]:
    """R rows of N images as one, a grey pixel between each and the next."""
    rows, count, height, width, channels = pixels.shape
    framed = torch.full((rows, count, height + 1, width + 1, channels), 128, dtype=torch.uint8)
    framed[:, :, :height, :width] = pixels
    whole = framed.permute(0, 2, 1, 3, 4).reshape(rows * (height + 1), count * (width + 1), channels)
    return whole[:-1, :-1]


def picture(label: str, pixels: UInt8[Tensor, "R N H W C"]) -> dict[str, Any]:
    """R rows of N images as a trace holds them: what they show, PNG data as base64, their size in pixels.

    Images of more than 64 pixels a side are averaged down.
    """
    whole = sheet(_small(pixels))
    height, width, _ = whole.shape
    return {"label": label, "png": base64.b64encode(png(whole)).decode(), "width": width, "height": height}


def _small(pixels: UInt8[Tensor, "R N H W C"]) -> UInt8[Tensor, "R N h w C"]:
    factor = -(-max(pixels.shape[2:4]) // _SIDE)
    if factor == 1:
        return pixels
    images = pixels.flatten(0, 1).permute(0, 3, 1, 2).float()
    small = F.avg_pool2d(images, factor, ceil_mode=True).round().to(torch.uint8).permute(0, 2, 3, 1)
    return small.unflatten(0, pixels.shape[:2])
