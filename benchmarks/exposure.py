"""What training on states of the model's own is worth: arms that differ in nothing else, at equal compute.

    python -m benchmarks.exposure [--recipe digits] [--seeds 0 1 2] [--arms plain inject …] [--budget 6000]
                                  [--runs FOLDER] [--set KEY=VALUE …] [--draws 3] [--only-train]

Each arm trains the recipe from the same weights on the same examples for the same number of forward-equivalents: a
forward with gradient counts 3 (its backward counts 2), one without counts 1, in units of a batch. So an arm that rolls
out takes fewer optimizer steps; its learning rate falls to 0 over its own steps. The first half of every arm is plain:
states of an untrained network are nobody's. All are judged by held-out images: the Fréchet distance at 5, 10, 20 and 50
steps by two solvers, mean over three draws of samples, class agreement, copies, and drift: the bias and the excess loss
of states that a walk of ten Euler steps reaches from noise.

Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}: one for each arm, seed and metric, with the
plain arm of the same seed as baseline; then one for each arm over seeds, with the standard error of the difference. A
finished run stays in the folder of runs and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onpath.build import build
from onpath.config import RunConfig
from onpath.evaluation.drift import Drift
from onpath.evaluation.images import ImageEvaluation
from onpath.objectives.denoising import Denoising
from onpath.overrides import override, read_yaml
from onpath.recipes import path_of
from onpath.records import RunFolder
from onpath.runs import load
from onpath.sampling.solvers import DPMSolver, Euler
from onpath.scheduled_sampling import ScheduledSampling

PLAIN_SHARE = 0.5  # of the steps, before any arm rolls out
SOLVERS = {"euler": Euler(), "dpm": DPMSolver()}
NUM_DRAWS = 3
DRIFT = Drift(times=(0.1, 0.3, 0.5, 0.7), offsets=("all",), num_examples=500, split="test")
SHOWN = ("bias", "excess")

_SHORT = {"max_step_offset": 2, "probability": 0.5}
_LONG = {"max_step_offset": 15, "probability": 0.5}
_ALL = {"mode": "inject", "probability": 1.0, "fine_steps": 2}
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rollout-original": {"scheduled_sampling": {**_SHORT, "target": "original"}},
    "rollout-restoring": {"scheduled_sampling": _SHORT},
    "inject": {"scheduled_sampling": {**_LONG, "mode": "inject"}},
    "inject-all": {"scheduled_sampling": {**_ALL, "max_step_offset": 15}},
    "inject-short": {"scheduled_sampling": {**_ALL, "max_step_offset": 5}},
    "perturbation": {"input_perturbation": 0.1},
    "reflexflow-rollout": {"scheduled_sampling": {**_SHORT, "reflexflow": {}}},
    "reflexflow-jump": {"scheduled_sampling": {**_SHORT, "reflexflow": {"mode": "jump"}}},
}


@dataclass(frozen=True)
class Result:
    """What an arm reached with a seed: figures by metric, and what it cost."""

    arm: str
    seed: int
    figures: dict[str, float]


def forwards_per_row(rule: ScheduledSampling | None) -> float:
    """Expected forward-equivalents, beside its own 3, of a row that takes part, sources clamped at noise."""
    if rule is None:
        return 0.0
    # over times and draws in the middle of their strata
    t = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    offsets = rule.offsets(((torch.arange(999) + 0.5) / 999).double())
    lengths = torch.minimum(offsets[None, :], ((1.0 - t)[:, None] * rule.grid_steps).ceil().long()).double()
    joined = float((lengths > 0).double().mean())
    reflex = rule.reflexflow
    if reflex is not None and reflex.mode == "jump":
        return 4.0 * joined
    if rule.mode == "inject":
        return (rule.coarse_steps + rule.fine_steps) * joined * rule.solver.forwards_per_step
    return float(lengths.mean()) * rule.solver.forwards_per_step + joined * (reflex is not None)


def num_steps(objective: Denoising, budget: int) -> int:
    """Optimizer steps of an arm whose rollouts begin after `PLAIN_SHARE` of them."""
    rule = objective.scheduled_sampling
    rate = 0.0 if rule is None else rule.ramp.value(2**62) * forwards_per_row(rule)
    return round(budget / (3.0 + (1.0 - PLAIN_SHARE) * rate))


def config_of(arguments: argparse.Namespace, arm: str, seed: int) -> RunConfig:
    """The recipe with the objective of an arm, and as many steps as its budget pays for."""
    data = override(read_yaml(path_of(arguments.recipe)), [*arguments.set, f"seed={seed}"])
    data["objective"] = {**data["objective"], **ARMS[arm]}
    objective = build(RunConfig.parse(data)).objective
    assert isinstance(objective, Denoising)
    steps = num_steps(objective, arguments.budget)
    data["training"] = {**data["training"], "steps": steps, "validate_every": 0, "save_every": 0}
    if objective.scheduled_sampling is not None:
        start = {"start_step": round(PLAIN_SHARE * steps)}
        data["objective"]["scheduled_sampling"] = {**data["objective"]["scheduled_sampling"], **start}
    return RunConfig.parse(data)


def trained(config: RunConfig, path: Path) -> None:
    """The run at `path`, trained unless it is there."""
    if any(path.glob("checkpoints/step-*")):
        return
    parts = build(config)
    parts.trainer.fit(parts.job(), RunFolder.create(path, parts.config.as_dict()))


def cost(path: Path) -> tuple[float, float]:
    """Forward-equivalents of a finished run in batches, and its seconds, as its metrics say."""
    spent, before, seconds = 0.0, 0, 0.0
    for row in RunFolder.open(path).metrics():
        if row["set"] == "train":
            spent += (row["step"] - before) * (3.0 + row.get("rollout_forwards", 0.0))
            before, seconds = row["step"], row["seconds"]
    return spent, seconds


def judged(path: Path, arm: str, seed: int, num_draws: int = NUM_DRAWS) -> Result:
    """Every figure of a finished run, kept beside it."""
    kept = path / "exposure.json"
    if not kept.exists():
        run = load(path, device="cpu")
        spent, seconds = cost(path)
        figures: dict[str, list[float]] = {"forward_equivalents": [spent], "seconds": [seconds], "steps": [run.step]}
        settings = replace(run.parts.config.evaluation.make(), copies=False, drift=None)
        assert isinstance(settings, ImageEvaluation)
        for name, solver in SOLVERS.items():
            for draw in range(num_draws):
                copies = name == "dpm" and draw == 0
                subject = replace(run.subject, sampler=solver, seed=1000 + draw)
                for row in replace(settings, copies=copies).measure(subject):
                    if row["mode"].startswith("samples@"):
                        key = f"{row['metric']} {name} {row['mode'].removeprefix('samples@')}"
                        figures.setdefault(key, []).append(row["value"])
                    elif row["metric"] == "frechet":
                        figures.setdefault(f"frechet {row['mode']}", []).append(row["value"])
        means = {name: statistics.fmean(values) for name, values in figures.items()}
        kept.write_text(json.dumps(means))
    return Result(arm, seed, json.loads(kept.read_text()) | drifted(path))


def drifted(path: Path) -> dict[str, float]:
    """Drift of a finished run on ten Euler steps from noise, on the test images; kept beside it."""
    kept = path / "exposure-drift.json"
    if not kept.exists():
        run = load(path, device="cpu")
        subject = replace(run.subject, sampler=SOLVERS["euler"], grid=run.parts.grid.with_steps(10))
        rows = DRIFT.measure(subject)
        found = {f"{row['metric']} t={row['t']:.1f}": row["value"] for row in rows if row["offset"] != 0}
        kept.write_text(json.dumps({name: value for name, value in found.items() if name.split()[0] in SHOWN}))
    return json.loads(kept.read_text())


def rows_of(results: list[Result], recipe: str) -> Iterator[dict[str, Any]]:
    """A row for each arm, seed and metric, and for each arm and metric over seeds."""
    plain = {result.seed: result.figures for result in results if result.arm == "plain"}
    for result in results:
        for metric, value in result.figures.items():
            base = plain.get(result.seed, {}).get(metric)
            yield _row(f"{recipe}, {result.arm}, seed {result.seed}", metric, value, base)
    for arm in dict.fromkeys(result.arm for result in results):
        own = {result.seed: result.figures for result in results if result.arm == arm}
        for metric in next(iter(own.values())):
            values = [figures[metric] for figures in own.values()]
            shared = [seed for seed in own if metric in plain.get(seed, {})]
            differences = [own[seed][metric] - plain[seed][metric] for seed in shared]
            base = statistics.fmean(plain[seed][metric] for seed in shared) if shared else None
            row = _row(f"{recipe}, {arm}", metric, statistics.fmean(values), base)
            yield {**row, "seeds": len(values), "error": _error(values), "difference_error": _error(differences)}


def _error(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _row(case: str, metric: str, value: float, baseline: float | None) -> dict[str, Any]:
    unit = {"seconds": "s", "steps": "steps", "forward_equivalents": "batches"}.get(metric, "")
    ratio = None if not baseline else value / baseline
    return {
        "benchmark": "exposure",
        "case": case,
        "metric": metric,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "ratio": ratio,
    }


def main() -> None:
    """Trains, judges and prints."""
    parser = argparse.ArgumentParser(description="Arms of training on states of the model's own, at equal compute.")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--budget", type=int, default=6000, help="forward-equivalents in batches; 3 a plain step")
    parser.add_argument("--runs", type=Path, default=Path("runs/exposure"))
    parser.add_argument("--set", nargs="*", default=[], help="settings over those of the recipe")
    parser.add_argument("--draws", type=int, default=NUM_DRAWS, help="of samples, over which distances are averaged")
    parser.add_argument("--only-train", action="store_true", help="train what is not there, and judge nothing")
    arguments = parser.parse_args()
    results = []
    for seed in arguments.seeds:
        for arm in arguments.arms:
            path = arguments.runs / f"{Path(arguments.recipe).stem}-{arm}-{seed}"
            trained(config_of(arguments, arm, seed), path)
            if not arguments.only_train:
                results.append(judged(path, arm, seed, arguments.draws))
    for row in rows_of(results, Path(arguments.recipe).stem):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
