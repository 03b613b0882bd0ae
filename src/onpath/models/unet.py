"""A small convolutional network for images: residual blocks at falling resolutions and back, joined by skips."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath.models.blocks import keep_where, sinusoids
from onpath.types import ImageSpec

_TIME_SCALE = 64.0  # t in [0, 1] on the wavelengths 2 to 64 of `sinusoids`


class ImageUNet(nn.Module):
    """A U-Net of some hundred thousand parameters: images (B, C, H, W), time (B,) and a label to a prediction.

    spec: of the data; H and W must be divisible by 2 for every level after the first. width: channels of the first
    level, a multiple of 8. levels: their channels, in multiples of `width`. blocks: residual blocks of each level on
    the way down; up there is one more. attention: whether the lowest level attends. dropout: within the blocks.
    The output begins at zero. Source: arXiv:2105.05233, Section 3 (adaptive group normalisation), at a small size.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        width: int = 64,
        levels: tuple[int, ...] = (1, 2),
        blocks: int = 1,
        attention: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(spec, width, levels, blocks, dropout)
        channels = spec.shape[0]
        self.width, self.num_classes = width, spec.num_classes
        time_width = 4 * width
        self.read_time = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        if spec.num_classes:
            self.label = nn.Embedding(spec.num_classes, time_width)
            self.unconditional = nn.Parameter(torch.zeros(time_width))
        self.read = nn.Conv2d(channels, width, 3, padding=1)
        widths = [width * level for level in levels]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, current = [width], width
        for index, size in enumerate(widths):
            for _ in range(blocks):
                self.down.append(_Block(current, size, time_width, dropout))
                current = size
                skips.append(current)
            if index < len(widths) - 1:
                self.down.append(_Shrink(current))
                skips.append(current)
        self.middle = nn.ModuleList([_Block(current, current, time_width, dropout)])
        if attention:
            self.middle += [_Attention(current), _Block(current, current, time_width, dropout)]
        for index, size in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(_Block(current + skips.pop(), size, time_width, dropout))
                current = size
            if index:
                self.up.append(_Grow(current))
        self.norm = nn.GroupNorm(8, current)
        self.head = nn.Conv2d(current, channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        # a quarter to a third less time for the forward of small images
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def encode(
        self, label: Int64[Tensor, "B"] | None = None, drop: Bool[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B D"] | None:
        """The embedding of the labels, that of no label where dropped; None where the data have no labels."""
        if not self.num_classes:
            return None
        if label is None:
            raise ValueError(
                f"image_unet: the network knows {self.num_classes} classes, but the request has no label; give the "
                "batch cond={'label': (B,) int64}, and cond['drop'] True for samples of no class"
            )
        return keep_where(drop, self.label(label), self.unconditional)

    def forward(
        self, x: Float[Tensor, "B C H W"], t: Float[Tensor, "B"], memo: Float[Tensor, "M D"] | None
    ) -> Float[Tensor, "B C H W"]:
        """The prediction for states x at times t in [0, 1]; row i has memo row i mod M."""
        about = self.read_time(sinusoids(t * _TIME_SCALE, self.width))
        if memo is not None:
            about = about + memo.repeat(len(x) // len(memo), 1)
        about = F.silu(about)
        h = self.read(x.contiguous(memory_format=torch.channels_last))
        kept = [h]
        for part in self.down:
            h = part(h, about)
            kept.append(h)
        for part in self.middle:
            h = part(h, about)
        for part in self.up:
            h = part(torch.cat([h, kept.pop()], 1) if isinstance(part, _Block) else h, about)
        return self.head(F.silu(self.norm(h)))


class _Block(nn.Module):
    """Two convolutions with a residual; time and label scale and shift the second norm."""

    def __init__(self, inputs: int, outputs: int, time_width: int, dropout: float) -> None:
        super().__init__()
        self.first_norm, self.first = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second_norm, self.second = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.about = nn.Linear(time_width, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "B I H W"], about: Float[Tensor, "B T"]) -> Float[Tensor, "B O H W"]:
        h = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.about(about)[:, :, None, None].chunk(2, 1)
        h = self.second_norm(h) * (1.0 + scale) + shift
        return self.skip(x) + self.second(self.dropout(F.silu(h)))


class _Attention(nn.Module):
    """Every place of the lowest level sees every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.read, self.write = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.write.weight)

    def forward(self, x: Float[Tensor, "B C H W"], about: Float[Tensor, "B T"]) -> Float[Tensor, "B C H W"]:
        batch, channels, height, width = x.shape
        heads = next(n for n in range(max(1, channels // 32), 0, -1) if channels % n == 0)
        qkv = self.read(self.norm(x)).view(batch, 3, heads, channels // heads, height * width).transpose(-1, -2)
        seen = F.scaled_dot_product_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2])
        return x + self.write(seen.transpose(-1, -2).reshape(batch, channels, height, width))


class _Shrink(nn.Module):
    """Half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"], about: Float[Tensor, "B T"]) -> Float[Tensor, "B C h w"]:
        return self.conv(x)


class _Grow(nn.Module):
    """Twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"], about: Float[Tensor, "B T"]) -> Float[Tensor, "B C H W"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _check(spec: ImageSpec, width: int, levels: tuple[int, ...], blocks: int, dropout: float) -> None:
    if width < 8 or width % 8 or not levels or min(levels) < 1 or blocks < 1 or not 0.0 <= dropout < 1.0:
        raise ValueError(
            f"image_unet: width is {width}, levels {levels}, blocks {blocks}, dropout {dropout}; needed are a width "
            "divisible by 8, levels such as (1, 2), blocks of 1 or more, and 0 <= dropout < 1"
        )
    factor = 2 ** (len(levels) - 1)
    if spec.shape[1] % factor or spec.shape[2] % factor:
        raise ValueError(
            f"image_unet: images are {spec.shape[1]} x {spec.shape[2]}, and {len(levels)} levels need sides divisible "
            f"by {factor}; choose fewer levels, or pad the images"
        )
    unknown = set(spec.cond) - {"label"}
    if unknown:
        raise ValueError(
            f"image_unet: the data have the conditions {', '.join(sorted(unknown))}, and this network reads only "
            "`label`; leave them out of the data, or take a network of diffusers"
        )
