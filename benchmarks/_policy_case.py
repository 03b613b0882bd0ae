"""What both sides of the benchmark of the policy loss are given: networks, rollouts and their prompts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn as nn
from jaxtyping import Int64
from torch import Tensor

from onpath import rng
from onpath.models.transformer import TokenTransformer
from onpath.objectives.estimators import Estimator, Views
from onpath.objectives.mask_estimators import OneStep
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.types import Batch, Experience, Spec

KEY = Key(0, "benchmark")
END = 0  # the end token


@dataclass(frozen=True)
class Sizes:
    """Of network and batch; V counts words, [MASK] comes on top."""

    width: int = 256
    depth: int = 4
    heads: int = 4
    num_words: int = 32_768
    prompt: int = 128
    completion: int = 256
    batch: int = 6

    def __str__(self) -> str:
        lengths = f"prompt {self.prompt}, completion {self.completion}"
        return f"{self.depth} x {self.width}, V {self.num_words}, {lengths}, {self.batch} rollouts"

    @property
    def length(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Case:
    """num_iterations: passes over a round; beta: of the KL; ends: whether completions end at random places.

    one_prompt: whether all rollouts answer the same one, else each its own.
    """

    num_iterations: int
    beta: float
    ends: bool
    bf16: bool
    one_prompt: bool

    def __str__(self) -> str:
        prompts = "one prompt" if self.one_prompt else "a prompt each"
        lengths = "completions that end" if self.ends else "full completions"
        kind = "bf16" if self.bf16 else "fp32"
        return f"{prompts}, {kind}, {lengths}, mu {self.num_iterations}, beta {self.beta:g}"


@dataclass(frozen=True, eq=False)
class AtStates(Estimator):
    """`diffu` at states (I, N, L) that were made elsewhere, one for each pass."""

    states: Int64[Tensor, "I N L"]

    def views(self, process: Masking, experience: Experience, end_id: int | None, key: rng.Key) -> Views:
        found = OneStep(0.0).views(process, experience, end_id, key)
        return replace(found, x=self.states[experience.iteration].cpu())


def network(sizes: Sizes, device: str) -> TokenTransformer:
    """With random weights everywhere, so that every word has a probability of its own."""
    torch.manual_seed(0)
    spec = Spec(sizes.length, sizes.num_words, sizes.num_words)
    made = TokenTransformer(spec, width=sizes.width, num_heads=sizes.heads, depth=sizes.depth)
    for weight in made.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.02)
    return made.to(device)


def moved(one: nn.Module, seed: int) -> nn.Module:
    """A frozen copy with slightly other weights: those of the rollouts, or the reference."""
    other = copy.deepcopy(one).requires_grad_(False)
    torch.manual_seed(seed)
    for weight in other.parameters():
        weight += 0.02 * weight.std() * torch.randn_like(weight)
    head = cast(nn.Linear, other.head).weight
    head += 0.008 * torch.randn_like(head)
    return other


def rollouts(sizes: Sizes, case: Case, device: str) -> Experience:
    """Random prompts and completions with advantages."""
    ids = torch.arange(sizes.batch)
    group = torch.zeros_like(ids) if case.one_prompt else ids
    tokens = 1 + rng.integers(KEY.fold("tokens"), ids, (sizes.length,), sizes.num_words - 1)
    tokens[:, : sizes.prompt] = tokens[group, : sizes.prompt]
    if case.ends:
        at = (torch.arange(sizes.batch) + 0.5) / sizes.batch * sizes.completion  # evenly, in any order
        tokens[ids, sizes.prompt + at.long()] = END
    step = torch.full_like(tokens, -1)
    step[:, sizes.prompt :] = 0
    advantage = torch.linspace(-0.5, 1, sizes.batch)  # of another mean than 0, which losses of a first pass would be
    blank = torch.zeros(tokens.shape)
    batch = Batch.of_tokens(tokens, ids, given=step < 0).to(device)
    peers = advantage.expand(sizes.batch, -1)
    return Experience(batch, tokens, step, 1, blank, advantage, peers, advantage, group)
