"""A config.json of SimpleTuner as a recipe: what its settings mean here.

Facts: its option names, their defaults, and what it does with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onpath.imports.keys import Imported, Keys
from onpath.imports.simpletuner_rollouts import rollouts

_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_matching": "flow"}
_FLOW_FAMILIES = ("flux", "sd3", "auraflow", "sana", "lumina2", "chroma", "qwen_image")
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # its default
_SCHEDULERS = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",
    "sine": "cosine",
    "polynomial": "linear",
}
_SOLVERS = {"euler": "euler", "flow_matching": "euler", "ddim": "euler", "dpm++": "dpm", "unipc": "unipc"}
_REASONS = {
    ("validation_", "num_validation_", "eval_", "evaluation_", "user_prompt"): (
        "`onpath evaluate` measures a run, and `onpath sample` draws from it"
    ),
    ("hub_", "push_", "webhook", "report_to", "tracker_", "publishing"): "runs are folders; nothing is sent anywhere",
    (
        "data_",
        "instance_",
        "caption_",
        "resolution_type",
        "aspect_",
        "minimum_",
        "maximum_",
        "cache_",
        "vae_",
        "crop",
    ): ("data are cached latents, made before the training (docs/diffusers.md)"),
    ("text_encoder", "tokenizer_", "pretrained_vae", "pretrained_t5", "train_text_encoder", "t5_"): (
        "text embeddings are cached before the training; no text encoder is trained"
    ),
    ("lycoris", "init_lora", "init_lokr", "use_dora", "lora_format", "lora_init", "singlora", "slider"): (
        "LoRA through peft is the only adapter"
    ),
    ("fsdp", "deepspeed", "num_machines", "main_process", "machine_rank", "accelerate", "dynamo", "same_network"): (
        "start with torchrun, and set training.parallel"
    ),
    (
        "gradient_",
        "ramtorch",
        "quantize",
        "base_model",
        "offload",
        "enable_",
        "musubi",
        "sdnq",
        "fuse_",
        "optimizer_",
    ): ("a way to save memory or time that is not there; see training.precision, accumulation, gradient_checkpointing"),
    (
        "flow_",
        "noise_",
        "offset_noise",
        "timestep_",
        "soft_min_snr",
        "use_soft_min_snr",
        "loss_type",
        "huber",
        "masked_",
    ): ("no counterpart; time densities and loss weights are in docs/reference.md"),
    ("crepa", "urepa", "irepa", "twinflow", "diff2flow", "tread", "layersync", "xm_", "nextlat", "distillation"): (
        "no counterpart"
    ),
    ("output_dir", "logging_dir", "configs_dir"): "name the folder of the run: onpath train RECIPE --run FOLDER",
    ("model_flavour", "revision", "variant", "model_card", "disable_", "i_know_what", "max_workers", "torch_num"): (
        "nothing here corresponds to it"
    ),
    ("ema_", "checkpoint", "lr_", "attention_mechanism", "controlnet", "control", "print_", "dataloader"): (
        "no counterpart"
    ),
}


def read(path: Path) -> Imported:
    """The recipe that a config.json of SimpleTuner stands for.

    ValueError for a file that is no JSON, and for a value that SimpleTuner's own options do not allow.
    """
    keys = Keys.read(path)
    prediction = _prediction(keys)
    precision = str(keys.choice("mixed_precision", ("no", "fp16", "bf16", "fp8"), "bf16"))
    sections: dict[str, Any] = {
        "data": {"kind": "latents", "path": "latents.safetensors"},
        "model": _model(keys, precision),
        **_noise(keys, prediction),
        "objective": _objective(keys, prediction),
        **_sampling(keys, prediction),
        "training": _training(keys, precision),
        **({"seed": keys.became("seed", keys.whole("seed"), "seed")} if keys.has("seed") else {}),
    }
    resolution = keys.number("resolution")
    keys.todo.append(
        "cache the latents of your images and the embeddings of their captions, and put their file into data.path "
        "(docs/diffusers.md)" + (f"; at resolution {resolution:g} as in the file" if resolution else "")
    )
    resumed = keys.text("resume_from_checkpoint")
    if resumed:
        keys.todo.append(f"resume_from_checkpoint {resumed}: to go on with a run, add --resume to onpath train")
    unknown = _leave_rest(keys)
    title = f"From the SimpleTuner config {path.name}; give data.path."
    return Imported(sections, title, keys.mapped, keys.left_out, unknown, keys.differences, keys.todo)


def _prediction(keys: Keys) -> str | None:
    """eps, v, x0 or flow; None where only the model's folder says."""
    family, kind = keys.text("model_family"), keys.choice("prediction_type", tuple(_PREDICTIONS))
    if keys.flag("flow_matching"):
        kind = kind or "flow_matching"
    if kind:
        keys.mapped.append(f"prediction_type {kind} → process.prediction {_PREDICTIONS[kind]}")
        return _PREDICTIONS[kind]
    if family in _FLOW_FAMILIES:
        keys.mapped.append(f"model_family {family} → process.prediction flow")
        return "flow"
    told = f"model_family {family}" if family else "neither prediction_type nor model_family is set"
    keys.mapped.append(f"{told}: the model's own scheduler_config.json says what it predicts")
    return None


def _model(keys: Keys, precision: str) -> dict[str, Any]:
    places = ("pretrained_transformer_model_name_or_path", "pretrained_unet_model_name_or_path")
    names = [name for name in (*places, "pretrained_model_name_or_path") if keys.has(name)]
    path = keys.became(names[0], keys.text(names[0]), "model.path") if names else "model"
    if not names:
        keys.todo.append("set model.path: the file names no pretrained_model_name_or_path")
    elif not Path(str(path)).is_dir():
        keys.todo.append(f"{path} is no folder here: hf download {path} --local-dir FOLDER, and put it into model.path")
    model: dict[str, Any] = {"kind": "diffusers", "path": path}
    if keys.choice("model_type", ("lora", "full"), "full") == "lora":
        model["lora"] = _lora(keys)
        if precision != "no":
            model["weights"] = "bf16"
    for name in ("lora_type", "lora_rank", "lora_alpha", "lora_dropout", "peft_lora_target_modules"):
        keys.leave(name, "model_type is full, which has no LoRA")
    checkpoints = keys.flag("gradient_checkpointing", True)
    if checkpoints:
        model["gradient_checkpointing"] = keys.became("gradient_checkpointing", True, "model.gradient_checkpointing")
    return model


def _lora(keys: Keys) -> dict[str, Any]:
    if keys.choice("lora_type", ("standard", "lycoris"), "standard") == "lycoris":
        keys.left_out.append("lora_type lycoris: LoRA through peft is the only adapter, and takes its place")
    rank = keys.whole("lora_rank", 16) or 16
    dropout = keys.number("lora_dropout", 0.1)
    if dropout:
        keys.differences.append(
            f"LoRA has a drop-out of {dropout:g} there (.1 where none is set); here it has none: it would be drawn "
            "from a global state, which no exact resume could repeat"
        )
    alpha = keys.number("lora_alpha") or float(rank)
    targets = keys.rest().get("peft_lora_target_modules") or _TARGETS
    keys.text("peft_lora_target_modules")
    keys.became("lora_rank", rank, "model.lora.rank")
    keys.became("lora_alpha", alpha, "model.lora.alpha")
    return {"rank": rank, "alpha": alpha, "targets": targets}


def _noise(keys: Keys, prediction: str | None) -> dict[str, Any]:
    """The sections `schedule` and `process`, as far as the model's folder does not say them."""
    if prediction != "flow":
        why = "is of flow matching" + (
            "; set prediction_type, or model_family, if that is what it is" * (prediction is None)
        )
        for name in ("flow_schedule_shift", "flow_sigmoid_scale", "flow_use_uniform_schedule"):
            keys.leave(name, why)
        path = {} if prediction is None else {"process": {"kind": "gaussian", "path": "vp", "prediction": prediction}}
        keys.leave("rescale_betas_zero_snr", "set it in the model's scheduler_config.json, from which it is read")
        return path
    if keys.flag("flow_schedule_auto_shift"):
        keys.todo.append(
            "flow_schedule_auto_shift: put the shift of your image size into schedule.shift; a run has one"
        )
    shift = keys.number("flow_schedule_shift", 3.0)
    process = {"kind": "gaussian", "path": "flow", "prediction": "flow"}
    keys.became("flow_schedule_shift", f"{shift:g}", "schedule.shift, of training and sampling alike")
    if not shift or shift == 1.0:
        return {"schedule": {"kind": "linear"}, "process": process}
    return {"schedule": {"kind": "shifted", "base": {"kind": "linear"}, "shift": shift}, "process": process}


def _objective(keys: Keys, prediction: str | None) -> dict[str, Any]:
    objective: dict[str, Any] = {"kind": "denoising"}
    if prediction == "flow":
        scale, uniform = keys.number("flow_sigmoid_scale", 1.0), keys.flag("flow_use_uniform_schedule", False)
        density = {"kind": "uniform"} if uniform else {"kind": "logit_normal", "mean": 0.0, "std": scale}
        if keys.flag("flow_use_beta_schedule"):
            keys.left_out.append("flow_use_beta_schedule true: there is no beta density; logit_normal is the nearest")
        objective["time_density"] = keys.became(
            "flow_use_uniform_schedule" if uniform else "flow_sigmoid_scale",
            uniform if uniform else scale,
            f"objective.time_density {density['kind']}, before the shift",
        )
        objective["time_density"] = density
        keys.leave("snr_gamma", "it weighs eps and v only there, and this is flow matching")
    elif keys.has("snr_gamma"):
        gamma = keys.number("snr_gamma")
        if gamma:
            keys.became("snr_gamma", gamma, "objective.weight min_snr")
            objective["weight"] = {"kind": "min_snr", "gamma": gamma}
    section = rollouts(keys, prediction == "flow")
    if section is not None:
        keys.leave("input_perturbation", "beside scheduled sampling, whose states are the model's own")
    if keys.has("input_perturbation"):
        shaken = keys.became("input_perturbation", keys.number("input_perturbation"), "objective.input_perturbation")
        objective["input_perturbation"] = shaken
        keys.leave("input_perturbation_steps", "the strength stays the same here; it fades to 0 over these steps there")
    dropout = keys.number("caption_dropout_probability", 0.1)
    place = "objective.condition_dropout"
    objective["condition_dropout"] = keys.became("caption_dropout_probability", dropout, place)
    if dropout:
        keys.todo.append(
            "a dropped caption is the embedding of an empty text there; put that into a .safetensors file and name it "
            "in model.null (zeros otherwise)"
        )
    return objective if section is None else {**objective, "scheduled_sampling": section}


def _sampling(keys: Keys, prediction: str | None) -> dict[str, Any]:
    solver = keys.choice("validation_noise_scheduler", tuple(_SOLVERS)) or (
        "flow_matching" if prediction == "flow" else "ddim"
    )
    sampler: dict[str, Any] = {"kind": _SOLVERS[solver]}
    guidance = keys.number("validation_guidance")
    if guidance is not None and guidance > 1.0:
        weight = round(guidance - 1.0, 6)
        sampler["guidance"] = keys.became("validation_guidance", guidance, f"sampler.guidance {weight:g} (less 1)")
        sampler["guidance"] = weight
    steps = keys.whole("validation_num_inference_steps", 30) or 30
    keys.became("validation_num_inference_steps", steps, "grid.steps")
    return {"sampler": sampler, "grid": {"kind": "uniform", "steps": steps}}


def _training(keys: Keys, precision: str) -> dict[str, Any]:
    steps, epochs = keys.whole("max_train_steps", 0), keys.whole("num_train_epochs", 1)
    length = {"steps": steps} if steps else {"epochs": epochs}
    for name, value in length.items():
        keys.became("max_train_steps" if steps else "num_train_epochs", value, f"training.{name}")
    micro, parts = keys.whole("train_batch_size", 4) or 4, keys.whole("gradient_accumulation_steps", 1) or 1
    processes = keys.whole("num_processes", 1) or 1
    batch_size = micro * parts * processes
    told = f"train_batch_size {micro} × gradient_accumulation_steps {parts} × num_processes {processes}"
    keys.mapped.append(f"{told} → training.batch_size {batch_size}, the effective batch; training.accumulation {parts}")
    use_ema, decay = keys.flag("use_ema", False), keys.number("ema_decay", 0.995)
    keys.mapped.append(f"use_ema {str(use_ema).lower()} → training.ema {decay if use_ema else 0.0:g}")
    if precision in ("fp16", "fp8"):
        keys.left_out.append(f"mixed_precision {precision}: bf16 takes its place")
    else:
        keys.became("mixed_precision", precision, f"training.precision {'fp32' if precision == 'no' else 'bf16'}")
    clip, method = keys.number("max_grad_norm", 2.0), keys.choice("grad_clip_method", ("value", "norm"), "value")
    if method == "value":
        keys.differences.append(
            f"it clips each number of a gradient at {clip:g}; here the whole gradient's norm is clipped"
        )
    keys.became("max_grad_norm", clip, "training.clip_norm")
    rate = keys.number("learning_rate", 4e-7)
    training = {
        **length,
        "batch_size": batch_size,
        "accumulation": parts,
        "optimizer": _optimizer(keys, keys.became("learning_rate", rate, "training.optimizer.learning_rate")),
        **_decay(keys, float(rate or 0.0)),
        "clip_norm": clip,
        "ema": decay if use_ema else 0.0,
        "precision": "fp32" if precision == "no" else "bf16",
    }
    for name, place in (("checkpoint_step_interval", "save_every"), ("checkpoints_total_limit", "keep")):
        if keys.has(name):
            training[place] = keys.became(name, keys.whole(name), f"training.{place}")
    return training


def _optimizer(keys: Keys, rate: float | None) -> dict[str, Any]:
    name = keys.text("optimizer", "adamw_bf16")
    if name != "adamw":
        keys.left_out.append(f"optimizer {name}: AdamW in fp32 takes its place")
    betas = [keys.number("adam_beta1", 0.9), keys.number("adam_beta2", 0.999)]
    decay, eps = keys.number("adam_weight_decay", 1e-2), keys.number("adam_epsilon", 1e-8)
    keys.mapped.append(
        f"adam_beta1 {betas[0]:g}, adam_beta2 {betas[1]:g}, adam_weight_decay {decay:g} → training.optimizer"
    )
    return {"kind": "adamw", "learning_rate": rate, "betas": betas, "weight_decay": decay, "eps": eps}


def _decay(keys: Keys, rate: float) -> dict[str, Any]:
    scheduler = keys.choice("lr_scheduler", tuple(_SCHEDULERS), "constant_with_warmup")
    decay, warmup = _SCHEDULERS[str(scheduler)], keys.whole("lr_warmup_steps", 0) or 0
    keys.became("lr_scheduler", scheduler, f"training.decay {decay}")
    if scheduler in ("cosine_with_restarts", "sine", "polynomial"):
        keys.differences.append(f"lr_scheduler {scheduler} is drawn here as {decay}, once over the whole run")
    if scheduler == "constant" and warmup:
        keys.left_out.append(f"lr_warmup_steps {warmup}: lr_scheduler constant has no warm-up there")
        warmup = 0
    keys.became("lr_warmup_steps", warmup, "training.warmup_steps")
    found: dict[str, Any] = {"decay": decay, "warmup_steps": warmup}
    last = keys.number("lr_end", 4e-7)
    if scheduler == "polynomial" and last and rate > last:
        found["final_rate"] = keys.became("lr_end", last, f"training.final_rate {last / rate:.3g}, a share of the peak")
        found["final_rate"] = round(last / rate, 6)
    return found


def _leave_rest(keys: Keys) -> list[str]:
    """Says of each setting that is left why it is left out; returns those that are not known at all."""
    unknown = []
    for name, value in keys.rest().items():
        reason = next(
            (why for starts, why in _REASONS.items() for why in [_REASONS[starts]] if name.startswith(starts)), None
        )
        if reason is not None:
            keys.leave(name, reason)
        elif value is not None:
            unknown.append(f"{name} {value}")
    return unknown
