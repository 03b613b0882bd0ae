"""The noise that a diffusers model was trained with, from its scheduler_config.json, as sections of a config."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from onpath.models.diffusers_networks import network_folder

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_TABLES = (
    *("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
    *("LMSDiscreteScheduler", "HeunDiscreteScheduler", "DEISMultistepScheduler", "DDPMParallelScheduler"),
)
_LEAST = 2.0**-24  # stands for an alpha of 0 at the last step, as in diffusers' own Euler scheduler
Sections = dict[str, dict[str, Any]]


def settings_of(path: str) -> Sections | None:
    """The sections `schedule` and `process` of a model in folder `path`, None where no scheduler_config.json is there.

    ValueError for a scheduler that stands for no one schedule.

    >>> # settings_of("stable-diffusion-3.5-medium")["schedule"]
    >>> # {'kind': 'shifted', 'base': {'kind': 'linear'}, 'shift': 3.0}
    """
    file = _file(path)
    if file is None:
        return None
    config = _read(file)
    return {"schedule": _schedule(config, file), "process": _process(config, file)}


def sections(path: str, is_trained: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sections `schedule` and `process` of a run whose network is the one in folder `path`.

    given: what the config says; it goes before what the folder says, but trained weights keep their path and their
    prediction. Empty where there is no such folder, which whoever loads the network will say.
    ValueError where config and folder contradict each other, or where neither says what the network predicts.
    """
    try:
        file = _file(path)
    except ValueError:
        return {}
    process, schedule = given.get("process") or {}, given.get("schedule")
    process = {"kind": process} if isinstance(process, str) else dict(process)
    has_schedule = isinstance(schedule, str) or (isinstance(schedule, Mapping) and {"kind", "class"} & schedule.keys())
    is_said = bool(has_schedule) and {"path", "prediction"} <= process.keys()
    if not is_trained and process:
        return {}
    if file is None:
        if is_trained and not is_said:
            raise ValueError(
                f"config: {path} has no scheduler_config.json, which would say how its weights were trained; copy it "
                "there, or set schedule, process.path (flow, vp) and process.prediction (eps, v, x0, flow)"
            )
        return {}
    config = _read(file)
    if is_said and config.get("_class_name") not in (*_FLOWS, *_TABLES):
        return {}
    trained = _process(config, file)
    for name in ("path", "prediction") if is_trained else ():
        if process.get(name, trained[name]) != trained[name]:
            raise ValueError(
                f"config: process.{name} is {process[name]!r}, but by {file} the network was trained with "
                f"{trained[name]!r}; leave process.{name} out, or set model.weights=random"
            )
    return {"process": {**trained, **process}, "schedule": schedule if has_schedule else _schedule(config, file)}


def _file(path: str) -> Path | None:
    network = network_folder(path)
    for folder in (network, network / "scheduler", network.parent / "scheduler"):
        if (folder / "scheduler_config.json").is_file():
            return folder / "scheduler_config.json"
    return None


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _process(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    name, kind = config.get("_class_name"), config.get("prediction_type", "epsilon")
    if name not in (*_FLOWS, *_TABLES):
        raise ValueError(
            f"{file} is of {name}, which is not known here; known are {', '.join((*_FLOWS, *_TABLES))}. Say how the "
            "network was trained in the config: schedule, process.path (flow, vp), process.prediction"
        )
    if name not in _FLOWS and kind not in _PREDICTIONS:
        raise ValueError(f"{file}: prediction_type is {kind!r}; known are {', '.join(_PREDICTIONS)}")
    prediction = "flow" if name in _FLOWS else _PREDICTIONS[kind]
    return {"kind": "gaussian", "path": "flow" if prediction == "flow" else "vp", "prediction": prediction}


def _schedule(config: Mapping[str, Any], file: Path) -> dict[str, Any]:
    process = _process(config, file)
    if process["path"] == "vp":
        return _table(config, file, process["prediction"])
    shift = _shift(config, file) if config["_class_name"] in _FLOWS else config.get("flow_shift", 1.0)
    linear = {"kind": "linear"}
    return linear if shift == 1.0 else {"kind": "shifted", "base": linear, "shift": float(shift)}


def _shift(config: Mapping[str, Any], file: Path) -> float:
    if config.get("invert_sigmas"):
        raise ValueError(
            f"{file}: invert_sigmas is true; such a model runs from noise to data, which is not known here"
        )
    if not config.get("use_dynamic_shifting"):
        return config.get("shift", 1.0)
    shifts = ", ".join(f"{dynamic_shift(config, size, size):.3f} for {size}x{size}" for size in (32, 64, 128))
    raise ValueError(
        f"{file}: use_dynamic_shifting is true, so that its shift follows the size of the image; a run has one "
        f"schedule, so write the shift of your latents into the config: schedule={{kind: shifted, base: linear, "
        f"shift: …}} and process={{path: flow, prediction: flow}}. The shifts are {shifts} (latents in patches of 2x2)"
    )


def dynamic_shift(config: Mapping[str, Any], height: int, width: int) -> float:
    """The shift that a scheduler with use_dynamic_shifting takes for latents of this size, in patches of 2×2.

    >>> round(dynamic_shift({}, 128, 128), 3)
    3.158
    """
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    mu = low + (high - low) * (height * width / 4 - few) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


def _table(config: Mapping[str, Any], file: Path, prediction: str) -> dict[str, Any]:
    """The schedule of a table of betas; where it is no formula of ``BetasSchedule``, all its values."""
    kind, given = config.get("beta_schedule", "linear"), config.get("trained_betas")
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    steps, rescale = config.get("num_train_timesteps", 1000), config.get("rescale_betas_zero_snr", False)
    if given is None and not rescale and kind in ("linear", "scaled_linear"):
        return {"kind": "betas", "beta_schedule": kind, "beta_start": start, "beta_end": end, "num_steps": steps}
    if given is not None:
        betas = torch.tensor(given, dtype=torch.float64)
    elif kind == "squaredcos_cap_v2":
        curve = ((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1.0 - curve[1:] / curve[:-1]).clamp_max(0.999)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise ValueError(
            f"{file}: beta_schedule is {kind!r}; known are linear, scaled_linear and squaredcos_cap_v2. Write the "
            "values into it as trained_betas"
        )
    alphas = (1.0 - betas).cumprod(0)
    if rescale and prediction == "eps":
        raise ValueError(
            f"{file}: rescale_betas_zero_snr is true and prediction_type is epsilon; where the input is all noise, a "
            "predicted noise says nothing of the image. Take a model of v_prediction, or set the rescaling to false"
        )
    if rescale:  # the square roots moved and stretched, so that the last is 0 and the first stays: arXiv:2305.08891
        roots = alphas.sqrt()
        alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])).square()
        alphas[-1] = min(_LEAST, float(alphas[-2]) / 2.0)
    return {"kind": "tabulated", "alphas_cumprod": alphas.tolist()}
