"""Checkpoints: written aside, synced and renamed, with checksums, so that a half-written one is never taken."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onpath.training.distributed import sharded_like

_MANIFEST = "manifest.json"
_EXPERIENCE = "experience.safetensors"  # where a round is not used up
_FILES = {"model.safetensors", "average.safetensors", "optimizers.pt", "state.json"}


@dataclass(frozen=True)
class Checkpoint:
    """Everything that an exact resume needs.

    model, average: state dicts. optimizers: their state dicts in order. step: optimizer steps done.
    extra: JSON values, among them the schedule and the state of the plateau rule. experience: the rollouts of a round
    that is not used up, by name.
    """

    step: int
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    extra: Mapping[str, Any] = field(default_factory=dict)
    experience: Mapping[str, Tensor] = field(default_factory=dict)


def save(folder: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Writes `folder`/step-N and leaves the newest `keep` checkpoints (0 keeps all); returns its path.

    keep_every: those of its multiples are kept as well. Later ones than N are removed: they were damaged, or the
    run would have gone on from them. ValueError where the disk cannot take it, which loses nothing older.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{checkpoint.step}"
    for dead in folder.glob(".step-*.part"):  # of a process that was killed while it wrote
        shutil.rmtree(dead)
    aside = folder / f".{target.name}.{os.getpid()}.part"
    try:
        _write(aside, checkpoint)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise the last two
        shutil.rmtree(aside, ignore_errors=True)
        size = sum(_num_bytes(part) for part in (checkpoint.model, checkpoint.average, checkpoint.optimizers))
        raise ValueError(
            f"checkpoint: {target} cannot be written ({error}); it needs about {size / 2**20:,.0f} MiB, and "
            f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free. The checkpoints before it are intact: make "
            "room, then go on with --resume"
        ) from error
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
    _sync(folder)
    found = steps_in(folder)
    later = [path for step, path in found if step > checkpoint.step]
    kept = [(step, path) for step, path in found if step <= checkpoint.step]
    old = kept[:-keep] if keep else []
    for path in [*later, *(path for step, path in old if not keep_every or step % keep_every)]:
        shutil.rmtree(path)
    return target


def _write(aside: Path, checkpoint: Checkpoint) -> None:
    """Every file of a checkpoint and their checksums into the new folder `aside`, on the disk when it returns."""
    aside.mkdir()
    save_file(_contiguous(checkpoint.model), aside / "model.safetensors")
    save_file(_contiguous(checkpoint.average), aside / "average.safetensors")
    torch.save(checkpoint.optimizers, aside / "optimizers.pt")
    if checkpoint.experience:
        save_file(_contiguous(checkpoint.experience), aside / _EXPERIENCE)
    (aside / "state.json").write_text(json.dumps({"step": checkpoint.step, "extra": dict(checkpoint.extra)}, indent=1))
    checksums = {path.name: _digest(path) for path in sorted(aside.iterdir())}
    (aside / _MANIFEST).write_text(json.dumps(checksums, indent=1))
    for path in aside.iterdir():
        _sync(path)
    _sync(aside)


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every checkpoint in `folder`, the oldest first, verified or not."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return sorted(found)


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file matches its checksum."""
    manifest = path / _MANIFEST
    if not manifest.is_file():
        return f"{path.name} has no {_MANIFEST}"
    try:
        checksums = json.loads(manifest.read_text())
    except ValueError:
        return f"{path.name}/{_MANIFEST} is not JSON"
    if not isinstance(checksums, dict) or not checksums.keys() >= _FILES:
        return f"{path.name}/{_MANIFEST} does not name every file"
    for name, digest in checksums.items():
        if not (path / name).is_file():
            return f"{path.name}/{name} is missing"
        if _digest(path / name) != digest:
            return f"{path.name}/{name} does not match its checksum"
    return None


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, on the CPU; ValueError where it does not verify."""
    problem = fault(path)
    if problem:
        raise ValueError(f"checkpoint: {problem}; take an older one, or train again")
    return read(path)


def read(path: Path, *, for_training: bool = True) -> Checkpoint:
    """The checkpoint at `path`, which has been verified, on the CPU.

    for_training: False leaves out what only a training needs, and keeps the moving average.
    """
    state = json.loads((path / "state.json").read_text())
    return Checkpoint(
        step=state["step"],
        model=load_file(path / "model.safetensors") if for_training else {},
        average=load_file(path / "average.safetensors"),
        optimizers=torch.load(path / "optimizers.pt", weights_only=True) if for_training else [],
        extra=state["extra"],
        experience=load_file(path / _EXPERIENCE) if for_training and (path / _EXPERIENCE).exists() else {},
    )


def require_identity(saved: Checkpoint, identity: Mapping[str, Any]) -> None:
    """ValueError where the checkpoint says something else than `identity`, by name: the schedule, the seed, …"""
    for name, was in saved.extra["identity"].items():
        value = identity.get(name)
        if was != value:
            raise ValueError(
                f"checkpoint: step {saved.step} was trained with {name} {was}, and the config now says {value}; one "
                f"run has one {name}. Restore the config, or start a new run"
            )


def trained_names(model: nn.Module) -> list[str]:
    """What of the state of `model` training changes and a checkpoint holds: all of it but its frozen parameters."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return [name for name in model.state_dict() if name not in frozen]


def fill(model: nn.Module, weights: Mapping[str, Tensor], names: Iterable[str] | None = None) -> None:
    """Puts saved weights into `model`; ValueError where the two do not have the same names and shapes.

    names: those that a checkpoint holds, see ``trained_names``; by default all but what is frozen in `model` now.
    """
    held = model.state_dict()
    expected = set(trained_names(model) if names is None else names)
    try:
        fitting = {n: sharded_like(w, held[n]) if n in held else w for n, w in weights.items()}
        if expected != weights.keys():
            raise RuntimeError("other names")
        model.load_state_dict(fitting, strict=len(expected) == len(held))
    except RuntimeError as error:
        wanted = {name: held[name] for name in held if name in expected}
        raise ValueError(
            f"checkpoint: its weights do not fit the network of the config: {_difference(model, wanted, weights)}. "
            "Restore the settings of `model` and `data` that the run was trained with, or start a new run"
        ) from error


def begin_with(model: nn.Module, run: Path) -> None:
    """Puts the average weights of the newest whole checkpoint of a run into `model`; ValueError where there is none."""
    path, skipped = newest(run / "checkpoints")
    if path is None:
        found = "; ".join(skipped) or "there is none"
        raise ValueError(
            f"config: start is {str(run)!r}, and no checkpoint of it can be read ({found}); give the folder of a "
            "trained run, or leave start out"
        )
    fill(model, read(path, for_training=False).average)


def _difference(model: nn.Module, held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """The first weight that a checkpoint and a network do not share, and how many there are."""
    saved, wanted = ({n: tuple(w.shape) for n, w in state.items()} for state in (weights, held))
    names = [name for name in {**wanted, **saved} if saved.get(name) != wanted.get(name)]
    if not names:
        return "they cannot be copied"
    had, has = (f"{shapes[names[0]]}" if names[0] in shapes else "nothing" for shapes in (saved, wanted))
    return f"{names[0]} is {had} there and {has} in {type(model).__name__} (and {len(names) - 1} more differ)"


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with the newer ones that do not."""
    skipped = []
    for _, path in reversed(steps_in(folder)):
        problem = fault(path)
        if problem is None:
            return path, skipped
        skipped.append(problem)
    return None, skipped


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What safetensors takes: contiguous, and tied weights (a head that is the embedding) written out twice."""
    seen: set[int] = set()
    result = {}
    for name, tensor in state.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.detach().clone() if storage in seen else tensor.detach()
        result[name] = result[name].contiguous()
        seen.add(storage)
    return result


def _num_bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.nbytes
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return sum(map(_num_bytes, parts))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
