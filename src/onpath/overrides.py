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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"config: {path} cannot be read ({error}); give the path of a YAML file in UTF-8, or a recipe's name "
            "(onpath recipes lists them)"
        ) from error
    data = _parsed(text, f"config: {path}", "write `name: value`, nested by two spaces and never by tabs") or {}
    if not isinstance(data, dict):
        raise ValueError(
            f"config: {path} holds a {type(data).__name__}; a mapping of sections is needed; begin with `data:`"
        )
    return data


def _parsed(text: str, what: str, todo: str) -> Any:
    """The data in a YAML text; ValueError with the line at which `what` is none."""
    try:
        return _copy(yaml.load(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        where = f" at line {mark.line + 1}, {text.splitlines()[mark.line].strip()!r}" if mark and mark.buffer else ""
        raise ValueError(f"{what} is not YAML{where}: {problem}; {todo}") from error
    except RecursionError as error:
        raise ValueError(f"{what} is not YAML that ends: it is nested too deep, or in itself; {todo}") from error
    except (yaml.YAMLError, ValueError) as error:  # no text, no such date
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{what} is not YAML: {reason}; {todo}") from error


def override(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`data` with each `key.path=value` put in; a new `kind` starts its part afresh."""
    result: dict[str, Any] = _copy(data)
    for text in overrides:
        path, separator, value = text.partition("=")
        *parents, last = (name.strip() for name in path.split("."))
        if not separator or not all((*parents, last)):
            raise ValueError(
                f"override: {text!r} is not of the form key.path=value; write it like training.steps=1000 (and options "
                "with two dashes, like --run DIR)"
            )
        todo = "write a number, a word, text in quotes, [a, list] or {name: value}"
        parsed = _parsed(value, f"override: the value of {text!r}", todo)
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
                    f"fields; set the whole of it, like {'.'.join(parents[: depth + 1])}={child}"
                )
            node[name] = child
            node = child
        if last in ("kind", "class") and node.get(last) != parsed:
            node.clear()
        node[last] = parsed
    return result


def differing(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> list[str]:
    """The paths of the settings in which two mappings differ.

    >>> differing({"seed": 0, "grid": {"steps": 10}}, {"seed": 0, "grid": {"steps": 20}, "device": "cpu"})
    ['grid.steps', 'device']
    """
    found = []
    for name in dict.fromkeys([*one, *other]):
        here = f"{path}.{name}" if path else str(name)
        left, right = one.get(name), other.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differing(left, right, here)
        elif left != right:
            found.append(here)
    return found


def _copy(data: Any) -> Any:
    return {key: _copy(value) for key, value in data.items()} if isinstance(data, Mapping) else data


class _Loader(yaml.SafeLoader):
    """YAML in which 3e-4 and 1e3 are numbers, and no key may stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
