"""Several processes make and train on the rounds that one makes, as replicas and as shards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onpath.records import RunFolder
from onpath.training import checkpoint
from policies import train

COMMON = [
    "training.steps=6",
    "training.save_every=1",
    "training.keep=0",
    "training.accumulation=2",
    "training.validate_every=3",
    "training.validation_examples=9",  # cut into unequal parts, and one is left for a walk of its own
    "experience.num_generations=16",  # the whole batch, twice the share of a process
    "experience.num_iterations=2",
    "experience.steps_per_round=2",
    "sampler.count=ancestral",
]
ESTIMATORS = {
    "traj": ["objective.estimator={kind: traj}", "objective.beta=0.05", "experience.rollout_batch_size=3"],
    "diffu": ["objective.estimator={kind: diffu}"],
    "uni": ["objective.estimator={kind: uni}", "objective.beta=0.05", "objective.kl=k3"],
    "trace": [
        "objective.estimator={kind: trace, score_candidates: true}",
        "sampler={kind: unmasking, order: confidence}",
        "experience.rollout_batch_size=2",
    ],
}
# shards walk in step, and ess is of a micro-batch
OTHER = {
    "seconds",
    "examples_per_second",
    "rollout_seconds",
    "rollout_forwards",
    "set",
    "ess",
}

WORKER = r"""
import json
import sys
from pathlib import Path

import torch

from onpath.records import RunFolder
from onpath.training.distributed import FailedElsewhere, Processes
from policies import policy_parts

torch.set_num_threads(1)
root, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
with Processes.joined() as processes:
    for name, settings in cases.items():
        parts = policy_parts(*settings)
        resume = processes.first((root / name).exists)  # before one of them makes it
        path = root / name
        folder = RunFolder(path) if resume else processes.first(lambda: RunFolder.create(path, {}))
        try:
            parts.trainer.fit(parts.job(), folder, resume=resume, processes=processes)
        except FailedElsewhere as error:
            assert processes.rank == 1
            sys.stdout.write(f"told too: {error}\n")
        except ValueError as error:
            assert processes.rank == 0 and name == "failing", error
            sys.stdout.write(f"told: {error}\n")
sys.stdout.write("both are done\n")
"""


def two_processes(folder: Path, cases: dict[str, list[str]]) -> str:

    script = folder / "worker.py"
    script.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [*launch, str(script), str(folder), json.dumps(cases)],
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0 and done.stdout.count("both are done") == 2, done.stdout + done.stderr
    return done.stdout


def rows(path: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in OTHER} for row in RunFolder(path).metrics()]


def assert_alike(one: Path, other: Path) -> None:
    """Rewards, losses and weights within 1e-5."""
    own, theirs = rows(one), rows(other)
    assert len(own) == len(theirs) == 8
    for mine, its in zip(own, theirs, strict=True):
        assert mine.keys() == its.keys()
        for name, value in mine.items():
            if name == "loss_forwards":  # equal states of a group are read once where they lie in one micro-batch
                assert its[name] >= value - 1e-6
                continue
            assert its[name] == pytest.approx(value, abs=1e-5, rel=1e-5), (other.name, name, mine["step"])
    last, its_last = (checkpoint.load(path / "checkpoints" / "step-6") for path in (one, other))
    for mine, its in ((last.model, its_last.model), (last.average, its_last.average)):
        for weight in mine:
            torch.testing.assert_close(mine[weight], its[weight], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_processes_make_the_rounds_of_one(tmp_path: Path, estimator: str) -> None:
    settings = [*COMMON, *ESTIMATORS[estimator]]
    one = train(tmp_path / "one", *settings)
    for name in ("ddp taken", "fsdp taken"):  # in the middle of the first round
        shutil.copytree(one.path, tmp_path / name)
        for step in (2, 3, 4, 5, 6):
            shutil.rmtree(tmp_path / name / "checkpoints" / f"step-{step}")
    kinds = {kind: [*settings, f"training.parallel={kind}"] for kind in ("ddp", "fsdp")}
    two_processes(tmp_path, {name: kinds[name.split()[0]] for name in ("ddp", "fsdp", "ddp taken", "fsdp taken")})
    for name in ("ddp", "fsdp"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name} back")
        shutil.rmtree(tmp_path / f"{name} back" / "checkpoints" / "step-6")
        held = checkpoint.load(tmp_path / name / "checkpoints" / "step-5").experience
        whole = checkpoint.load(one.checkpoints / "step-5").experience
        assert held.keys() == whole.keys()
        for part in ("tokens", "revealed_at", "scalars", "batch.ids"):
            assert torch.equal(held[part], whole[part]), part
        for part in ("reward", "advantage", "peers", "log_prob", "old"):
            torch.testing.assert_close(held[part], whole[part], rtol=0, atol=2e-5)
        train(tmp_path / f"{name} back", *settings, resume=True)
    for name in ("ddp", "fsdp", "ddp taken", "fsdp taken", "ddp back", "fsdp back"):
        assert_alike(one.path, tmp_path / name)


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_is_told_by_the_first_and_ends_both(tmp_path: Path) -> None:
    bad = "experience.rewards=[{kind: function, function: 'judges:wrong_in_the_second_process'}]"
    said = two_processes(tmp_path, {"failing": [*COMMON, bad]})
    assert said.count("told: reward wrong_in_the_second_process: raised KeyError") == 1
    assert said.count("told too: reward wrong_in_the_second_process: raised KeyError") == 1
