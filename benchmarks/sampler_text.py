"""Generating text beside LLaDA's published loop and MDLM's cached sampler, all with the same network.

    python -m benchmarks.sampler_text --peer PATH [PATH …] [--threads 1]

PATH is a checkout of ML-GSAI/LLaDA (its generate.py is imported; that needs transformers), of kuleshov-group/mdlm (its
diffusion.py; that needs einops), or a folder with folders LLaDA and mdlm. The network is our token transformer with
random weights. A peer sees it through a thin adapter that returns the logits of every position, as its own does.

LLaDA, per denoising pass: one sequence, half of it a prompt, the most confident positions first, as many at each pass
for both, greedily and at temperature 1; in blocks of 32, as its own example has it, and in one block. MDLM, in all:
ancestral sampling by a linear schedule, the same number of steps; MDLM's sampler keeps its prediction while nothing was
revealed, ours goes through the network only for the rows in which something is. Times are of the processor, which a
busy machine changes little. Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}; a ratio above 1
is in favour of ours. Cases whose peer is not given are named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn as nn
from benchmarks._mdlm_peer import build, load
from torch import Tensor

from onpath.models.transformer import TokenTransformer
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.blocks import Blocks
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import EvenGrid, UniformGrid
from onpath.sampling.loop import sample
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Spec


def emit(case: str, metric: str, value: float, unit: str, baseline: float | None = None) -> None:
    ratio = None if baseline is None else baseline / value
    row = {"benchmark": "sampler_text", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": ratio}), flush=True)


def interleaved(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median processor seconds of both, taken in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for taken, run in zip(seconds, (ours, theirs), strict=True):
            begin = time.process_time()
            run()
            taken.append(time.process_time() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


class AsLLaDA(nn.Module):
    """The network as LLaDA's loop calls one: `model(x).logits` are those of every position."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.device = network, torch.device("cpu")

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        t = torch.zeros(len(x))
        return SimpleNamespace(logits=self.network(x, t, self.network.encode(padding=None)))


class AsMDLM(nn.Module):
    """The network as MDLM's sampler calls its backbone: logits of every position, one of them for [MASK]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        logits = self.network(x, torch.zeros(len(x)), self.network.encode(padding=None))
        return torch.cat([logits, logits.new_zeros(*x.shape, 1)], dim=-1)


def network(spec: Spec, depth: int) -> TokenTransformer:
    torch.manual_seed(0)
    made = TokenTransformer(spec, width=256, num_heads=4, depth=depth).eval()
    assert made.head is not None
    nn.init.normal_(made.head.weight, std=0.1)  # a fresh head is zero, and every word would be as likely
    return made


def imported(path: Path) -> Any:
    """The module of a file, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def against_llada(folder: Path, net: TokenTransformer, spec: Spec, args: argparse.Namespace) -> None:
    generate = imported(folder / "generate.py").generate
    process, new = Masking(LinearSchedule(), spec.mask_id), spec.length // 2
    prompt = torch.randint(0, spec.num_words, (1, spec.length - new))
    given = torch.arange(spec.length)[None] < spec.length - new
    canvas = torch.cat([prompt, torch.zeros(1, new, dtype=torch.int64)], dim=1)
    request = Batch.of_tokens(canvas, torch.zeros(1, dtype=torch.int64), given=given)
    steps = new // 4
    for heat in (0.0, 1.0):
        for name, block in (("blocks of 32", 32), ("one block", new)):
            sampler = Unmasking(order="confidence", tokens=Categorical(heat), blocks=Blocks(block))

            def ours(sampler: Unmasking = sampler) -> TokenState:
                return sample(net, process, sampler, EvenGrid(steps), request, Key())

            def theirs(block: int = block, heat: float = heat) -> Tensor:
                settings = {"gen_length": new, "block_length": block, "temperature": heat, "mask_id": spec.mask_id}
                return generate(AsLLaDA(net), prompt, steps=steps, **settings)

            fast, slow = interleaved(ours, theirs, args.repeats)
            case = f"LLaDA, {'greedy' if heat == 0 else f'temperature {heat:g}'}, {name}"
            emit(case, "time of a pass", 1e3 * fast / steps, "ms", 1e3 * slow / steps)
            if heat == 0:
                emit(case, "tokens that agree", float((ours().x == theirs()).double().mean()), "share")


def against_mdlm(folder: Path, net: TokenTransformer, spec: Spec, args: argparse.Namespace) -> None:
    sizes = {"hidden_size": 64, "n_blocks": 1, "n_heads": 1, "length": spec.length}  # of its own network, not used
    peer = build(load(folder), sizes, spec.num_words)
    peer.backbone = AsMDLM(net)
    peer.config.loader = SimpleNamespace(eval_batch_size=args.batch)
    process, sampler = Masking(LinearSchedule(), spec.mask_id), Unmasking(count=AncestralCount())
    canvas = torch.zeros(args.batch, spec.length, dtype=torch.int64)
    request = Batch.of_tokens(canvas, torch.arange(args.batch))
    passes = 0

    def counted(*_: Any) -> None:
        nonlocal passes
        passes += 1

    def ours() -> TokenState:
        return sample(net, process, sampler, UniformGrid(args.steps), request, Key())

    def theirs() -> Tensor:
        with torch.no_grad():
            return peer._sample(num_steps=args.steps)

    peer.backbone.register_forward_hook(counted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its autocast is for CUDA
        fast, slow = interleaved(ours, theirs, max(1, args.repeats // 3))
    case = f"MDLM cached, {args.steps} steps, batch {args.batch}"
    emit(case, "time of all steps", fast, "s", slow)
    forwards = float(ours().num_forwards.double().mean())
    emit(case, "forwards of a sequence", forwards, "forwards", passes / max(1, args.repeats // 3))


def found(folders: list[Path], file: str, name: str) -> Path | None:
    """The checkout that holds `file`, one of the folders or below it as `name`."""
    places = [place for folder in folders for place in (folder, folder / name)]
    return next((place for place in places if (place / file).is_file()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, nargs="+", default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--steps", type=int, default=128, help="of MDLM's sampler and ours")
    parser.add_argument("--batch", type=int, default=1, help="of MDLM's sampler and ours")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec = Spec(length=args.length, num_words=args.words, mask_id=args.words)
    net = network(spec, args.depth)
    peers = {"LLaDA": ("generate.py", against_llada), "mdlm": ("diffusion.py", against_mdlm)}
    for name, (file, compare) in peers.items():
        folder = found(args.peer, file, name)
        if folder is None:
            print(f"sampler_text: left out: the cases beside {name}; give its checkout by --peer", file=sys.stderr)
        else:
            compare(folder, net, spec, args)


if __name__ == "__main__":
    main()
