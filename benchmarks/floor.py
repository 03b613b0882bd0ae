"""A training step and a sampling call against their floor: the matrix products that they consist of, done alone.

    python -m benchmarks.floor [--device cuda] [--threads 1]

The products are noted while the real thing runs (shapes, types, transposed or not) and then run again, one after the
other, on operands of their own. What is above them is everything else: demonstrations, masks, norms, casts, losses,
the optimizer, the moving average. Cases: the optimizer step of both recipes, and a plan of the demo's network in ten
forwards at several batch sizes. Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}; here the
ratio is measured over floor, so 1 is the best that is possible.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from onpath import rng
from onpath.build import Parts, build
from onpath.config import RunConfig
from onpath.sampling.loop import sample

PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}
STEP_LIMIT = 2.5


@dataclass
class Products(TorchDispatchMode):
    """Notes every matrix product that runs while it is entered, as its operation and operands like the real ones."""

    noted: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.noted.append((func, tuple(map(_like, args)), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def replay(self) -> Tensor:
        for func, args, kwargs in self.noted:
            result = func(*args, **kwargs)
        return result


def _like(value: Any) -> Any:
    """Another tensor of the same shape, type and layout."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).normal_()


def alternating(runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each run, taken in turn so that a busy machine slows all alike."""
    millis: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                millis[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in millis.items()}


def compare(case: str, metric: str, run: Callable[[], Any], repeats: int, device: torch.device) -> None:
    """Times `run` against the products in it, and prints the row."""
    run()
    with Products() as products:
        run()
    took = alternating({"run": run, "floor": products.replay}, repeats, device)
    row = {"benchmark": "floor", "case": case, "metric": metric, "value": took["run"], "unit": "ms"}
    print(json.dumps({**row, "baseline": took["floor"], "ratio": took["run"] / took["floor"]}), flush=True)


def parts_of(recipe: str, device: str, *overrides: str) -> Parts:
    from onpath.recipes import path_of

    return build(RunConfig.load(path_of(recipe), [f"device={device}", *overrides]))


def training(recipe: str, device: str, repeats: int) -> None:
    """The optimizer step of a recipe."""
    parts = parts_of(recipe, device)
    job, trainer = parts.job(), parts.trainer
    state, num_steps = trainer.start(job), trainer.num_steps(parts.source)

    def step() -> None:
        trainer.step(state, job, num_steps)
        state.step += 1
        state.health.clear()

    compare(f"{device}, {recipe}", "optimizer step", step, repeats, parts.device)


def sampling(device: str, batch_size: int, repeats: int) -> None:
    """Plans of the demo's network in ten forwards."""
    parts = parts_of("fourrooms-demo", device)
    network: Any = parts.model.to(parts.device).eval().requires_grad_(False)
    torch.nn.init.normal_(network.head.weight, std=0.02)  # a fresh head is zero, and every place would be a tie
    batch = parts.source.examples(torch.arange(batch_size), parts.device)

    def plan() -> Tensor:
        return sample(network, parts.process, parts.sampler, parts.grid, batch, rng.Key()).x

    compare(f"{device}, batch {batch_size}", "plan in 10 forwards", plan, repeats, parts.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64, 1024])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for recipe in ("fourrooms-demo", "fourrooms"):
        training(recipe, args.device, args.repeats)
    for batch_size in args.batch_sizes:
        sampling(args.device, batch_size, args.repeats * max(1, min(20, 256 // batch_size)))


if __name__ == "__main__":
    main()
