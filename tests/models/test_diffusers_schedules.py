"""The noise of trained models, beside the tables of diffusers' own schedulers, and what it makes of a config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onpath.config import RunConfig
from onpath.models.diffusers_schedules import dynamic_shift, settings_of

LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SQUARED = {"beta_schedule": "squaredcos_cap_v2"}
V = {"prediction_type": "v_prediction"}
TABLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("DDPMScheduler", {}, "betas", "eps"),
    ("DDPMScheduler", {**SQUARED, "prediction_type": "sample"}, "tabulated", "x0"),
    ("DDIMScheduler", {**LATENT, **V}, "betas", "v"),
    ("DDIMScheduler", {**LATENT, **V, "rescale_betas_zero_snr": True}, "tabulated", "v"),
    ("PNDMScheduler", {**LATENT, "num_train_timesteps": 50}, "betas", "eps"),
    ("EulerDiscreteScheduler", {**SQUARED, **V}, "tabulated", "v"),
    ("EulerDiscreteScheduler", {"trained_betas": [0.1, 0.2, 0.4]}, "tabulated", "eps"),
    ("DPMSolverMultistepScheduler", LATENT, "betas", "eps"),
    ("UniPCMultistepScheduler", LATENT, "betas", "eps"),
]


def saved(folder: Path, name: str, settings: dict[str, Any]) -> Any:
    """A scheduler of diffusers, written into the folder of a pipeline beside its network."""
    import diffusers

    scheduler = getattr(diffusers, name)(**settings)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "unet").mkdir(exist_ok=True)
    (folder / "unet" / "config.json").write_text("{}")
    return scheduler


def config_of(path: Path, **sections: Any) -> RunConfig:
    model = {"kind": "diffusers", "path": str(path), **sections.pop("model", {})}
    return RunConfig.parse(
        {"data": "digits", "model": model, "objective": "denoising", "training": {"steps": 1}, **sections}
    )


@pytest.mark.parametrize(("name", "settings", "kind", "prediction"), TABLES)
def test_a_table_is_that_of_the_scheduler(
    tmp_path: Path, name: str, settings: dict[str, Any], kind: str, prediction: str
) -> None:
    scheduler = saved(tmp_path, name, settings)
    found = settings_of(str(tmp_path))
    assert found is not None and found["schedule"]["kind"] == kind
    assert found["process"] == {"kind": "gaussian", "path": "vp", "prediction": prediction}
    schedule = config_of(tmp_path).schedule.make()
    expected = scheduler.alphas_cumprod.double()
    alpha = schedule.alpha(torch.linspace(0, 1, len(expected), dtype=torch.float64))
    # which diffusers holds in fp32; what is 0 there is small here
    torch.testing.assert_close(alpha, expected, rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_that_of_the_scheduler(tmp_path: Path, shift: float) -> None:
    scheduler = saved(tmp_path, "FlowMatchEulerDiscreteScheduler", {"shift": shift})
    config = config_of(tmp_path)
    assert config.process.as_dict() == {"kind": "gaussian", "path": "flow", "prediction": "flow"}
    sigmas = config.schedule.make().mask_ratio(torch.arange(1000, 0, -1, dtype=torch.float64) / 1000)
    torch.testing.assert_close(sigmas, scheduler.sigmas.double(), rtol=1e-6, atol=1e-7)
    other = saved(
        tmp_path,
        "DPMSolverMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift},
    )
    assert other.config.flow_shift == shift and config_of(tmp_path) == config


def test_the_shift_of_an_image_size_is_that_of_flux() -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for size in (32, 64, 128):
        assert dynamic_shift({}, size, size) == pytest.approx(
            float(torch.tensor(calculate_shift(size * size // 4)).exp())
        )


def test_what_stands_for_no_one_schedule_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
    with pytest.raises(ValueError, match=r"use_dynamic_shifting.*schedule=\{kind: shifted.*1\.878 for 64x64"):
        config_of(tmp_path)
    own = config_of(tmp_path, schedule={"kind": "shifted", "base": "linear", "shift": 1.878})
    assert own.process.fields["prediction"] == "flow" and own.schedule.fields["shift"] == 1.878
    saved(tmp_path, "DDIMScheduler", {"rescale_betas_zero_snr": True})
    with pytest.raises(ValueError, match=r"rescale_betas_zero_snr is true and prediction_type is epsilon"):
        config_of(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    for changed, said in (
        ({"_class_name": "EDMEulerScheduler"}, "is of EDMEulerScheduler, which is not known"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "score"}, "prediction_type is 'score'"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas is true"),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=said):
            config_of(tmp_path)
    said_all = {"schedule": "linear", "process": {"kind": "gaussian", "path": "flow", "prediction": "v"}}
    file.write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    assert config_of(tmp_path, **said_all).process.fields["prediction"] == "v"


def test_a_config_and_a_folder_must_not_contradict_each_other(tmp_path: Path) -> None:
    saved(tmp_path, "DDIMScheduler", {**LATENT, **V})
    with pytest.raises(
        ValueError, match=r"process\.prediction is 'eps', but by .*scheduler_config\.json .* 'v'.*random"
    ):
        config_of(tmp_path, process={"kind": "gaussian", "prediction": "eps"})
    with pytest.raises(ValueError, match=r"process\.path is 'flow', but by .* 'vp'"):
        config_of(tmp_path, process={"path": "flow"})
    filled = config_of(tmp_path, process="gaussian")
    assert filled.schedule.fields == {"num_steps": 1000, **LATENT}
    # a schedule of one's own, and fresh weights, are a choice
    own = config_of(tmp_path, schedule={"kind": "shifted", "base": {"kind": "betas", **LATENT}, "shift": 2.0})
    assert own.schedule.kind == "shifted" and own.process.fields["prediction"] == "v"
    fresh = config_of(
        tmp_path, model={"weights": "random"}, process={"path": "vp", "prediction": "eps"}, schedule="betas"
    )
    assert fresh.process.fields["prediction"] == "eps"
    # once written out, the config needs the scheduler no more
    written = filled.as_dict()
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    assert RunConfig.parse(written) == filled
    with pytest.raises(ValueError, match=r"has no scheduler_config\.json.*process\.prediction"):
        config_of(tmp_path)
    assert config_of(tmp_path, model={"weights": "random"}).process.fields["prediction"] == "flow"
    assert config_of(tmp_path / "nowhere").process.fields["prediction"] == "flow"  # building it says what is missing
