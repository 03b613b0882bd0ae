"""How two sides of a benchmark are timed beside each other, and how much of a run is products of matrices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmm_", "aten::baddbmm")


def in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each run in each turn, so that a busy machine slows all alike; the first turn warms up.

    Of the processor where one thread does it all, else of the clock.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begun = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - begun)
    return seconds


def times_as_fast(seconds: Mapping[str, list[float]], ours: str, other: str) -> float:
    """The median over turns of how often our time goes into the other's."""
    return median(there / here for here, there in zip(seconds[ours], seconds[other], strict=True))


def product_share(run: Callable[[], Any], device: str) -> float:
    """The share of a run's time that is spent in products of matrices alone."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        run()
    field = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    spent = {event.key: getattr(event, field) for event in profiled.key_averages()}
    return sum(spent.get(name, 0.0) for name in _PRODUCTS) / sum(spent.values())
