"""The unmasking sampler against the loop over the rows of a batch that one would write first.

    python -m benchmarks.sampler [--device cuda]

Both unmask plans of 40 tokens in 10 steps, the most confident first, greedily, and make the same plans. The baseline
encodes the state and runs the network in full at every step, then goes through the rows in Python. Three cases for
each batch size: with the plan MLP; with the time of its ten bare forwards taken off both; and with a table in the
place of a network, which leaves the samplers alone. On a CPU the matrix products of the network, the same for both,
are most of the first case. The last rows are one decision of a policy against the 15 ms that it may take.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}; a ratio above 1 is in favour of ours.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onpath.data.trajectories import FourRoomsExpert
from onpath.evaluation.arenas import task_set
from onpath.evaluation.envs import Mode, latency
from onpath.evaluation.policy import PlanPolicy
from onpath.models.policy import PlanMLP
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.grids import EvenGrid
from onpath.sampling.loop import sample
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Denoiser

NUM_STEPS = 10
DECISION_LIMIT_MS = 15.0
SAMPLER = Unmasking(order="confidence", tokens=Categorical(temperature=0.0))


@dataclass(frozen=True)
class Table:
    """A network without any work: fixed logits (B, L, V), whatever it is asked."""

    logits: Tensor

    def encode(self, **cond: Tensor) -> Tensor:
        return self.logits

    def __call__(self, x: Tensor, t: Tensor, memo: Tensor, *, rows: Any = None, readout: Any = None) -> Any:
        return memo if rows is None else readout(memo.flatten(0, 1)[rows], rows)


@torch.no_grad()
def row_by_row(denoiser: Denoiser, batch: Batch, mask_id: int) -> Tensor:
    """The straightforward sampler: at every step a full forward, then one row after the other."""
    plans = torch.full_like(batch.x, mask_id)
    hidden = torch.ones_like(plans, dtype=torch.bool)
    for step in range(NUM_STEPS):
        logits = denoiser(plans, hidden.float().mean(1), denoiser.encode(**batch.cond))
        certainty, token = logits.softmax(-1).max(-1)
        for row in range(batch.size):
            places = hidden[row].nonzero()[:, 0]
            quota = math.ceil(len(places) / (NUM_STEPS - step))
            chosen = places[certainty[row, places].topk(quota).indices]
            plans[row, chosen] = token[row, chosen]
            hidden[row, chosen] = False
    return plans


@torch.no_grad()
def bare_forwards(network: PlanMLP, batch: Batch) -> Tensor:
    """One encoding and as many forwards as there are steps, nothing else."""
    memo, t = network.encode(**batch.cond), torch.ones(batch.size, device=batch.x.device)
    for _ in range(NUM_STEPS):
        logits = network(batch.x, t, memo)
    return logits


def interleaved(runs: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each run, taken in turn so that a busy machine slows all alike."""
    millis: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run().cpu()  # waits for a GPU
            if repeat:  # the first round warms up
                millis[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in millis.items()}


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None) -> None:
    ratio = None if baseline is None else baseline / value
    row = {"benchmark": "sampler", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": ratio}), flush=True)


def compare(network: PlanMLP, process: Masking, batch: Batch, repeats: int) -> None:
    """All cases of one batch size."""
    table = Table(torch.randn(*batch.x.shape, network.num_words).to(batch.x.device))

    def ours(denoiser: Denoiser) -> Tensor:
        return sample(denoiser, process, SAMPLER, EvenGrid(NUM_STEPS), batch, Key()).x

    took = interleaved(
        {
            "ours": lambda: ours(network),
            "rows": lambda: row_by_row(network, batch, process.mask_id),
            "forwards": lambda: bare_forwards(network, batch),
            "ours, table": lambda: ours(table),
            "rows, table": lambda: row_by_row(table, batch, process.mask_id),
        },
        repeats,
    )
    name = f"{batch.x.device.type}, batch {batch.size}"
    emit(f"{name}, plan MLP", "time of 10 steps", took["ours"], "ms", took["rows"])
    rest, rest_of_rows = (max(took[which] - took["forwards"], 1e-3) for which in ("ours", "rows"))
    emit(f"{name}, plan MLP less its forwards", "time of 10 steps", rest, "ms", rest_of_rows)
    emit(f"{name}, table", "time of 10 steps", took["ours, table"], "ms", took["rows, table"])
    same = (ours(network) == row_by_row(network, batch, process.mask_id)).all(1).double().mean()
    emit(f"{name}, plan MLP", "plans that agree", float(same), "share", None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--repeats", type=int, default=7, help="rounds at batch 1024; more for smaller batches")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    source = FourRoomsExpert()
    spec = source.spec()
    network = PlanMLP(spec).to(args.device).eval()
    torch.nn.init.normal_(network.head.weight, std=0.02)  # a fresh head is zero, and every place would be a tie
    process = Masking(LinearSchedule(), spec.mask_id)
    for size in args.batch_sizes:
        repeats = args.repeats * max(1, min(8, 512 // size))
        compare(network, process, source.examples(torch.arange(size), args.device), repeats)
    policy = PlanPolicy(network, process, SAMPLER, EvenGrid(NUM_STEPS), spec, end_id=source.num_actions)
    for row in latency(policy, task_set("test", 1), Mode(steps=NUM_STEPS), batch_sizes=(1,), device=args.device):
        if "decision" in row["metric"]:
            emit(f"{args.device}, one decision", row["metric"], row["value"], "ms", DECISION_LIMIT_MS)


if __name__ == "__main__":
    main()
