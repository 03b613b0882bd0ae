"""What rollouts of tokens are worth: arms that differ in nothing else, at equal compute.

    python -m benchmarks.exposure_tokens fourrooms|shakespeare [--seeds 0 1 2] [--arms plain rollout correction]
                                         [--budget 5100] [--runs FOLDER] [--set KEY=VALUE …] [--only-train]

Every arm trains the recipe (fourrooms-rollout, shakespeare-rollout) from the same weights on the same examples for the
same number of forward-equivalents: a forward with gradient counts 3 (its backward counts 2), one without counts 1, in
units of what goes through the network in a plain step. An arm that rolls out takes fewer optimizer steps, and its
learning rate falls to 0 over its own; its ramp has the share of the steps that the recipe's has. `plain` leaves
scheduled sampling out, `rollout` is the recipe, `correction` also learns the right token where a rollout revealed a
wrong one.
FourRooms is judged by success on 2,000 tasks of held-out layouts, open loop at 10 and 40 forwards and closed loop at
10; Shakespeare by the bound on held-out bits per character and by scores of 64 samples at 16 and 64 steps, beside which
stand those of the text itself; both by drift. Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}
as `benchmarks.exposure` does: for each arm, seed and metric with the plain arm of the same seed as baseline, then over
seeds with standard errors. A finished run stays in the folder of runs and is not repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.exposure import Result, rows_of, trained
from torch import Tensor

from onpath.build import Parts, build
from onpath.config import RunConfig
from onpath.data.source import step_ids
from onpath.evaluation.drift import Drift
from onpath.overrides import override, read_yaml
from onpath.recipes import path_of
from onpath.records import RunFolder
from onpath.rng import Key
from onpath.runs import load
from onpath.types import Nets, Spec

ARMS: dict[str, dict[str, Any] | None] = {"plain": None, "rollout": {}, "correction": {"correction": 1.0}}
BUDGETS = {"fourrooms": 3 * 1700, "shakespeare": 3 * 6000}
JUDGED: dict[str, dict[str, Any]] = {
    "fourrooms": {
        "sets": ["test"],
        "num_tasks": 2000,
        "modes": ["open@10", "open@40", "closed@10"],
        "latency": False,
    },
    "shakespeare": {"num_samples": 64, "steps": [16, 64]},
}
DRIFTS = {
    task: Drift(times=(0.2, 0.5, 0.8), offsets=(1, 2, 5, "all"), num_examples=num_examples)
    for task, num_examples in {"fourrooms": 256, "shakespeare": 64}.items()
}


@dataclass(frozen=True)
class Blind:
    """Knows nothing; it counts what is asked of it."""

    num_words: int

    def encode(self, **cond: Tensor) -> None:
        return None

    def __call__(self, x: Tensor, t: Tensor, memo: None, *, rows: Any = None, readout: Any = None) -> Any:
        return readout(torch.zeros(len(rows), self.num_words), rows)


def states_per_example(objective: dict[str, Any]) -> int:
    """Sequences that go through the network with gradient for each example of a batch."""
    return 2 if objective.get("masks", "pairs") == "pairs" and objective["kind"] == "nelbo" else 1


def forwards_per_example(parts: Parts, num_batches: int = 16) -> float:
    """Forwards without gradient for an example where every row takes part; what they show does not change it."""
    assert isinstance(parts.spec, Spec)
    total = 0.0
    for step in range(num_batches):
        batch = parts.source.examples(step_ids(step, 256))
        loss = parts.objective(Nets(Blind(parts.spec.num_words)), batch, Key(0, "cost", step), step)
        forwards, count = loss.metrics["rollout_forwards"]
        total += float(forwards) / float(count) / num_batches
    return total


def config_of(arguments: argparse.Namespace, arm: str, seed: int) -> RunConfig:
    """The recipe with the rule of an arm, and as many steps as the budget pays for."""
    recipe = {**read_yaml(path_of(f"{arguments.task}-rollout")), "evaluation": JUDGED[arguments.task]}
    data = override(recipe, [*arguments.set, f"seed={seed}"])
    rule, extra = data["objective"]["scheduled_sampling"], ARMS[arm]
    data["training"] = {**data["training"], "save_every": 0, "threads": arguments.threads}
    per_step = 3.0
    if extra is None:
        data["objective"]["scheduled_sampling"] = None
        steps = round(arguments.budget / per_step)
    else:
        of_all = {**data, "objective": {**data["objective"], "scheduled_sampling": _always(rule)}}
        rolled = forwards_per_example(build(RunConfig.parse(of_all))) / states_per_example(data["objective"])
        shares = [rule[name] / data["training"]["steps"] for name in ("start_step", "ramp_steps")]
        # a ramp from prob_start, at half its height on average
        mean = rule["prob_end"] * (1 - sum(shares)) + shares[1] * (rule["prob_start"] + rule["prob_end"]) / 2
        steps = round(arguments.budget / (per_step + mean * rolled))
        ramp = {"start_step": round(shares[0] * steps), "ramp_steps": max(1, round(shares[1] * steps))}
        data["objective"]["scheduled_sampling"] = {**rule, **ramp, **extra}
    data["training"]["steps"] = steps
    if data["training"].get("validate_every", 0) > steps:
        data["training"]["validate_every"] = 0
    return RunConfig.parse(data)


def _always(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule with every row taking part in every step."""
    ramp = ("prob_start", "prob_end", "ramp_steps", "start_step", "ramp_shape")
    return {**{name: value for name, value in rule.items() if name not in ramp}, "probability": 1.0}


def cost(path: Path, states: int) -> tuple[float, float, float]:
    """Forward-equivalents of a finished run in batches, its seconds, and those on the host of its rollouts."""
    spent, before, seconds, rolling = 0.0, 0, 0.0, 0.0
    for row in RunFolder.open(path).metrics():
        if row["set"] == "train":
            spent += (row["step"] - before) * (3.0 + row.get("rollout_forwards", 0.0) / states)
            rolling += (row["step"] - before) * row.get("rollout_seconds", 0.0)
            before, seconds = row["step"], row["seconds"]
    return spent, seconds, rolling


def judged(path: Path, task: str, arm: str, seed: int) -> Result:
    """Every figure of a finished run, kept beside it."""
    kept = path / "exposure.json"
    if not kept.exists():
        run = load(path, device="cpu")
        states = states_per_example(run.parts.config.objective.as_dict())
        spent, seconds, rolling = cost(path, states)
        figures = {"forward_equivalents": spent, "seconds": seconds, "rollout_seconds": rolling, "steps": run.step}
        for row in (*run.parts.evaluation.measure(run.subject), *DRIFTS[task].measure(run.subject)):
            if row["value"] is not None:
                figures[f"{row['mode']} {row['metric']}"] = row["value"]
        kept.write_text(json.dumps(figures))
    return Result(arm, seed, json.loads(kept.read_text()))


def main() -> None:
    """Trains, judges and prints."""
    parser = argparse.ArgumentParser(description="Arms of training on states of the model's own, at equal compute.")
    parser.add_argument("task", choices=list(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--budget", type=int, help="forward-equivalents in batches, 3 a plain step; as the recipe")
    parser.add_argument("--runs", type=Path, default=Path("runs/exposure-tokens"))
    parser.add_argument("--set", nargs="*", default=[], help="settings over those of the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-train", action="store_true", help="train what is not there, and judge nothing")
    arguments = parser.parse_args()
    arguments.budget = arguments.budget or BUDGETS[arguments.task]
    torch.set_num_threads(arguments.threads)
    results = []
    for seed in arguments.seeds:
        for arm in arguments.arms:
            path = arguments.runs / f"{arguments.task}-{arm}-{seed}"
            trained(config_of(arguments, arm, seed), path)
            torch.compiler.reset()  # what one run compiled counts against the next otherwise
            if not arguments.only_train:
                results.append(judged(path, arguments.task, arm, seed))
    for row in rows_of(results, arguments.task):
        print(json.dumps({**row, "benchmark": "exposure_tokens"}), flush=True)


if __name__ == "__main__":
    main()
