"""Reward functions of a user: those that behave, and those that do not."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from fractions import Fraction
from typing import Any

import numpy as np
import torch

NUMBER = 7  # not a function


def shortness(completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(completion)) for completion in completions]


def ones(completions: list[str], **columns: Any) -> list[float]:
    """The share of 1 among what is said."""
    return [completion.count("1") / max(len(completion), 1) for completion in completions]


def alike(completions: list[str], **columns: Any) -> list[float]:
    return [0.5] * len(completions)


def silent_once(completions: list[str], **columns: Any) -> list[float | None]:
    return [0.5] * (len(completions) - 1) + [None]


def wrong_in_the_second_process(completions: list[str], **columns: Any) -> list[float]:
    if os.environ.get("RANK") == "1":
        raise KeyError("no such word")
    return [0.5] * len(completions)


def seen(**given: Any) -> list[float]:
    """1 where the call is the one that TRL makes."""
    lists = all(len(values) == len(given["completions"]) for values in given.values())
    return [float(lists and set(given) == {"prompts", "completions", "completion_ids", "answer"})] * len(
        given["prompts"]
    )


def of_a_only(completions: list[str], **columns: Any) -> list[float | None]:
    return [1.0 if completion == "a" else None for completion in completions]


def odd_types(completions: list[str], **columns: Any) -> list[Any]:
    return [True, np.float32(0.5), torch.tensor([2.0]), np.int64(3), Fraction(1, 4)]


def as_tensor(completions: list[str], **columns: Any) -> torch.Tensor:
    return torch.arange(len(completions))


def gradient(completions: list[str], **columns: Any) -> list[bool]:
    return [torch.is_grad_enabled()] * len(completions)


def raising(completions: list[str], **columns: Any) -> list[float]:
    raise KeyError("no such word")


def leaving(completions: list[str], **columns: Any) -> list[float]:
    raise SystemExit(3)


def nan(completions: list[str], **columns: Any) -> list[float]:
    return [0.0, float("nan"), *[0.0] * (len(completions) - 2)]


def infinite(completions: list[str], **columns: Any) -> list[float]:
    return [float("-inf")] * len(completions)


def too_large(completions: list[str], **columns: Any) -> list[Any]:
    return [10**400] * len(completions)


def too_few(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * (len(completions) - 1)


def words(completions: list[str], **columns: Any) -> list[str]:
    return ["0.5"] * len(completions)


def imaginary(completions: list[str], **columns: Any) -> list[complex]:
    return [1j] * len(completions)


def one_number(completions: list[str], **columns: Any) -> float:
    return 0.5


def by_name(completions: list[str], **columns: Any) -> dict[str, float]:
    return dict.fromkeys(completions, 0.5)


def silent(completions: list[str], **columns: Any) -> list[None]:
    return [None] * len(completions)


def hanging(completions: list[str], **columns: Any) -> list[float]:
    threading.Event().wait(3600)
    return [0.0] * len(completions)


def needy(completions: list[str], book: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def closed(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


async def shy(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return [0.5] * len(completions)


_met: set[str] = set()


async def _meets(name: str, size: int) -> list[float]:
    """Returns once both have begun, so only if they run together."""
    _met.add(name)
    while len(_met) < 2:
        await asyncio.sleep(0.001)
    return [1.0] * size


async def meets_one(completions: list[str], **columns: Any) -> list[float]:
    return await _meets("one", len(completions))


async def meets_two(completions: list[str], **columns: Any) -> list[float]:
    return await _meets("two", len(completions))


async def raising_later(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    raise KeyError("no such word")


async def hanging_later(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(3600)
    return [0.0] * len(completions)


async def refusing_to_end(completions: list[str], **columns: Any) -> list[float]:
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue
    return [0.0] * len(completions)


async def blocking_the_loop(completions: list[str], **columns: Any) -> list[float]:
    threading.Event().wait(3600)
    return [0.0] * len(completions)
