"""The optimizer step of text training: the head on masked rows alone, beside full logits and beside MDLM's own step.

    python -m benchmarks.train_step [--peer PATH] [--device cuda]

Full logits (one CPU thread, d 256, 4 layers, V 50,257, L 128, 8 sequences, fp32 and bf16): the same network, loss and
optimizer with the logits (B, L, V) of all positions; their cross-entropy at the masked positions, or everywhere.
Peer (with --peer, a checkout of kuleshov-group/mdlm; `einops` must be installed): MDLM's network, loss, AdamW and
moving average, with torch's attention for flash-attn, then ours. On a GPU 12 blocks of width 768, 12 heads, L 1,024,
V 50,257 words and [MASK], bf16, 64 and 32 sequences; on a CPU the same path at a small size. Ours is compiled on a
GPU (--no-compile: not); the first steps, which compile, are apart. `pairs` takes half as many examples, each in two
complementary states; a sequence is a row that goes through the network.
Floor: (6·N_body·T + 6·V·d·T_masked + 12·layers·d·L·T)/P + 28·N/W for T tokens, weights N_body without embedding and
head and N in all; P and W are those of an H200 unless given, and on a CPU the fastest of a few products and a copy.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}: for times and memory ratios to what is
named, for tokens ours over the peer's, for `over floor` measured over floor. One line names what was left out.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from benchmarks._mdlm_peer import build, load
from benchmarks.floor import alternating
from benchmarks.scaling import peak_bytes
from torch import Tensor

from onpath import rng
from onpath.data.source import Source
from onpath.models.transformer import TokenTransformer
from onpath.objectives.nelbo import ContinuousNELBO
from onpath.processes.masking import Masking
from onpath.schedules import LinearSchedule
from onpath.training.optimizers import AdamW
from onpath.training.trainer import Job, Trainer
from onpath.types import Batch, Spec

FULL_LOGITS_LIMIT = 1.5  # times faster than the step with full logits
PEER_LIMIT, MEMORY_LIMIT = 3.3, 0.4  # times MDLM's tokens a second, share of its memory
NETWORK = ("width", "depth", "heads", "length", "num_words")
H200 = (790e12, 4.3e12)  # products a second in bf16, bytes a second


@dataclass(frozen=True)
class Sizes:
    """Of the network and the batch; V counts words, [MASK] comes on top. batch: sequences through the network."""

    width: int = 256
    depth: int = 4
    heads: int = 4
    length: int = 128
    num_words: int = 50_257
    batch: int = 8

    def __str__(self) -> str:
        network = f"{self.depth} x {self.width}, {self.heads} heads"
        return f"{network}, L {self.length}, V {self.num_words}, {self.batch} sequences"

    @property
    def tokens(self) -> int:
        return self.batch * self.length


LARGE = Sizes(width=768, depth=12, heads=12, length=1024, batch=64)
SMALL = Sizes(width=64, depth=2, heads=2, length=64, num_words=1000, batch=4)


@dataclass(frozen=True)
class RandomText(Source):
    """Random tokens, made once and handed out again, so that they cost next to nothing."""

    pool: Batch
    num_words: int

    @classmethod
    def of(cls, sizes: Sizes, num_examples: int, device: str) -> RandomText:
        ids = torch.arange(num_examples)
        x = rng.integers(rng.Key(purpose="text"), ids, (sizes.length,), sizes.num_words)
        return cls(Batch.of_tokens(x, ids).to(device), sizes.num_words)

    def spec(self) -> Spec:
        return Spec(self.pool.x.shape[1], self.num_words, self.num_words)

    def at_split(self, split: str) -> Source:
        return self

    def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
        return replace(self.pool, ids=ids)


class FullLogits(nn.Module):
    """The same network with the logits (B, L, V) of every position; `everywhere` also takes the loss of them all."""

    def __init__(self, network: TokenTransformer, everywhere: bool) -> None:
        super().__init__()
        self.network, self.everywhere = network, everywhere

    def encode(self, **cond: Tensor) -> Any:
        return self.network.encode(**cond)

    def forward(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        logits = self.network(x, t, memo).flatten(0, 1)
        if not self.everywhere:
            return readout(logits[rows], rows)
        read = readout(logits, torch.arange(len(logits), device=logits.device))
        return tuple(column[rows] for column in read)


@dataclass(frozen=True)
class Contender:
    """A step that can be repeated, its weights, and the share of positions that its last step had masked."""

    step: Callable[[], Any]
    model: nn.Module
    share: Callable[[], float]


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None = None) -> None:
    row = {"benchmark": "train_step", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": value / baseline if baseline else None}), flush=True)


def ours(
    sizes: Sizes, trainer: Trainer, device: str, masks: Any = "counts", wrap: Callable[[Any], Any] = lambda n: n
) -> Contender:
    """Our optimizer step, by the trainer: corruption, loss, gradient, clipping, AdamW, moving average."""
    num_examples = sizes.batch // 2 if masks == "pairs" else sizes.batch
    source = RandomText.of(sizes, num_examples, device)
    torch.manual_seed(0)
    network = TokenTransformer(source.spec(), width=sizes.width, num_heads=sizes.heads, depth=sizes.depth)
    objective = ContinuousNELBO(Masking(LinearSchedule(), sizes.num_words), masks=masks)
    model = wrap(network)
    job = Job(model, objective, source, source, device=torch.device(device))
    trainer = replace(trainer, batch_size=num_examples)
    state = trainer.start(job)

    def step() -> None:
        trainer.step(state, job, 10**6)
        state.step += 1
        state.health.clear()

    return Contender(step, model, lambda: state.meter.means()["masked_share"])


def peers(sizes: Sizes, modules: Any, device: str, bf16: bool) -> Contender:
    """MDLM's optimizer step: its loss under bf16 as its trainer sets it, AdamW as it builds it, its average."""
    torch.manual_seed(0)
    settings = {"hidden_size": sizes.width, "n_blocks": sizes.depth, "n_heads": sizes.heads, "length": sizes.length}
    diffusion = build(modules, settings, sizes.num_words, bf16_on_cpu=bf16 and device == "cpu").to(device).train()
    weights = list(diffusion.parameters())
    average = modules.ema.ExponentialMovingAverage(weights, decay=0.9999)
    optimizer = torch.optim.AdamW(weights, lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    x = RandomText.of(sizes, sizes.batch, device).pool.x
    attended, seen = torch.ones_like(x), []
    corrupt = diffusion.q_xt

    def noted(x0: Tensor, move_chance: Tensor) -> Tensor:
        seen.append((xt := corrupt(x0, move_chance)).eq(diffusion.mask_index).float().mean())
        return xt

    diffusion.q_xt = noted

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16 and device == "cuda"):
            loss = diffusion._loss(x, attended).loss
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(weights)

    return Contender(step, diffusion, lambda: float(torch.stack(seen).mean()))


def floor_seconds(model: nn.Module, sizes: Sizes, peak: float, bandwidth: float) -> float:
    """The least time of a step with half of the rows in the head; see the top of this file."""
    total = sum(p.numel() for p in model.parameters())
    body = sum(p.numel() for name, p in model.named_parameters() if "blocks." in name)
    head, attention = 6 * sizes.num_words * sizes.width / 2, 12 * sizes.depth * sizes.width * sizes.length
    return (6 * body + head + attention) * sizes.tokens / peak + 28 * total / bandwidth


def measured_peak(dtype: torch.dtype, sizes: Sizes) -> tuple[float, float]:
    """Products a second and bytes a second of one CPU thread: the best of a few products, and of a copy."""

    def best(run: Callable[[], Any]) -> float:
        took = []
        for _ in range(4):
            begun = time.perf_counter()
            run()
            took.append(time.perf_counter() - begun)
        return min(took[1:])

    rates = []
    for rows, inner, outer in ((1024, 1024, 1024), (sizes.tokens, sizes.width, 4 * sizes.width), (512, 256, 8192)):
        left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype).t()
        rates.append(2 * rows * inner * outer / best(partial(torch.mm, left, right)))
    source = torch.randn(1 << 25)
    return max(rates), 2 * source.nbytes / best(partial(torch.empty_like(source).copy_, source))


def full_logits(args: argparse.Namespace) -> None:
    """Our step on a CPU beside the same with logits everywhere."""
    sizes = Sizes()
    for precision in ("fp32", "bf16"):
        trainer = Trainer(steps=10**6, precision=precision)
        makes: dict[str, Callable[[Any], Any]] = {
            "masked rows": lambda network: network,
            "full logits, loss at masked rows": lambda network: FullLogits(network, everywhere=False),
            "full logits, loss everywhere": lambda network: FullLogits(network, everywhere=True),
        }
        made = {name: ours(sizes, trainer, "cpu", "pairs", wrap) for name, wrap in makes.items()}
        took = alternating({name: c.step for name, c in made.items()}, args.repeats, torch.device("cpu"))
        mine, case = took.pop("masked rows"), f"cpu, {precision}, {sizes}"
        emit(case, "optimizer step", mine, "ms")
        for name, millis in took.items():
            emit(f"{case}, {name}", "optimizer step", millis, "ms", mine)
        peak, bandwidth = measured_peak(torch.bfloat16 if precision == "bf16" else torch.float32, sizes)
        floor = 1e3 * floor_seconds(made["masked rows"].model, sizes, peak, bandwidth)
        emit(f"{case}, {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s", "over floor", mine, "ms", floor)
        emit(case, "mean masked share", made["masked rows"].share(), "share")
        best = min(took.values()) / mine
        needed = f"needed are {FULL_LOGITS_LIMIT} beside the quicker of the full ones"
        emit(f"{case}: {best:.2f} times as fast; {needed}", "met", float(best >= FULL_LOGITS_LIMIT), "yes or no")


def timed(contender: Contender, args: argparse.Namespace, sizes: Sizes) -> dict[str, float]:
    """Tokens a second, peak memory in GiB and the seconds of the first steps, which compile and warm up."""

    def wait() -> float:
        if args.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    begun = wait()
    for _ in range(args.warm):
        contender.step()
    warm = wait() - begun
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = wait()
    for _ in range(args.steps):
        contender.step()
    rate = args.steps * sizes.tokens / (wait() - begun)
    if args.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:  # weights, two moments and the average lie there before the step
        memory = peak_bytes(contender.step, args.device) + 4 * sum(p.nbytes for p in contender.model.parameters())
    return {"tokens": rate, "memory": memory / 2**30, "first": warm, "share": contender.share()}


def sized(args: argparse.Namespace) -> list[Sizes]:
    base = LARGE if args.device == "cuda" else SMALL
    given = {name: getattr(args, name) for name in NETWORK if getattr(args, name) is not None}
    batches = args.batches or ([64, 32] if args.device == "cuda" else [base.batch])
    return [replace(base, **given, batch=batch) for batch in batches]


def report(case: str, got: dict[str, float], peer: dict[str, float] | None) -> None:
    emit(case, "training tokens", got["tokens"], "1/s", peer and peer["tokens"])
    emit(case, "peak memory", got["memory"], "GiB", peer and peer["memory"])
    emit(case, "mean masked share", got["share"], "share")
    emit(case, "first steps, compiling", got["first"], "s")
    if peer:
        fast, small = got["tokens"] / peer["tokens"], got["memory"] / peer["memory"]
        met = fast >= PEER_LIMIT and small <= MEMORY_LIMIT and abs(got["share"] - 0.5) <= 0.01
        needed = f"needed are {PEER_LIMIT} of tokens, {MEMORY_LIMIT} of memory, a masked share of .50 ± .01"
        emit(f"{case}: {fast:.2f} of tokens, {small:.2f} of memory; {needed}", "met", float(met), "yes or no")


def alone(make: Callable[[], Contender], sizes: Sizes, args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """What ``timed`` says of a contender that is made and dropped here, and the milliseconds of its floor."""
    contender = make()
    got = timed(contender, args, sizes)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    peak, bandwidth = H200 if args.device == "cuda" else measured_peak(dtype, sizes)
    peak, bandwidth = 1e12 * args.peak_tflops or peak, 1e12 * args.bandwidth_tb or bandwidth
    floor = 1e3 * floor_seconds(contender.model, sizes, peak, bandwidth)
    del contender, make
    gc.collect()
    torch.cuda.empty_cache()
    return got, floor


def against_peer(args: argparse.Namespace) -> None:
    """MDLM's own step, then ours, one after the other, each alone in memory."""
    trainer = Trainer(steps=10**6, precision=args.precision, compile=args.compile, optimizer=AdamW(learning_rate=3e-4))
    modules = load(args.peer, "softmax" if args.device == "cpu" else "sdpa", args.device)
    for sizes in sized(args):
        case = f"{args.device}, {args.precision}, {sizes}"
        peer, _ = alone(partial(peers, sizes, modules, args.device, args.precision == "bf16"), sizes, args)
        report(f"{case}, MDLM", peer, None)
        for heads, masks in itertools.product(args.our_heads or [sizes.heads], args.masks):
            mine = replace(sizes, heads=heads)
            got, floor = alone(partial(ours, mine, trainer, args.device, masks), mine, args)
            name = f"{case}, ours, {masks}, {heads} heads{', compiled' if args.compile else ''}"
            report(name, got, peer)
            emit(name, "over floor", 1e3 * sizes.tokens / got["tokens"], "ms", floor)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of kuleshov-group/mdlm")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=3, help="of each step beside full logits")
    parser.add_argument("--warm", type=int, default=5, help="first steps, timed apart")
    parser.add_argument("--steps", type=int, default=20, help="timed steps beside the peer")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"), help="beside the peer")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="our network; default on a GPU")
    parser.add_argument("--masks", nargs="+", default=["counts", "pairs"], choices=("counts", "pairs"))
    parser.add_argument("--batches", type=int, nargs="+", help="sequences through the network in a step")
    parser.add_argument("--our-heads", type=int, nargs="+", help="heads of our network, where not the peer's")
    for name in NETWORK:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--peak-tflops", type=float, default=0.0)
    parser.add_argument("--bandwidth-tb", type=float, default=0.0)
    args = parser.parse_args()
    args.compile = args.device == "cuda" if args.compile is None else args.compile
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no GPU; run on a machine with one, or leave --device out")
    return args


def main() -> None:
    args = parsed()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of MDLM's torch.cuda.amp
    warnings.filterwarnings("ignore", message=".*CUDA is not available.*")
    left_out = [] if args.peer else ["MDLM's own step, which needs --peer"]
    if args.device == "cpu":
        full_logits(args)
        left_out.append("the sizes of a GPU, which need --device cuda")
    if args.peer:
        against_peer(args)
    for what in left_out:
        emit(f"left out: {what}", "cases run", 0, "cases")


if __name__ == "__main__":
    main()
