"""What validation reports: means of losses over held-out examples, or of rewards over held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from onpath import rng
from onpath.data.source import Source
from onpath.experience.rounds import Rounds
from onpath.training.distributed import Processes
from onpath.training.metrics import Meter
from onpath.types import Batch, Denoiser, Loss


def means(
    losses: Callable[[Batch], Sequence[Loss]],
    source: Source,
    sizes: tuple[int, int],
    device: torch.device,
    processes: Processes,
) -> dict[str, float]:
    """Means of the losses of several objectives; `sizes` are (examples, examples of a batch)."""
    count, size = sizes
    meters: list[Meter] = []
    with torch.no_grad():
        for first in range(0, count, size):
            ids = torch.arange(first, min(first + size, count), dtype=torch.int64)
            part = ids.tensor_split(processes.count)[processes.rank]
            # shards are gathered by all processes together, so one without a part runs along and counts nothing
            found = losses(source.examples(part if len(part) else ids[:1], device).to(device))
            meters = meters or [Meter() for _ in found]
            for meter, loss in zip(meters, found, strict=True):
                if len(part):
                    meter.add(loss)
    row: dict[str, float] = {}
    for meter in reversed(meters):  # the objective's own figures win over a bound's of the same name
        row |= meter.means(processes)
    return row


def rewards(
    rounds: Rounds,
    denoiser: Denoiser,
    source: Source,
    sizes: tuple[int, int],
    device: torch.device,
    processes: Processes,
) -> dict[str, float]:
    """Means of the rewards of one rollout of each prompt, under draws that never change; `loss` is the reward's
    negative, by which a plateau is told."""
    count, size = sizes
    asked, together = replace(rounds, source=source), rounds.settings.rollout_batch_size * processes.count
    size = min(size, together or size)  # so that every process has one walk, whatever its part
    meter = Meter()
    for first in range(0, count, size):
        ids = torch.arange(first, min(first + size, count), dtype=torch.int64)
        part = ids.tensor_split(processes.count)[processes.rank]
        own, key = part if len(part) else ids[:1], rng.Key(rounds.seed, "validation")
        sums = asked.scored(denoiser, own, key, device, processes)
        if len(part):
            meter.add_sums(sums)
    row = meter.means(processes)
    return {"loss": -row["reward"], **row}
