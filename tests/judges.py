"""Reward functions of a user: those that behave, and those that do not."""

from __future__ import annotations

from typing import Any


def shortness(completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(completion)) for completion in completions]
