"""How the cost of a sampling call and of a training step grows, and what a vocabulary of 32,768 words takes in memory.

    python -m benchmarks.scaling [--device cuda] [--threads 1] [--only calls steps memory processes knobs]

Each series changes one of L (positions), V (words), B (batch) and K (forwards of a call, states an example of a
training step) and keeps the others. Calls: the sampler's own cost, with a table in the place of a network, by two
rules; and the whole call with the plan MLP and with a small plan transformer. Steps: the optimizer step of the same
two networks on random plans that are made beforehand. Memory: the peak of one sampling step and of one training step.
Processes: an optimizer step in two processes over gloo, and in one. Knobs: examples a second of the recipe
fourrooms-demo with one setting changed; only when asked for.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}. The ratio is value over baseline: the
smallest of the series, the full logits, one process, or the recipe as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.floor import alternating, parts_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from onpath import rng
from onpath.data.source import Source
from onpath.models.blocks import apply_readout
from onpath.models.policy import PlanMLP, PlanTransformer
from onpath.objectives.base import Objective
from onpath.objectives.nelbo import ContinuousNELBO, TrajectoryNELBO
from onpath.processes.masking import Masking
from onpath.sampling.grids import EvenGrid, UniformGrid
from onpath.sampling.loop import sample
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.training.distributed import ALONE, Processes
from onpath.training.trainer import Job, Trainer
from onpath.types import Batch, Nets, Spec

ROUND_MS = 30.0  # of short calls of one case before the next case of its series
SIDE = 19  # cells of an image, as in FourRooms
CONFIDENT = Unmasking(order="confidence", tokens=Categorical(temperature=0.0))
RANDOM = Unmasking(order="random")
PARTS = ("calls", "steps", "memory", "processes")
KNOBS = ("precision=fp32", "compile=true", "optimizer=adamw", "accumulation=4", "batch_size=256", "batch_size=4096")


@dataclass(frozen=True)
class Sizes:
    """One point of a series; K means what the series says."""

    L: int = 64
    V: int = 16
    B: int = 16
    K: int = 8

    def __str__(self) -> str:
        return f"L {self.L}, V {self.V}, B {self.B}, K {self.K}"

    def along(self, axis: str, values: tuple[int, ...]) -> list[Sizes]:
        return [replace(self, **{axis: value}) for value in values]


@dataclass(frozen=True)
class Table:
    """A network without any work: a view of fixed logits (N, V), whatever it is asked."""

    logits: Tensor

    def encode(self, **cond: Tensor) -> None:
        return None

    def __call__(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
        return apply_readout(lambda logits: logits, self.logits[: len(rows)], rows, readout)


class Reader(torch.nn.Module):
    """The least network with a large head: an embedding and a product; `chunk` None makes the logits (B, L, V)."""

    def __init__(self, num_words: int, width: int, chunk: int | None) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(num_words + 1, width)
        self.head = torch.nn.Linear(width, num_words, bias=False)
        self.chunk = chunk

    def encode(self, **cond: Tensor) -> None:
        return None

    def forward(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
        hidden = self.token(x).flatten(0, 1)
        if self.chunk is None:
            return readout(self.head(hidden)[rows], rows)
        return apply_readout(self.head, hidden[rows], rows, readout, self.chunk)


@dataclass(frozen=True)
class RandomPlans(Source):
    """Random tokens under random images, made once and handed out again, so that they cost next to nothing."""

    pool: Batch
    num_words: int

    @classmethod
    def of(cls, sizes: Sizes, device: str) -> RandomPlans:
        ids = torch.arange(sizes.B)
        image = rng.integers(rng.Key(purpose="image"), ids, (SIDE, SIDE, 3), 3).to(torch.uint8)
        x = rng.integers(rng.Key(purpose="plan"), ids, (sizes.L,), sizes.V)
        batch = Batch.of_tokens(x, ids, cond={"image": image, "direction": ids % 4}).to(device)
        return cls(batch, sizes.V)

    def spec(self) -> Spec:
        cond = {"image": (SIDE, SIDE, 3), "direction": ()}
        return Spec(self.pool.x.shape[1], self.num_words, self.num_words, cond)

    def at_split(self, split: str) -> Source:
        return self

    def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
        return replace(self.pool.rows(slice(0, len(ids))), ids=ids)


@dataclass
class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that is made while it is entered."""

    num_elements: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.num_elements = max(self.num_elements, value.numel())
        return result


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None) -> None:
    row = {"benchmark": "scaling", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": value / baseline if baseline else None}), flush=True)


def network_of(name: str, spec: Spec, device: str) -> Any:
    network = PlanMLP(spec) if name == "plan_mlp" else PlanTransformer(spec, width=64, depth=2, convs=1)
    torch.nn.init.normal_(network.head.weight, std=0.02)  # a fresh head is zero, and every place would be a tie
    return network.to(device)


def several(run: Callable[[], Any], device: str) -> Callable[[], list[float]]:
    """Milliseconds of a few calls of `run`, which is warm by then: more calls where they are short."""
    run()

    def timed() -> float:
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - begun)

    count = max(1, min(50, int(ROUND_MS / timed())))
    return lambda: [timed() for _ in range(count)]


def series(
    name: str, metric: str, points: list[Sizes], make: Callable[[Sizes], Callable[[], Any]], args: argparse.Namespace
) -> None:
    """Median milliseconds of what `make` makes at every point, in turn, and the growth from the first."""
    runs = {str(sizes): several(make(sizes), args.device) for sizes in points}
    millis: dict[str, list[float]] = {case: [] for case in runs}
    for _ in range(args.repeats):
        for case, run in runs.items():
            millis[case] += run()
    took = {case: statistics.median(values) for case, values in millis.items()}
    first = next(iter(took.values()))
    for sizes, millis in took.items():
        emit(f"{args.device}, {name}, {sizes}", metric, millis, "ms", first)


def call(name: str, device: str, sizes: Sizes) -> Callable[[], Any]:
    """A sampling call of K forwards."""
    source = RandomPlans.of(sizes, device)
    process, sampler = Masking(LinearSchedule(), sizes.V), RANDOM if name == "table, random" else CONFIDENT
    if name.startswith("table"):
        network: Any = Table(torch.randn(sizes.B * sizes.L, sizes.V, device=device))
    else:
        network = network_of(name, source.spec(), device).eval().requires_grad_(False)
    return lambda: sample(network, process, sampler, EvenGrid(sizes.K), source.pool, rng.Key()).x


def calls(args: argparse.Namespace) -> None:
    axes = {"L": (16, 64, 256), "V": (4, 16, 64, 256), "B": (1, 4, 16, 64, 256), "K": (1, 4, 16, 64)}
    for name in ("table, confidence", "table, random", "plan_mlp", "plan_transformer"):
        for axis, values in axes.items():
            more = (1024,) if name.startswith("table") and axis in "LV" else ()
            points = Sizes().along(axis, values + more)
            series(name, f"call over {axis}", points, partial(call, name, args.device), args)


def stepper(trainer: Trainer, job: Job, processes: Processes = ALONE) -> Callable[[], Any]:
    """An optimizer step that can be repeated."""
    state = trainer.start(job, processes)

    def step() -> None:
        trainer.step(state, job, 10**6)
        state.step += 1
        state.health.clear()

    return step


def job_of(name: str, sizes: Sizes, device: str, *, trajectory: bool = False) -> Job:
    source = RandomPlans.of(sizes, device)
    process = Masking(LinearSchedule(), sizes.V)
    objective: Objective = ContinuousNELBO(process, masks="counts")
    if trajectory:
        objective = TrajectoryNELBO(process, UniformGrid(16), steps_per_example=sizes.K)
    return Job(network_of(name, source.spec(), device), objective, source, source, device=torch.device(device))


def steps(args: argparse.Namespace) -> None:
    axes = {"L": (16, 64, 256), "V": (4, 16, 64, 256), "B": (4, 16, 64, 256), "K": (1, 2, 4, 8, 16)}

    def make(name: str, axis: str, sizes: Sizes) -> Callable[[], Any]:
        trainer = Trainer(steps=10**6, batch_size=sizes.B)
        return stepper(trainer, job_of(name, sizes, args.device, trajectory=axis == "K"))

    for name in ("plan_mlp", "plan_transformer"):
        for axis, values in axes.items():
            series(name, f"step over {axis}", Sizes(K=1).along(axis, values), partial(make, name, axis), args)


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """The most memory that `run` holds at once beyond what was held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    held = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def memory(args: argparse.Namespace) -> None:
    """A sampling step and a training step over chunks of rows, beside the same with the logits of all positions."""
    length, num_words = 512, 32768
    process = Masking(LinearSchedule(), num_words)
    objective = ContinuousNELBO(process, masks="counts")

    def sampled(reader: Any, batch: Batch) -> Any:
        return sample(reader, process, CONFIDENT, EvenGrid(1), batch, rng.Key())

    def trained(reader: Any, batch: Batch) -> Any:
        objective(Nets(reader), batch, rng.Key(), 0).numerator.backward()

    for size in (4, 8, 24):
        batch = RandomPlans.of(Sizes(L=length, V=num_words, B=size), args.device).pool
        for metric, run in (("sampling step", sampled), ("training step", trained)):
            if run is trained and size > 8:
                continue
            readers = {chunk: Reader(num_words, 16, chunk).to(args.device) for chunk in (8192, 512, None)}
            peaks = {c: peak_bytes(lambda r=run, n=n, b=batch: r(n, b), args.device) for c, n in readers.items()}
            for chunk in (8192, 512):
                case = f"{args.device}, L {length}, V {num_words}, B {size}, chunks of {chunk} rows"
                emit(case, f"peak of a {metric}", peaks[chunk] / 2**20, "MiB", peaks[None] / 2**20)
        with Largest() as largest:
            sampled(readers[512], batch)
        emit(case, "largest tensor in a sampling step", largest.num_elements, "elements", size * length * num_words)


def worker(args: argparse.Namespace) -> None:
    """What each process of ``processes`` runs; the first prints milliseconds by name."""
    took = {}
    with Processes.joined() as joined:
        for name, size in (("plan_mlp", 512), ("plan_transformer", 64)):
            for parallel in ("ddp", "fsdp"):
                source = RandomPlans.of(Sizes(B=size), "cpu")
                objective = ContinuousNELBO(Masking(LinearSchedule(), source.num_words), masks="counts")
                job = Job(network_of(name, source.spec(), "cpu"), objective, source, source)
                step = stepper(Trainer(steps=10**6, batch_size=size, parallel=parallel), job, joined)
                took[f"{name}, {parallel}, B {size}"] = alternating({"": step}, args.repeats, job.device)[""]
        joined.first(lambda: print(json.dumps(took)))


def processes(args: argparse.Namespace) -> None:
    """One optimizer step of the same batch in two processes of one thread each, beside one process."""
    measured, environment = {}, {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for count in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, *launch, "-m", "benchmarks.scaling", "--worker", "--repeats", str(args.repeats)]
        options: Any = {"env": environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=True, cwd=Path(__file__).parents[1], **options)
        found = re.search(r"^\{.*\}$", done.stdout, re.M)
        assert found is not None, done.stdout
        measured[count] = json.loads(found[0])
    for case, alone in measured[1].items():
        emit(f"cpu, gloo, {case}", "step in 2 processes", measured[2][case], "ms", alone)


def knobs(args: argparse.Namespace) -> None:
    """Examples a second of the recipe fourrooms-demo, as it is and with one setting changed."""
    runs, sizes = {}, {}
    for change in ("", *(f"training.{knob}" for knob in KNOBS)):
        parts = parts_of("fourrooms-demo", args.device, *([change] if change else []))
        runs[change], sizes[change] = stepper(parts.trainer, parts.job()), parts.trainer.batch_size
    took = alternating(runs, args.repeats, torch.device(args.device))
    rates = {change: 1e3 * sizes[change] / millis for change, millis in took.items()}
    for change, rate in rates.items():
        emit(f"{args.device}, fourrooms-demo {change}".strip(), "training examples", rate, "1/s", rates[""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=(*PARTS, "knobs"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.worker:
        worker(args)
        return
    parts = {"calls": calls, "steps": steps, "memory": memory, "processes": processes, "knobs": knobs}
    for name in args.only:
        parts[name](args)


if __name__ == "__main__":
    main()
