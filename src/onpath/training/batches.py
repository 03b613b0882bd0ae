"""What an optimizer step is taken on: examples of a source, or rollouts of the current round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from onpath.data.source import Source, step_ids
from onpath.experience.rounds import Round, Rounds
from onpath.experience.settings import GroupRollouts
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
    parts = processes.gather(_flat(held.experience, num_batches))
    whole = {}
    for name in parts[0]:
        if name in ("chance", "scalars"):
            whole[name] = parts[0][name]
            continue
        split = [part[name].unflatten(0, (num_batches, -1)) for part in parts]
        if name == "old":  # as wide as that of the process which reads most states
            most = max(value.shape[3] for value in split)
            split = [torch.nn.functional.pad(value, (0, 0, 0, most - value.shape[3])) for value in split]
        whole[name] = torch.cat(split, dim=1).flatten(0, 1).contiguous()
    return whole


def unpacked(saved: Mapping[str, Tensor], settings: GroupRollouts, batch_size: int, processes: Processes) -> Round:
    """The part of this process of what ``packed`` has put together, by however many processes.

    ValueError where the round was made for batches of another size or number.
    """
    number, num_steps, num_iterations, num_batches = saved["scalars"].tolist()
    was = {
        "experience.steps_per_round": (num_batches, settings.steps_per_round),
        "experience.num_iterations": (num_iterations, settings.num_iterations),
        "experience.num_generations": (saved["peers"].shape[1], settings.num_generations),
        "training.batch_size": (len(saved["tokens"]) // num_batches, batch_size),
    }
    for name, (value, now) in was.items():
        if value != now:
            raise ValueError(
                f"resume: {name} is now {now}, and the checkpoint is in the middle of a round that was made with "
                f"{value}; set it to {value}, and change it where a round ends, every {num_batches * num_iterations} "
                "steps"
            )

    def own(value: Tensor) -> Tensor:
        return value.unflatten(0, (num_batches, -1)).tensor_split(processes.count, dim=1)[processes.rank].flatten(0, 1)

    mine: dict[str, Any] = {name: own(value) for name, value in saved.items() if name not in ("chance", "scalars")}
    names = [name.removeprefix("cond.") for name in mine if name.startswith("cond.")]
    cond = {name: mine.pop(f"cond.{name}") for name in names}
    batch = Batch(**{name: mine.pop(f"batch.{name}") for name in _OF_BATCH if f"batch.{name}" in mine}, cond=cond)
    counts: dict[str, Any] = {"num_steps": num_steps, "num_iterations": num_iterations, "round": number}
    experience = Experience(batch=batch, chance=saved.get("chance"), **counts, **mine)
    return Round(number, experience)


def _flat(experience: Experience, num_batches: int) -> dict[str, Tensor]:
    """Every tensor of rollouts by name, and what must be known of them."""
    own = {f.name: getattr(experience, f.name) for f in fields(experience)}
    batch = own.pop("batch")
    flat = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    flat |= {f"batch.{name}": getattr(batch, name) for name in _OF_BATCH if getattr(batch, name) is not None}
    flat |= {f"cond.{name}": value for name, value in batch.cond.items()}
    counts = [experience.round, experience.num_steps, experience.num_iterations, num_batches]
    return flat | {"scalars": torch.tensor(counts)}
