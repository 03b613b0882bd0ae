"""Configs of SimpleTuner as recipes: what each setting becomes, and that none is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from onpath.cli import app
from onpath.config import RunConfig
from onpath.imports.keys import Imported
from onpath.imports.simpletuner import read
from onpath.mistakes import message_of

S = "scheduled_sampling_"
FLUX = {"--model_family": "flux", "--pretrained_model_name_or_path": "black-forest-labs/FLUX.1-dev"}
EPS = {"prediction_type": "epsilon", "pretrained_model_name_or_path": "sd"}


def imported(tmp_path: Path, **settings: Any) -> Imported:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings))
    return read(file)


def parsed(made: Imported) -> RunConfig:
    """The recipe as a run reads it."""
    return RunConfig.parse(yaml.safe_load(made.recipe()))


def rollouts(made: Imported) -> dict[str, Any]:
    return made.sections["objective"]["scheduled_sampling"]


def said(lines: Any, *words: str) -> bool:
    return any(all(word in line for word in words) for line in lines)


def test_the_example_of_the_seed_is_a_recipe(tmp_path: Path) -> None:
    """The basic set-up of SimpleTuner's page on scheduled sampling, on a flow-matching model."""
    options = {f"{S}max_step_offset": 10, f"{S}probability": 1.0, f"{S}sampler": "unipc"}
    made = imported(tmp_path, prediction_type="flow_matching", **options)
    rule = rollouts(made)
    assert rule["max_step_offset"] == 10 and rule["grid_steps"] == 1000 and rule["min_step_offset"] == 0
    assert rule["probability"] == 1.0 and rule["sampler"] == "unipc" and rule["order"] == 2
    assert rule["reflexflow"] == {"alpha": 1.0, "beta1": 10.0, "beta2": 1.0}
    assert "target" not in rule  # restoring, the default here
    assert parsed(made).process.as_dict() == {"kind": "gaussian", "path": "flow", "prediction": "flow"}
    assert said(made.differences, "Euler steps whatever the sampler, here unipc")  # erratum 25
    assert said(made.differences, "one sample at a time", "training mode")  # 26
    assert said(made.differences, "1/1000 of the path: 10 steps are 1 %")  # 27
    assert said(made.differences, "alpha/N")  # 29
    assert said(made.differences, "target: original repeats")  # 30
    assert not said(made.differences, "walk towards noise")


def test_what_rollouts_of_eps_models_did(tmp_path: Path) -> None:
    options = {f"{S}max_step_offset": "5", f"{S}probability": "0.5", f"{S}sampler": "rk4", f"{S}order": 3}
    made = imported(tmp_path, **EPS, **options, **{f"{S}reflexflow": True, f"{S}reflexflow_beta1": 3})
    assert rollouts(made)["sampler"] == "rk4" and not {"order", "reflexflow"} & rollouts(made).keys()
    assert said(made.differences, "walk towards noise") and said(made.differences, "rk4 raises an import error")
    assert said(made.left_out, f"{S}order 3: rk4 has a fixed order")
    assert said(made.left_out, f"{S}reflexflow true") and said(made.left_out, f"{S}reflexflow_beta1 3", "flow matching")
    assert parsed(made).process.as_dict() == {"kind": "gaussian", "path": "vp", "prediction": "eps"}


def test_a_ramp_means_what_it_says(tmp_path: Path) -> None:
    ramp = {f"{S}max_step_offset": 10, f"{S}ramp_steps": 500}
    made = imported(tmp_path, **FLUX, **ramp, **{f"{S}probability": 1.0, f"{S}start_step": 100})
    rule = rollouts(made)
    assert (rule["prob_start"], rule["prob_end"], rule["start_step"]) == (0.0, 0.5, 100) and "probability" not in rule
    assert said(made.differences, "its ramp runs from 1.0 to 0.5; this recipe ramps from 0.0 to 0.5")  # 24
    assert said(made.differences, "before step 100 it rolls out with prob_start")
    parsed(made)
    flat = imported(tmp_path, **FLUX, **{f"{S}max_step_offset": 10, f"{S}probability": 0.3, f"{S}start_step": 7})
    assert rollouts(flat)["start_step"] == 7 and said(flat.differences, "start_step is ignored there without a ramp")
    lost = imported(tmp_path, **FLUX, **{f"{S}max_step_offset": 9, f"{S}probability": 0.3, f"{S}prob_end": 0.9})
    assert said(lost.left_out, f"{S}prob_end 0.9", "no ramp")


def test_what_has_no_effect_is_left_out(tmp_path: Path) -> None:
    idle = imported(tmp_path, **FLUX, **{f"{S}max_step_offset": 10, f"{S}sampler": "dpm"})
    assert "scheduled_sampling" not in idle.sections["objective"]
    assert said(idle.left_out, f"{S}max_step_offset 10", "nothing is rolled out")
    assert said(idle.left_out, f"{S}sampler dpm") and said(idle.differences, "direction loss, of weight 10")  # 31
    off = imported(tmp_path, **FLUX, **{f"{S}max_step_offset": 0, f"{S}probability": 1.0})
    assert said(off.left_out, f"{S}probability 1.0", "turns all of it off") and not said(off.differences, "weight 10")


@pytest.mark.parametrize(("strategy", "share"), [("biased_early", "22.4%"), ("biased_late", "2.5%")])
def test_the_share_of_empty_rollouts_is_counted(tmp_path: Path, strategy: str, share: str) -> None:
    options = {f"{S}max_step_offset": 10, f"{S}probability": 1.0, f"{S}strategy": strategy}
    made = imported(tmp_path, **FLUX, **options)
    assert said(made.differences, strategy, share) and rollouts(made)["strategy"] == strategy
    parsed(made)


def test_a_blank_does_not_take_another_branch(tmp_path: Path) -> None:
    made = imported(tmp_path, **{"prediction_type ": "flow_matching ", "lr_scheduler": " cosine"})
    assert made.sections["process"]["prediction"] == "flow" and made.sections["training"]["decay"] == "cosine"
    assert said(made.differences, "'flow_matching '", "blank")


def test_the_whole_of_a_training(tmp_path: Path) -> None:
    settings = {
        "model_type": "lora",
        "lora_rank": "8",
        "learning_rate": "1e-4",
        "train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_train_steps": 1000,
        "lr_scheduler": "polynomial",
        "lr_warmup_steps": 100,
        "lr_end": "1e-6",
        "use_ema": "true",
        "ema_decay": 0.99,
        "mixed_precision": "no",
        "caption_dropout_probability": 0.0,
        "flow_schedule_shift": 1.5,
        "flow_sigmoid_scale": 0.5,
        "input_perturbation": 0.1,
        "input_perturbation_steps": 100,
        "validation_guidance": 4.0,
        "validation_num_inference_steps": "20",
        "validation_noise_scheduler": "unipc",
        "checkpoint_step_interval": 250,
        "checkpoints_total_limit": 3,
        "resolution": 512,
        "resume_from_checkpoint": "latest",
        "seed": 42,
        "snr_gamma": 5,
        "grad_clip_method": "norm",
        "max_grad_norm": 1.0,
        "peft_lora_target_modules": ["to_q", "to_v"],
    }
    made = imported(tmp_path, **FLUX, **settings)
    config = parsed(made).as_dict()
    assert config["seed"] == 42 and config["grid"]["steps"] == 20
    assert config["schedule"] == {
        "kind": "shifted",
        "base": {"kind": "linear", "alpha_min": 0.0, "alpha_max": 1.0},
        "shift": 1.5,
    }
    training = config["training"]
    assert (training["steps"], training["batch_size"], training["accumulation"]) == (1000, 8, 4)
    assert (training["decay"], training["warmup_steps"], training["final_rate"]) == ("linear", 100, 0.01)
    assert (training["ema"], training["precision"], training["clip_norm"]) == (0.99, "fp32", 1.0)
    assert (training["save_every"], training["keep"], training["optimizer"]["learning_rate"]) == (250, 3, 1e-4)
    assert config["objective"]["time_density"] == {"kind": "logit_normal", "mean": 0.0, "std": 0.5}
    assert config["objective"]["input_perturbation"] == 0.1 and config["objective"]["condition_dropout"] == 0.0
    assert config["sampler"]["kind"] == "unipc" and config["sampler"]["guidance"] == 3.0
    assert config["model"]["lora"] == {"rank": 8, "alpha": 8.0, "dropout": 0.0, "targets": ["to_q", "to_v"]}
    assert config["model"]["weights"] == "fp32" and config["model"]["gradient_checkpointing"]
    assert said(made.left_out, "snr_gamma 5") and said(made.left_out, "input_perturbation_steps 100")
    assert said(made.todo, "hf download black-forest-labs/FLUX.1-dev") and said(made.todo, "resolution 512")
    assert said(made.todo, "--resume") and not made.unknown


def test_the_loss_of_an_eps_model(tmp_path: Path) -> None:
    made = imported(
        tmp_path, **EPS, snr_gamma=5, flow_schedule_shift=3, model_type="full", optimizer="prodigy", lora_rank=4
    )
    assert said(made.left_out, "lora_rank 4", "model_type is full")
    assert parsed(made).as_dict()["objective"]["weight"] == {"kind": "min_snr", "gamma": 5.0}
    assert "schedule" not in made.sections and "lora" not in made.sections["model"]
    assert said(made.left_out, "flow_schedule_shift 3", "flow matching") and said(made.left_out, "optimizer prodigy")
    told = imported(tmp_path, model_family="sdxl")
    assert "process" not in told.sections and said(told.mapped, "model_family sdxl", "scheduler_config.json")


def test_every_setting_is_accounted_for(tmp_path: Path) -> None:
    """The example config that SimpleTuner ships, and keys that nobody knows."""
    settings = {
        "--aspect_bucket_rounding": 2,
        "--data_backend_config": "config/multidatabackend.json",
        "--output_dir": "output/models",
        "--model_type": "lora",
        "--lora_type": "lycoris",
        "--lycoris_config": "config/lycoris_config.json",
        "--hub_model_id": "simpletuner-lora",
        "--push_to_hub": "true",
        "--report_to": "wandb",
        "--validation_prompt": "A photo",
        "--disable_benchmark": "false",
        "--frobnicate": 3,
        "--unset": "none",
    }
    made = imported(tmp_path, **FLUX, **settings)
    report = made.report()
    assert made.unknown == ["frobnicate 3"]
    for name in settings:
        assert name.lstrip("-") in report or name in ("--unset", "--model_type")
    assert said(made.left_out, "data_backend_config", "cached latents") and said(made.left_out, "lycoris", "peft")
    assert said(made.mapped, "learning_rate 4e-07 (the default there)")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {f"{S}max_step_offset": 3, f"{S}probability": 1, f"{S}sampler": "ddpm"},
            f"{S}sampler is 'ddpm'; allowed are unipc",
        ),
        ({f"{S}max_step_offset": 3, f"{S}probability": 1, f"{S}order": 4}, f"{S}order is 4; unipc takes 1 to 3"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; a number is needed"),
        ({"learning_rate": True}, "learning_rate is True; a number is needed"),
        ({"max_train_steps": 10.5}, "max_train_steps is 10.5; a whole number"),
        ({"use_ema": "maybe"}, "use_ema is 'maybe'; allowed are true and false"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'; allowed are epsilon"),
        ({"seed": 1, "--seed": 2}, "seed is given twice"),
    ],
)
def test_a_wrong_value_is_an_error(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imported(tmp_path, **{**FLUX, **settings})


def test_the_command(tmp_path: Path) -> None:
    file, out = tmp_path / "config.json", tmp_path / "recipe.yaml"
    file.write_text(json.dumps({**FLUX, "frobnicate": 1}))
    run = CliRunner()
    printed = run.invoke(app, ["import", str(file)])
    assert printed.exit_code == 0 and yaml.safe_load(printed.stdout)["model"]["kind"] == "diffusers"
    assert "Not known here" in printed.stderr and "frobnicate 1" in printed.stderr
    written = run.invoke(app, ["import", str(file), "-o", str(out)])
    assert written.exit_code == 0 and "Mapped" in written.stdout and out.read_text() == printed.stdout
    for arguments, message in (
        ([str(file), "-o", str(out)], "is there already"),
        ([str(file), "-o", str(tmp_path / "recipe")], "does not end in .yaml"),
        ([str(out)], "cannot be read as JSON"),
    ):
        failed = run.invoke(app, ["import", *arguments])
        assert isinstance(failed.exception, ValueError) and message in message_of(failed.exception)
    file.write_text("[1]")
    failed = run.invoke(app, ["import", str(file)])
    assert "holds a list" in str(failed.exception)
