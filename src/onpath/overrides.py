"""Reading YAML with numbers such as 3e-4, and putting ``key.path=value`` settings over it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, {} where it is empty; ValueError where it cannot be read or is none."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config: {path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"config: {path} holds {type(data).__name__}; a mapping of sections is needed")
    return data


def override(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`data` with each `key.path=value` put in; a new `kind` starts its part afresh."""
    result: dict[str, Any] = _copy(data)
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator or not path:
            raise ValueError(f"override: {text!r} is not of the form key.path=value, such as training.steps=1000")
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"override: the value of {text!r} is not YAML: {error}") from error
        *parents, last = (name.strip() for name in path.split("."))
        node: Any = result
        for depth, name in enumerate(parents):
            child = node.get(name)
            if isinstance(child, str):  # a bare kind, such as `schedule: cosine`
                child = {"kind": child}
            elif child is None:
                child = {}
            elif not isinstance(child, dict):
                raise ValueError(
                    f"override: {text!r} reaches into {'.'.join(parents[: depth + 1])}, which is {child!r} and has no "
                    "fields"
                )
            node[name] = child
            node = child
        if last in ("kind", "class") and node.get(last) != parsed:
            node.clear()
        node[last] = parsed
    return result


def _copy(data: Any) -> Any:
    return {key: _copy(value) for key, value in data.items()} if isinstance(data, Mapping) else data


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 and 1e3 are numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
