"""Onpath trains diffusion models on the states they will really meet when they generate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onpath.config import RunConfig
    from onpath.runs import Run, load

__all__ = ["Run", "RunConfig", "load"]


def __getattr__(name: str) -> Any:
    # resolved on first use, so that `import onpath` and `onpath --help` stay free of torch
    if name in __all__:
        return getattr(importlib.import_module("onpath.config" if name == "RunConfig" else "onpath.runs"), name)
    raise AttributeError(f"module 'onpath' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
