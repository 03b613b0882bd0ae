"""The promises of networks and objectives of images, for every entry of the tables; and a run from end to end."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from onpath import rng
from onpath.build import build
from onpath.config import RunConfig
from onpath.objectives.base import Objective
from onpath.processes.gaussian import Gaussian
from onpath.records import RunFolder
from onpath.rng import Key
from onpath.runs import load
from onpath.sampling.grids import UniformGrid
from onpath.sampling.loop import sample
from onpath.schedules import LinearSchedule
from onpath.types import Batch, ImageSpec, Loss, Nets
from tables import IMAGE_DENOISERS, IMAGE_OBJECTIVES, LOSS_WEIGHTS, SOLVERS, TIME_DENSITIES

SPEC = ImageSpec((1, 8, 8), num_classes=4, cond={"label": ()})
FLOW = Gaussian(LinearSchedule())
KEY = Key(9, "loss", 4)

every_network = pytest.mark.parametrize("name", IMAGE_DENOISERS)
every_objective = pytest.mark.parametrize("make", IMAGE_OBJECTIVES.values(), ids=IMAGE_OBJECTIVES.keys())


def network(name: str = "image_unet") -> nn.Module:
    """With weights that are no longer those of the start, of which many are 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = IMAGE_DENOISERS[name](SPEC)
        for weight in made.parameters():
            weight.data += 0.05 * torch.randn(weight.shape)
    return made.eval()


def images(size: int = 8) -> Batch:
    x = torch.randn(size, *SPEC.shape, generator=torch.Generator().manual_seed(3))
    return Batch(x, torch.arange(70, 70 + size), cond={"label": torch.arange(size) % 4})


def times(size: int) -> Tensor:
    return rng.uniform(Key(1), torch.arange(size))


# --- networks -----------------------------------------------------------------------------------------------------


@every_network
@torch.no_grad()
def test_a_prediction_is_like_its_image_and_a_row_does_not_depend_on_its_batch(name: str) -> None:
    made, batch = network(name), images(6)
    whole = made(batch.x, times(6), made.encode(**batch.cond))
    assert whole.shape == batch.x.shape and whole.dtype == torch.float32 and whole.isfinite().all() and whole.any()
    index = torch.tensor([4, 1])
    part = made(batch.x[index], times(6)[index], made.encode(label=batch.cond["label"][index]))
    torch.testing.assert_close(part, whole[index], rtol=1e-4, atol=1e-5)


@every_network
@torch.no_grad()
def test_one_memo_serves_several_states_of_its_batch(name: str) -> None:
    made, batch = network(name), images(3)
    memo = made.encode(**batch.cond)
    states = [images(9).x[first : first + 3] for first in (0, 3, 6)]
    together = made(torch.cat(states), times(9), memo)
    apart = [made(x, t, memo) for x, t in zip(states, times(9).split(3), strict=True)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)


@every_network
@torch.no_grad()
def test_a_dropped_label_leaves_no_trace_and_a_kept_one_does(name: str) -> None:
    made, batch = network(name), images(4)
    drop, other = torch.tensor([True, False, True, False]), (batch.cond["label"] + 1) % 4
    one, two, plain = (
        made(batch.x, times(4), made.encode(**cond))
        for cond in ({**batch.cond, "drop": drop}, {"label": other, "drop": drop}, batch.cond)
    )
    torch.testing.assert_close(one[drop], two[drop])
    torch.testing.assert_close(one[~drop], plain[~drop])
    assert (one[~drop] - two[~drop]).abs().amax((1, 2, 3)).min() > 1e-4


@pytest.mark.parametrize("solver", ["dpm", "euler, guided"])
def test_a_network_is_sampled_with_and_without_guidance(solver: str) -> None:
    made, batch = network(), images(4)
    state = sample(made, FLOW, SOLVERS[solver], UniformGrid(3), batch, Key(2))
    assert state.x.shape == batch.x.shape and state.x.isfinite().all()
    assert state.num_forwards.tolist() == [3 * state.num_branches] * 4


# --- objectives ---------------------------------------------------------------------------------------------------


def loss(make: Callable[..., Objective], batch: Batch, made: nn.Module | None = None, key: Key = KEY) -> Loss:
    trained = made or network()
    average: Any = copy.deepcopy(trained)
    return make(FLOW)(Nets(trained, ema=average), batch, key, 3)  # pyright: ignore[reportArgumentType]


@every_objective
def test_same_key_same_loss_and_nothing_is_changed(make: Any) -> None:
    batch, made, state = images(), network().train(), torch.get_rng_state()
    before = {name: weight.clone() for name, weight in made.state_dict().items()}
    held = [batch.x.clone(), batch.ids.clone(), batch.cond["label"].clone()]
    one, two = loss(make, batch, made), loss(make, batch, made)
    assert torch.equal(one.numerator, two.numerator) and one.denominator == two.denominator == 8
    assert not torch.equal(loss(make, batch, made, KEY.at(5)).numerator, one.numerator)
    assert all(torch.equal(a, b) for a, b in zip(held, [batch.x, batch.ids, batch.cond["label"]], strict=True))
    assert set(batch.cond) == {"label"} and made.training
    assert all(torch.equal(weight, before[name]) for name, weight in made.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert one.numerator.isfinite() and all(torch.as_tensor(v).isfinite() for m in one.metrics.values() for v in m)


@every_objective
def test_parts_of_a_batch_add_up_to_the_whole(make: Any) -> None:
    whole = loss(make, images())
    for parts in (2, 4):
        size = 8 // parts
        losses = [loss(make, images().rows(slice(i * size, (i + 1) * size))) for i in range(parts)]
        total = torch.stack([part.numerator for part in losses]).sum()
        torch.testing.assert_close(total, whole.numerator, rtol=1e-4, atol=1e-4)
        assert sum(part.denominator for part in losses) == whole.denominator
        for name, (value, count) in whole.metrics.items():
            if name == "rollout_seconds":
                continue  # by call, and never the same
            each = [part.metrics[name] for part in losses if name in part.metrics]
            assert sum(float(v) for v, _ in each) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
            assert sum(float(n) for _, n in each) == float(count), name


@every_objective
def test_gradient_reaches_every_parameter(make: Any) -> None:
    made = network().train()
    loss(partial(make, condition_dropout=0.4), images(16), made).mean.backward()
    assert not [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()]


@every_objective
def test_validation_is_on_states_of_the_process_alone(make: Any) -> None:
    plain = loss(partial(type(make(FLOW)), **_choices(make(FLOW))), images())
    judged = make(FLOW).conditional()
    assert torch.equal(judged(Nets(network()), images(), KEY, 3).numerator, plain.numerator)  # pyright: ignore[reportArgumentType]


def _choices(objective: Any) -> dict[str, Any]:
    return {"time_density": objective.time_density, "weight": objective.weight}


# --- configs ------------------------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "data": "digits",
    "model": {"kind": "image_unet", "width": 8, "levels": [1]},
    "objective": {"kind": "denoising", "condition_dropout": 0.1},
    "training": {"steps": 20, "batch_size": 16, "validation_examples": 16, "save_every": 10, "log_every": 10},
    "device": "cpu",
}
SECTIONS: list[dict[str, Any]] = [
    {"process": {"kind": "gaussian"}},
    {"process": {"kind": "gaussian", "path": "vp", "prediction": "eps"}, "schedule": {"kind": "betas"}},
    {"process": {"kind": "gaussian", "path": "vp", "prediction": "v"}, "schedule": {"kind": "cosine"}},
    {"schedule": {"kind": "shifted", "base": "linear", "shift": 3.0}, "sampler": {"kind": "unipc", "order": 3}},
    {"sampler": {"kind": "euler", "guidance": 1.5, "epsilon_scale": 1.005, "clip": 1.0}},
    {"sampler": "rk4", "grid": {"kind": "uniform", "steps": 5}},
    *[
        {"objective": {"kind": "denoising", "condition_dropout": 0.1, "scheduled_sampling": rule}}
        for rule in (
            {"max_step_offset": 10, "probability": 0.5},
            {"max_step_offset": 10, "probability": {"kind": "linear", "start": 0.0, "end": 0.5, "steps": 10}},
            {"max_step_offset": 10, "ramp_steps": 10, "ramp_shape": "cosine", "prob_end": 0.25},
            {"max_step_offset": 3, "probability": 0.5, "mode": "inject", "sampler": "euler"},
            {"max_step_offset": 3, "probability": 0.5, "reflexflow": {"mode": "jump", "beta1": 2.0}},
        )
    ],
    {
        "objective": {
            "kind": "denoising",
            "condition_dropout": 0.1,
            "input_perturbation": 0.1,
            "time_density": {"kind": "logit_normal", "mean": 0.5},
            "weight": {"kind": "min_snr", "gamma": 3.0},
        }
    },
]


@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_a_config_is_read_written_and_read_again(sections: dict[str, Any], tmp_path: Path) -> None:
    first = build(RunConfig.parse({**CONFIG, **sections}))
    folder = RunFolder.create(tmp_path / "run", first.config.as_dict())
    again = build(RunConfig.load(folder.path / "config.yaml"))
    for name in ("process", "sampler", "objective", "grid", "trainer"):
        assert getattr(again, name) == getattr(first, name), name
    assert again.config.as_dict() == first.config.as_dict()


def test_densities_and_weights_of_the_tables_are_configs_too() -> None:
    for table, section in ((TIME_DENSITIES, "time_density"), (LOSS_WEIGHTS, "weight")):
        for part in table.values():
            fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
            kind = {"class": f"{type(part).__module__}:{type(part).__name__}", **fields}
            objective = {**CONFIG["objective"], section: kind}
            made: Any = build(RunConfig.parse({**CONFIG, "objective": objective})).objective
            assert getattr(made, section) == part


# --- a run from end to end ----------------------------------------------------------------------------------------


def fit(path: Path, steps: int, sampling: Any = None, resume: bool = False) -> RunFolder:
    objective = {**CONFIG["objective"], **({"scheduled_sampling": sampling} if sampling else {})}
    config = RunConfig.parse({**CONFIG, "objective": objective})
    parts = build(config)
    folder = RunFolder.open(path) if resume else RunFolder.create(path, parts.config.as_dict())
    stops = iter([False] * (steps - 1) + [True])
    stop = (lambda: False) if steps == 20 else (lambda: next(stops))
    parts.trainer.fit(parts.job(), folder, resume=resume, should_stop=stop)
    return folder


@pytest.mark.parametrize("sampling", [None, {"max_step_offset": 3, "probability": 0.5}], ids=["plain", "rollouts"])
def test_digits_are_trained_sampled_and_resumed_to_the_last_bit(tmp_path: Path, sampling: Any) -> None:
    whole = load(fit(tmp_path / "whole", 20, sampling).path)
    fit(tmp_path / "cut", 10, sampling)
    resumed = load(fit(tmp_path / "cut", 20, sampling, resume=True).path)
    weights: Any = (whole.denoiser, resumed.denoiser)
    one, two = (part.state_dict() for part in weights)
    assert all(torch.equal(one[name], two[name]) for name in one)
    rows = [row for row in whole.folder.metrics() if row["set"] == "train"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    batch = Batch(torch.zeros(3, 1, 8, 8), torch.arange(3), cond={"label": torch.tensor([1, 5, 9])})
    first, second = (run.sample(batch, seed=4).x for run in (whole, resumed))
    assert torch.equal(first, second) and first.shape == (3, 1, 8, 8) and first.isfinite().all()
    assert whole.sample(num_samples=2).x.shape == (2, 1, 8, 8)
