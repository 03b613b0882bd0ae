"""Seconds of a batch of rollouts beside SimpleTuner's own code, and what training pays for them.

    python -m benchmarks.rollout [--peer PATH] [--threads 1] [--device cuda]

PATH is a checkout of bghira/SimpleTuner, whose rollout code runs unchanged (_rollout_peer.py). Both have the same
network, images, noise, times, offsets, grid and solver order, in fp32; networks are the U-Net of the recipe `digits`
and diffusers' UNet2DModel, with random weights. 32 rows; offsets are 10 for all, or 1 to 10. SimpleTuner takes a row
after the other, on flow matching always by Euler; with ReflexFlow, its default there, it adds two forwards a row. Its
eps rollout walks toward noise, so there only the times can be compared; on flow the states are.

`rollout` is what replaces the states of a batch, `with ReflexFlow` also predicts for it at the clean states. `training
step` is that, forward, loss, backward and AdamW, with SimpleTuner's loss on its side. Without --peer ours is compared
with our own code for each row alone. Quickest of repeats in turn, of the processor with one CPU thread, else of the
clock; a ratio above 1 is in favour of ours. Overhead (--only overhead): a training step of the recipe `digits` over
probability and longest offset; ratio to one without rollouts. `docs/pictures/rollouts.py` draws these rows.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn as nn
from benchmarks._rollout_networks import NETWORKS
from benchmarks._rollout_peer import Peer, Predicting, PredictionTypes, Table, load
from torch import Tensor

from onpath import rng
from onpath.data.images import Digits
from onpath.models.unet import ImageUNet
from onpath.objectives.base import stratified
from onpath.objectives.denoising import Denoising
from onpath.objectives.weighting import TimeDensity
from onpath.processes.gaussian import Gaussian
from onpath.rng import Key
from onpath.rollouts import draw_state, evaluating
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
from onpath.schedules import BetasSchedule, LinearSchedule
from onpath.training.optimizers import AdamW
from onpath.types import Batch, Denoiser, Nets, Noised

STEPS = 50  # of the grid
LIMITS = {"cpu": 6.0, "cuda": 15.0}  # times the speed of the peer
PROBABILITIES, OFFSETS = (0.0, 0.1, 0.25, 0.5, 1.0), (0, 1, 2, 5, 10, 20)
KEY = Key(0, "benchmark")

CASES = (  # kind, our sampler, whether all offsets are the longest
    *(("flow", "euler", True), ("flow", "unipc", True), ("flow", "unipc", False)),
    *(("eps", "unipc", True), ("eps", "unipc", False)),
)

Runs = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class OnGrid(TimeDensity):
    """Times that are points of the grid, so far from 1 that no rollout is cut short."""

    longest: int

    def times(self, draws: Tensor) -> Tensor:
        return (1.0 + (draws.double() * (STEPS - 1 - self.longest)).floor()) / STEPS


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None = None, inverse: bool = False) -> None:
    """A row; its ratio is baseline over value, or the inverse where more is paid than for the baseline."""
    ratio = None if baseline is None else value / baseline if inverse else baseline / value
    row = {"benchmark": "rollout", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": ratio}), flush=True)


def quickest(runs: Runs, repeats: int, device: str) -> dict[str, float]:
    """Least milliseconds of each run, taken in turn so that a busy machine slows all alike.

    Of the processor where one thread does it all, else of the clock.
    """
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    millis: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            begun = clock()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first round warms up
                millis[name].append(1e3 * (clock() - begun))
    return {name: min(values) for name, values in millis.items()}


@dataclass(frozen=True)
class Bench:
    """One network and process, a batch and its states, and how both sides roll these out.

    reflexflow: of both sides, on flow matching.
    """

    network: nn.Module
    process: Gaussian
    batch: Batch
    rule: ScheduledSampling
    reflexflow: bool = False

    @classmethod
    def of(
        cls, network: nn.Module, kind: str, shape: tuple[int, int, int], size: int, rule: ScheduledSampling
    ) -> Bench:
        """kind: flow or eps. On the device of the network."""
        table = BetasSchedule(beta_start=0.002, beta_end=0.3, num_steps=STEPS + 1)
        process = Gaussian(LinearSchedule()) if kind == "flow" else Gaussian(table, "vp", "eps")
        ids = torch.arange(size)
        x = rng.normal(KEY.fold("images"), ids, shape).tanh().to(next(network.parameters()).device)
        return cls(network, process, Batch(x, ids), rule)

    @property
    def is_flow(self) -> bool:
        return self.process.path == "flow"

    @property
    def nets(self) -> Nets:
        return Nets(cast(Denoiser, self.network))

    def plan(self) -> tuple[Tensor, Tensor]:
        """The points of the grid that are trained at, and how many steps each row is rolled out; as ours draws them."""
        draws = rng.uniform(KEY.fold("rollout"), self.batch.ids, (2,)).double()
        times = OnGrid(self.rule.max_step_offset).times(stratified(KEY, self.batch.ids))
        return (times * STEPS).round().long(), self.rule.offsets(draws[:, 1])

    def state(self) -> Noised:
        return self.process.corrupt(self.batch, self.plan()[0].double() / STEPS, KEY.fold("corrupt"))

    def rolled(self, batch: Batch, state: Noised) -> Tensor:
        """Our rollout; with ReflexFlow also the prediction at the clean states that its loss asks for."""
        drawn = draw_state(self.rule, self.process, self.nets, batch, state, KEY, 0)
        if self.reflexflow:
            assert isinstance(drawn.clean, Noised)
            with evaluating(cast(Denoiser, self.network)):
                self.network(drawn.clean.x, drawn.clean.t.to(state.x.device, torch.float32), None)
        return drawn.state.x

    def one_by_one(self, state: Noised) -> Tensor:
        """The same with each row alone."""
        parts = []
        for row in range(self.batch.size):
            one = slice(row, row + 1)
            parts.append(self.rolled(self.batch.rows(one), Noised(state.x[one], state.t[one], state.noise[one])))
        return torch.cat(parts)

    def prepared(self, peer: Peer, state: Noised) -> dict[str, Any]:
        """The batch as SimpleTuner's trainer hands it to the rollout."""
        device = state.x.device
        targets, offsets = (part.to(device) for part in self.plan())
        return {
            "latents": self.batch.x,
            "noise": state.noise,
            "input_noise": state.noise,
            "noisy_latents": state.x,
            "timesteps": targets,
            "sigmas": state.t.to(device, torch.float32),
            "scheduled_sampling_plan": peer.plan(targets, targets + offsets, offsets),
        }

    def peer_rolled(self, peer: Peer, state: Noised) -> dict[str, Any]:
        kind = PredictionTypes.FLOW_MATCHING if self.is_flow else PredictionTypes.EPSILON
        alphas = torch.linspace(1, 0, STEPS + 1) if self.is_flow else cast(BetasSchedule, self.process.schedule).table()
        table = Table(STEPS + 1, alphas if self.is_flow else alphas.sigmoid())
        config = SimpleNamespace(
            scheduled_sampling_reflexflow=self.reflexflow,
            scheduled_sampling_sampler=self.rule.sampler,
            scheduled_sampling_order=self.rule.order,
        )
        return peer.rolled(Predicting(self.network, kind, STEPS + 1), self.prepared(peer, state), table, config)

    def step(self) -> Tensor:
        """The loss of our training step, its gradient taken."""
        rule = replace(self.rule, target="original", reflexflow=ReflexFlow() if self.reflexflow else None)
        objective = Denoising(self.process, OnGrid(rule.max_step_offset), scheduled_sampling=rule)
        loss = objective(self.nets, self.batch, KEY, 0).mean
        loss.backward()
        return loss.detach()

    def peer_step(self, peer: Peer) -> Tensor:
        """The loss of SimpleTuner's training step on the states of `state`, its gradient taken."""
        state = self.state()
        prepared = self.peer_rolled(peer, state)
        x = prepared["noisy_latents"]
        output = self.network(x, prepared["timesteps"].to(torch.float32) / STEPS, None)
        target = state.noise - self.batch.x if self.is_flow else state.noise
        squared = (output - target).square()
        if not self.reflexflow:
            loss = squared.mean()
        else:
            gap = prepared["_reflexflow_clean_pred"] - prepared["_reflexflow_biased_pred"]
            size = gap.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
            ways = [nn.functional.normalize(v.flatten(1), dim=1, eps=1e-6) for v in (output, x - self.batch.x)]
            drift = (ways[0] - ways[1]).square().sum(1)
            loss = (squared * (1.0 + gap / size)).mean() + 10.0 * drift.mean()
        loss.backward()
        return loss.detach()


def stepping(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], Any]:
    """An optimizer step around a loss that takes its gradient."""
    optimizer = AdamW(learning_rate=1e-6).build(network)[0]

    def run() -> None:
        loss()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def compare(bench: Bench, peer: Peer | None, case: str, args: argparse.Namespace) -> list[float]:
    """Times of rollouts and training steps; returns how many times as fast as the peer the rollouts are."""
    ratios = []
    name = "one row at a time" if peer is None else "SimpleTuner"
    for reflexflow in (False, True) if bench.is_flow else (False,):
        bench, state = replace(bench, reflexflow=reflexflow), bench.state()
        other = partial(bench.one_by_one, state) if peer is None else partial(bench.peer_rolled, peer, state)
        runs: Runs = {"ours": partial(bench.rolled, bench.batch, state), "other": other}
        took = quickest(runs, args.repeats, args.device)
        extra = " with ReflexFlow" if reflexflow else ""
        emit(f"{case}, beside {name}", f"rollout{extra}", took["ours"], "ms", took["other"])
        ratios.append(took["other"] / took["ours"])
    if peer is not None:
        runs = {"ours": stepping(bench.network, bench.step)}
        runs["other"] = stepping(bench.network, partial(bench.peer_step, peer))
        took = quickest(runs, args.repeats, args.device)
        extra = " with ReflexFlow" if bench.is_flow else ""
        emit(f"{case}, beside {name}", f"training step{extra}", took["ours"], "ms", took["other"])
    return ratios


def agreement(bench: Bench, peer: Peer, case: str) -> None:
    """Whether both sides compute the same on flow: the states reached by Euler and, without ReflexFlow, the loss."""
    state = bench.state()
    mine, theirs = bench.rolled(bench.batch, state), bench.peer_rolled(peer, state)["noisy_latents"]
    emit(case, "greatest way from the clean states", difference(mine, state.x), "1")
    emit(case, "greatest difference of the states", difference(mine, theirs), "1")
    emit(case, "difference of the losses", difference(bench.step(), bench.peer_step(peer)), "1")
    bench.network.zero_grad()


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def against_peer(peer: Peer | None, args: argparse.Namespace) -> None:
    """Every network with every case; without a peer, beside one row at a time."""
    lowest = {}
    for name in args.networks:
        make, shape = NETWORKS[name]
        torch.manual_seed(0)
        network = make().to(args.device).train()
        size = f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M on {'x'.join(map(str, shape))}"
        where = f"{args.device}, threads {args.threads}, {name} of {size}"
        ratios = []
        for kind, sampler, is_fixed in CASES:
            rule = ScheduledSampling(args.offset, args.offset if is_fixed else 1, STEPS, 1.0, sampler=sampler)
            bench = Bench.of(network, kind, shape, args.batch, rule)
            lengths = f"{args.offset}" if is_fixed else f"1 to {args.offset}"
            case = f"{where}, {kind}, {sampler}, batch {args.batch}, offset {lengths}"
            if peer is not None and sampler == "euler":
                agreement(bench, peer, case)
            ratios += compare(bench, peer, case, args)
        lowest[where] = min(ratios)
    for where, least in lowest.items() if peer is not None else ():
        needed = LIMITS[args.device]
        case = f"{where}: rollouts at least {least:.1f} times as fast; needed are {needed:g}"
        emit(case, "met", float(least >= needed), "yes or no")


def overhead(args: argparse.Namespace) -> None:
    """A training step over probability and longest offset, as a run has them: lengths from 1, UniPC of order 2."""
    source = Digits()
    torch.manual_seed(0)
    network = ImageUNet(source.spec(), width=32, levels=(1, 2)).to(args.device).train()
    process, size = Gaussian(LinearSchedule()), args.overhead_batch
    batch = source.examples(torch.arange(size), args.device)

    def step(rule: ScheduledSampling | None) -> Callable[[], Any]:
        objective = Denoising(process, condition_dropout=0.1, scheduled_sampling=rule)

        def loss() -> Tensor:
            value = objective(Nets(cast(Denoiser, network)), batch, KEY, 0).mean
            value.backward()
            return value

        return stepping(network, loss)

    points = [(offset, p) for offset in args.offsets for p in args.probabilities if offset and p]
    runs: Runs = {"plain": step(None)}
    for offset, p in points:
        runs[f"{offset} {p}"] = step(ScheduledSampling(offset, probability=p))
    took = quickest(runs, args.repeats, args.device)
    for offset in args.offsets:
        for p in args.probabilities:
            millis = took.get(f"{offset} {p}", took["plain"])
            case = f"{args.device}, {args.threads} threads, digits, batch {size}, offset {offset}, probability {p:g}"
            emit(case, "training step", millis, "ms", took["plain"], inverse=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of bghira/SimpleTuner")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("rollouts", "overhead"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--offset", type=int, default=10, help="steps of a grid of 50")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--overhead-batch", type=int, default=128)
    parser.add_argument("--offsets", type=int, nargs="+", default=list(OFFSETS))
    parser.add_argument("--probabilities", type=float, nargs="+", default=list(PROBABILITIES))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no GPU; run on a machine with one, or leave --device out")
    return args


def main() -> None:
    args = parsed()
    torch.set_num_threads(args.threads)
    if args.only != "overhead":
        against_peer(load(args.peer) if args.peer else None, args)
    if args.only != "rollouts":
        overhead(args)


if __name__ == "__main__":
    main()
