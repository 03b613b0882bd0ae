"""Networks with random weights to time rollouts with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn as nn
from torch import Tensor

from onpath.models.unet import ImageUNet
from onpath.types import ImageSpec


class Foreign(nn.Module):
    """A network of diffusers as a denoiser without conditions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode(self) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: None) -> Tensor:
        return self.network(x, 1000.0 * t, return_dict=False)[0]


def digits_network() -> nn.Module:
    """That of the recipe `digits`, without labels; a fresh one would predict 0."""
    network = ImageUNet(ImageSpec((1, 8, 8)), width=32, levels=(1, 2))
    nn.init.normal_(network.head.weight, std=0.05)
    return network


def diffusers_network(side: int, channels: int) -> nn.Module:
    from diffusers.models.unets.unet_2d import UNet2DModel

    settings: dict[str, Any] = {"layers_per_block": 1, "norm_num_groups": 8, "block_out_channels": (32, 64)}
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    made = UNet2DModel(sample_size=side, in_channels=channels, out_channels=channels, **settings, **blocks)
    return Foreign(made)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "image_unet": (digits_network, (1, 8, 8)),
    "UNet2DModel": (partial(diffusers_network, 8, 1), (1, 8, 8)),
    "UNet2DModel-16": (partial(diffusers_network, 16, 3), (3, 16, 16)),
}
