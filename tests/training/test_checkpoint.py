"""Checkpoints: what is written comes back, and what is damaged is never taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn as nn

from onpath.training import checkpoint
from onpath.training.checkpoint import Checkpoint


def content(step: int, value: float = 1.0) -> Checkpoint:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return Checkpoint(step, state, state, [optimizer.state_dict()], {"plateau": [float("inf"), 0, 1.0]})


def test_round_trip(tmp_path: Path) -> None:
    written = content(7)
    read = checkpoint.load(checkpoint.save(tmp_path, written, keep=2))
    assert read.step == 7 and read.extra == written.extra
    torch.testing.assert_close(dict(read.model), dict(written.model), rtol=0, atol=0)
    torch.testing.assert_close(dict(read.average), dict(written.average), rtol=0, atol=0)
    torch.testing.assert_close(read.optimizers, written.optimizers, rtol=0, atol=0)


def test_tied_and_strided_weights(tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    state = {"embedding": weight, "head": weight, "turned": weight.T, "part": weight[1]}
    read = checkpoint.load(checkpoint.save(tmp_path, Checkpoint(1, state, state), keep=0))
    torch.testing.assert_close(dict(read.model), state, rtol=0, atol=0)


def flip(path: Path) -> None:
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (path / "model.safetensors").write_bytes(data)


def truncate(path: Path) -> None:
    data = (path / "optimizers.pt").read_bytes()
    (path / "optimizers.pt").write_bytes(data[: len(data) // 2])


def empty_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("{}")


def torn_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b'{"state.json": "\xff')


def foreign_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("[1]")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip, "model.safetensors does not match its checksum"),
    (truncate, "optimizers.pt does not match its checksum"),
    (lambda path: (path / "average.safetensors").unlink(), "average.safetensors is missing"),
    (lambda path: (path / "manifest.json").unlink(), "has no manifest.json"),
    (empty_manifest, "does not name every file"),
    (foreign_manifest, "does not name every file"),
    (torn_manifest, "is not JSON"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_reason(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    older = checkpoint.save(tmp_path, content(10), keep=0)
    newer = checkpoint.save(tmp_path, content(20), keep=0)
    damage(newer)
    found, skipped = checkpoint.newest(tmp_path)
    assert found == older
    (line,) = skipped
    assert line.startswith("step-20") and reason in line
    with pytest.raises(ValueError, match=r"checkpoint: step-20.*take an older one"):
        checkpoint.load(newer)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nothing") == (None, [])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 100, 20):
        checkpoint.save(tmp_path, content(step), keep=2 if step != 100 else 0)
    # 100 went when 20 was written: a run writes 20 after 100 only where 100 could not be used
    assert [step for step, _ in checkpoint.steps_in(tmp_path)] == [10, 20]


def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, content(10), keep=1)
    shutil.copytree(tmp_path / "step-10", tmp_path / "step-20")
    flip(tmp_path / "step-20")
    checkpoint.save(tmp_path, content(15), keep=1)
    assert [step for step, _ in checkpoint.steps_in(tmp_path)] == [15]


def test_what_a_killed_process_left_is_never_read_and_swept_away(tmp_path: Path) -> None:
    half = tmp_path / ".step-30.123.part"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == (None, [])
    checkpoint.save(tmp_path, content(10), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


def test_the_same_step_again(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, content(10, 1.0), keep=2)
    written = content(10, 2.0)
    read = checkpoint.load(checkpoint.save(tmp_path, written, keep=2))
    torch.testing.assert_close(dict(read.model), dict(written.model))


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, content(1), keep=0)
    manifest = json.loads((path / "manifest.json").read_text())
    assert {*manifest, "manifest.json"} == {file.name for file in path.iterdir()}


def test_some_are_kept_for_good(tmp_path: Path) -> None:
    for step in range(10, 101, 10):
        checkpoint.save(tmp_path, content(step), keep=2, keep_every=40)
    assert [step for step, _ in checkpoint.steps_in(tmp_path)] == [40, 80, 90, 100]


def test_what_is_read_for_sampling_is_the_average_alone(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, content(10), keep=0)
    whole, part = checkpoint.read(path), checkpoint.read(path, for_training=False)
    assert not part.model and not part.optimizers and part.average.keys() == whole.average.keys()
    assert whole.model and whole.optimizers and part.extra == whole.extra
