"""What searches make of a trained policy at equal budgets of forwards, and how fast.

    python -m benchmarks.search [--runs RUN …] [--tasks 500] [--failed open@10] [--budgets 10 40 160 640]
                                [--searches mctd …] [--set search.KEY=VALUE …]
                                [--load KEY=VALUE …] [--times]

Without runs, and with `--times`: seconds of a plan of 160 forwards, one task at a time, by a network of the size that
the recipe fourrooms-demo trains, leaves that are chosen together against one at a time.
With runs: the share of tasks (of those that the policy fails in the mode `--failed`; all, where that is none) that
each search solves at each budget, each run with the best of N as baseline, and over all runs how many more than it: the
paired difference with its 95 % interval over tasks.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}; tables have ci95 and n as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks._measures import in_turn, times_as_fast

import onpath
from onpath.build import build
from onpath.config import RunConfig
from onpath.evaluation.envs import Mode
from onpath.evaluation.search import METHODS, paired, planner_of, summarise, tasks_of
from onpath.evaluation.statistics import wilson
from onpath.recipes import path_of
from onpath.search.base import Progress, search
from onpath.search.mctd import MCTD
from onpath.searches import named

BUDGET = 160
LEAVES = (1, 8, 32)
AGAINST = "best_of_n"


def times(repeats: int, device: str) -> Iterator[dict[str, Any]]:
    """Seconds of one plan, task after task, by leaves."""
    config = RunConfig.load(path_of("fourrooms-demo"), [f"device={device}"])
    torch.manual_seed(0)
    parts = build(config)
    subject = parts.subject(parts.model.to(parts.device).eval())  # pyright: ignore[reportArgumentType]
    tasks = tasks_of(subject, 64)
    planner = planner_of(subject, tasks)
    search(MCTD(), planner, 8, [0])  # which looks up the mazes
    turn = iter(range(10**6))

    def plan(leaves: int) -> None:
        search(MCTD(leaves=leaves), planner, BUDGET, [next(turn) % tasks.problem.size])

    runs = {f"{leaves} leaves": lambda leaves=leaves: plan(leaves) for leaves in (*LEAVES, MCTD().leaves)}
    seconds = in_turn(runs, repeats, device)
    for name, taken in seconds.items():
        told = {"benchmark": "search", "case": f"a plan of {BUDGET} forwards, {name}, {device}", "unit": "s"}
        against = {"baseline": median(seconds["1 leaves"]), "ratio": times_as_fast(seconds, name, "1 leaves")}
        yield {**told, "metric": "seconds", "value": median(taken), **against}


def table(paths: Sequence[Path], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each run, then all of them together."""
    methods = named(arguments.searches, arguments.set)
    failed = None if arguments.failed == "none" else Mode.parse(arguments.failed)
    pooled: dict[tuple[str, int], list[tuple[Progress, Progress]]] = {}
    for path in paths:
        subject = onpath.load(path, overrides=arguments.load).subject
        tasks = tasks_of(subject, arguments.tasks, failed=failed)
        planner, found = planner_of(subject, tasks), {}
        for name, method in methods.items():
            begun = time.process_time()
            once = search(method, planner, max(arguments.budgets)) if method.anytime else None
            found[name] = {budget: once or search(method, planner, budget) for budget in arguments.budgets}
            yield line(f"{path.name}, {name}", "seconds a task", (time.process_time() - begun) / arguments.tasks, "s")
        for name in methods:
            for budget in arguments.budgets:
                against = found.get(AGAINST, {}).get(budget)
                for row in summarise(found[name][budget], tasks, budget, path.name, name):
                    base = None if against is None else summarise(against, tasks, budget, "", "")
                    other = next((one["value"] for one in base or () if one["metric"] == row["metric"]), None)
                    case = f"{path.name}, {name}@{budget}"
                    yield {**line(case, row["metric"], row["value"], "1", other), "ci95": row["ci95"], "n": row["n"]}
                if against is not None:
                    pairs = zip(found[name][budget], against, strict=True)
                    pooled.setdefault((name, budget), []).extend(pairs)
    for (name, budget), pairs in pooled.items():
        one, other = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        solved = sum(bool((best := progress.at(budget)) and best.solved) for progress in one)
        case = f"all, {name}@{budget}"
        yield {**line(case, "success", solved / len(one), "1"), "ci95": wilson(solved, len(one)), "n": len(one)}
        more, interval = paired(one, other, budget)
        yield {**line(case, f"more than {AGAINST}", more, "1"), "ci95": interval, "n": len(one)}


def line(case: str, metric: str, value: float, unit: str, baseline: float | None = None) -> dict[str, Any]:
    """A row as all benchmarks print it."""
    ratio = value / baseline if baseline else None
    told: Mapping[str, Any] = {"benchmark": "search", "case": case, "metric": metric, "value": value, "unit": unit}
    return {**told, "baseline": baseline, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", type=Path, default=[])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--failed", default="open@10")
    parser.add_argument("--budgets", nargs="*", type=int, default=[10, 40, 160, 640])
    parser.add_argument("--searches", nargs="*", default=[name for name in METHODS if name != "greedy"])
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--load", nargs="*", default=[])
    parser.add_argument("--times", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [table(arguments.runs, arguments)] if arguments.runs else []
    if arguments.times or not arguments.runs:
        rows += [
            times(arguments.repeats, device)
            for device in ("cpu", "cuda")
            if device == "cpu" or torch.cuda.is_available()
        ]
    for several in rows:
        for row in several:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
