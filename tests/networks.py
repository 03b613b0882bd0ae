"""Small plan networks away from their start, and batches for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Spec
from tables import DENOISERS, TOKEN_DENOISERS

SPEC = Spec(length=10, num_words=4, mask_id=4, cond={"image": (7, 6, 3), "direction": ()})
TOKEN_SPEC = Spec(length=10, num_words=4, mask_id=4)


def fresh(name: str, mask_logit: bool = False) -> Any:
    """A network of either table at its start."""
    make, spec = (DENOISERS[name], SPEC) if name in DENOISERS else (TOKEN_DENOISERS[name], TOKEN_SPEC)
    return make(replace(spec, mask_logit=mask_logit))


def examples(name: str, size: int, seed: int = 0, padding: bool = False) -> Batch:
    """Examples for a network: with conditions where it reads any."""
    batch = plans(size, seed, padding)
    return batch if name in DENOISERS else replace(batch, cond={})


def planner(name: str, seed: int = 0, mask_logit: bool = False) -> Any:
    """A network away from its start, where all outputs would be equal."""
    torch.manual_seed(seed)
    network = fresh(name, mask_logit)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def plans(size: int, seed: int = 0, padding: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(size, 7, 6, 3, dtype=torch.uint8)
    image[..., 0] = 1 + (torch.rand(size, 7, 6, generator=generator) < 0.3)
    places = torch.rand(size, 42, generator=generator).argsort(1)[:, :2]
    rows = torch.arange(size)
    image[rows, places[:, 0] // 6, places[:, 0] % 6, 0] = 8
    image[rows, places[:, 1] // 6, places[:, 1] % 6, 0] = 10
    direction = torch.randint(0, 4, (size,), generator=generator)
    x = torch.randint(0, SPEC.num_words, (size, SPEC.length), generator=generator)
    blocked = torch.arange(SPEC.length) >= torch.randint(5, 11, (size, 1), generator=generator) if padding else None
    return Batch.of_tokens(x, rows, padding=blocked, cond={"image": image, "direction": direction})


def noisy(batch: Batch, ratio: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    state = Masking(LinearSchedule(), SPEC.mask_id).corrupt_ratio(
        batch, torch.full((batch.size,), ratio), Key(9, "noisy")
    )
    return state.x, state.masked.float().mean(1)


def close(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-5, atol=2e-5)
