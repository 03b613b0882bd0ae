"""What an optimizer step is taken on: examples of a source, or rollouts of the current round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from onpath.data.source import Source, step_ids
from onpath.experience.rounds import Round, Rounds
from onpath.training.distributed import Processes
from onpath.types import Batch, Experience

_OF_BATCH = ("x", "ids", "given", "padding", "num_free", "documents")


def of_examples(
    source: Source, step: int, sizes: tuple[int, int], processes: Processes, device: torch.device
) -> Iterator[Batch]:
    """The micro-batches of this process at an optimizer step; `sizes` are (batch size, accumulation)."""
    batch_size, accumulation = sizes
    for micro in range(accumulation):
        part = processes.rank * accumulation + micro
        ids = step_ids(step, batch_size, part, accumulation * processes.count)
        yield source.examples(ids, device).to(device)


def of_rollouts(
    rounds: Rounds, held: Round, step: int, accumulation: int, device: torch.device
) -> Iterator[Experience]:
    """The micro-batches of this process at an optimizer step of the round that it holds."""
    for micro in range(accumulation):
        yield rounds.part(held, step, micro, accumulation).to(device)


def packed(held: Round, num_batches: int, processes: Processes) -> dict[str, Tensor]:
    """The rollouts of all processes in the order of their numbers, as tensors by name; the same in every process.

    num_batches: batches of a round, of each of which a process holds its part.
    """
    parts = processes.gather(_flat(held.experience))
    whole = {}
    for name in parts[0]:
        if name in ("chance", "scalars"):
            whole[name] = parts[0][name]
            continue
        split = [part[name].unflatten(0, (num_batches, -1)) for part in parts]
        whole[name] = torch.cat(split, dim=1).flatten(0, 1).contiguous()
    return whole


def unpacked(saved: Mapping[str, Tensor], num_batches: int, processes: Processes) -> Round:
    """The part of this process of what ``packed`` has put together, by however many processes."""
    number, num_steps, num_iterations = saved["scalars"].tolist()

    def own(value: Tensor) -> Tensor:
        return value.unflatten(0, (num_batches, -1)).tensor_split(processes.count, dim=1)[processes.rank].flatten(0, 1)

    mine: dict[str, Any] = {name: own(value) for name, value in saved.items() if name not in ("chance", "scalars")}
    names = [name.removeprefix("cond.") for name in mine if name.startswith("cond.")]
    cond = {name: mine.pop(f"cond.{name}") for name in names}
    batch = Batch(**{name: mine.pop(f"batch.{name}") for name in _OF_BATCH if f"batch.{name}" in mine}, cond=cond)
    counts: dict[str, Any] = {"num_steps": num_steps, "num_iterations": num_iterations, "round": number}
    experience = Experience(batch=batch, chance=saved.get("chance"), **counts, **mine)
    return Round(number, experience)


def _flat(experience: Experience) -> dict[str, Tensor]:
    """Every tensor of rollouts by name."""
    own = {f.name: getattr(experience, f.name) for f in fields(experience)}
    batch = own.pop("batch")
    flat = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    flat |= {f"batch.{name}": getattr(batch, name) for name in _OF_BATCH if getattr(batch, name) is not None}
    flat |= {f"cond.{name}": value for name, value in batch.cond.items()}
    return flat | {"scalars": torch.tensor([experience.round, experience.num_steps, experience.num_iterations])}
