"""One schedule: the same object in everything a policy's run does, and no place for a second one in its config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from onpath import rng
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.processes.masking import Masking
from onpath.records import RunFolder
from onpath.runs import load
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.types import Nets
from policies import collected, policy_config, policy_parts, rounds_of, shaken, train

# the even grid follows the schedule, so that a walk on it is the same under all of them
UNIFORM = ["grid={kind: uniform, steps: 4}", "sampler.count=ancestral"]
NELBO = ["objective.estimator={kind: traj_nelbo, trajectory_samples: 0}", "objective.beta=0.1"]


def test_the_schedule_of_a_run_is_one_object() -> None:
    parts = policy_parts("schedule=cosine")
    rounds, job, schedule = rounds_of(parts), parts.job(), parts.process.schedule
    assert isinstance(parts.objective, PolicyGradient)
    # rollouts and the loss
    assert rounds.policy is parts.objective is job.objective and job.rounds is rounds
    generator = rounds.generator
    assert generator.process is parts.process and generator.grid is parts.grid and generator.sampler is parts.sampler
    assert parts.objective.process is parts.process and parts.objective.process.schedule is schedule
    assert parts.objective.grid is parts.grid and parts.objective.walker is parts.sampler
    # validation, the old log-probabilities and the KL go by these rounds and this policy
    assert replace(rounds, source=job.validation).policy.process.schedule is schedule
    # evaluation
    subject = parts.subject(parts.model)
    assert subject.process is parts.process and subject.grid is parts.grid and subject.sampler is parts.sampler
    assert (
        parts.identity["schedule"]
        == parts.config.schedule.as_dict()
        == policy_config("schedule=cosine").schedule.as_dict()
    )


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule()])
def test_every_number_comes_from_the_schedule(schedule: LinearSchedule | CosineSchedule) -> None:
    kind = "linear" if isinstance(schedule, LinearSchedule) else "cosine"
    parts = policy_parts(f"schedule={kind}", "training.batch_size=256", *UNIFORM, *NELBO)
    experience, policy = collected(parts).experience, rounds_of(parts).policy
    alpha = schedule.alpha(torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64))
    reveal = (alpha[1:] - alpha[:-1]) / (1 - alpha[:-1])  # u_k
    # rollouts: the share of positions that each step reveals
    share = torch.stack([(experience.revealed_at == step).sum() for step in range(4)]) / experience.free.sum()
    error = ((alpha[1:] - alpha[:-1]) * (1 - alpha[1:] + alpha[:-1]) / experience.free.sum()).sqrt()
    assert ((share - (alpha[1:] - alpha[:-1])).abs() < 4 * error).all()
    # the loss: each score weighs u_k of its step
    views = policy.views(experience, rng.Key(0))
    weight = views.by_copy(views.weight)
    assert sorted({round(float(w), 6) for w in weight[weight > 0].unique()}) == sorted(
        {round(float(u), 6) for u in reveal}
    )
    assert experience.chance is not None
    torch.testing.assert_close(experience.chance.double(), reveal, rtol=0, atol=1e-7)
    # the KL: the same weights on the distributions at these states
    other = policy_parts().model
    shaken(other, 1)
    loss = policy(Nets(parts.model, reference=other), experience, rng.Key(0), 0)
    scores = policy.scores(parts.model, experience, views, other)
    assert scores.kl is not None
    by_hand = (weight * scores.kl.detach()).sum((0, 2)) / experience.free.sum(1)
    assert float(loss.metrics["kl"][0]) == pytest.approx(float(by_hand.sum()), rel=1e-5)


def test_changing_the_schedule_changes_all_of_them() -> None:
    settings = [*UNIFORM, *NELBO, "evaluation={num_examples: 64, drift: null}"]
    found = []
    for kind in ("linear", "cosine"):
        parts = policy_parts(f"schedule={kind}", *settings)
        held, job, state = collected(parts), parts.job(), parts.trainer.start(parts.job())
        shaken(state.reference or parts.model, 2)
        parts.trainer.step(state, job, 4)
        trained, told = state.meter.means(), parts.trainer.validate(parts.model, job, 4)
        measured = parts.evaluation.measure(parts.subject(parts.model))
        found.append(
            {
                "rollouts": held.experience.revealed_at.tolist(),
                "loss": trained["loss"],
                "kl": trained["kl"],
                "validation": told["logp/traj"],
                "evaluation": [row["value"] for row in measured if row["metric"] == "rewards/sudoku_cells"],
            }
        )
    one, other = found
    assert all(one[name] != other[name] for name in one), found


@pytest.mark.parametrize(
    "path",
    [
        "data",
        "model",
        "objective",
        "objective.estimator",
        "process",
        "sampler",
        "sampler.tokens",
        "grid",
        "training",
        "training.optimizer",
        "evaluation",
        "experience",
    ],
)
def test_a_second_schedule_is_refused_with_its_full_path(path: str) -> None:
    with pytest.raises(ValueError, match=rf"^config: {path}\.schedule: 'schedule' is "):
        policy_config(f"{path}.schedule=cosine")
    with pytest.raises(ValueError, match=r"^config: schedules: "):
        policy_config("schedules=[linear, cosine]")


def test_a_second_schedule_of_a_reward_is_refused_with_its_full_path() -> None:
    with pytest.raises(ValueError, match=r"^config: experience\.rewards\.0\.schedule: "):
        policy_config("experience.rewards=[{kind: sudoku_cells, schedule: cosine}]")


def test_the_saved_schedule_wins_and_another_one_is_refused(tmp_path: Path) -> None:
    few = ["training.steps=2", "training.save_every=1"]
    run = train(tmp_path / "run", *few, "schedule=cosine")
    with pytest.raises(
        ValueError, match=r"trained with schedule .*cosine.*now says .*linear.*one run has one schedule"
    ):
        train(run.path, *few, "schedule=linear", "training.steps=3", resume=True)
    assert [row["step"] for row in run.metrics() if row["set"] == "train"] == [1, 2]
    loaded = load(run.path)
    assert isinstance(loaded.parts.process, Masking) and loaded.parts.process.schedule == CosineSchedule()
    assert loaded.identity["schedule"]["kind"] == "cosine"
    config = RunFolder.open(run.path)
    other = config.config() | {"schedule": {"kind": "linear"}}
    config.write_config(other)  # somebody edits the file
    with pytest.raises(ValueError, match=r"schedule"):
        load(run.path)
