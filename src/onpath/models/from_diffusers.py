"""Trained networks of diffusers as denoisers of images and latents: U-Nets and transformers, whole or with LoRA."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn as nn
from jaxtyping import Bool, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from onpath.models.diffusers_networks import STEPS, WIRINGS, Condition, Images, Times, Wiring, network_folder
from onpath.models.lora import LoRA, merge
from onpath.models.pretrained import extra, quiet
from onpath.models.surgery import fingerprint
from onpath.schedules import BetasSchedule, Schedule, ShiftedSchedule, TabulatedSchedule
from onpath.types import ImageSpec

Weights = Literal["fp32", "bf16", "random"]


@runtime_checkable
class NoiseProcess(Protocol):
    """What a network must know of a process to be told its time: the schedule, and `flow` or `vp`."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def path(self) -> str: ...


class Diffusers(nn.Module):
    """A network of Hugging Face's diffusers, in the class that its config.json names.

    Known are UNet2DModel and DiT (condition `label`), UNet2DConditionModel (`text` (B, T, D), and for SDXL `pooled`
    (B, P)), SD3 and Flux (`text` and `pooled`), PixArt, AuraFlow, Sana and Lumina2 (`text`); where the data have a
    `text_mask` (B, T) bool, True at text that counts, those with cross-attention get it. Time reaches a network as it
    was trained: as the step of a table where the path is `vp`, as 1000·sigma where it is `flow`.

    spec: of the data, whose images are what it takes (latents, for most). process: of the run. path: a folder with
      config.json and weights, or a pipeline's with `unet` or `transformer` in it. lora: what to train in place of all
      weights. weights: the trained ones in `fp32`, or in `bf16` to save memory where they are frozen; or `random`,
      fresh ones by the config. null: where a condition is dropped, its embeddings are `zeros`, `learned`, or those of
      a .safetensors file with one example of each. gradient_checkpointing: make activations anew in the backward.
    """

    def __init__(
        self,
        spec: ImageSpec,
        process: NoiseProcess,
        *,
        path: str,
        lora: LoRA | None = None,
        weights: Weights = "fp32",
        null: str = "zeros",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _require_trained(weights, lora)
        self.spec, self.process, self.path, self.lora = spec, process, path, lora
        folder = network_folder(path)
        self.wiring, config = _read(folder)
        _require_fit(self.wiring, config, spec, path)
        self.network = _load(folder, config["_class_name"], weights)
        _freeze_tables(self.network)
        self.conditions = self.wiring.taken(config, spec.cond)
        self.null, self._learns_null = _null(null, self.conditions, spec), null == "learned"
        self.base = torch.empty(0, dtype=torch.int64)
        if lora is not None:
            self.base = fingerprint(self.network)
            lora.put_into(self.network)
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()

    def train(self, mode: bool = True) -> Diffusers:
        """As ever, but for the drop-out of the network, which stays off: it would be drawn from a global state."""
        super().train(mode)
        self.network.eval()
        return self

    def get_extra_state(self) -> Int64[Tensor, "P"]:
        """What tells the frozen weights of a checkpoint, which it does not hold, from others."""
        return self.base

    def set_extra_state(self, state: Int64[Tensor, "P"]) -> None:
        if not torch.equal(state.cpu(), self.base):
            raise ValueError(
                f"diffusers: the checkpoint was trained beside other frozen weights than those of {self.path} now; "
                "put back the model that it was trained with"
            )

    def encode(self, drop: Bool[Tensor, "B"] | None = None, **cond: Tensor) -> tuple[Tensor, ...] | None:
        """The conditions that the network takes, those of the rows in `drop` (B,) replaced by the null embedding."""
        if not self.conditions:
            return None
        return tuple(self._dropped(condition, cond[condition.name], drop) for condition in self.conditions)

    def _dropped(self, condition: Condition, value: Tensor, drop: Bool[Tensor, "B"] | None) -> Tensor:
        if drop is None:
            return value
        if condition.classes is not None:
            return torch.where(drop, self._null_label(condition), value)
        null = self.null[condition.name].to(value.dtype)
        return torch.where(drop.view(-1, *(1,) * null.dim()), null, value)

    def _null_label(self, condition: Condition) -> int:
        if self.lacks_null:
            raise ValueError(f"diffusers: {self.lacks_null}; set guidance and condition_dropout to 0")
        return condition.rows(self.network.config) - 1

    @property
    def lacks_null(self) -> str:
        """Why no condition can be dropped, in words; "" where each can."""
        if not self.conditions:
            return f"{self.path} takes no condition"
        for condition in self.conditions:
            rows = condition.rows(self.network.config)
            if condition.classes is not None and rows <= self.spec.num_classes:
                return f"{self.path} has {rows} class embeddings for {self.spec.num_classes} classes, none for no class"
        return ""

    def forward(self, x: Images, t: Times, memo: tuple[Tensor, ...] | None) -> Images:
        """What `process.prediction` says, at times t (B,) of the process; the memo may have fewer rows than x."""
        dtype = self.network.dtype
        cond = {}
        for condition, value in zip(self.conditions, memo or (), strict=True):
            value = value.to(dtype) if value.is_floating_point() else value
            cond[condition.argument] = value.repeat(len(x) // len(value), *(1,) * (value.dim() - 1))
        return self.wiring(self.network, x.to(dtype), model_time(self.process, t), cond).to(x.dtype)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Writes the network with what was trained merged into it, so that diffusers loads it from `folder`.

        Null embeddings that were learned lie beside it in null.safetensors. ValueError where `folder` holds something
        already.
        """
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"export: {folder} is not empty; give a new folder")
        network = copy.deepcopy(self.network)
        if self.lora is not None:
            merge(network)
        network.save_pretrained(folder)
        learned = {name: p.detach().cpu().contiguous() for name, p in self.null.items() if self._learns_null}
        if learned:
            save_file(learned, folder / "null.safetensors")


def model_time(process: NoiseProcess, t: Times) -> Times:
    """The time of a state in the units that networks of diffusers are trained in, fp32.

    `flow`: 1000·sigma of the state, the schedule's shift in it. `vp`: the step of the table, 0 to K - 1; between two
    steps it is a fraction. A shift of a table moves the state, and the step with it.
    """
    schedule, exact = process.schedule, t.double()
    if process.path == "flow":
        return (STEPS * schedule.mask_ratio(exact)).to(torch.float32)
    while isinstance(schedule, ShiftedSchedule):
        exact, schedule = schedule.base.t_of(schedule.alpha(exact)), schedule.base
    last = (len(schedule.table()) if isinstance(schedule, BetasSchedule | TabulatedSchedule) else STEPS) - 1
    step = last * exact
    whole = step.round()  # t in fp32 cannot say a step to more than 1e-4
    return torch.where((step - whole).abs() < 2e-4, whole, step).to(torch.float32)


def _read(folder: Path) -> tuple[Wiring, dict[str, Any]]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("_class_name")
    if name not in WIRINGS:
        raise ValueError(
            f"path is {str(folder)!r}, whose config.json is of {name}; known are {', '.join(WIRINGS)}. Write a "
            "denoiser of your own around it (docs/extend.md)"
        )
    told_more = config.get("use_additional_conditions")
    if name.startswith("PixArt") and (told_more or (told_more is None and config.get("sample_size") == 128)):
        raise ValueError(
            f"path is {str(folder)!r}, a PixArt that is told resolution and aspect ratio, which is not known here; "
            "take one without use_additional_conditions, such as PixArt-Sigma"
        )
    return WIRINGS[name], config


def _freeze_tables(network: nn.Module) -> None:
    """Makes saved buffers, such as a table of positions, frozen weights, which no checkpoint holds."""
    kept = network.state_dict().keys()
    for name, buffer in list(network.named_buffers()):
        if name in kept:
            parent, _, attribute = name.rpartition(".")
            module = network.get_submodule(parent)
            delattr(module, attribute)
            module.register_parameter(attribute, nn.Parameter(buffer, requires_grad=False))


def _require_trained(weights: Weights, lora: LoRA | None) -> None:
    if weights == "random" and lora is not None:
        raise ValueError("diffusers: weights: random would stay random beside lora; leave out weights or lora")
    if weights == "bf16" and lora is None:
        raise ValueError(
            "diffusers: weights is bf16 without lora; trained weights need fp32, or small steps are lost. "
            "Set lora, or weights: fp32 (training.precision: bf16 computes in bf16 all the same)"
        )


def _require_fit(wiring: Wiring, config: Mapping[str, Any], spec: ImageSpec, path: str) -> None:
    """ValueError where the network could not take images or conditions of these shapes."""
    channels, height, width = spec.shape
    if channels != wiring.channels(config):
        raise ValueError(
            f"diffusers: the data are {_sizes(spec.shape)} (channels, height, width) and {path} takes "
            f"{wiring.channels(config)} channels; give it what it was trained on, the latents of its own autoencoder "
            "for most networks (data.kind=latents)"
        )
    stride = wiring.stride(config)
    if height % stride or width % stride:
        raise ValueError(
            f"diffusers: the data are {height}x{width}, and {path} needs multiples of {stride}; crop or pad the images"
        )
    for condition in wiring.taken(config, spec.cond):
        shape, width = spec.cond.get(condition.name), wiring.width(condition, config)
        if shape is None:
            raise ValueError(
                f"diffusers: {path} needs the condition {condition.name!r}, and the data have "
                f"{', '.join(spec.cond) or 'none'}; cache its embeddings beside the latents (docs/diffusers.md)"
            )
        if width is not None and shape[-1] != width:
            raise ValueError(
                f"diffusers: {condition.name!r} of the data is {_sizes(shape)} and {path} takes embeddings of {width}; "
                "make them with the text encoders that belong to it"
            )
        if condition.classes is not None and spec.num_classes > condition.rows(config):
            raise ValueError(
                f"diffusers: the data have {spec.num_classes} classes and {path} has embeddings for "
                f"{condition.rows(config)}; take a network with one for each, and one more for no class"
            )


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _null(given: str, conditions: tuple[Condition, ...], spec: ImageSpec) -> nn.ParameterDict:
    """The embeddings, one example of each, of no text."""
    shapes = {c.name: spec.cond[c.name] for c in conditions if c.classes is None}
    whole = {c.name: nn.Parameter(torch.ones(spec.cond[c.name]), False) for c in conditions if c.is_optional}
    if given in ("zeros", "learned"):
        zeros = {name: nn.Parameter(torch.zeros(shape), given == "learned") for name, shape in shapes.items()}
        return nn.ParameterDict(zeros | whole)  # a mask over no text lets all of it be seen
    if Path(given).suffix != ".safetensors" or not Path(given).is_file():
        raise ValueError(
            f"diffusers: null is {given!r}; allowed are zeros, learned, or a .safetensors file that is there, with "
            f"one example of each of {', '.join(shapes) or 'no condition'}"
        )
    held = load_file(given)
    for name, shape in shapes.items():
        found = held.get(name)
        if found is None or tuple(found.shape) != shape:
            has = "nothing" if found is None else _sizes(tuple(found.shape))
            raise ValueError(f"diffusers: null {given} has {has} as {name!r}, and the data have {_sizes(shape)}")
    return nn.ParameterDict({name: nn.Parameter(held[name].float(), False) for name in shapes})


def _load(folder: Path, name: str, weights: Weights) -> Any:
    """The network in evaluation mode."""
    with quiet("diffusers", "images"):
        cls = getattr(extra("diffusers", "images"), name)
        if weights == "random":
            return cls.from_config(cls.load_config(folder)).eval()
        dtype = torch.bfloat16 if weights == "bf16" else torch.float32
        try:
            network, found = cls.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"path is {str(folder)!r}, which cannot be loaded ({reason})") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{folder} has no weights for {missing[0]} and {len(missing) - 1} more, which would be random")
    return network.eval()
