"""Seconds and memory of the policy loss beside dLLM's own log-probability and loss code.

    python -m benchmarks.policy [--peer PATH] [--trl PATH] [--device cuda]

PATH of --peer is a checkout of ZHZisZZ/dllm, whose file of diffu-GRPO is read unchanged (_policy_peer.py); that of
--trl a folder with an unpacked wheel of TRL 0.19, whose loss dLLM inherits: without it a stand-in takes its place.
Both have the same token transformer with random weights, rollouts, advantages, masks, old and reference weights, and
the same estimator, `diffu`: the completion masked, one forward, clipped ratios, KL by k3. Before anything is timed,
log-probabilities, losses and gradients are compared at equal masks; it stops where they are not the same.

A step is forward, loss and backward of one pass over 6 rollouts of 256 tokens after prompts of 128, as those of GSM8K
are. In dLLM's README a process has 6 generations of one prompt (beta .04 is from there; each of its 12 passes costs
what one of 2 does). That is `one prompt`: both sides are shown it masked alike in all rollouts, so that they are one
state. In `a prompt each` no two rollouts share a state. Old and reference log-probabilities, which a round makes for
all its passes, are in its share. Completions are full, or end at random places: dLLM then still makes the logits behind
the end, and of the prompt. Without --peer ours is beside itself with the logits (B, L, V) of all positions. Medians
over turns, of the processor with one CPU thread, else of the clock, and of their ratios; memory is the most that torch
holds at once beyond the weights, gradients included; `products` is the share of our step that is products of matrices
alone. Ratios above 1 are ours.
Prints JSON lines {benchmark, case, metric, value, unit, baseline, ratio}.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, cast

import torch
import torch.nn as nn
from benchmarks import _policy_peer as theirs
from benchmarks._measures import in_turn, product_share, times_as_fast
from benchmarks._policy_case import END, KEY, AtStates, Case, Sizes, moved, network, rollouts
from benchmarks.scaling import peak_bytes
from benchmarks.train_step import FullLogits
from jaxtyping import Int64
from torch import Tensor

from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import OneStep
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.processes.masking import Masking
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Denoiser, Experience, Nets

FASTER, SMALLER = 3.0, 2.0  # what is wanted of ours
APART = {"fp32": 1e-5, "bf16": 0.01}  # gradients, over their length; in bf16 the two round at other places
RELATIVE = "difference of losses over their size", "difference of gradients over their length"
Round = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Bench:
    """One case: the trained network, those of rollouts and reference, and what was rolled out."""

    case: Case
    sizes: Sizes
    model: nn.Module
    before: nn.Module
    reference: nn.Module
    experience: Experience

    @classmethod
    def of(cls, case: Case, sizes: Sizes, device: str) -> Bench:
        model = network(sizes, device)
        return cls(case, sizes, model, moved(model, 1), moved(model, 2), rollouts(sizes, case, device))

    def policy(self, estimator: Estimator | None = None) -> PolicyGradient:
        case, process = self.case, Masking(LinearSchedule(), self.sizes.num_words)
        kl = "k3" if case.beta else "path"
        sampler = Unmasking(end_id=END)
        return PolicyGradient(process, estimator or OneStep(), beta=case.beta, kl=kl, sampler=sampler)

    def inputs(self) -> dict[str, Tensor]:
        """The round as dLLM's collection hands it to its loss, but for log-probabilities."""
        cut, tokens = self.sizes.prompt, self.experience.batch.x
        completion = tokens[:, cut:]
        ended = (completion == END).int()
        return {
            "prompt_ids": tokens[:, :cut],
            "prompt_mask": torch.ones_like(tokens[:, :cut]),
            "completion_ids": completion,
            "completion_mask": (ended.cumsum(1) - ended == 0).int(),
            "advantages": self.experience.advantage.to(tokens.device),
        }

    def trainer(self, kind: type[Any]) -> Any:
        case = self.case
        settings = theirs.Settings(self.sizes.num_words, case.num_iterations, case.beta, case.one_prompt)
        return theirs.trainer(kind, settings, theirs.Logits(self.model, case.bf16))

    def states(self, made: Any) -> Int64[Tensor, "I N L"]:
        """What dLLM's network is shown in each pass."""
        tokens = self.experience.batch.x
        given = torch.arange(self.sizes.length, device=tokens.device) < self.sizes.prompt
        return torch.stack([made._forward_process(tokens, given, self.sizes.num_words, s) for s in made._mask_seeds])

    def ours(
        self, wrap: Callable[[nn.Module], nn.Module] = lambda one: one, estimator: Estimator | None = None
    ) -> Round:
        """A round by our objective; it leaves the gradient of its last pass."""
        case, policy, device = self.case, self.policy(estimator), self.experience.batch.x.device.type
        model, before, reference = (cast(Denoiser, wrap(one)) for one in (self.model, self.before, self.reference))
        nets = Nets(model, reference=reference if case.beta else None)
        passes = [
            replace(self.experience, iteration=i, num_iterations=case.num_iterations)
            for i in range(case.num_iterations)
        ]

        def run() -> list[Tensor]:
            losses, old = [], None
            with torch.autocast(device, torch.bfloat16, enabled=case.bf16):
                if case.num_iterations > 1:
                    old = torch.stack([policy.old_scores(before, one, KEY) for one in passes], dim=1)
            for one in passes:
                self.model.zero_grad(set_to_none=True)
                with torch.autocast(device, torch.bfloat16, enabled=case.bf16):
                    loss = policy(nets, replace(one, old=old), KEY, 0).mean
                loss.backward()
                losses.append(loss.detach())
            return losses

        return run

    def peers(self, made: Any) -> Round:
        """A round by dLLM's code."""
        case, plain = self.case, self.inputs()
        before, reference = (theirs.Logits(one, case.bf16) for one in (self.before, self.reference))

        def run() -> list[Tensor]:
            losses: list[Tensor] = []
            inputs: dict[str, Any] = {**plain, "old_per_token_logps": None, "ref_per_token_logps": None}
            if case.num_iterations > 1:
                inputs["diffu_old_logps_all"] = theirs.log_probs(made, before, plain)
            if case.beta:
                inputs["diffu_ref_logps_all"] = theirs.log_probs(made, reference, plain)
            made._diffu_iter_idx = 0
            for _ in range(case.num_iterations):
                self.model.zero_grad(set_to_none=True)
                loss = made._compute_loss(made.model, inputs)
                loss.backward()
                losses.append(loss.detach())
            return losses

        return run


def emit(
    case: str, metric: str, value: float, unit: str, baseline: float | None = None, ratio: float | None = None
) -> None:
    """A row; its ratio is baseline over value unless it was taken otherwise."""
    row = {"benchmark": "policy", "case": case, "metric": metric, "value": value, "unit": unit}
    print(json.dumps({**row, "baseline": baseline, "ratio": ratio or (baseline and baseline / value)}), flush=True)


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


def agreement(bench: Bench, kind: type[Any]) -> dict[str, float]:
    """Greatest differences of log-probabilities, losses and, relative to its length, gradient at equal masks."""
    made = bench.trainer(kind)
    estimator, inputs = AtStates(bench.states(made)), bench.inputs()
    there = theirs.log_probs(made, made.model, inputs)
    one = replace(bench.experience, num_iterations=bench.case.num_iterations)
    policy = bench.policy(estimator)
    with torch.autocast(one.batch.x.device.type, torch.bfloat16, enabled=bench.case.bf16):
        here = torch.stack(
            [
                policy.old_scores(cast(Denoiser, bench.model), replace(one, iteration=i), KEY)[:, 0]
                for i in range(one.num_iterations)
            ],
            dim=1,
        )
    gap = here[..., bench.sizes.prompt :].to(there.device) - there
    losses = torch.stack(bench.peers(made)())
    wanted = gradient(bench.model)
    mine = torch.stack(bench.ours(estimator=estimator)())
    return {
        "difference of log-probabilities": float(gap.abs().max()),
        "difference of losses over their size": float((mine - losses).abs().max() / losses.abs().max()),
        "difference of gradients over their length": float((gradient(bench.model) - wanted).norm() / wanted.norm()),
    }


def compare(bench: Bench, others: dict[str, Round], args: argparse.Namespace) -> tuple[float, float]:
    """Rows of time and memory; returns the ratios to the last of `others`."""
    mine, number = bench.ours(), bench.case.num_iterations
    took = in_turn({"ours": mine, **others}, args.repeats, args.device)
    memory = {}
    for name, run in {"ours": mine, **others}.items():
        bench.model.zero_grad(set_to_none=True)
        memory[name] = peak_bytes(run, args.device) / 2**20
    ratios = 0.0, 0.0
    for name in others:
        case = f"{args.device}, threads {args.threads}, {bench.sizes}, {bench.case}, beside {name}"
        ratios = times_as_fast(took, "ours", name), memory[name] / memory["ours"]
        emit(case, "step", median(took["ours"]) / number, "s", median(took[name]) / number, ratios[0])
        emit(case, "peak memory", memory["ours"], "MiB", memory[name])
        emit(case, "products", product_share(mine, args.device), "share of our step")
    return ratios


def run(args: argparse.Namespace) -> None:
    sizes = Sizes(**{f.name: getattr(args, f.name) for f in fields(Sizes)})
    kind = None if args.peer is None else theirs.load(args.peer, args.trl)
    lowest = dict.fromkeys(args.prompts, (float("inf"), float("inf")))
    choices = args.prompts, args.precisions, args.lengths, args.betas, args.passes
    for prompts, precision, lengths, beta, number in itertools.product(*choices):
        case = Case(number, beta, lengths == "end", precision == "bf16", prompts == "one")
        bench = Bench.of(case, sizes, args.device)
        if kind is None:
            others = {"the logits of all positions": bench.ours(lambda one: FullLogits(cast(Any, one), False))}
        else:
            found = agreement(bench, kind)
            for metric, value in found.items():
                emit(f"{args.device}, {sizes}, {bench.case}", metric, value, "1")
            if not max(found[one] for one in RELATIVE) <= APART[precision]:
                raise SystemExit(f"{bench.case}: losses or gradients of both are not the same: {found}")
            others = {"dLLM": bench.peers(bench.trainer(kind))}
        found = compare(bench, others, args)
        lowest[prompts] = min(lowest[prompts][0], found[0]), min(lowest[prompts][1], found[1])
    if kind is None:
        return
    said = "TRL's own loss" if args.trl else "a stand-in for TRL's loss"
    for prompts, (faster, smaller) in lowest.items():
        case = f"{args.device}, {said}, prompts {prompts}: at least {faster:.2f} times as fast with {1 / smaller:.2f}"
        met = faster >= FASTER and smaller >= SMALLER
        emit(f"{case} of the memory; needed are {FASTER:g} and {1 / SMALLER:g}", "met", float(met), "yes or no")


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a checkout of ZHZisZZ/dllm")
    parser.add_argument("--trl", help="a folder with an unpacked wheel of TRL 0.19")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", nargs="+", default=["one", "each"], choices=("one", "each"))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--lengths", nargs="+", default=["full", "end"], choices=("full", "end"))
    parser.add_argument("--betas", nargs="+", type=float, default=[0.0, 0.04])
    parser.add_argument("--passes", nargs="+", type=int, default=[1, 2])
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    args = parser.parse_args(argv)
    if args.trl and not args.peer:
        parser.error("--trl: it is read with --peer alone; name both, or leave --trl out")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this torch sees no GPU; run on a machine with one, or leave --device out")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    torch.set_num_threads(args.threads)
    run(args)


if __name__ == "__main__":
    main()
