"""The settings of a foreign config, taken one by one, so that none is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_UNSET = ("", "none", "null")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class Imported:
    """A recipe that was made from a foreign config, and what is to be said about it.

    sections: of the recipe, as plain data. mapped, left_out, unknown: a line for each setting of the file.
    differences: what the other trainer would have done. todo: what only a person can fill in.
    """

    sections: Mapping[str, Any]
    title: str
    mapped: Sequence[str]
    left_out: Sequence[str]
    unknown: Sequence[str]
    differences: Sequence[str]
    todo: Sequence[str]

    def recipe(self) -> str:
        """The YAML file, its first line what it trains."""
        body = yaml.safe_dump(dict(self.sections), sort_keys=False, default_flow_style=None, width=120)
        return f"# {self.title}\n{body}"

    def write(self, path: Path) -> None:
        """Writes the YAML file; ValueError where there is one already, or where its name would not be a recipe's."""
        if path.suffix not in (".yaml", ".yml") or path.exists():
            why = "is there already" if path.exists() else "does not end in .yaml, as the file of a recipe must"
            raise ValueError(f"import: {path} {why}; give another name")
        path.write_text(self.recipe(), encoding="utf-8")

    def report(self) -> str:
        """The lines under their headings; a heading without lines is left out."""
        headings = {
            "Mapped": self.mapped,
            "Left out": self.left_out,
            "Not known here, so left out": self.unknown,
            "What the other trainer would have done differently": self.differences,
            "Before you train": self.todo,
        }
        parts = [f"{name}:\n" + "\n".join(f"  * {line}" for line in lines) for name, lines in headings.items() if lines]
        return "\n\n".join(parts)


class Keys:
    """The settings of a JSON file by name, with or without two dashes before it.

    Blanks around a text are taken off, and said; a value that is not allowed is an error, never another branch.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.mapped: list[str] = []
        self.left_out: list[str] = []
        self.differences: list[str] = []
        self.todo: list[str] = []
        self._left: dict[str, Any] = {}
        self._given: set[str] = set()
        for written, value in values.items():
            name = str(written).strip().lstrip("-")
            if name in self._left:
                raise ValueError(f"import: {name} is given twice, with and without dashes; remove one of them")
            if isinstance(value, str) and value != value.strip():
                self.differences.append(
                    f"{name} is {value!r}: read as {value.strip()!r}. A blank at the end can make an option fall "
                    "through to another branch there, without a word"
                )
                value = value.strip()
            self._given.add(name)
            self._left[name] = None if isinstance(value, str) and value.lower() in _UNSET else value

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Those of a file; ValueError where it cannot be read or is no mapping."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"import: {path} cannot be read as JSON ({error}); give a config.json") from error
        if not isinstance(values, dict):
            raise ValueError(f"import: {path} holds a {type(values).__name__}; a mapping of settings is needed")
        return cls(values)

    def has(self, name: str) -> bool:
        """Whether it is set and not taken yet."""
        return self._left.get(name) is not None

    def rest(self) -> dict[str, Any]:
        """What was not taken."""
        return dict(self._left)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self._left.pop(name, None)
        return default if value is None else str(value)

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str | None:
        """One of `allowed`, whatever its case; ValueError for anything else."""
        value = self.text(name)
        if value is None:
            return default
        if value.lower() not in allowed:
            raise ValueError(f"import: {name} is {value!r}; allowed are {', '.join(allowed)}; correct it in the file")
        return value.lower()

    def number(self, name: str, default: float | None = None) -> float | None:
        value = self._left.pop(name, None)
        if value is None:
            return default
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"import: {name} is {value!r}; a number is needed; correct it in the file") from error

    def whole(self, name: str, default: int | None = None) -> int | None:
        value = self.number(name)
        if value is None:
            return default
        if value != int(value):
            raise ValueError(f"import: {name} is {value}; a whole number is needed; correct it in the file")
        return int(value)

    def flag(self, name: str, default: bool | None = None) -> bool | None:
        value = self._left.pop(name, None)
        if value is None:
            return default
        if str(value).lower() not in (*_TRUE, *_FALSE):
            raise ValueError(f"import: {name} is {value!r}; allowed are true and false; correct it in the file")
        return str(value).lower() in _TRUE

    def became(self, name: str, value: Any, place: str) -> Any:
        """Says where a setting went, and whether the file has it at all; returns its value."""
        how = "" if name in self._given else " (the default there)"
        self.mapped.append(f"{name} {_shown(value)}{how} → {place}")
        return value

    def leave(self, name: str, why: str) -> None:
        """Says why a setting that is there is left out."""
        if name in self._left:
            value = self._left.pop(name)
            if value is not None:
                self.left_out.append(f"{name} {_shown(value)}: {why}")


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | dict | list) else f"{value}"
