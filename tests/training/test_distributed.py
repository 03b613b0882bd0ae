"""Two processes train what one trains: replicas and shards, checkpoints that go from one to the other, lost ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onpath.records import RunFolder
from onpath.training import checkpoint
from onpath.training.distributed import Processes, local, on_host, sharded_like, whole
from tiny import settings, tiny_job, tiny_parts

SETTINGS = [
    "training.steps=20",
    "training.batch_size=16",
    "training.accumulation=2",
    "training.log_every=1",
    "training.save_every=10",
    "training.keep=0",
    "training.validation_examples=9",  # cut into unequal parts, and one example is left for a round of its own
    "training.optimizer.learning_rate=0.01",
]

WORKER = """
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from onpath.records import RunFolder
from onpath.training.distributed import Processes
from tiny import tiny_job, tiny_parts

torch.set_num_threads(1)
root, *settings = sys.argv[1:]
with Processes.joined() as processes:
    assert processes.count == 2
    for name, parallel in (("ddp", "ddp"), ("fsdp", "fsdp"), ("taken", "fsdp")):
        parts = tiny_parts(*settings, f"training.parallel={parallel}")
        path = Path(root) / name
        resume = processes.first(path.exists)  # before one of them makes it
        folder = RunFolder(path) if resume else processes.first(lambda: RunFolder.create(path, {}))
        job, notes = tiny_job(parts), []
        said = lambda progress: notes.append(progress)
        average = parts.trainer.fit(job, folder, resume=resume, processes=processes, on_progress=said)
        assert bool(notes) == (processes.rank == 0)
        for network in (job.model, average):
            shards = [isinstance(p, DTensor) for p in network.parameters()]
            assert all(shards) if parallel == "fsdp" else not any(shards)
            if parallel == "fsdp":
                held = sum(p.to_local().numel() for p in network.parameters())
                assert held < 0.6 * sum(p.numel() for p in network.parameters())
print("both agree")
"""


def torchrun(script: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *args]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=540)


def losses(path: Path, name: str = "train") -> list[float]:
    return [row["loss"] for row in RunFolder(path).metrics() if row["set"] == name]


def alone(path: Path, *overrides: str, resume: bool = False) -> None:
    parts = tiny_parts(*SETTINGS, *overrides)
    folder = RunFolder(path) if resume else RunFolder.create(path, {})
    parts.trainer.fit(tiny_job(parts), folder, resume=resume)


def half_of(run: Path, target: Path) -> None:
    """A copy of the run as it stood after ten steps."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "checkpoints" / "step-20")


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    alone(tmp_path / "one")
    half_of(tmp_path / "one", tmp_path / "taken")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = torchrun(script, str(tmp_path), *SETTINGS)
    assert done.returncode == 0 and done.stdout.count("both agree") == 2, done.stderr
    half_of(tmp_path / "fsdp", tmp_path / "back")
    alone(tmp_path / "back", resume=True)

    one = losses(tmp_path / "one")
    assert len(one) == 20 and max(one) - min(one) > 0.1  # it does learn
    held_out = losses(tmp_path / "one", "validation")
    for name in ("ddp", "fsdp", "taken", "back"):
        assert losses(tmp_path / name) == pytest.approx(one, abs=1e-5), name
        assert losses(tmp_path / name, "validation") == pytest.approx(held_out, abs=1e-5), name
    last = checkpoint.load(tmp_path / "one" / "checkpoints" / "step-20")
    for name in ("ddp", "fsdp"):
        other = checkpoint.load(tmp_path / name / "checkpoints" / "step-20")
        for own, theirs in ((last.model, other.model), (last.average, other.average)):
            assert own.keys() == theirs.keys()
            for weight in own:
                torch.testing.assert_close(own[weight], theirs[weight], rtol=0, atol=1e-5)
        shapes = [{k: v.shape for k, v in s["state"][1].items()} for s in (*last.optimizers, *other.optimizers)]
        assert shapes[0] == shapes[1]  # moments are saved whole


@pytest.mark.slow
def test_two_processes_train_a_network_whose_blocks_read_a_memory(tmp_path: Path) -> None:
    """Its memory is encoded once, and its blocks, each a shard, are called in the forward only."""
    small = ["model={kind: plan_transformer, width: 16, num_heads: 2, depth: 2, convs: 1}", "training.steps=5"]
    alone(tmp_path / "one", *small)
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    done = torchrun(script, str(tmp_path), *SETTINGS, *small)
    assert done.returncode == 0 and done.stdout.count("both agree") == 2, done.stderr
    one = losses(tmp_path / "one")
    assert len(one) == 5 and max(one) - min(one) > 1e-3
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name) == pytest.approx(one, abs=1e-5), name


@pytest.mark.slow
def test_two_processes_form_the_gradients_of_a_head_in_the_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of rows, as a large vocabulary needs them."""
    monkeypatch.setattr("onpath.models.blocks._CHUNK_LOGITS", 2000)
    text = [
        "data={kind: text, path: 'onpath:tinyshakespeare.txt.gz', length: 16}",
        "model={kind: token_transformer, width: 16, num_heads: 2, depth: 2}",
        "evaluation={kind: text}",
        "training.steps=5",
    ]
    alone(tmp_path / "one", *text)
    script = tmp_path / "worker.py"
    script.write_text(f"import onpath.models.blocks\nonpath.models.blocks._CHUNK_LOGITS = 2000\n{WORKER}")
    done = torchrun(script, str(tmp_path), *SETTINGS, *text)
    assert done.returncode == 0 and done.stdout.count("both agree") == 2, done.stderr
    one = losses(tmp_path / "one")
    assert len(one) == 5 and max(one) - min(one) > 1e-3
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name) == pytest.approx(one, abs=1e-5), name


def test_one_process_is_the_plain_case() -> None:
    processes, value = Processes(), torch.ones(3)
    assert processes.first(lambda: 5) == 5 and processes.gather("x") == ["x"]
    assert processes.sum(value) is value and processes.any(True) and not processes.any(False)
    network = tiny_parts().model
    processes.shards(network)
    assert processes.replicated(network) is network
    assert local([value])[0] is value and sharded_like(value, value) is value
    assert whole(value) is value and on_host({"a": [value, 3]}, False) == {"a": [None, 3]}
    assert torch.equal(on_host({"a": [value, 3]}, True)["a"][0], value)


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    parts = tiny_parts("training.batch_size=6", "training.accumulation=2")
    with pytest.raises(ValueError, match=r"batch_size is 6 and cannot be cut into 4 equal parts"):
        parts.trainer.fit(tiny_job(parts), RunFolder.create(tmp_path, {}), processes=Processes(0, 2))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "onpath",
    ]
    given = ["train", "fourrooms-demo", *settings(["model.width=16", "model.hidden=16"]), "--run", "runs/two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *given], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training fourrooms-demo into runs/two on 2 processes, ddp") == 1  # the first one speaks
    assert "Warning" not in done.stderr
    assert (tmp_path / "runs" / "two" / "checkpoints" / "step-3").is_dir()
