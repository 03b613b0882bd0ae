"""Text training beside MDLM: its own network and loss against ours, with all else equal, by our estimator.

    python -m benchmarks.mdlm --peer PATH [--seconds 400] [--seeds 0 1 2] [--out FOLDER] [--only peer|ours]

PATH is a checkout of kuleshov-group/mdlm; `einops` must be installed. Both train on windows of the same characters with
the same width, depth, heads, length, sequences through the network in a step, optimizer (AdamW, betas .9 and .98, no
decay, gradients clipped at 1), precision and wall time; neither is averaged. The rate rises over the first part of the
time and falls to 0 by a cosine over the rest. Its peak is the best of the same three for both, in a short run of the
first seed; MDLM's is looked for without drop-out, and its own drop-out is then tried at the best. Attention in MDLM is
torch's: an explicit softmax, which is the faster of two here. Our blocks are compiled within the time, as our recipe
does (--eager: not); MDLM's keep the fusions that it scripts itself, for as a whole they do not compile. Ours takes half
as many examples in a step, each in two complementary states, so that as many tokens go through either network;
--same-examples gives it as many examples.
Both are then scored by the continuous NELBO from stratified exact counts in pairs, in fp32, on the last tenth of the
text, under the same masks. Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}; with --out,
finished runs are kept there and not repeated: a comparison may be split (--only), and a last call of the whole gives
the verdict. Without --peer nothing is run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from benchmarks._mdlm_peer import PeerDenoiser, build, load
from torch import Tensor

from onpath.data.source import Source, step_ids
from onpath.data.text import TextFile
from onpath.models.transformer import TokenTransformer
from onpath.objectives.nelbo import ContinuousNELBO
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.schedules import LinearSchedule
from onpath.training.optimizers import AdamW
from onpath.types import Batch, Nets

NEEDED_ERRORS = 2.0  # standard errors by which ours must be lower
EVALUATED_AT_ONCE = 64

StepLoss = Callable[[Batch, int], Tensor]


@dataclass(frozen=True)
class Settings:
    """What a run is made by; a kept one is only read where all of this is the same.

    batch: sequences that go through the network in an optimizer step. states: how many of them are of one example.
    """

    text: str
    seconds: float
    clock: str
    width: int = 128
    depth: int = 5
    heads: int = 4
    length: int = 128
    batch: int = 16
    states: int = 1
    precision: str = "bf16"
    warmup: float = 0.05
    rounds: int = 4
    compiled: bool = True


@dataclass(frozen=True)
class Trained:
    """A finished run: bits per character of every held-out window, and what it took."""

    bits: list[float]
    rate: float
    dropout: float
    steps: int
    seconds: float


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None = None) -> None:
    row = {"benchmark": "mdlm", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": value / baseline if baseline else None}), flush=True)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (not a number for a single value)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


@torch.no_grad()
def held_out_bits(denoiser: Any, process: Masking, source: Source, rounds: int) -> list[float]:
    """Bits per token of every example of a finite source, each from `rounds` stratified pairs of states."""
    assert source.num_examples is not None
    denoiser.eval()
    bound, key, bits = ContinuousNELBO(process), Key(0, "mdlm"), []
    for ids in torch.arange(source.num_examples).split(EVALUATED_AT_ONCE):
        batch = source.examples(ids)
        nats = bound.of_examples(denoiser, batch, key, rounds)
        bits += (nats / batch.free_counts() / math.log(2)).tolist()
    return bits


def train(model: nn.Module, loss_of: StepLoss, source: Source, settings: Settings, rate: float) -> tuple[int, float]:
    """Optimizer steps until the time is up; returns how many, and the seconds that they took by the wall clock."""
    clock = time.perf_counter if settings.clock == "wall" else time.process_time
    optimizer = AdamW(learning_rate=rate).build(model)[0]
    weights = [p for p in model.parameters() if p.requires_grad]
    model.train()
    begun, begun_wall, step = clock(), time.perf_counter(), 0
    while (share := (clock() - begun) / settings.seconds) < 1.0:
        rising = min(1.0, (share + 1e-3) / settings.warmup)
        falling = 0.5 + 0.5 * math.cos(math.pi * max(0.0, share - settings.warmup) / (1.0 - settings.warmup))
        for group in optimizer.param_groups:
            group["lr"] = rate * rising * falling
        loss_of(source.examples(step_ids(step, settings.batch // settings.states)), step).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
    return step, time.perf_counter() - begun_wall


def compile_blocks(blocks: Any) -> None:
    """Compiles the blocks of a network one by one, as our trainer does, within the time of the run."""
    for block in blocks:
        block.compile()


def ours(settings: Settings, source: TextFile, seed: int) -> tuple[nn.Module, StepLoss, Any]:
    """Our network, its loss and the denoiser to score, which is the network."""
    spec = source.spec()
    network = TokenTransformer(spec, width=settings.width, num_heads=settings.heads, depth=settings.depth)
    if settings.compiled:
        compile_blocks(network.blocks)
    objective, nets = ContinuousNELBO(Masking(LinearSchedule(), spec.mask_id)), Nets(network)

    def loss(batch: Batch, step: int) -> Tensor:
        low = settings.precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            return objective(nets, batch, Key(seed).fold("train").at(step), step).mean

    return network, loss, network


def peers(settings: Settings, source: TextFile, modules: Any, dropout: float) -> tuple[nn.Module, StepLoss, Any]:
    """MDLM's network, its own loss and the denoiser to score."""
    sizes = {"hidden_size": settings.width, "n_blocks": settings.depth, "n_heads": settings.heads}
    diffusion = build(
        modules,
        {**sizes, "length": settings.length},
        source.spec().num_words,
        dropout=dropout,
        bf16_on_cpu=settings.precision == "bf16",
    )

    def loss(batch: Batch, step: int) -> Tensor:
        return diffusion._loss(batch.x, torch.ones_like(batch.x)).loss

    return diffusion, loss, PeerDenoiser(diffusion)


@dataclass(frozen=True)
class Bench:
    """The two sides on one text, and where finished runs are kept."""

    settings: Settings
    rates: tuple[float, ...]
    dropouts: tuple[float, ...]
    search_seconds: float
    modules: Any
    out: Path | None
    same_examples: bool = False

    def source(self, seed: int) -> TextFile:
        return TextFile(self.settings.text, length=self.settings.length, seed=seed)

    def run(self, side: str, seed: int, rate: float, dropout: float, settings: Settings) -> Trained:
        """Trains and scores one network, or reads what an earlier call has kept."""
        if side == "ours":
            settings = replace(settings, batch=settings.batch * self._doubled(side), states=2)
        wanted = {"side": side, "seed": seed, "rate": rate, "dropout": dropout, **asdict(settings)}
        kept = self.out and self.out / f"{side}-{settings.batch}-{seed}-{rate:g}-{dropout:g}-{settings.seconds:g}s.json"
        if kept and kept.exists():
            saved = json.loads(kept.read_text())
            if saved["settings"] == wanted:
                return Trained(**saved["trained"])
        torch.manual_seed(seed)
        source = self.source(seed)
        made = ours(settings, source, seed) if side == "ours" else peers(settings, source, self.modules, dropout)
        model, loss, denoiser = made
        steps, took = train(model, loss, source, settings, rate)
        process = Masking(LinearSchedule(), source.spec().mask_id)
        bits = held_out_bits(denoiser, process, source.at_split("validation"), settings.rounds)
        trained = Trained(bits, rate, dropout, steps, took)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"settings": wanted, "trained": asdict(trained)}))
        return trained

    def choose(self, side: str, seed: int) -> tuple[float, float]:
        """Rate and drop-out of the lowest held-out bits in short runs of one seed."""
        tried: dict[tuple[float, float], float] = {}
        short = replace(self.settings, seconds=self.search_seconds, rounds=1)

        def attempt(rate: float, dropout: float) -> None:
            trained = self.run(side, seed, rate, dropout, short)
            tried[rate, dropout] = statistics.fmean(trained.bits)
            case = f"{side}, rate {rate:g}, drop-out {dropout:g}, {self.search_seconds:g} s"
            emit(case, "bits per character in a short run", tried[rate, dropout], "bits")

        first, *others = self.dropouts if side == "peer" else (0.0,)
        for rate in self.rates:
            attempt(rate, first)
        best = min(tried, key=tried.__getitem__)[0]
        for dropout in others:
            attempt(best, dropout)
        return min(tried, key=tried.__getitem__)

    def _doubled(self, side: str) -> int:
        return 2 if side == "ours" and self.same_examples else 1

    def full(self, side: str, seed: int, choice: tuple[float, float]) -> Trained:
        trained = self.run(side, seed, *choice, self.settings)
        mean, error = mean_and_error(trained.bits)
        case = f"{side}, seed {seed}, rate {trained.rate:g}, drop-out {trained.dropout:g}, {trained.seconds:.0f} s"
        emit(case, "bits per character", mean, "bits")
        emit(case, "standard error over sequences", error, "bits")
        emit(case, "steps", trained.steps, "steps")
        tokens = trained.steps * self.settings.length * self.settings.batch
        emit(case, "characters through the network", tokens * self._doubled(side) / trained.seconds, "1/s")
        return trained


def verdict(pairs: dict[int, tuple[Trained, Trained]]) -> None:
    """The difference of ours and the peer's, with its standard errors over paired sequences and over seeds."""
    by_seed = []
    for seed, (mine, theirs) in pairs.items():
        mean, error = mean_and_error([a - b for a, b in zip(mine.bits, theirs.bits, strict=True)])
        by_seed.append(mean)
        emit(f"ours less peer, seed {seed}", "bits per character", mean, "bits")
        emit(f"ours less peer, seed {seed}", "standard error over paired sequences", error, "bits")
    # a sequence's difference, averaged over seeds, so that sequences and not seeds are the sample
    columns = zip(*([a - b for a, b in zip(m.bits, p.bits, strict=True)] for m, p in pairs.values()), strict=True)
    difference, over_sequences = mean_and_error([statistics.fmean(column) for column in columns])
    over_seeds = mean_and_error(by_seed)[1]
    mine, theirs = (statistics.fmean(statistics.fmean(pair[i].bits) for pair in pairs.values()) for i in (0, 1))
    emit("ours beside peer, all seeds", "bits per character", mine, "bits", theirs)
    emit("ours less peer, all seeds", "bits per character", difference, "bits")
    emit("ours less peer, all seeds", "standard error over paired sequences", over_sequences, "bits")
    if len(pairs) > 1:
        emit("ours less peer, all seeds", "standard error over seeds", over_seeds, "bits")
    error = max(over_sequences, over_seeds) if len(pairs) > 1 else over_sequences
    lower = -difference / error
    case = f"ours lower by {lower:.1f} standard errors, the larger of the two; needed are {NEEDED_ERRORS:g}"
    emit(case, "difference over its error", lower, "standard errors", NEEDED_ERRORS)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of kuleshov-group/mdlm")
    parser.add_argument("--text", default="onpath:tinyshakespeare.txt.gz", help="a text file")
    parser.add_argument("--seconds", type=float, default=400.0, help="of training, each")
    parser.add_argument(
        "--search-seconds", type=float, help="of each run that looks for a rate; a quarter of --seconds"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    parser.add_argument(
        "--dropouts", type=float, nargs="+", default=[0.0, 0.1], help="of MDLM; the first with all rates"
    )
    parser.add_argument("--only", choices=("peer", "ours"), help="train this side alone")
    parser.add_argument("--out", type=Path, help="folder of finished runs")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu where the machine is shared")
    parser.add_argument("--batch", type=int, default=16, help="sequences through the network in a step")
    parser.add_argument("--same-examples", action="store_true", help="twice the sequences for ours, in pairs")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--eager", action="store_true", help="do not compile our blocks")
    parser.add_argument("--rounds", type=int, default=4, help="pairs of states of each held-out window")
    parser.add_argument("--peer-attention", default="softmax", choices=("softmax", "sdpa"))
    return parser.parse_args()


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of MDLM's torch.cuda.amp
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
    if args.peer is None:
        emit("left out: needs --peer, a checkout of kuleshov-group/mdlm", "comparisons run", 0, "comparisons")
        return
    settings = Settings(
        args.text,
        args.seconds,
        args.clock,
        batch=args.batch,
        precision=args.precision,
        rounds=args.rounds,
        compiled=not args.eager,
    )
    search = args.search_seconds or args.seconds / 4
    modules = load(args.peer, args.peer_attention)
    bench = Bench(settings, tuple(args.rates), tuple(args.dropouts), search, modules, args.out, args.same_examples)
    sides = (args.only,) if args.only else ("peer", "ours")
    choices = {side: bench.choose(side, args.seeds[0]) for side in sides}
    pairs = {}
    for seed in args.seeds:
        trained = {side: bench.full(side, seed, choices[side]) for side in sides}
        if len(trained) == 2:
            pairs[seed] = trained["ours"], trained["peer"]
    if pairs:
        verdict(pairs)


if __name__ == "__main__":
    main()
