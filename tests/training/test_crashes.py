"""What ends a training before its time, and what is left then: kills, signals, full disks, lost processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onpath.interrupts import Interrupts
from onpath.records import RunFolder
from onpath.training import checkpoint
from tiny import CONFIG, tiny, tiny_job, tiny_parts

CLOCK = {"seconds", "examples_per_second"}
STEPS = 300
SETTINGS = [
    f"training.steps={STEPS}",
    "training.log_every=5",
    "training.save_every=4",
    "training.validate_every=50",
    "training.optimizer.kind=muon",
    "training.decay=plateau",
    "training.plateau.patience=0",
]

DYING = """
import os, shutil, signal, sys
from pathlib import Path

import torch

from onpath.records import RunFolder
from onpath.training import checkpoint
from tiny import tiny_job, tiny_parts

torch.set_num_threads(1)
path, countdown, settings = sys.argv[1], int(sys.argv[2]), sys.argv[3:]


def deadly(action):
    def call(*args, **kwargs):
        global countdown
        countdown -= 1
        result = action(*args, **kwargs)
        if countdown == 0:
            if action is save_file:
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


if countdown:  # the kill comes in the middle of writing a checkpoint
    save_file = checkpoint.save_file
    checkpoint.save_file, checkpoint._sync = deadly(save_file), deadly(checkpoint._sync)
    torch.save, Path.replace, shutil.rmtree = deadly(torch.save), deadly(Path.replace), deadly(shutil.rmtree)
parts = tiny_parts(*settings)
parts.trainer.fit(tiny_job(parts), RunFolder.open(Path(path)), resume=True)
"""


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", **more}


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in run.metrics()]


def train(path: Path, *overrides: str, resume: bool = False) -> RunFolder:
    parts = tiny_parts(*overrides)
    run = RunFolder(path) if resume else RunFolder.create(path, tiny(*overrides).as_dict())
    parts.trainer.fit(tiny_job(parts), run, resume=resume)
    return run


def lasting(saved: checkpoint.Checkpoint) -> dict[str, Any]:
    """What a checkpoint says beside the weights, but for the time."""
    return {name: value for name, value in saved.extra.items() if name not in CLOCK}


def assert_same_run(run: RunFolder, other: RunFolder) -> None:
    assert rows(run) == rows(other)
    (_, newest), (_, others) = checkpoint.steps_in(run.checkpoints)[-1], checkpoint.steps_in(other.checkpoints)[-1]
    assert newest.name == others.name
    one, two = checkpoint.load(newest), checkpoint.load(others)
    for own, theirs in ((one.model, two.model), (one.average, two.average)):
        assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    torch.testing.assert_close(one.optimizers, two.optimizers, rtol=0, atol=0)
    assert lasting(one) == lasting(two)


def killed_at_random(process: subprocess.Popen[str], metrics: Path, delay: float) -> int:
    """Kills the process some time after it has written its first row, and waits for it."""
    size = metrics.stat().st_size if metrics.exists() else 0
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        # a resume cuts the file first, so any change says that the loop runs
        if metrics.exists() and metrics.stat().st_size not in (0, size):
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.005)
    return process.wait(timeout=60)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", *SETTINGS)
    torn = RunFolder.create(tmp_path / "torn", tiny(*SETTINGS).as_dict())
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    draw, num_kills, in_checkpoints, num_halves = random.Random(0), 0, 0, 0

    said = tmp_path / "said.txt"

    def start(countdown: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(script), str(torn.path), str(countdown), *SETTINGS]
        with said.open("w") as file:
            return subprocess.Popen(command, env=environment(), text=True, stderr=file)

    while num_kills < 20:
        inside = num_kills % 3 == 0
        # a checkpoint takes about a dozen such calls, so the kill comes in the first three of this process
        process = start(draw.randint(1, 36) if inside else 0)
        code = (
            process.wait(timeout=240)
            if inside
            else killed_at_random(process, torn.path / "metrics.jsonl", draw.uniform(0.0, 0.15))
        )
        assert code == -signal.SIGKILL, said.read_text()
        num_kills, in_checkpoints = num_kills + 1, in_checkpoints + inside
        num_halves += any(torn.checkpoints.glob(".step-*.part"))
    last = checkpoint.newest(torn.checkpoints)[0]
    assert last is not None and int(last.name[5:]) < STEPS  # it never came to its end
    assert in_checkpoints >= 5 and num_halves >= 3
    process = start(0)
    assert process.wait(timeout=240) == 0, said.read_text()
    assert_same_run(torn, whole)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "average.safetensors", "optimizers.pt", "state.json", "manifest.json"]
)
def test_a_damaged_checkpoint_is_skipped_with_a_message(tmp_path: Path, damage: str, file: str) -> None:
    settings = ["training.steps=4", "training.save_every=2", "training.log_every=1"]
    whole = train(tmp_path / "whole", *settings)
    run = RunFolder(tmp_path / "damaged")
    shutil.copytree(whole.path, run.path)
    path = run.checkpoints / "step-4" / file
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    parts, notes = tiny_parts(*settings), []
    parts.trainer.fit(tiny_job(parts), run, resume=True, on_progress=lambda progress: notes.append(progress.note))
    assert notes[0].startswith("skipped step-4") and "resumed at step 2 from step-2" in notes[1]
    assert_same_run(run, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("fails", ["checkpoint", "metrics"])
def test_a_full_disk_loses_nothing(small_disk: Path, tmp_path: Path, fails: str) -> None:
    settings = ["training.steps=40", "training.save_every=2", "training.log_every=1", "training.keep=0"]
    run = RunFolder.create(small_disk / "run", tiny(*settings).as_dict())
    parts = tiny_parts(*settings)

    def fill(progress: Any) -> None:
        if fails == "metrics" and progress.step == 3:
            with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(256)):
                    pass

    with pytest.raises(ValueError, match=r"(?s)cannot be written.*(MiB are free|No space left).*--resume"):
        parts.trainer.fit(tiny_job(parts), run, on_progress=fill)
    assert not list(run.checkpoints.glob(".step-*"))
    found = checkpoint.steps_in(run.checkpoints)
    assert found and all(checkpoint.fault(path) is None for _, path in found)
    moved = RunFolder(tmp_path / "moved")
    shutil.copytree(run.path, moved.path)
    parts = tiny_parts(*settings)
    parts.trainer.fit(tiny_job(parts), moved, resume=True)
    assert_same_run(moved, train(tmp_path / "whole", *settings))


def test_a_wish_to_stop_is_granted_between_steps(tmp_path: Path) -> None:
    settings = ["training.steps=9", "training.log_every=4", "training.save_every=6"]
    parts = tiny_parts(*settings)
    run = RunFolder.create(tmp_path / "stopped", tiny(*settings).as_dict())
    with Interrupts() as interrupts:
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            if asked == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return interrupts()

        parts.trainer.fit(tiny_job(parts), run, should_stop=should_stop)
        assert interrupts.number == signal.SIGTERM and interrupts.exit_code == 143 and interrupts.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one ends the process at once
    assert [step for step, _ in checkpoint.steps_in(run.checkpoints)] == [5]
    assert [row["step"] for row in run.metrics()] == [4]
    parts = tiny_parts(*settings)
    parts.trainer.fit(tiny_job(parts), run, resume=True)
    assert_same_run(run, train(tmp_path / "whole", *settings))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_cleanly(tmp_path: Path, number: int) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    command = [sys.executable, "-m", "onpath", "train", "tiny.yaml", "--run", "run"]
    given = ["training.steps=100000", "training.log_every=5"]
    process = subprocess.Popen([*command, *given], cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (
        process.returncode == 128 + number
        and "a checkpoint is written; go on with onpath train tiny.yaml --run run" in out
    )
    newest, skipped = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None and not skipped
    more = [*command, "--resume", f"training.steps={int(newest.name[5:]) + 2}"]
    done = subprocess.run(more, check=False, cwd=tmp_path, env=environment(), text=True, capture_output=True)
    assert done.returncode == 0 and f"resumed at step {newest.name[5:]}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_others_with_a_message(tmp_path: Path, lost: int, parallel: str) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = ["training.steps=1000000", "training.log_every=5", f"training.parallel={parallel}"]
    command = [sys.executable, "-m", "onpath", "train", "tiny.yaml", "--run", "run", *given]
    processes = []
    for rank in range(2):  # without torchrun, which would end the other process itself
        about = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **about)
        processes.append(
            subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)
    processes[lost].kill()
    begun = time.monotonic()
    out, err = processes[1 - lost].communicate(timeout=60)
    assert time.monotonic() - begun < 60 and processes[1 - lost].returncode == 1
    assert f"rank {1 - lost} of 2 lost another process of this run" in " ".join(err.split()) and "--resume" in err
    assert "Traceback" not in err
    processes[lost].communicate()
    assert (lost == 0) or "training tiny.yaml" in out  # only the first speaks
