"""How the networks of diffusers are called: what each takes for image, time and conditions, and in which units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "B C H W"]
Times = Float[Tensor, "B"]
_FOLDERS = ("", "unet", "transformer")  # of a network, below that of a pipeline
STEPS = 1000  # a sigma of 1 in the units of diffusers, whatever a network was trained with


@dataclass(frozen=True)
class Condition:
    """A condition of the data and what it is to a network.

    name: in the data. argument: of the network's forward. width: the setting of its config that says how wide an
    embedding is, None for a class label.
    """

    name: str
    argument: str
    width: str | None = None


TEXT = Condition("text", "encoder_hidden_states", "joint_attention_dim")
POOLED = Condition("pooled", "pooled_projections", "pooled_projection_dim")
LABEL = Condition("label", "class_labels")


@dataclass(frozen=True)
class Wiring(ABC):
    """How the networks of one class are called.

    conditions: what they may be given. time_scale: of the time, which is 0 to 1000 before. reverses: their time and
    their output run the other way, from noise to data.
    """

    conditions: tuple[Condition, ...] = ()
    time_scale: float = 1.0
    reverses: bool = False

    def taken(self, config: Mapping[str, Any]) -> tuple[Condition, ...]:
        """The conditions that a network with this config needs: all, but for a label that it has no embedding for."""
        return tuple(c for c in self.conditions if c.width is not None or config.get("num_class_embeds"))

    @abstractmethod
    def channels(self, config: Mapping[str, Any]) -> int:
        """Channels of the images that a network with this config takes."""

    @abstractmethod
    def stride(self, config: Mapping[str, Any]) -> int:
        """What height and width must be multiples of."""

    @abstractmethod
    def call(self, network: Any, x: Images, time: Times, cond: Mapping[str, Tensor]) -> Images:
        """The output of the network, of the shape of x. `cond`: the network's arguments by name."""

    def __call__(self, network: Any, x: Images, time: Times, cond: Mapping[str, Tensor]) -> Images:
        """`call` in the network's own units; time: 0 at data, 1000 at noise."""
        time = time * self.time_scale
        if not self.reverses:
            return self.call(network, x, time, cond)
        return -self.call(network, x, STEPS * self.time_scale - time, cond)


@dataclass(frozen=True)
class Plain(Wiring):
    """Image in, image out, a time for each row.

    image, time: names of the first arguments. fixed: arguments that are always the same. An output with more channels
    than the input has a variance behind the prediction, which is cut off.
    """

    image: str = "hidden_states"
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"]

    def stride(self, config: Mapping[str, Any]) -> int:
        if "patch_size" in config:
            return config["patch_size"]
        return 2 ** (len(config["block_out_channels"]) - 1)

    def call(self, network: Any, x: Images, time: Times, cond: Mapping[str, Tensor]) -> Images:
        inputs = {self.image: x, "timestep": time, **cond, **self.fixed}
        return network(**inputs, return_dict=False)[0][:, : x.shape[1]]


@dataclass(frozen=True)
class Packed(Wiring):
    """Patches of 2×2 as tokens, with a place for each token of image and text, and a guidance where it was distilled.

    The guidance that such a network is told is 1, as in training without any.
    """

    def channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"] // 4

    def stride(self, config: Mapping[str, Any]) -> int:
        return 2

    def call(self, network: Any, x: Images, time: Times, cond: Mapping[str, Tensor]) -> Images:
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(row), row, column], dim=-1).view(-1, 3).to(x.device, time.dtype)
        told = {"guidance": torch.ones_like(time)} if network.config.guidance_embeds else {}
        out = network(
            hidden_states=pack(x),
            timestep=time,
            img_ids=places,
            txt_ids=places.new_zeros(cond["encoder_hidden_states"].shape[1], 3),
            **cond,
            **told,
            return_dict=False,
        )[0]
        return unpack(out, height, width)


def pack(x: Images) -> Float[Tensor, "B N C4"]:
    """Patches of 2×2 as tokens, row by row, the four pixels of a channel side by side.

    >>> pack(torch.arange(4.0).view(1, 1, 2, 2))
    tensor([[[0., 1., 2., 3.]]])
    """
    size, channels, height, width = x.shape
    x = x.reshape(size, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(size, height * width // 4, 4 * channels)


def unpack(tokens: Float[Tensor, "B N C4"], height: int, width: int) -> Images:
    """The image of height × width patches that ``pack`` made these tokens of."""
    size, _, channels = tokens.shape
    x = tokens.reshape(size, height, width, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(size, channels // 4, 2 * height, 2 * width)


WIRINGS: Mapping[str, Wiring] = {
    "UNet2DModel": Plain((LABEL,), image="sample"),
    "UNet2DConditionModel": Plain((Condition("text", "encoder_hidden_states", "cross_attention_dim"),), image="sample"),
    "SD3Transformer2DModel": Plain((TEXT, POOLED)),
    "FluxTransformer2DModel": Packed((TEXT, POOLED), time_scale=1 / STEPS),
}


def network_folder(path: str) -> Path:
    """Where config.json of the network is: in `path`, or in the part of a pipeline; ValueError where it is nowhere."""
    root = Path(path).expanduser()
    for part in _FOLDERS:
        if (root / part / "config.json").is_file():
            return root / part
    raise ValueError(
        f"path is {path!r}, and there is no config.json in it, nor in unet or transformer below it; give the folder of "
        "a diffusers network or pipeline (hf download NAME --local-dir FOLDER)"
    )
