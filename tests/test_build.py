"""From a config to objects, and from a folder back to a run."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

import onpath
import pictures
from onpath.build import build, device_of
from onpath.config import RunConfig
from onpath.data.trajectories import FourRoomsExpert
from onpath.data.trajectory_files import Trajectories, save
from onpath.evaluation.plans import PlanEvaluation
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.records import RunFolder
from onpath.runs import check, load
from onpath.training import checkpoint
from onpath.training.trainer import Trainer
from onpath.types import Batch
from tiny import settings, tiny, tiny_parts

RECIPES = sorted(Path(str(resources.files("onpath.recipes"))).glob("*.yaml"))
# ask for a model and data; see tests/test_sft.py, test_from_diffusers.py, test_gsm8k_recipe.py
OF_ONE_S_OWN = {"sft", "diffusers-lora", "trajectory_nelbo_gsm8k"}


def trained(path: Path, *overrides: str) -> RunFolder:
    config = tiny(*overrides)
    parts = build(config)
    folder = RunFolder.create(path, config.as_dict())
    parts.trainer.fit(parts.job(), folder)
    return folder


def test_the_seed_decides_the_weights() -> None:
    states = [tiny_parts(f"seed={seed}").model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_no_global_random_state_is_touched(tmp_path: Path) -> None:
    # Python's own `random` is left out: the checker of annotations draws from it during the tests
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    trained(tmp_path)
    load(tmp_path, device="cpu").sample(num_samples=2)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_a_bounded_schedule_has_no_continuous_bound() -> None:
    with pytest.raises(ValueError, match=r"config: objective: .*alpha 0\.99 to 0\.01.*trajectory_nelbo"):
        tiny_parts("schedule={kind: linear, alpha_min: 0.01, alpha_max: 0.99}")


def test_the_bound_of_a_trajectory_is_of_the_grid_of_the_run() -> None:
    parts = tiny_parts("objective=trajectory_nelbo", "grid={kind: uniform, steps: 7}", "objective.steps_per_example=7")
    assert isinstance(parts.objective, TrajectoryNELBO) and parts.objective.grid is parts.grid
    assert parts.objective.process is parts.process
    with pytest.raises(ValueError, match=r"config: objective: .*steps_per_example is 8.* 7 steps of the grid"):
        tiny_parts("objective=trajectory_nelbo", "grid={kind: uniform, steps: 7}", "objective.steps_per_example=8")


def test_validation_reports_a_bound_beside_a_loss_that_is_none() -> None:
    assert tiny_parts().job().bounds == ()
    (bound,) = tiny_parts("objective=masked_cross_entropy").job().bounds
    assert isinstance(bound, ContinuousNELBO)
    (bound,) = tiny_parts("objective=masked_cross_entropy", "schedule.alpha_min=0.1").job().bounds
    assert isinstance(bound, TrajectoryNELBO) and bound.steps_per_example == 8  # of the 11 of the walk


def test_devices() -> None:
    assert device_of("cpu").type == "cpu"
    if torch.cuda.is_available():
        assert device_of("auto").type == device_of("cuda").type == "cuda"
        return
    assert device_of("auto").type == "cpu"
    with pytest.raises(ValueError, match="sees no GPU; set device: cpu or auto"):
        tiny_parts("device=cuda")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.modes=[opn@1]"], "mode: 'opn@1' is not one"),
        (["training.steps=0", "training.epochs=2"], "never ends; set training.steps"),
        (["data={kind: trajectories, path: nothing.npz}"], "nothing.npz"),
        (["evaluation.modes=[open@2+warm0.5]"], "warm_start is set in open loop"),
        (["evaluation.modes=[horizon41@2]"], "replan_every is 41"),
        (["grid={kind: explicit, points: [1.0, 0.5, 0.0]}"], "fixed number of steps"),
        (
            ["objective={kind: masked_cross_entropy, high: {kind: linear, start: 0.3, end: 1, steps: 9}}"],
            "objective.high",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_it_trains(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_parts(*overrides)


def test_a_file_without_a_maze_to_validate_on_is_refused_before_it_trains(tmp_path: Path) -> None:
    save(tmp_path / "few.npz", FourRoomsExpert().record(torch.arange(2)))
    data = f"data={{kind: trajectories, path: {tmp_path / 'few.npz'}, validation_share: 0.0}}"
    with pytest.raises(ValueError, match="no maze falls into the validation split"):
        tiny_parts(data)
    assert tiny_parts(data, "training.validation_examples=0").source.num_examples == 2


SHORT = {  # what a recipe needs besides to be over after three steps
    "shakespeare-proofread": [f"objective.{name}.steps=2" for name in ("penalty_keep_mask", "penalty_mask_correct")],
    **{
        name: [f"objective.scheduled_sampling.{ramp}=1" for ramp in ("start_step", "ramp_steps")]
        for name in ("digits-inject", "digits-rollout", "fashion-inject", "fourrooms-rollout", "shakespeare-rollout")
    },
    **{  # a run to begin with, and as many rollouts as the batch has
        name: ["start=null", "experience.num_generations=4", "training.warmup_steps=0"]
        for name in ("sudoku-grpo", "countdown-grpo", "fourrooms-grpo")
    },
}
WRITERS = {"fashion": pictures.write_idx, "fashion-inject": pictures.write_idx, "cifar10": pictures.write_cifar}


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in OF_ONE_S_OWN], ids=lambda path: path.stem)
def test_every_recipe_trains(path: Path, tmp_path: Path) -> None:
    own = SHORT.get(path.stem, [])
    if path.stem in WRITERS:
        WRITERS[path.stem](tmp_path / "data")
        own = [*own, f"data.path={tmp_path / 'data'}", "data.validation_examples=5", "evaluation.num_samples=0"]
    config = RunConfig.load(path, settings(["model.width=16", "training.compile=false", *own]))
    assert RunConfig.parse(config.as_dict()) == config
    parts = build(config)
    parts.trainer.fit(parts.job(), RunFolder.create(tmp_path / "run", config.as_dict()))
    assert load(tmp_path / "run", device="cpu").step == 3


def test_weights_to_begin_with_keep_the_statistics_of_their_inputs(tmp_path: Path) -> None:
    """On other data than theirs too: to a network whose inputs are scaled anew, every image is another one."""
    folder = trained(tmp_path, "data.episodes=8")
    saved = checkpoint.read(folder.checkpoints / "step-3", for_training=False).average
    other, begun = (tiny_parts("data.episodes=9", *start).job().model for start in ([], [f"start={tmp_path}"]))
    for name in ("standardize.mean", "standardize.scale"):
        assert torch.equal(begun.state_dict()[name], saved[name])
        assert not torch.equal(other.state_dict()[name], saved[name])


def test_a_loaded_run_is_the_average_that_was_trained(tmp_path: Path) -> None:
    config = tiny("schedule=cosine")
    parts = build(config)
    average = parts.trainer.fit(parts.job(), RunFolder.create(tmp_path, config.as_dict()))
    run = onpath.load(tmp_path, device="cpu")
    assert isinstance(run, onpath.Run) and run.step == 3 and run.parts.config == config
    state = run.denoiser.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(state[name], value) for name, value in average.state_dict().items())
    assert not run.denoiser.training  # pyright: ignore[reportAttributeAccessIssue]
    first, second, other = (run.sample(num_samples=3, seed=seed).x for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.shape == (3, 40) and int(first.max()) < run.parts.spec.num_words


def test_the_parameters_are_reported_as_they_are() -> None:
    from onpath.build import estimate

    config = tiny()
    found = estimate(config)
    assert found["parameters"] == f"{sum(p.numel() for p in build(config).model.parameters()):,}"
    assert found["optimizer steps"] == "3"


def test_evaluation_rows(tmp_path: Path) -> None:
    trained(tmp_path)
    rows = load(tmp_path, device="cpu").evaluate(
        PlanEvaluation(num_tasks=4, modes=("open@2",), latency=False, drift=None)
    )
    assert all(set(row) == {"set", "mode", "metric", "value", "ci95", "n", "step"} for row in rows)
    (success,) = [row for row in rows if row["metric"] == "success"]
    assert success["n"] == 4 and 0 <= success["ci95"][0] <= success["value"] <= success["ci95"][1] <= 1
    json.dumps(rows)


def test_every_simulated_mode_is_timed(tmp_path: Path) -> None:
    trained(tmp_path)
    modes = ("open@2", "horizon8@2", "closed@1", "open@1/minigrid")
    rows = load(tmp_path, device="cpu").evaluate(PlanEvaluation(num_tasks=2, modes=modes))
    timed = {row["mode"] for row in rows if row["metric"].startswith("ms_per_decision")}
    assert timed == {"open@2", "horizon8@2", "closed@1"}


def test_a_run_of_another_image_size_is_not_evaluated_on_fourrooms(tmp_path: Path) -> None:
    image = torch.ones(20, 9, 8, 3, dtype=torch.uint8)
    image[..., 1:] = 0
    for row in range(20):  # a wall makes another maze of each
        image[row, 1 + row % 7, 1 + row // 7, 0] = 2
    image[:, 0, 0, 0], image[:, 8, 7, 0] = 8, 10
    one = torch.ones(20, dtype=torch.int64)
    save(tmp_path / "own.npz", Trajectories(image, 0 * one, torch.full((20, 2), 2), 2 * one))
    data = f"data={{kind: trajectories, path: {tmp_path / 'own.npz'}, validation_share: 0.3}}"
    trained(tmp_path / "run", data, "model={kind: plan_transformer, width: 16, num_heads: 2, depth: 1, convs: 0}")
    run = load(tmp_path / "run", device="cpu")
    for measure in (run.evaluate, run.traces):
        with pytest.raises(ValueError, match=r"\(9, 8, 3\), and .* FourRooms.*\(19, 19, 3\).*\.actor\(\)"):
            measure()
    assert run.actor().act({"image": image[0].numpy(), "direction": 0}) in range(7)


def test_padding_of_a_demonstration_is_not_told_when_sampling(tmp_path: Path) -> None:
    trained(tmp_path, "data.padding=zero", "data.length=30")
    run = load(tmp_path, device="cpu")
    ids = torch.arange(4)
    shown = run.parts.source.at_split("validation").examples(ids)
    assert shown.padding is not None and shown.padding.any()
    state = run.sample(num_samples=4)
    assert state.batch.padding is None and (state.revealed_at >= 0).all()
    own = Batch.of_tokens(shown.x, ids, padding=shown.padding, cond=shown.cond)
    assert (run.sample(own).revealed_at[shown.padding] == -1).all()  # a batch of one's own keeps what it says


@pytest.mark.slow
def test_a_check_compares_with_the_schedule_of_the_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path, "schedule=cosine")
    run = load(tmp_path, device="cpu")
    checks, _ = check(tiny("schedule=linear"), run)
    (finding,) = [one for one in checks if one.name == "schedule used = schedule saved"]
    assert not finding.passed and finding.measured["difference"] > 0.1


def test_runs_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a run"):
        load(tmp_path / "nothing")
    folder = RunFolder.create(tmp_path / "fresh", tiny().as_dict())
    with pytest.raises(ValueError, match="no checkpoint that verifies; train it first"):
        load(folder.path, device="cpu")
    folder = trained(tmp_path / "run")
    with pytest.raises(ValueError, match=r"was trained with schedule .*linear.*the config now says .*cosine"):
        load(folder.path, device="cpu", overrides=["schedule=cosine"])
    (_, path) = checkpoint.steps_in(folder.checkpoints)[0]
    (path / "average.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"verifies \(step-3/average.safetensors does not match its checksum\)"):
        load(folder.path, device="cpu")


def test_a_trainer_from_python_is_the_trainer_of_the_config() -> None:
    assert tiny_parts("training={steps: 5, batch_size: 8}").trainer == Trainer(steps=5, batch_size=8)


def test_guidance_needs_a_network_that_was_trained_without_its_condition() -> None:
    with pytest.raises(ValueError, match=r"guidance is 0\.5, but objective\.condition_dropout is 0"):
        tiny_parts("sampler.guidance=0.5")
    tiny_parts("sampler.guidance=0.5", "objective.condition_dropout=0.1")


@pytest.mark.parametrize("mode", ["open@2+warm0.5", "horizon41@2"])
def test_a_mode_that_cannot_run_is_refused_before_others_are_measured(tmp_path: Path, mode: str) -> None:
    run = load(trained(tmp_path).path, device="cpu")
    with pytest.raises(ValueError, match="policy: "):
        run.evaluate(PlanEvaluation(num_tasks=10**9, modes=("open@2", mode)))  # to measure so many would take for ever


def test_one_seed_for_weights_and_examples() -> None:
    zero, one = build(tiny("seed=0")), build(tiny("seed=1"))
    ids = torch.arange(8)
    assert not torch.equal(zero.source.examples(ids).x, one.source.examples(ids).x)
    with pytest.raises(ValueError, match=r"data\.seed.*set by the run itself"):
        tiny("data.seed=1")
    with pytest.raises(ValueError, match=r"data\.split.*set by the run itself"):
        tiny("data.split=test")


@pytest.mark.parametrize(("count", "fixed"), [("schedule", True), ("ancestral", False)])
def test_the_trajectory_bound_is_that_of_the_samplers_counts(count: str, fixed: bool) -> None:
    parts = build(tiny("objective.kind=trajectory_nelbo", f"sampler.count={count}", "objective.steps_per_example=1"))
    assert isinstance(parts.objective, TrajectoryNELBO)
    assert parts.objective.fixed_counts is fixed and parts.objective.grid == parts.grid


def test_validation_keeps_every_condition() -> None:
    parts = build(tiny("objective={kind: nelbo, condition_dropout: 0.5}"))
    validated = parts.job().validated
    assert isinstance(validated, ContinuousNELBO) and validated.condition_dropout == 0.0
    assert validated.masks == parts.objective.masks  # pyright: ignore[reportAttributeAccessIssue]


def test_a_trained_policy_needs_its_demonstrations_no_more(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    save(path, FourRoomsExpert().record(torch.arange(60)))
    parts = tiny_parts(f"data={{kind: trajectories, path: {path}, validation_share: 0.3}}")
    folder = RunFolder.create(tmp_path / "run", parts.config.as_dict())
    parts.trainer.fit(parts.job(), folder)
    path.unlink()
    run = load(folder.path, device="cpu")
    assert {row["metric"] for row in run.evaluate()} >= {"success", "spl"}
    with pytest.raises(ValueError, match=r"own\.npz"):
        run.sample()
