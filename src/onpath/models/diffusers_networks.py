"""How the networks of diffusers are called: what each takes for image, time and conditions, and in which units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
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
    embedding is. classes: of a label, the setting that says how many there are. spare: rows of its table beyond these.
    is_optional: taken where the data have it.
    """

    name: str
    argument: str
    width: str | None = None
    classes: str | None = None
    spare: int = 0
    is_optional: bool = False

    def rows(self, config: Mapping[str, Any]) -> int:
        """Rows in the table of a label, the last of which stands for none; 0 where there is no table."""
        count = config.get(self.classes) if self.classes else None
        return count + self.spare if count else 0


TEXT, TEXT_MASK = "encoder_hidden_states", Condition("text_mask", "encoder_attention_mask", is_optional=True)
_JOINT = Condition("text", TEXT, "joint_attention_dim")
_POOLED = Condition("pooled", "pooled_projections", "pooled_projection_dim")
_CAPTION = Condition("text", TEXT, "caption_channels")


@dataclass(frozen=True)
class Wiring(ABC):
    """How the networks of one class are called.

    conditions: what they may be given. time_scale: of the time, which is 0 to 1000 before; a network whose config has a
    timestep_scale is told the product. reverses: their time and their output run the other way, from noise to data.
    """

    conditions: tuple[Condition, ...] = ()
    time_scale: float = 1.0
    reverses: bool = False

    def taken(self, config: Mapping[str, Any], names: Collection[str]) -> tuple[Condition, ...]:
        """The conditions that a network with this config needs, and optional ones that are among `names`, the data's.

        A label is left out where the network has no table for it.
        """
        return tuple(
            one
            for one in self.conditions
            if (one.name in names if one.is_optional else one.classes is None or one.rows(config))
        )

    def width(self, condition: Condition, config: Mapping[str, Any]) -> int | None:
        """How wide an embedding must be, None for what is no embedding."""
        return config[condition.width] if condition.width else None

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
        scale = self.time_scale * network.config.get("timestep_scale", 1.0)
        if not self.reverses:
            return self.call(network, x, scale * time, cond)
        return -self.call(network, x, scale * (STEPS - time), cond)


@dataclass(frozen=True)
class Plain(Wiring):
    """Image in, image out, a time for each row.

    image: name of the first argument. fixed: arguments that are always the same. needs_mask: which of the text counts
    must be said. An output with more channels than the input has a variance behind the prediction, which is cut off.
    """

    image: str = "hidden_states"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs_mask: bool = False

    def channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"]

    def stride(self, config: Mapping[str, Any]) -> int:
        if "patch_size" in config:
            return config["patch_size"]
        return 2 ** (len(config["block_out_channels"]) - 1)

    def call(self, network: Any, x: Images, time: Times, cond: Mapping[str, Tensor]) -> Images:
        inputs = {self.image: x, "timestep": time, **cond, **self.fixed}
        if self.needs_mask and TEXT_MASK.argument not in inputs:
            inputs[TEXT_MASK.argument] = torch.ones(cond[TEXT].shape[:2], dtype=torch.bool, device=x.device)
        return network(**inputs, return_dict=False)[0][:, : x.shape[1]]


@dataclass(frozen=True)
class TextUNet(Wiring):
    """A U-Net that attends to text; the larger kind (SDXL) has the pooled text and the size of the picture beside it.

    scale: pixels that a latent stands for. The picture is told to be whole, and as large as it is.
    """

    scale: int = 8

    def channels(self, config: Mapping[str, Any]) -> int:
        return config["in_channels"]

    def stride(self, config: Mapping[str, Any]) -> int:
        return 2 ** (len(config["block_out_channels"]) - 1)

    def taken(self, config: Mapping[str, Any], names: Collection[str]) -> tuple[Condition, ...]:
        is_large = config.get("addition_embed_type") == "text_time"
        return tuple(one for one in super().taken(config, names) if is_large or one.name != "pooled")

    def width(self, condition: Condition, config: Mapping[str, Any]) -> int | None:
        if condition.name != "pooled":
            return super().width(condition, config)
        return config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]

    def call(self, network: Any, x: Images, time: Times, cond: Mapping[str, Tensor]) -> Images:
        inputs: dict[str, Any] = {**cond}
        if "text_embeds" in cond:
            size = [self.scale * side for side in x.shape[-2:]]
            sizes = torch.tensor([*size, 0, 0, *size], dtype=x.dtype, device=x.device).expand(len(x), 6)
            inputs["added_cond_kwargs"] = {"text_embeds": inputs.pop("text_embeds"), "time_ids": sizes}
        return network(sample=x, timestep=time, **inputs, return_dict=False)[0]


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
    "UNet2DModel": Plain((Condition("label", "class_labels", classes="num_class_embeds"),), image="sample"),
    "UNet2DConditionModel": TextUNet(
        (Condition("text", TEXT, "cross_attention_dim"), Condition("pooled", "text_embeds"), TEXT_MASK)
    ),
    "DiTTransformer2DModel": Plain((Condition("label", "class_labels", classes="num_embeds_ada_norm", spare=1),)),
    "PixArtTransformer2DModel": Plain(
        (_CAPTION, TEXT_MASK), fixed={"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    ),
    "SD3Transformer2DModel": Plain((_JOINT, _POOLED)),
    "AuraFlowTransformer2DModel": Plain((_JOINT,), time_scale=1 / STEPS),
    "SanaTransformer2DModel": Plain((_CAPTION, TEXT_MASK)),
    "Lumina2Transformer2DModel": Plain(
        (Condition("text", TEXT, "cap_feat_dim"), TEXT_MASK), time_scale=1 / STEPS, reverses=True, needs_mask=True
    ),
    "FluxTransformer2DModel": Packed((_JOINT, _POOLED), time_scale=1 / STEPS),
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
