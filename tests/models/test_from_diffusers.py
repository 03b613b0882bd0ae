"""Networks of diffusers as denoisers, beside diffusers' own sampling loops, on tiny random ones saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath import rng
from onpath.models.diffusers_networks import pack, unpack
from onpath.models.from_diffusers import Diffusers
from onpath.processes.gaussian import Gaussian
from onpath.sampling.grids import ExplicitGrid, Grid, UniformGrid
from onpath.sampling.loop import sample
from onpath.sampling.solvers import Euler
from onpath.schedules import BetasSchedule, LinearSchedule, ShiftedSchedule
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
TEXTS = {"text": (5, 12), "pooled": (6,)}
SPECS = {
    "unet": ImageSpec((1, 8, 8), 3, {"label": ()}),
    "conditional": ImageSpec((4, 8, 8), 0, {"text": (5, 12)}),
    "sd3": ImageSpec((4, 8, 8), 0, TEXTS),
    "flux": ImageSpec((4, 8, 8), 0, TEXTS),
}
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EPS = Gaussian(BetasSchedule(**TABLE), path="vp", prediction="eps")
V = Gaussian(BetasSchedule(**TABLE), path="vp", prediction="v")
FLOW = Gaussian(ShiftedSchedule(LinearSchedule(), 3.0))


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny network of each class, as diffusers saves it."""
    import diffusers

    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for name, (cls, config) in NETWORKS.items():
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
    if "label" in spec.cond:
        cond["label"] = ids % spec.num_classes
    return Batch(torch.zeros(size, *spec.shape), ids, cond=cond)


def ours(denoiser: Diffusers, process: Gaussian, batch: Batch, grid: Grid) -> Tensor:
    return sample(denoiser.eval(), process, Euler(), grid, batch, rng.Key(0)).x


def loaded(folder: Path, name: str) -> Any:
    import diffusers

    return getattr(diffusers, NETWORKS[name][0]).from_pretrained(folder)


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
    scheduler.set_timesteps(10)
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
