"""Networks that are tables, so that plans and figures are known in advance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onpath.envs import expert, fourrooms, gridworld
from onpath.evaluation.policy import PlanPolicy
from onpath.processes.masking import Masking
from onpath.sampling.grids import EvenGrid
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Spec

LENGTH, END, MASK = 40, 3, 4
SPEC = Spec(LENGTH, num_words=4, mask_id=MASK, cond={"image": (19, 19, 3), "direction": ()})


@dataclass(frozen=True)
class Table:
    """A denoiser whose logits (B, L, V) are a function of the observation alone."""

    logits: Callable[[Tensor, Tensor], Tensor]

    def encode(self, image: Tensor, direction: Tensor) -> Tensor:
        return self.logits(image, direction)

    def __call__(self, x: Tensor, t: Tensor, memo: Tensor, *, rows: Any = None, readout: Any = None) -> Any:
        assert x.shape[0] == memo.shape[0]
        flat = memo.flatten(0, 1)
        return memo if rows is None else readout(flat[rows], rows)


def certain(tokens: Tensor) -> Tensor:
    """Logits of plans (B, L) that are known."""
    return torch.nn.functional.one_hot(tokens, 4).float() * 30


def always(tokens: list[int]) -> Table:
    """The same plan wherever it is asked, END after its tokens."""
    plan = torch.tensor(tokens + [END] * (LENGTH - len(tokens)))
    return Table(lambda image, direction: certain(plan.expand(len(image), -1)))


def by_direction(plans: list[list[int]]) -> Table:
    """Plan number `direction`, of full length."""
    return Table(lambda image, direction: certain(torch.tensor(plans)[direction]))


def shortest() -> Table:
    """The exact expert, from the image."""

    def logits(image: Tensor, direction: Tensor) -> Tensor:
        worlds, agents = gridworld.read(image)
        assert torch.equal(agents.direction, direction)
        field = expert.solve(worlds, bound=fourrooms.LONGEST)
        return certain(expert.demonstrate(field, agents, length=LENGTH, end_id=END).actions)

    return Table(logits)


def unsure() -> Table:
    """Logits that leave much to chance and differ between positions and headings; mostly forward."""
    table = torch.randn(4, LENGTH, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.0, 1.5, -3.0])
    return Table(lambda image, direction: table[direction])


def policy(denoiser: Table, *, steps: int = 2, temperature: float = 0.0, **settings: Any) -> PlanPolicy:
    sampler = Unmasking(order="confidence", tokens=Categorical(temperature))
    settings = {"end_id": END, **settings}
    return PlanPolicy(denoiser, Masking(LinearSchedule(), MASK), sampler, EvenGrid(steps), SPEC, **settings)
