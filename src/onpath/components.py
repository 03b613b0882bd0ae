"""Components as plain data: parsed and checked by their own fields, made, written out again.

A part is written as a mapping of its fields with a `kind` (or as the bare kind), or, for a user's own class, with
``class: package.module:Class``. Every mistake names the full path, what was given, what is allowed, and what to do.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch.nn as nn
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from onpath.functions import imported
from onpath.kinds import FAMILIES, wired_into
from onpath.wording import example, is_coerced, joined, literals, near, unknown, words

_STRICT = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True)
class Part:
    """A validated class and its fields; ``make`` adds what only the run knows (the process, the data's spec)."""

    cls: type
    kind: str
    fields: Mapping[str, Any]
    path: str

    def make(self, **wired: Any) -> Any:
        """The object. Of `wired`, it receives what its constructor names."""
        names = parameters_of(self.cls)
        values = {name: _made(value, wired) for name, value in self.fields.items()}
        extra = {name: value for name, value in wired.items() if name in names and name not in values}
        try:
            return self.cls(**values, **extra)
        except (ValueError, RuntimeError, MemoryError) as error:
            if ":" in self.kind and not isinstance(error, ValueError):
                raise
            raise ValueError(self._refusal(error)) from error

    def _refusal(self, error: Exception) -> str:
        """What the constructor said, under the full paths of the fields that it speaks of."""
        if not isinstance(error, ValueError):  # torch, which finds no room for the weights
            sizes = ", ".join(f"{name} {value}" for name, value in self.fields.items() if isinstance(value, int))
            reason = str(error).partition("\n")[0]
            return f"config: {self.path}: {self.kind} cannot be made with {sizes} ({reason}); choose smaller sizes"
        name = self.path.split(".")[-1]
        reason = str(error).removeprefix(f"{name}: ").removeprefix(f"{name.replace('_', ' ')}: ")
        given = reason.partition(";")[0]  # what comes after it is allowed or advised
        names = [name for name in self.fields if name not in self.fields.values()]
        named = [f"{self.path}.{name}" for name in names if re.search(rf"\b{name}\b", given)]
        by = f"; your class {self.kind} says so" if ":" in self.kind else ""
        return f"config: {self.path}: {reason}{'; change ' if named else ''}{' or '.join(named)}{by}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data with every default written out; parsing it gives the same part."""
        name = {} if not self.kind else {"class" if ":" in self.kind else "kind": self.kind}
        return {**name, **plain(self.fields)}


def described(component: Any, path: str) -> dict[str, Any]:
    """A component of a family as plain data, every field written out; parsing it gives the same one."""
    return _of_default(component, path).as_dict()


def component(family: type, data: Mapping[str, Any], path: str) -> Any:
    """The component that plain data describe, where it is of a family and needs nothing of a run; ValueError names what
    cannot be, under its path."""
    return parse_part(family, data, path).make()


def _made(value: Any, wired: Mapping[str, Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_made(item, wired) for item in value)
    return value.make(**wired) if isinstance(value, Part) else value


def plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value


def parameters_of(cls: type) -> dict[str, tuple[Any, Any]]:
    """Constructor parameters of a class: name -> (type, default or inspect.Parameter.empty)."""
    names = inspect.signature(cls).parameters
    # nn.Module subclasses annotate attributes as well; only what the constructor takes is a field
    is_dataclass = dataclasses.is_dataclass(cls)
    try:
        hints = typing.get_type_hints(cls if is_dataclass else cls.__init__, include_extras=True)
    except NameError as error:
        raise ValueError(
            f"config: an annotation of {cls.__module__}:{cls.__qualname__} cannot be resolved ({error}); import what "
            "it names at run time, not under TYPE_CHECKING"
        ) from error
    found = {}
    for name, parameter in names.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in ("kind", "class"):
            raise ValueError(
                f"config: {cls.__module__}:{cls.__qualname__} has a field {name!r}, a word that names the class itself "
                "in a config; call the field something else"
            )
        found[name] = (hints.get(name, Any), parameter.default)
    factories = {f.name: f.default_factory for f in dataclasses.fields(cls)} if is_dataclass else {}
    for name, factory in factories.items():
        if factory is not dataclasses.MISSING and name in found:
            found[name] = (found[name][0], factory())
    return found


def parse_fields(cls: type, data: Mapping[str, Any], path: str) -> dict[str, Any]:
    wired = wired_into(cls)
    allowed = {name: field for name, field in parameters_of(cls).items() if name not in wired}
    for name in data:
        if name not in allowed:
            raise ValueError(unknown(joined(path, name), str(name), allowed, wired))
    values: dict[str, Any] = {}
    for name, (hint, default) in allowed.items():
        if name in data:
            values[name] = _parse(hint, _completed(data[name], default), joined(path, name))
        elif default is inspect.Parameter.empty:
            raise ValueError(
                f"config: {joined(path, name)} is missing; it has no default, so give it ({words(hint)}), like "
                f"{joined(path, name)}={example(hint)}"
            )
        else:
            values[name] = _of_default(default, joined(path, name))
    return values


def _completed(value: Any, default: Any) -> Any:
    """Fields without a kind change the default, so `training.optimizer.learning_rate=1e-3` needs no kind beside it."""
    if not isinstance(value, Mapping) or {"kind", "class"} & value.keys() or not _is_instance(default):
        return value
    return {**_of_default(default, "").as_dict(), **value}


def _is_instance(default: Any) -> bool:
    return dataclasses.is_dataclass(default) and not isinstance(default, type)


def _of_default(default: Any, path: str) -> Any:
    """A default as parsed data, so that it is written out like everything else."""
    if isinstance(default, tuple):
        return tuple(_of_default(item, f"{path}.{number}") for number, item in enumerate(default))
    if not _is_instance(default):
        return default
    cls: Any = type(default)
    wired = wired_into(cls)
    nested = {f.name: getattr(default, f.name) for f in dataclasses.fields(cls) if f.name not in wired}
    fields = {name: _of_default(value, joined(path, name)) for name, value in nested.items()}
    return Part(cls, _kind_of(cls), fields, path)


def _kind_of(cls: type) -> str:
    for kinds in FAMILIES.values():
        for kind, member in kinds.items():
            if member is cls:
                return kind
    return ""


def _parse(hint: Any, value: Any, path: str) -> Any:
    """A value of a type: a part where the type is a family or a dataclass, else whatever pydantic makes of it."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = typing.get_args(hint) if is_union else (hint,)
    if value is None and type(None) in options:
        return None
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[0] in FAMILIES:
        return _parse_list(typing.get_args(hint)[0], value, path)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
        return _parse_items(typing.get_args(hint)[0], value, path)
    leaves = [option for option in options if option not in FAMILIES]
    for option in options:
        if option in FAMILIES and (not leaves or isinstance(value, Mapping | str)):
            return parse_part(option, value, path)
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            if not isinstance(value, Mapping):
                names = list(parameters_of(option))
                raise ValueError(
                    f"config: {path} is {value!r}; a mapping of {', '.join(names)} is needed; set its fields one by "
                    f"one, like {path}.{names[0]}=…"
                )
            kind = _kind_of(option)  # a member of a family that is asked for by its class: its kind may be named
            rest = {name: item for name, item in value.items() if not kind or (name, item) != ("kind", kind)}
            return _checked(Part(option, kind, parse_fields(option, rest, path), path))
    leaf: Any = typing.Union[tuple(leaves)]  # noqa: UP007  (built at run time)
    try:
        parsed = _adapter(leaf).validate_python(value)
        reason = "(nothing is converted to or from text or true)" if is_coerced(value, parsed) else ""
    except ValidationError as error:
        detail = error.errors()[0]
        parsed, reason = None, f"({detail['msg'].lower()}){near(detail['input'], literals(hint))}"
    except PydanticUserError as error:
        raise ValueError(
            f"config: {path} has the type {words(hint)}, which no config can hold; give it a default"
        ) from error
    if reason:
        raise ValueError(
            f"config: {path} is {value!r}; {words(hint)} is needed {reason}; write it like {path}={example(hint)}"
        )
    return parsed


@cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=_STRICT)


def parse_part(family: type, value: Any, path: str) -> Part:
    kinds = FAMILIES[family]
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or ("kind" in value) == ("class" in value):
        raise ValueError(
            f"config: {path} is {value!r}; give a mapping with `kind` (one of {', '.join(kinds)}) or with "
            "`class: package.module:Class`, not both"
        )
    rest = {name: item for name, item in value.items() if name not in ("kind", "class")}
    if "class" in value:
        cls, kind = _own_class(family, value["class"], path), str(value["class"])
    else:
        kind = str(value["kind"])
        if kind not in kinds:
            raise ValueError(unknown(joined(path, "kind"), kind, kinds))
        cls = kinds[kind]
    return _checked(Part(cls, kind, parse_fields(cls, rest, path), path))


def _parse_list(family: type, value: Any, path: str) -> tuple[Part, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"config: {path} is {value!r}; give a list, each of {', '.join(FAMILIES[family])}, or a mapping"
        )
    return tuple(parse_part(family, item, f"{path}.{number}") for number, item in enumerate(value))


def _parse_items(cls: Any, value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        names = ", ".join(parameters_of(cls))
        raise ValueError(f"config: {path} is {value!r}; give a list of mappings of {names}")
    return tuple(_parse(cls, item, f"{path}.{number}") for number, item in enumerate(value))


def _checked(part: Part) -> Part:
    """Makes the part once where it needs nothing of the run, so that a bad value is refused here with its path."""
    wired = wired_into(part.cls)
    needs = [
        n for n, (_, default) in parameters_of(part.cls).items() if n in wired and default is inspect.Parameter.empty
    ]
    if not needs and dataclasses.is_dataclass(part.cls):
        part.make()
    return part


def _own_class(family: type, name: Any, path: str) -> type:
    """A user's class by `package.module:Class`; what its module raises keeps its traceback."""
    where = f"config: {path}.class names {name!r}, which"
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", str(name)):
        raise ValueError(f"config: {path}.class is {name!r}; write it as package.module:Class")
    cls = imported(str(name), where)
    if not isinstance(cls, type) or not issubclass(cls, family):
        raise ValueError(
            f"{where} is {cls!r} and not a subclass of {family.__name__}; derive it from {family.__module__}."
            f"{family.__name__}"
        )
    # a denoiser is any nn.Module with the two methods of the protocol; the other nouns are abstract classes
    protocol = {"encode", "forward"} if family is nn.Module else set()
    missing = getattr(cls, "__abstractmethods__", frozenset()) | (protocol - set(dir(cls)))
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}; write these methods, see docs/extend.md")
    return cls
