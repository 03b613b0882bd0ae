"""Order of convergence against the exact flow of Gaussian data, parity with diffusers, ends, and the contract."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussians import Exact, Point, Wavy, blank, moved
from onpath.processes.gaussian import Gaussian, Path, Prediction
from onpath.rng import Key
from onpath.sampling.grids import UniformGrid
from onpath.sampling.loop import Knobs, roll, sample, walk
from onpath.sampling.solvers import DPMSolver, Euler, ODESolver, RungeKutta, UniPC
from onpath.schedules import DATA, BetasSchedule, CosineSchedule, LinearSchedule, Schedule, ShiftedSchedule
from onpath.types import Noised
from tables import SOLVERS

PATHS = {
    "flow": Gaussian(LinearSchedule()),
    "vp": Gaussian(CosineSchedule(), path="vp", prediction="v"),
}
PLAIN = [Euler(), DPMSolver(), UniPC(), UniPC(order=3), RungeKutta()]
every_solver = pytest.mark.parametrize("solver", PLAIN, ids=str)
every_variant = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def walked(solver: ODESolver, process: Gaussian, network: Any, x: Tensor, times: Tensor) -> Tensor:
    """Where the rows of x come to along times (T, B), or (T,) for all of them."""
    times = times.double()
    times = times[:, None].expand(-1, len(x)) if times.dim() == 1 else times
    batch = blank(len(x), tuple(x.shape[1:]))
    state = solver.init(process, network, Noised(x, times[0], x), batch, Knobs())
    walks = roll(network, process, solver, times, torch.full((len(x),), len(times) - 1), state, Key(0))
    return torch.cat([part.x for part in walks][::-1])


def noise(size: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- order of convergence -----------------------------------------------------------------------------------------


def error(solver: ODESolver, process: Gaussian, num_steps: int, size: int = 16) -> float:
    """Root mean square error of rows that walk from and to times of their own on uneven grids of their own, in fp64."""
    generator = torch.Generator().manual_seed(3)
    begin = 0.6 + 0.35 * torch.rand(size, generator=generator, dtype=torch.float64)
    end = 0.05 + 0.2 * torch.rand(size, generator=generator, dtype=torch.float64)
    bend = 0.8 * torch.rand(size, generator=generator, dtype=torch.float64) - 0.4
    share = (1.0 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)[:, None]
    share = share + bend * share * (1.0 - share)
    x = noise(size)
    reached = walked(solver, process, Exact(process), x, end + share * (begin - end))
    return float((reached - moved(process, x, begin, end)).square().mean().sqrt())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("solver", "least", "most"),
    [
        (Euler(), 0.9, 1.1),
        (DPMSolver(order=1), 0.9, 1.1),
        (DPMSolver(), 1.85, 2.15),
        (UniPC(order=1), 1.7, 2.2),
        (UniPC(), 2.8, 3.2),
        (UniPC(order=3), 3.5, 4.5),
        (RungeKutta(), 3.8, 4.2),
    ],
    ids=str,
)
def test_order_of_convergence(path: str, solver: ODESolver, least: float, most: float) -> None:
    fine, finer = {UniPC: (96, 192), RungeKutta: (8, 16)}.get(type(solver), (32, 64))
    errors = [error(solver, PATHS[path], count) for count in (fine, finer)]
    assert least <= math.log2(errors[0] / errors[1]) <= most, errors


# --- parity with diffusers ----------------------------------------------------------------------------------------

BETAS = BetasSchedule("scaled_linear", 0.00085, 0.012)
FALLING = torch.tensor([0.98, 0.91, 0.8, 0.74, 0.55, 0.42, 0.31, 0.2, 0.11, 0.05, 0.02], dtype=torch.float64)
TO_DATA = torch.cat([FALLING, torch.tensor([DATA], dtype=torch.float64)])
WORDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample", "flow": "flow_prediction"}


def multistep(name: str, process: Gaussian, times: Tensor, **options: Any) -> Any:
    """A scheduler of diffusers that walks on `times`, in fp64 as far as it keeps it."""
    import diffusers

    scheduler = getattr(diffusers, name)(
        prediction_type=WORDS[process.prediction], use_flow_sigmas=process.path == "flow", **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, about how diffusers makes an array
        scheduler.set_timesteps(len(times) - 1)
    a, s = process.coefficients(times)
    scheduler.sigmas = s if process.path == "flow" else s / a
    scheduler.timesteps = torch.arange(len(times) - 1).flip(0)
    return scheduler


def stepped(scheduler: Any, x: Tensor, times: Tensor) -> Tensor:
    """The loop of diffusers with the wavy network."""
    network = Wavy()
    for index, now in zip(scheduler.timesteps, times[:-1].clamp_min(0.0), strict=True):
        seen = now.expand(len(x)).to(x.dtype)
        x = scheduler.step(network(x, seen, None), index, x, return_dict=False)[0]
    return x


FLOW = LinearSchedule(alpha_min=1e-3)
SIDES = [
    pytest.param(Gaussian(FLOW, "flow", "flow"), id="flow, flow"),
    pytest.param(Gaussian(FLOW, "flow", "eps"), id="flow, eps"),
    pytest.param(Gaussian(FLOW, "flow", "x0"), id="flow, x0"),
    *[pytest.param(Gaussian(BETAS, "vp", p), id=f"vp, {p}") for p in ("eps", "v", "x0")],
]


@pytest.mark.parametrize("process", SIDES)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("times", [FALLING, TO_DATA], ids=["inside", "to data"])
def test_unipc_equals_that_of_diffusers(process: Gaussian, order: int, times: Tensor) -> None:
    to_data = float(times[-1]) == DATA
    if to_data and order == 3:
        order, times = 3, times[:2].new_tensor([0.9, 0.5, DATA])  # longer walks lower the order before the last step
    options = {"solver_order": order, "solver_type": "bh2", "lower_order_final": to_data, "final_sigmas_type": "zero"}
    scheduler = multistep("UniPCMultistepScheduler", process, times, **options)
    x = noise(4)
    torch.testing.assert_close(
        walked(UniPC(order=order), process, Wavy(), x, times), stepped(scheduler, x, times), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("process", SIDES)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("times", [FALLING, TO_DATA], ids=["inside", "to data"])
def test_dpm_equals_that_of_diffusers(process: Gaussian, order: int, times: Tensor) -> None:
    kind = {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "solver_order": order}
    last = {"final_sigmas_type": "zero"} if float(times[-1]) == DATA else {"final_sigmas_type": "sigma_min"}
    scheduler = multistep("DPMSolverMultistepScheduler", process, times, lower_order_final=False, **kind, **last)
    x = noise(4)
    ours, theirs = walked(DPMSolver(order=order), process, Wavy(), x, times), stepped(scheduler, x, times)
    assert float((ours - theirs).abs().max()) <= 1e-6 * max(1.0, float(theirs.abs().max()))  # it steps in fp32


@pytest.mark.parametrize("process", SIDES[:1])
def test_euler_on_a_flow_equals_that_of_diffusers(process: Gaussian) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(len(TO_DATA) - 1)
    _, scheduler.sigmas = process.coefficients(TO_DATA)
    scheduler.timesteps = 1000.0 * TO_DATA[:-1]
    x = noise(4)
    ours = walked(Euler(), process, Wavy(), x, TO_DATA)
    assert float((ours - stepped(scheduler, x, TO_DATA)).abs().max()) <= 1e-6


@pytest.mark.parametrize("process", SIDES[3:])
def test_euler_on_vp_is_ddim(process: Gaussian) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=BETAS.beta_start,
        beta_end=BETAS.beta_end,
        prediction_type=WORDS[process.prediction],
        clip_sample=False,
    )
    # the table in fp64, as ours
    betas = torch.linspace(BETAS.beta_start**0.5, BETAS.beta_end**0.5, 1000, dtype=torch.float64) ** 2
    scheduler.alphas_cumprod = (1.0 - betas).cumprod(0)
    scheduler.set_timesteps(20)
    times = torch.cat([scheduler.timesteps.double() / 999, torch.tensor([DATA])])
    x = noise(4)
    ours = walked(Euler(), process, Wavy(), x, times)
    torch.testing.assert_close(ours, stepped(scheduler, x, times), rtol=1e-9, atol=1e-9)


# --- both ends ----------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Schedule] = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "shifted": ShiftedSchedule(LinearSchedule(), 3.0),
    "betas": BetasSchedule(),
}


def processes() -> list[Any]:
    """Every schedule, path and prediction that go together."""
    table = []
    paths: tuple[Path, ...] = ("flow", "vp")
    predictions: tuple[Prediction, ...] = ("eps", "v", "x0", "flow")
    for name, schedule in SCHEDULES.items():
        for path in paths:
            for prediction in predictions:
                if prediction == "eps" and name != "betas":
                    continue
                table.append(pytest.param(Gaussian(schedule, path, prediction), id=f"{name}, {path}, {prediction}"))
    return table


@pytest.mark.parametrize("process", processes())
def test_a_walk_from_noise_to_data_is_finite_and_right(process: Gaussian) -> None:
    """Quantiles of noise become those of data, to the error of 24 steps, down to s = 0."""
    batch = blank(16)
    start = process.prior(batch, Key(1))
    begin, end = torch.ones(1, dtype=torch.float64), torch.full((1,), DATA, dtype=torch.float64)
    off = []
    for solver in PLAIN:
        reached = sample(Exact(process), process, solver, UniformGrid(24), batch, Key(1)).x
        off.append(float((reached - moved(process, start.x.double(), begin, end)).square().mean().sqrt()))
    euler, *higher, classic = off
    assert euler < 0.12 and max(higher) < 0.9 * euler and classic < 0.008, off


@pytest.mark.parametrize("process", processes())
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_an_image_that_is_known_is_reached_in_any_number_of_steps(process: Gaussian, num_steps: int) -> None:
    """The straightest case of all, and the stiffest near the data: every solver ends at the image itself."""
    network = Point(process)
    for solver in PLAIN:
        reached = sample(network, process, solver, UniformGrid(num_steps), blank(3), Key(2)).x
        torch.testing.assert_close(
            reached, torch.full_like(reached, network.value), rtol=0.0, atol=1e-4, msg=str(solver)
        )


@every_solver
def test_a_bounded_schedule_is_walked_to_pure_data(solver: ODESolver) -> None:
    assert solver.times(UniformGrid(4), BetasSchedule()) == (1.0, 0.75, 0.5, 0.25, DATA)
    assert solver.times(UniformGrid(4), LinearSchedule()) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_a_walk_may_end_and_begin_anywhere() -> None:
    """In particular at t = 0 of a bounded schedule, from which the rest of the noise is one more step."""
    process = Gaussian(BetasSchedule(), "vp", "v")
    times = torch.tensor([0.3, 0.1, 0.0, DATA])
    x = noise(4)
    for solver in PLAIN:
        parts = [
            walked(solver, process, Point(process), x, times[:3]),
            walked(solver, process, Point(process), x, times),
        ]
        _, s = process.coefficients(torch.zeros(1))
        assert float((parts[0] - 0.7).abs().max()) > 0.5 * float(s) * float(x.abs().max())
        torch.testing.assert_close(parts[1], torch.full_like(x, 0.7), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), ShiftedSchedule(CosineSchedule(), 2.0)])
def test_a_predicted_noise_says_nothing_at_pure_noise(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match=r"alpha\(1\) is 0.*take prediction: v or flow"):
        Gaussian(schedule, "vp", "eps")


# --- what the settings do -----------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize("weight", [2.0, -0.5])
def test_guidance_is_its_formula_and_costs_two_rows_of_one_forward(solver: ODESolver, weight: float) -> None:
    """(1 + w)·cond - w·uncond of a network whose branches differ by a shift is the network with a shift of (1 + w)."""
    process, shift = PATHS["flow"], torch.tensor([0.4, -0.2, 0.1])
    network, wanted = Wavy(), Wavy()
    guided = sample(network, process, replace(solver, guidance=weight), UniformGrid(4), blank(3, shift=shift), Key(3))
    plain = sample(wanted, process, solver, UniformGrid(4), blank(3, shift=(1 + weight) * shift), Key(3))
    torch.testing.assert_close(guided.x, plain.x, rtol=0.0, atol=2e-6)
    assert network.rows == [2 * rows for rows in wanted.rows]
    assert guided.num_forwards.tolist() == [2 * n for n in plain.num_forwards.tolist()]
    assert plain.num_forwards.tolist() == [4 * solver.forwards_per_step] * 3


def test_guidance_may_differ_by_row() -> None:
    process, shift = PATHS["flow"], torch.tensor([0.4, -0.2, 0.1])
    weights = torch.tensor([0.0, 1.0, 3.0])
    run = partial(sample, process=process, sampler=DPMSolver(), grid=UniformGrid(4), key=Key(3))
    mixed = run(Wavy(), batch=blank(3, shift=shift), knobs=Knobs(guidance=weights))
    each = run(Wavy(), batch=blank(3, shift=(1 + weights) * shift))
    torch.testing.assert_close(mixed.x, each.x, rtol=0.0, atol=2e-6)


@pytest.mark.parametrize("process", [PATHS["flow"], Gaussian(BETAS, "vp", "eps")], ids=["flow", "vp"])
def test_epsilon_scale_divides_the_noise_and_clip_bounds_the_image(process: Gaussian) -> None:
    network, x = Wavy(), noise(4)
    t, end = (torch.tensor([time], dtype=torch.float64) for time in (0.6, 0.4))
    (a, s), (a2, s2) = process.coefficients(t), process.coefficients(end)
    said = network(x, t.expand(4), None)
    image = x - s * said if process.prediction == "flow" else (x - s * said) / a
    predicted = (x - a * image) / s
    times = torch.cat([t, end])
    scaled = walked(Euler(epsilon_scale=1.25), process, network, x, times)
    # the scaled noise goes into the image and into the step
    less = predicted / 1.25
    torch.testing.assert_close(scaled, a2 * (x - s * less) / a + s2 * less, rtol=1e-9, atol=1e-9)
    clipped = walked(Euler(clip=0.3), process, network, x, times)
    bounded = image.clamp(-0.3, 0.3)
    assert float((image - bounded).abs().max()) > 0.1
    torch.testing.assert_close(clipped, s2 / s * x + (a2 - a * s2 / s) * bounded, rtol=1e-9, atol=1e-9)


def test_epsilon_scale_leaves_pure_noise_alone() -> None:
    """There a is 0, and no image goes with a scaled noise."""
    for solver in (Euler(epsilon_scale=1.1), UniPC(epsilon_scale=0.9)):
        assert sample(Wavy(), PATHS["vp"], solver, UniformGrid(3), blank(3), Key(4)).x.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Euler, epsilon_scale=0.0), "epsilon_scale is 0.0"),
        (partial(Euler, clip=-1.0), "clip is -1.0"),
        (partial(DPMSolver, order=3), "dpm: order is 3; allowed are 1 to 2"),
        (partial(UniPC, order=4), "unipc: order is 4; allowed are 1 to 3"),
        (partial(UniPC, order=0), "unipc: order is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("knobs", [Knobs(temperature=torch.ones(2)), Knobs(reveal=torch.ones(2, dtype=torch.int64))])
def test_knobs_of_tokens_are_refused(knobs: Knobs) -> None:
    with pytest.raises(ValueError, match="of tokens"):
        sample(Wavy(), PATHS["flow"], Euler(), UniformGrid(2), blank(2), Key(0), knobs)


# --- the contract -------------------------------------------------------------------------------------------------


def frozen(state: Any) -> dict[str, Any]:
    """Copies of all tensors of a state."""
    parts = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("batch", "memo")}
    return {
        name: [t.clone() for t in (v if isinstance(v, tuple) else (v,)) if isinstance(t, Tensor)]
        for name, v in parts.items()
    }


@every_variant
@pytest.mark.parametrize("path", PATHS)
def test_a_row_does_not_depend_on_its_batch_and_nothing_is_changed(solver: ODESolver, path: str) -> None:
    process, shift = PATHS[path], torch.tensor([0.4, -0.2, 0.1, 0.0, 0.3])
    batch = blank(5, shift=shift)
    before = torch.get_rng_state()
    states = list(walk(Wavy(), process, solver, UniformGrid(4), batch, Key(5)))
    kept = [frozen(state) for state in states]
    for (state, copy), (t, s) in zip(
        list(zip(states, kept, strict=True))[:-1], pairwise(solver.times(UniformGrid(4), process.schedule)), strict=True
    ):
        solver.step(process, Wavy(), state, (t, s), Key(5), Knobs())
        for name, tensors in frozen(state).items():
            assert all(torch.equal(one, two) for one, two in zip(tensors, copy[name], strict=True)), name
    assert torch.equal(torch.get_rng_state(), before)
    index = torch.tensor([3, 0])
    part = sample(Wavy(), process, solver, UniformGrid(4), batch.rows(index), Key(5))
    assert torch.equal(part.x, states[-1].x[index]) and part.x.dtype == torch.float32


@every_variant
@pytest.mark.parametrize("path", PATHS)
def test_rows_of_all_lengths_go_together_as_each_goes_alone(solver: ODESolver, path: str) -> None:
    """Each from, through and to times of its own; a step is one forward of the rows that still walk."""
    process, lengths = PATHS[path], torch.tensor([7, 4, 4, 2, 1])
    generator = torch.Generator().manual_seed(1)
    times = torch.rand(8, 5, generator=generator, dtype=torch.float64).sort(0, descending=True).values
    batch = blank(5, shift=torch.tensor([0.4, -0.2, 0.1, 0.0, 0.3]))
    x = noise(5, dtype=torch.float32)
    network = Wavy()
    state = solver.init(process, network, Noised(x, times[0], x), batch, Knobs())
    parts = list(roll(network, process, solver, times, lengths, state, Key(0)))
    assert [part.batch.ids.tolist() for part in parts] == [[4], [3], [1, 2], [0]]
    branches, per_step = state.num_branches, solver.forwards_per_step
    active = [5, 4, 3, 3, 1, 1, 1]
    assert network.rows == [branches * rows for rows in active for _ in range(per_step)]
    assert len(network.rows) == 7 * per_step and sum(network.rows) == branches * per_step * int(lengths.sum())
    together = torch.cat([part.x for part in parts][::-1])
    spent = torch.cat([part.num_forwards for part in parts][::-1])
    assert torch.equal(spent, branches * per_step * lengths)
    for row, length in enumerate(lengths.tolist()):
        one = torch.tensor([row])
        alone = solver.init(process, network, Noised(x[one], times[0, one], x[one]), batch.rows(one), Knobs())
        walks = roll(network, process, solver, times[:, one], lengths[one], alone, Key(0))
        assert torch.equal(torch.cat([part.x for part in walks])[0], together[row]), length
