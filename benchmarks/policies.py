"""What estimators of the policy gradient reach on Sudoku, from the same supervised start, at equal numbers of rollouts.

    python -m benchmarks.policies [--side 4] [--seeds 0 1 2] [--arms traj diffu …] [--steps 75] [--runs FOLDER]
                                  [--orbits 8 2 2] [--start-on SPLIT] [--set KEY=VALUE …] [--noise]

For each seed one supervised run (the recipe sudoku-sft) ends when it first solves a quarter of the validation puzzles
(`--start-on train`: of those trained on); from its weights every arm takes the same number of optimizer steps of 512
rollouts, with rewards for solved grids (1) and right cells (.2), as the recipe sudoku-grpo says. All are judged by the
share of 1,000 puzzles of held-out grids that one answer solves at the temperature and the number of steps of the
rollouts. Beside it stand seconds of the processor, and forward-equivalents of a rollout: rows through the network,
those with gradient counted three times.
`--noise` also measures, at the start, how the gradient of 256 rollouts scatters: the ratio of its noise to its signal,
and the cosine of its mean to that of traj, corrected for noise.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}: each arm and seed with the start of the seed
as baseline, then each arm over seeds. A finished run stays in the folder of runs and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onpath.build import Parts, build
from onpath.config import RunConfig
from onpath.experience.generation import Generator
from onpath.overrides import override, read_yaml
from onpath.recipes import path_of
from onpath.records import RunFolder
from onpath.rng import Key
from onpath.runs import load
from onpath.training.distributed import ALONE
from onpath.types import Nets

ARMS: dict[str, dict[str, Any]] = {
    "traj": {"kind": "traj"},
    "traj, own orders": {"kind": "traj"},
    "traj, thinned": {"kind": "traj", "thinning": 0.5},
    "traj_nelbo": {"kind": "traj_nelbo"},
    "diffu": {"kind": "diffu", "p_mask_prompt": 0.0},
    "diffu, own orders": {"kind": "diffu", "p_mask_prompt": 0.0},
    "uni": {"kind": "uni"},
    "coupled": {"kind": "coupled"},
    "espo": {"kind": "espo"},
    "spg": {"kind": "spg"},
    "wd1": {"kind": "wd1", "p_mask_prompt": 0.0},
    "trace": {"kind": "trace"},
    "trace, merged": {"kind": "trace", "merge": 2},
    "traj, thinner": {"kind": "traj", "thinning": 1.5},
}
OWN = "own orders"  # in the name of an arm: experience.shared_orders is off
SUPERVISED = "supervised"  # an arm: examples with solutions, as many a step
NUM_PUZZLES = 1000
START = 0.25  # of the validation puzzles, solved at the start
START_STEPS = {4: (5, 120), 6: (20, 240)}  # by side: supervised steps between two looks, and at most


def settings(arguments: argparse.Namespace, seed: int) -> list[str]:
    """What both stages share."""
    orbits = [] if arguments.orbits is None else [f"data.num_orbits=[{','.join(map(str, arguments.orbits))}]"]
    return [*arguments.set, *orbits, f"data.side={arguments.side}", f"seed={seed}", "training.threads=1"]


def started(arguments: argparse.Namespace, seed: int) -> Path:
    """The supervised run of a seed, as it was when it first solved a quarter of the validation puzzles."""
    path = arguments.runs / f"{arguments.name}-start-{seed}"
    if (path / "chosen").exists():
        return path
    every, most = START_STEPS[arguments.side]
    lasting = [f"training.steps={most}", f"training.save_every={every}", f"training.keep={most}"]
    _train(RunConfig.parse(override(read_yaml(path_of("sudoku-sft")), [*settings(arguments, seed), *lasting])), path)
    saved = sorted((path / "checkpoints").iterdir(), key=lambda folder: int(folder.name.removeprefix("step-")))
    aside = path / "later"
    aside.mkdir()
    for folder in saved[1:]:
        folder.rename(aside / folder.name)
    for folder in saved[1:]:
        if share_solved(path, arguments.start_on, 512) >= START:
            break
        (aside / folder.name).rename(folder)
    shutil.rmtree(aside)
    (path / "chosen").touch()
    return path


def config_of(arguments: argparse.Namespace, arm: str, seed: int, start: Path) -> RunConfig:
    """The recipe with the estimator of an arm."""
    data = read_yaml(path_of("sudoku-sft" if arm == SUPERVISED else "sudoku-grpo"))
    if arm != SUPERVISED:
        data["objective"] = {**data["objective"], "estimator": ARMS[arm]}
        data["experience"] = {**data["experience"], "shared_orders": OWN not in arm}
    steps = f"training.steps={arguments.steps}"
    data = override(data, [*settings(arguments, seed), f"start={start}", steps, "training.validate_every=0"])
    return RunConfig.parse(data)


def _train(config: RunConfig, path: Path) -> None:
    if any(path.glob("checkpoints/step-*")):
        return
    begun = time.process_time()
    parts = build(config)
    parts.trainer.fit(parts.job(), RunFolder.create(path, parts.config.as_dict()))
    (path / "processor.json").write_text(json.dumps(time.process_time() - begun))


def solved(path: Path) -> float:
    """The share of held-out puzzles that the average weights of a run solve; kept beside it."""
    kept = path / "solved.json"
    if not kept.exists():
        kept.write_text(json.dumps(share_solved(path, "test", NUM_PUZZLES)))
    return float(json.loads(kept.read_text()))


def share_solved(path: Path, split: str, num_puzzles: int) -> float:
    """The share of puzzles of a split that the average weights of the newest checkpoint solve."""
    subject = load(path, device="cpu").subject
    generator = Generator(subject.process, subject.sampler, subject.grid, subject.source.at_split(split))
    ids = torch.arange(num_puzzles)
    found = generator.rollouts(subject.denoiser, ids, ids, Key(1, "solve"), subject.device)
    tokens, truth = found.experience.tokens, generator.source.examples(ids).x
    return float((tokens == truth).all(1).float().mean())


def forwards(path: Path) -> float:
    """Forward-equivalents of a rollout: those that made it, and three for each state that was read with gradient."""
    rows = [row for row in RunFolder.open(path).metrics() if row["set"] == "train"]
    if "rollout_forwards" not in rows[0]:  # supervised: an example is read once
        return 3.0
    rolled = statistics.fmean(row["rollout_forwards"] for row in rows)
    return rolled + 3.0 * statistics.fmean(row["loss_forwards"] for row in rows)


def scatter(arguments: argparse.Namespace, arm: str, seed: int, num_rounds: int = 24) -> Tensor:
    """(num_rounds, weights) gradients of 256 rollouts each, at the start."""
    start = started(arguments, seed)
    config = config_of(arguments, arm, seed, start)
    parts: Parts = build(config)
    assert parts.rounds is not None
    parts.model.train()
    nets = Nets(parts.model)  # type: ignore[arg-type]
    found = []
    for number in range(num_rounds):
        held = parts.rounds.collect(nets, number, 256, parts.device, ALONE)
        loss = parts.objective(nets, parts.rounds.part(held, 0, 0, 1), Key(seed), 0)
        gradients = torch.autograd.grad(loss.mean, list(parts.model.parameters()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    return torch.stack(found)


def noise_to_signal(gradients: Tensor) -> float:
    """Standard deviation of a gradient over the length of its mean, the noise in that taken off."""
    number = len(gradients)
    noise = float(gradients.var(0).sum())
    signal = float(gradients.mean(0).square().sum()) - noise / number
    return math.sqrt(noise / signal) if signal > 0 else math.inf


def cosine(one: Tensor, other: Tensor) -> float:
    """Of the means of two samples of gradients, each length with its noise taken off."""
    lengths = [float(g.mean(0).square().sum()) - float(g.var(0).sum()) / len(g) for g in (one, other)]
    return float(one.mean(0) @ other.mean(0)) / math.sqrt(max(lengths[0], 1e-30) * max(lengths[1], 1e-30))


def _rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    reached: dict[str, list[float]] = {}
    for seed in arguments.seeds:
        start = started(arguments, seed)
        base = solved(start)
        for arm in arguments.arms:
            path = arguments.runs / f"{arguments.name}-{arm.replace(', ', '-')}-{arguments.steps}-{seed}"
            _train(config_of(arguments, arm, seed, start), path)
            value = solved(path)
            reached.setdefault(arm, []).append(value)
            case = f"sudoku {arguments.side}x{arguments.side}, {arm}, seed {seed}"
            yield _row(case, "solved", value, "1", base)
            yield _row(case, "seconds of the processor", json.loads((path / "processor.json").read_text()), "s", None)
            yield _row(case, "forward-equivalents of a rollout", forwards(path), "rows", None)
    for arm, values in reached.items():
        yield _row(f"sudoku {arguments.side}x{arguments.side}, {arm}", "solved", statistics.fmean(values), "1", None)
    if arguments.noise:
        seed = arguments.seeds[0]
        true = scatter(arguments, "traj", seed)
        for arm in arguments.arms:
            found = true if arm == "traj" else scatter(arguments, arm, seed)
            case = f"sudoku {arguments.side}x{arguments.side}, {arm}, 256 rollouts, seed {seed}"
            yield _row(case, "noise to signal", noise_to_signal(found), "1", noise_to_signal(true))
            yield _row(case, "cosine to traj", cosine(found, true), "1", None)


def _row(case: str, metric: str, value: float, unit: str, baseline: float | None) -> dict[str, Any]:
    ratio = None if not baseline else value / baseline
    return {
        "benchmark": "policies",
        "case": case,
        "metric": metric,
        "value": value,
        "unit": unit,
        "baseline": baseline,
        "ratio": ratio,
    }


def main() -> None:
    """Trains, judges and prints."""
    parser = argparse.ArgumentParser(description="Estimators of the policy gradient on Sudoku, from the same start.")
    parser.add_argument("--side", type=int, default=4, choices=[4, 6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=[*ARMS, SUPERVISED])
    parser.add_argument("--steps", type=int, default=75, help="optimizer steps of an arm, of 512 rollouts each")
    parser.add_argument("--orbits", type=int, nargs=3, default=None, help="grids to train, validate and test on")
    parser.add_argument("--start-on", default="validation", choices=["train", "validation"])
    parser.add_argument("--name", default="sudoku", help="of the runs: a name of its own for each setting")
    parser.add_argument("--runs", type=Path, default=Path("runs/policies"))
    parser.add_argument("--set", nargs="*", default=[], help="settings over those of both recipes")
    parser.add_argument("--noise", action="store_true", help="measure the noise of the gradients as well")
    for row in _rows(parser.parse_args()):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
