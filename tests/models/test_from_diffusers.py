"""Networks of diffusers as denoisers, beside diffusers' own sampling loops, on tiny random ones saved to disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from onpath import rng
from onpath.build import build
from onpath.config import RunConfig
from onpath.data.source import ImageSource
from onpath.models.diffusers_networks import pack, unpack
from onpath.models.from_diffusers import Diffusers, model_time
from onpath.models.lora import LoRA
from onpath.processes.gaussian import Gaussian
from onpath.records import RunFolder
from onpath.sampling.grids import ExplicitGrid, Grid, UniformGrid
from onpath.sampling.loop import sample
from onpath.sampling.solvers import Euler
from onpath.schedules import BetasSchedule, LinearSchedule, ShiftedSchedule
from onpath.training import checkpoint
from onpath.types import Batch, ImageSpec

BLOCKS: dict[str, Any] = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1, "sample_size": 8}
CROSS: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}
HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 12}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": (
        "UNet2DModel",
        BLOCKS
        | {"in_channels": 1, "out_channels": 1, "num_class_embeds": 4}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    ),
    "conditional": ("UNet2DConditionModel", {**BLOCKS, **CROSS}),
    "sd3": (
        "SD3Transformer2DModel",
        HEADS
        | {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "caption_projection_dim": 16}
        | {"pooled_projection_dim": 6, "pos_embed_max_size": 8},
    ),
    "flux": (
        "FluxTransformer2DModel",
        HEADS
        | {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "pooled_projection_dim": 6}
        | {"guidance_embeds": True, "axes_dims_rope": (2, 2, 4)},
    ),
}
LARGE = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 30}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "sdxl": ("UNet2DConditionModel", {**BLOCKS, **CROSS, **LARGE}),
    "dit": (
        "DiTTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2}
        | {"sample_size": 8, "num_embeds_ada_norm": 3, "norm_num_groups": 4},
    ),
    "pixart": (
        "PixArtTransformer2DModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2}
        | {"sample_size": 8, "cross_attention_dim": 16, "caption_channels": 12, "norm_num_groups": 4},
    ),
    "auraflow": (
        "AuraFlowTransformer2DModel",
        HEADS
        | {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
        | {"caption_projection_dim": 16, "pos_embed_max_size": 64},
    ),
    "sana": (
        "SanaTransformer2DModel",
        {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
        | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16}
        | {"caption_channels": 12, "sample_size": 8, "timestep_scale": 0.001},
    ),
    "lumina2": (
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1}
        | {"num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 8, "axes_dim_rope": (4, 4, 4)}
        | {"axes_lens": (16, 16, 16), "cap_feat_dim": 12},
    ),
}
TEXTS = {"text": (5, 12), "pooled": (6,)}
SPECS = {
    "unet": ImageSpec((1, 8, 8), 3, {"label": ()}),
    "conditional": ImageSpec((4, 8, 8), 0, {"text": (5, 12)}),
    "sd3": ImageSpec((4, 8, 8), 0, TEXTS),
    "flux": ImageSpec((4, 8, 8), 0, TEXTS),
    "sdxl": ImageSpec((4, 8, 8), 0, TEXTS),
    "dit": ImageSpec((4, 8, 8), 3, {"label": ()}),
    **dict.fromkeys(("auraflow", "lumina2"), ImageSpec((4, 8, 8), 0, {"text": (5, 12)})),
    **dict.fromkeys(("pixart", "sana"), ImageSpec((4, 8, 8), 0, {"text": (5, 12), "text_mask": (5,)})),
}
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EPS = Gaussian(BetasSchedule(**TABLE), path="vp", prediction="eps")
V = Gaussian(BetasSchedule(**TABLE), path="vp", prediction="v")
FLOW = Gaussian(ShiftedSchedule(LinearSchedule(), 3.0))


@dataclass(frozen=True)
class Blots(ImageSource):
    """Small images whose conditions say where their light is: labels, or embeddings of random directions."""

    network: str
    split: str = "train"

    def spec(self) -> ImageSpec:
        return SPECS[self.network]

    def examples(self, ids: Tensor, device: Any = "cpu") -> Batch:
        batch = batch_of(self.network, 1)
        key = rng.Key(4, self.split)
        cond = {name: rng.normal(key.fold(name), ids, tuple(value.shape[1:])) for name, value in batch.cond.items()}
        if "label" in cond:
            cond["label"] = ids % 3
        if "text_mask" in cond:
            cond["text_mask"] = torch.ones(len(ids), 5, dtype=torch.int64)
        light = next(iter(cond.values())).float().view(len(ids), -1)[:, :1].tanh()
        noise = rng.normal(key, ids, tuple(batch.x.shape[1:]))
        return Batch(light[:, :, None, None] + 0.1 * noise, ids, cond=cond).to(device)

    def at_split(self, split: str) -> ImageSource:
        return Blots(self.network, split)

    @property
    def num_examples(self) -> int | None:
        return 64


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network of each class, as diffusers saves it."""
    import diffusers

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, (cls, config) in (NETWORKS | MORE).items():
        network = getattr(diffusers, cls)(**config)
        with torch.no_grad():  # some begin at 0, and everything shall matter
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        network.save_pretrained(folder / name)
    return folder


def denoiser(networks: Path, name: str, process: Gaussian, **settings: Any) -> Diffusers:
    return Diffusers(SPECS[name], process, path=str(networks / name), **settings)


def batch_of(name: str, size: int = 3) -> Batch:
    spec, ids = SPECS[name], torch.arange(size)
    cond: dict[str, Tensor] = {
        key: rng.normal(rng.Key(1, key), ids, shape) for key, shape in spec.cond.items() if key != "label"
    }
    if "text_mask" in cond:  # the first words of each text count
        cond["text_mask"] = (torch.arange(5) < 2 + ids[:, None]).long()
    if "label" in spec.cond:
        cond["label"] = ids % spec.num_classes
    return Batch(torch.zeros(size, *spec.shape), ids, cond=cond)


def ours(denoiser: Diffusers, process: Gaussian, batch: Batch, grid: Grid) -> Tensor:
    return sample(denoiser.eval(), process, Euler(), grid, batch, rng.Key(0)).x


def loaded(folder: Path, name: str) -> Any:
    import diffusers

    return getattr(diffusers, (NETWORKS | MORE)[name][0]).from_pretrained(folder)


def theirs(network: Any, name: str, scheduler: Any, batch: Batch, process: Gaussian) -> Tensor:
    """The loop that a pipeline of diffusers runs."""
    x, cond = process.prior(batch, rng.Key(0)).x, batch.cond
    for t in scheduler.timesteps:
        inputs: dict[str, Any] = {"timestep": t.expand(len(x)), "return_dict": False}
        if name == "unet":
            inputs |= {"sample": x, "class_labels": cond["label"]}
        elif name == "conditional":
            inputs |= {"sample": x, "encoder_hidden_states": cond["text"]}
        else:
            inputs |= {"encoder_hidden_states": cond["text"], "pooled_projections": cond["pooled"]}
            inputs["hidden_states"] = x if name == "sd3" else pack(x)
        if name == "flux":
            places = torch.tensor([[0, row, column] for row in range(4) for column in range(4)])
            inputs |= {"timestep": t.expand(len(x)) / 1000, "guidance": torch.ones(len(x))}
            inputs |= {"img_ids": places, "txt_ids": torch.zeros(5, 3)}
        with torch.no_grad():
            out = network(**inputs)[0]
        x = scheduler.step(unpack(out, 4, 4) if name == "flux" else out, t, x).prev_sample
    return x


def close(one: Tensor, other: Tensor, share: float = 1e-5) -> None:
    """Equal to `share` of the greatest value."""
    assert float(one.abs().max()) > 0.1
    assert float((one - other).abs().max()) <= share * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("process", [EPS, V], ids=["eps", "v"])
@pytest.mark.parametrize("name", ["unet", "conditional"])
def test_euler_on_a_table_is_ddim_of_diffusers(networks: Path, name: str, process: Gaussian) -> None:
    from diffusers import DDIMScheduler

    kind: Any = {"eps": "epsilon", "v": "v_prediction"}[process.prediction]
    scheduler = DDIMScheduler(**TABLE, clip_sample=False, timestep_spacing="trailing", prediction_type=kind)
    scheduler.set_timesteps(5)
    grid = ExplicitGrid((*(t / 999 for t in scheduler.timesteps.tolist()), 0.0))
    batch = batch_of(name)
    expected = theirs(loaded(networks / name, name), name, scheduler, batch, process)
    close(ours(denoiser(networks, name, process), process, batch, grid), expected)


@pytest.mark.parametrize("name", ["unet", "sd3", "flux"])
def test_euler_on_a_shifted_flow_is_that_of_diffusers(networks: Path, name: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])  # which it shifts
    batch = batch_of(name)
    expected = theirs(loaded(networks / name, name), name, scheduler, batch, FLOW)
    close(ours(denoiser(networks, name, FLOW), FLOW, batch, UniformGrid(5)), expected)


SIZES = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 3)  # of the picture, its left and upper edge, and again


@pytest.mark.parametrize("name", MORE)
@torch.no_grad()
def test_other_classes_are_called_as_their_pipelines_call_them(networks: Path, name: str) -> None:
    process = FLOW if name in ("auraflow", "sana", "lumina2") else EPS
    batch, t = batch_of(name), torch.tensor([0.2, 0.5, 0.9])
    cond, x = batch.cond, rng.normal(rng.Key(3), batch.ids, batch.x.shape[1:])
    steps = (1000 * FLOW.schedule.mask_ratio(t.double())).float() if process is FLOW else 999 * t
    network = loaded(networks / name, name)
    if name == "sdxl":
        added = {"text_embeds": cond["pooled"], "time_ids": SIZES}
        expected = network(x, steps, cond["text"], added_cond_kwargs=added, return_dict=False)[0]
    elif name == "dit":
        expected = network(x, steps, cond["label"], return_dict=False)[0][:, :4]
    elif name == "pixart":
        added = {"resolution": None, "aspect_ratio": None}
        mask = cond["text_mask"]
        out = network(x, cond["text"], steps, added, encoder_attention_mask=mask, return_dict=False)
        expected = out[0].chunk(2, dim=1)[0]
    elif name == "auraflow":
        expected = network(x, cond["text"], steps / 1000, return_dict=False)[0]
    elif name == "sana":
        mask = cond["text_mask"]
        expected = network(x, cond["text"], steps * 0.001, encoder_attention_mask=mask, return_dict=False)[0]
    else:
        mask = torch.ones(3, 5, dtype=torch.bool)
        expected = -network(x, 1 - steps / 1000, cond["text"], mask, return_dict=False)[0]
    wrapped = denoiser(networks, name, process)
    close(wrapped(x, t, wrapped.encode(**cond)), expected)
    dropped = wrapped.encode(**cond, drop=torch.tensor([True, False, False]))
    assert not torch.allclose(wrapped(x, t, dropped)[0], expected[0])
    torch.testing.assert_close(wrapped(x, t, dropped)[1:], wrapped(x, t, wrapped.encode(**cond))[1:])


# ---- conditions, times, weights


@torch.no_grad()
def test_a_memo_serves_several_states_and_a_drop_is_the_null_embedding(networks: Path, tmp_path: Path) -> None:
    batch, t = batch_of("sd3", 2), torch.tensor([0.3, 0.7])
    x = rng.normal(rng.Key(3), batch.ids, batch.x.shape[1:])
    network = denoiser(networks, "sd3", FLOW)
    memo = network.encode(**batch.cond)
    twice = network(torch.cat([x, x + 1]), torch.cat([t, t]), memo)
    torch.testing.assert_close(twice[:2], network(x, t, memo))
    torch.testing.assert_close(twice[2:], network(x + 1, t, memo))
    held = {"text": torch.full((5, 12), 0.5), "pooled": torch.full((6,), 0.25)}
    save_file(held, tmp_path / "null.safetensors")
    for null, values in (
        ("zeros", (0.0, 0.0)),
        ("learned", (0.0, 0.0)),
        (str(tmp_path / "null.safetensors"), (0.5, 0.25)),
    ):
        network = denoiser(networks, "sd3", FLOW, null=null)
        assert {name for name, p in network.null.items() if p.requires_grad} == (
            set(held) if null == "learned" else set()
        )
        memo = network.encode(**batch.cond, drop=torch.tensor([True, False]))
        assert memo is not None
        for part, kept, value in zip(memo, (batch.cond["text"], batch.cond["pooled"]), values, strict=True):
            assert (part[0] == value).all() and torch.equal(part[1], kept[1])
    network = denoiser(networks, "unet", FLOW)
    label = network.encode(label=torch.tensor([1, 2]), drop=torch.tensor([True, False]))
    assert label is not None and label[0].tolist() == [3, 2]  # the last of four is no class


def test_the_time_of_a_network_is_the_noise_of_its_state() -> None:
    t = torch.tensor([0.0, 0.25, 1.0])
    assert model_time(Gaussian(LinearSchedule()), t).tolist() == [0.0, 250.0, 1000.0]
    assert model_time(FLOW, t).tolist() == pytest.approx([0.0, 500.0, 1000.0])  # 3·.25 / (1 + 2·.25)
    steps = torch.arange(1000)
    assert torch.equal(model_time(EPS, steps.float() / 999), steps.float())  # exactly, whatever fp32 makes of t
    few = Gaussian(BetasSchedule(num_steps=50), path="vp", prediction="eps")
    assert model_time(few, torch.tensor([1.0])).tolist() == [49.0]
    # a shifted table: the step at which the table has as much noise
    shifted = Gaussian(ShiftedSchedule(EPS.schedule, 2.0), path="vp", prediction="eps")
    step = model_time(shifted, torch.tensor([0.4]))
    alpha = EPS.schedule.alpha(step.double() / 999)
    torch.testing.assert_close(
        alpha, shifted.schedule.alpha(torch.tensor([0.4], dtype=torch.float64)), rtol=1e-6, atol=0
    )
    assert float(step) > 0.4 * 999


@torch.no_grad()
def test_drop_out_stays_off_and_random_weights_follow_the_seed(networks: Path, tmp_path: Path) -> None:
    shutil.copytree(networks / "conditional", tmp_path / "noisy")
    config = json.loads((tmp_path / "noisy" / "config.json").read_text())
    (tmp_path / "noisy" / "config.json").write_text(json.dumps(config | {"dropout": 0.5}))
    batch = batch_of("conditional")
    network = Diffusers(SPECS["conditional"], EPS, path=str(tmp_path / "noisy")).train()
    x, t = rng.normal(rng.Key(3), batch.ids, batch.x.shape[1:]), torch.full((3,), 0.5)
    memo = network.encode(**batch.cond)
    assert torch.equal(network(x, t, memo), network(x, t, memo))
    trained = {name: p.clone() for name, p in network.named_parameters()}
    fresh = denoiser(networks, "conditional", EPS, weights="random")
    assert any(not torch.equal(p, trained[name]) for name, p in fresh.named_parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_begins_at_the_base_and_trains_little(networks: Path, name: str) -> None:
    process = FLOW if name in ("sd3", "flux") else EPS
    batch = batch_of(name)
    x, t = rng.normal(rng.Key(3), batch.ids, batch.x.shape[1:]), torch.full((3,), 0.5)
    whole = denoiser(networks, name, process)
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    network = denoiser(networks, name, process, lora=LoRA(rank=2, targets=targets), gradient_checkpointing=True)
    memo = network.encode(**batch.cond)
    out = network(x, t, memo)
    assert torch.equal(out, whole(x, t, whole.encode(**batch.cond)))
    out.square().mean().backward()
    trained = [key for key, p in network.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in key for key in trained)
    assert all(p.grad is not None for key, p in network.named_parameters() if "lora_B" in key)
    if name != "unet":  # whose attention is one layer
        assert {key.split(".lora_")[0].rpartition("to_")[2] for key in trained} == {"q", "k", "v", "out.0"}


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_weights_in_bf16_say_about_the_same(networks: Path, name: str) -> None:
    process = FLOW if name in ("sd3", "flux") else EPS
    batch = batch_of(name)
    x, t = rng.normal(rng.Key(3), batch.ids, batch.x.shape[1:]), torch.full((3,), 0.5)
    half, whole = (
        denoiser(networks, name, process, lora=LoRA(rank=2), weights="bf16"),
        denoiser(networks, name, process),
    )
    out = half(x, t, half.encode(**batch.cond))
    assert out.dtype == torch.float32
    close(out, whole(x, t, whole.encode(**batch.cond)), 0.2)
    assert {p.dtype for key, p in half.named_parameters() if "lora_" in key} == {torch.float32}


# ---- the ordinary trainer


def config_of(networks: Path, name: str, **settings: Any) -> RunConfig:
    return RunConfig.parse(
        {
            "data": {"class": f"{__name__}:Blots", "network": name},
            "model": {"kind": "diffusers", "path": str(networks / name), "lora": {"rank": 2}},
            "schedule": {"kind": "shifted", "base": "linear", "shift": 3.0}
            if PROCESSES[name]["path"] == "flow"
            else "betas",
            "process": PROCESSES[name],
            "objective": {"kind": "denoising", "condition_dropout": 0.1},
            "sampler": {"kind": "euler", "guidance": 1.0},
            "grid": {"kind": "uniform", "steps": 4},
            "training": {
                "steps": 6,
                "batch_size": 8,
                "validation_examples": 8,
                "save_every": 3,
                "log_every": 1,
                "keep": 0,
                "optimizer": {"kind": "adamw", "learning_rate": 0.01},
                "ema": 0.5,
            },
            "device": "cpu",
            **settings,
        }
    )


PROCESSES: dict[str, dict[str, Any]] = {
    "unet": {"kind": "gaussian", "path": "vp", "prediction": "eps"},
    "conditional": {"kind": "gaussian", "path": "vp", "prediction": "v"},
    "sd3": {"kind": "gaussian", "path": "flow", "prediction": "flow"},
    "flux": {"kind": "gaussian", "path": "flow", "prediction": "flow"},
}
PROCESSES |= dict.fromkeys(("sdxl", "dit", "pixart"), PROCESSES["unet"])
PROCESSES |= dict.fromkeys(("auraflow", "sana", "lumina2"), PROCESSES["flux"])


def fit(config: RunConfig, folder: RunFolder, resume: bool = False) -> Any:
    parts = build(config)
    return parts, parts.trainer.fit(parts.job(), folder, resume=resume)


def newest(run: RunFolder) -> checkpoint.Checkpoint:
    path, _ = checkpoint.newest(run.checkpoints)
    assert path is not None
    return checkpoint.load(path)


BRIEFLY = ("unet", "flux")  # one that convolves and takes labels, one of tokens that takes texts


@pytest.mark.parametrize(
    "name", [*BRIEFLY, *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS | MORE if n not in BRIEFLY)]
)
def test_from_a_network_to_a_network(networks: Path, tmp_path: Path, name: str) -> None:
    """Load, train LoRA, break off and resume, sample, merge, load in diffusers."""
    import onpath

    config = config_of(networks, name)
    whole = RunFolder.create(tmp_path / "whole", config.as_dict())
    parts, average = fit(config, whole)
    # broken off after three steps: the rest comes out with the same bits
    torn = RunFolder(tmp_path / "torn")
    shutil.copytree(whole.path, torn.path)
    shutil.rmtree(torn.checkpoints / "step-6")
    fit(config, torn, resume=True)
    one, two = newest(whole), newest(torn)
    assert one.step == two.step == 6
    assert all("lora_" in key or key == "_extra_state" for key in one.model)
    for ours, again in ((one.model, two.model), (one.average, two.average)):
        assert ours.keys() == again.keys() and all(torch.equal(ours[key], again[key]) for key in ours)
    torch.testing.assert_close(one.optimizers, two.optimizers, rtol=0, atol=0)
    # it has learnt, and the run can be had again from its folder and that of the base
    row = parts.trainer.validate(average, parts.job(), 6)
    base = parts.trainer.validate(build(config).model, parts.job(), 6)
    assert row["loss"] < base["loss"]
    run: Any = onpath.load(tmp_path / "whole")
    assert parts.trainer.validate(run.denoiser, parts.job(), 6) == row
    sampled = run.sample(Blots(name).examples(torch.arange(3))).x
    assert sampled.shape == (3, *SPECS[name].shape) and sampled.isfinite().all()
    # merged, in the format of diffusers; which can be the base of the next
    run.export(tmp_path / "merged")
    again = Diffusers(SPECS[name], run.parts.process, path=str(tmp_path / "merged"))
    assert not [key for key in loaded(tmp_path / "merged", name).state_dict() if "lora" in key]
    batch = Blots(name).examples(torch.arange(3))
    with torch.no_grad():
        outs = [net(batch.x, torch.full((3,), 0.5), net.encode(**batch.cond)) for net in (run.denoiser, again)]
    close(*outs)
    with pytest.raises(ValueError, match="merged is not empty"):
        run.export(tmp_path / "merged")


def test_what_does_not_fit_is_said(networks: Path, tmp_path: Path, unchecked: None) -> None:
    cases: tuple[tuple[str, ImageSpec, dict[str, Any], str], ...] = (
        ("unet", ImageSpec((3, 8, 8), 3, {"label": ()}), {}, r"data are 3x8x8 .* takes 1 channels"),
        ("unet", ImageSpec((1, 7, 8), 3, {"label": ()}), {}, r"data are 7x8, .* multiples of 2"),
        ("unet", ImageSpec((1, 8, 8)), {}, r"needs the condition 'label', and the data have none"),
        ("unet", ImageSpec((1, 8, 8), 5, {"label": ()}), {}, r"5 classes .* embeddings for 4"),
        (
            "sd3",
            ImageSpec((4, 8, 8), 0, {"text": (5, 12)}),
            {},
            r"needs the condition 'pooled', and the data have text",
        ),
        (
            "sd3",
            ImageSpec((4, 8, 8), 0, {**TEXTS, "text": (5, 7)}),
            {},
            r"'text' of the data is 5x7 .* embeddings of 12",
        ),
        ("flux", SPECS["flux"], {"null": "ones"}, r"null is 'ones'; allowed are zeros, learned"),
        ("flux", SPECS["flux"], {"lora": LoRA(), "weights": "random"}, r"random would stay random beside lora"),
        ("flux", SPECS["flux"], {"weights": "bf16"}, r"bf16 without lora"),
        ("flux", SPECS["flux"], {"lora": LoRA(targets=("q_proj",))}, r"q_proj.*the linear layers .*to_out\.0, to_q"),
        ("nowhere", SPECS["flux"], {}, r"there is no config\.json in it.*hf download"),
    )
    for name, spec, settings, said in cases:
        with pytest.raises(ValueError, match=said):
            Diffusers(spec, FLOW, path=str(networks / name), **settings)
    save_file({"text": torch.zeros(4, 12)}, tmp_path / "null.safetensors")
    with pytest.raises(ValueError, match=r"has 4x12 as 'text', and the data have 5x12"):
        denoiser(networks, "conditional", FLOW, null=str(tmp_path / "null.safetensors"))
    shutil.copytree(networks / "unet", tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    few = Diffusers(ImageSpec((1, 8, 8), 4, {"label": ()}), FLOW, path=str(tmp_path / "unet"))
    with pytest.raises(ValueError, match=r"4 class embeddings for 4 classes, none for no class"):
        few.encode(label=torch.tensor([0]), drop=torch.tensor([True]))
    large = {"_class_name": "PixArtTransformer2DModel", "sample_size": 128, "use_additional_conditions": None}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(large))
    with pytest.raises(ValueError, match=r"a PixArt that is told resolution.*PixArt-Sigma"):
        Diffusers(SPECS["unet"], FLOW, path=str(tmp_path))
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "VQModel"}))
    with pytest.raises(ValueError, match=r"is of VQModel; known are UNet2DModel"):
        Diffusers(SPECS["unet"], FLOW, path=str(tmp_path))  # a pipeline's folder
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded"):
        Diffusers(SPECS["unet"], FLOW, path=str(tmp_path))


def test_a_condition_that_cannot_be_dropped_is_refused_before_the_training(networks: Path, tmp_path: Path) -> None:
    """Labels of a network with no embedding beside those of its classes, or with none at all."""
    shutil.copytree(networks / "unet", tmp_path / "unet")
    written = json.loads((tmp_path / "unet" / "config.json").read_text())
    for table, has in ((3, "has 3 class embeddings for 3 classes, none for no class"), (None, "takes no condition")):
        (tmp_path / "unet" / "config.json").write_text(json.dumps(written | {"num_class_embeds": table}))
        changed: dict[str, Any] = {"model": {"kind": "diffusers", "path": str(tmp_path / "unet"), "weights": "random"}}
        plain = {"objective": "denoising", "sampler": "euler"}
        build(config_of(networks, "unet", **changed, **plain))
        with pytest.raises(ValueError) as caught:
            build(config_of(networks, "unet", **changed, sampler="euler"))
        said = str(caught.value)
        assert said.startswith("config: objective.condition_dropout is 0.1, but ") and has in said
        assert "it must be 0: set objective.condition_dropout=0" in said
        guided = {
            "sampler": {"kind": "euler", "guidance": 1.0},
            "objective": {"kind": "denoising", "condition_dropout": 0.1},
        }
        with pytest.raises(ValueError, match=r"config: sampler.guidance is 1.0, but .*set sampler.guidance=0"):
            build(config_of(networks, "unet", **changed, **guided))


def test_a_checkpoint_belongs_to_its_base(networks: Path) -> None:
    network, other = (denoiser(networks, "unet", EPS, lora=LoRA(rank=2)) for _ in range(2))
    other.load_state_dict(network.state_dict())
    state = network.state_dict()
    state["_extra_state"] = state["_extra_state"] + 1
    with pytest.raises(ValueError, match="beside other frozen weights"):
        other.load_state_dict(state)


def test_the_recipe_from_cached_latents_to_a_network(networks: Path, tmp_path: Path) -> None:
    """A pipeline's folder and a file of latents, as their user has them; the run needs no scheduler later."""
    import diffusers

    import onpath
    from onpath.data.latents import save_latents
    from onpath.recipes import path_of

    shutil.copytree(networks / "conditional", tmp_path / "pipeline" / "unet")
    diffusers.DDIMScheduler(**TABLE, prediction_type="v_prediction").save_pretrained(
        tmp_path / "pipeline" / "scheduler"
    )
    batch = Blots("conditional").examples(torch.arange(40))
    save_latents(tmp_path / "latents.safetensors", batch.x / 0.18, text=batch.cond["text"])
    settings = ["training.steps=3", "training.batch_size=4", "training.validation_examples=4", "grid.steps=2"]
    places = [f"model.path={tmp_path / 'pipeline'}", f"data.path={tmp_path / 'latents.safetensors'}", "data.scale=0.18"]
    rollout = ["objective.scheduled_sampling={max_step_offset: 2, probability: 1.0}", "model.null=learned"]
    settings += ["device=cpu", "sampler.guidance=2.0"]
    config = RunConfig.load(path_of("diffusers-lora"), [*places, *settings, *rollout])
    assert config.schedule.fields["beta_end"] == 0.012 and config.process.fields["prediction"] == "v"
    run = RunFolder.create(tmp_path / "run", config.as_dict())
    fit(config, run)
    shutil.rmtree(tmp_path / "pipeline" / "scheduler")
    trained: Any = onpath.load(tmp_path / "run")
    assert trained.sample(batch).x.isfinite().all()
    trained.export(tmp_path / "merged")
    assert loaded(tmp_path / "merged", "conditional").config.cross_attention_dim == 12
    null = load_file(tmp_path / "merged" / "null.safetensors")
    assert torch.equal(null["text"], trained.denoiser.null["text"]) and null["text"].shape == (5, 12)
