"""Feature spaces in which sets of images are compared: small classifiers shipped with the package, or one of yours."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_CHUNK = 512  # images that go through the network together


@dataclass(frozen=True)
class Pinned:
    """A network of the package. shape: (C, H, W) of its images. sha256: of its file. accuracy: on the test split."""

    shape: tuple[int, int, int]
    num_classes: int
    dim: int
    sha256: str
    accuracy: float


PINNED = {
    "digits": Pinned(
        (1, 8, 8), 10, 32, "9a6719d891055ab1c7d27fed35d987cda9a5b15b761391564a11261a2d9eeb86", accuracy=0.994
    ),
    "fashion_mnist": Pinned(
        (1, 28, 28), 10, 48, "d0917871f0092ed6288ee61064f65874b25e3fa375c80c3ae9e32c5d61b75c99", accuracy=0.9269
    ),
    "cifar10": Pinned(
        (3, 32, 32), 10, 48, "d45d76be18f9f8488fcfbbcfe3ca5fa2d715007b26f2755554bcb83e60ed21a5", accuracy=0.8205
    ),
}
"""The networks of the package by name, each trained on the training split by ``benchmarks.features``."""


class FeatureNetwork(nn.Module):
    """A small convolutional classifier of images in [-1, 1]; its last layer but one is the feature space.

    shape: (C, H, W), sides of 8 or more, halved until they are 4 or less. dim: of the features, each of mean 0 and
    variance 1 over the images that it was trained on, so that a squared distance of 1 is one variance.

    >>> FeatureNetwork((1, 8, 8), num_classes=10, dim=32)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 32])
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, dim: int) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        halvings = max(1, math.ceil(math.log2(max(height, width) / 4)))
        for left in range(halvings, 0, -1):
            wide = 16 * max(1, 4 - left)
            layers += [*_block(channels, wide), *_block(wide, wide), nn.MaxPool2d(2, ceil_mode=True)]
            channels = wide
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            flat = self.trunk.eval()(torch.zeros(1, *shape)).shape[1]
        self.trunk.train()
        self.project = nn.Linear(flat, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim, affine=False)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Features of images in [-1, 1]."""
        return self.norm(self.project(self.trunk(images)))

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Class logits of features."""
        return self.head(F.relu(features))


def _block(narrow: int, wide: int) -> list[nn.Module]:
    return [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]


@dataclass(frozen=True)
class Features:
    """A feature space, with what it takes to repeat a figure: its name and the checksum of its weights.

    num_classes: that the network tells apart, 0 where it is no classifier of ours. shape: of its images, None where
    the network itself says what it takes.
    """

    name: str
    checksum: str
    network: Any
    num_classes: int = 0
    shape: tuple[int, int, int] | None = None

    def of(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        """Features of images in [-1, 1], fp64 on the CPU, some hundred images at a time."""
        with torch.no_grad():
            parts = [self.network(part.to(self._device)).flatten(1).cpu() for part in images.split(_CHUNK)]
        return torch.cat(parts).double()

    def labels(self, features: Float[Tensor, "N D"]) -> Int64[Tensor, "N"]:
        """The class that the network sees in each image, from its features; ValueError without classes."""
        if not self.num_classes:
            raise ValueError(f"features: {self.name} is no classifier; take one of {', '.join(PINNED)}")
        with torch.no_grad():
            return self.network.logits(features.to(self._device, torch.float32)).argmax(-1).cpu()

    @property
    def _device(self) -> torch.device:
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))


def load_features(name: str, device: torch.device | str = "cpu") -> Features:
    """The feature space `name`: one of ``PINNED``, or the path of a TorchScript module, such as an Inception network.

    The module maps (B, C, H, W) in [-1, 1] to (B, D) and does any resizing and scaling itself. ValueError for a name
    that is neither, for weights that are not those the package was released with, and for a file that is no module.

    >>> load_features("digits").num_classes
    10
    """
    if name in PINNED:
        return _pinned(name, weights_of(name), device)
    path = Path(name)
    if not path.is_file():
        raise ValueError(
            f"features: {name!r} is neither a network of the package nor a file; allowed are {', '.join(PINNED)} and "
            "the path of a TorchScript module from images (B, C, H, W) in [-1, 1] to features (B, D)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the format in which Inception networks are passed on
            network = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"features: {path} is not a TorchScript module ({reason}); write one with torch.jit.trace(network, "
            "images).save(path)"
        ) from error
    return Features(path.name, _sha256(path), network)


def weights_of(name: str) -> Path:
    """The file of a network of the package."""
    return Path(__file__).with_name(f"features-{name}.safetensors")


def _pinned(name: str, path: Path, device: torch.device | str) -> Features:
    from safetensors.torch import load_file

    pinned, found = PINNED[name], _sha256(path)
    if found != pinned.sha256:
        raise ValueError(
            f"features: {path} has the sha256 {found[:16]}… and not {pinned.sha256[:16]}…, so its figures would not "
            "compare with others; install onpath again"
        )
    network = FeatureNetwork(pinned.shape, pinned.num_classes, pinned.dim)
    network.load_state_dict(load_file(path))
    network.to(device).eval().requires_grad_(False)
    return Features(name, pinned.sha256, network, pinned.num_classes, pinned.shape)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
