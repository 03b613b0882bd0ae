"""RunConfig: what a run is made of, as the frozen dataclasses themselves; loading, overriding, saving."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn as nn

from onpath.components import Part, parse_fields, parse_part, plain
from onpath.data.source import Source
from onpath.kinds import RunSections, brought_by, following
from onpath.overrides import override, read_yaml


@dataclass(frozen=True)
class RunConfig:
    """The validated sections of a run; see ``kinds.RunSections`` for what they mean."""

    data: Part
    model: Part
    objective: Part
    training: Part
    schedule: Part
    process: Part
    sampler: Part
    grid: Part
    evaluation: Part
    experience: Part | None
    start: str | None
    seed: int
    device: str

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> RunConfig:
        """A validated config from plain data, defaults filled in."""
        config = cls(**parse_fields(RunSections, _with_defaults(data), ""))
        if not 0 <= config.seed < 2**63:
            raise ValueError(f"config: seed is {config.seed}; allowed are 0 to {2**63 - 1}; write it like seed=1")
        return config

    @classmethod
    def load(cls, path: Path, overrides: Iterable[str] = ()) -> RunConfig:
        """The config of a YAML file, ``key.path=value`` overrides applied before validation."""
        return cls.parse(override(read_yaml(path), overrides))

    def as_dict(self) -> dict[str, Any]:
        """Plain data with every default written out; parsing it gives the same config."""
        return {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def settled(self, found: Mapping[str, Any]) -> RunConfig:
        """The same config with what its data decide, see ``Source.settled``, written into the section `data`."""
        if not found:
            return self
        whole = self.as_dict()
        return RunConfig.parse({**whole, "data": _merged(whole["data"], found)})


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with the values of `other` put over it, mappings within them alike."""
    deep = {
        k: _merged(one[k], v) for k, v in other.items() if isinstance(v, Mapping) and isinstance(one.get(k), Mapping)
    }
    return {**one, **other, **deep}


def _with_defaults(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections that follow the data are of the kind that fits them, and those that a trained model brings."""
    if "data" not in data:
        return data
    found = {**data, **following(parse_part(Source, data["data"], "data").cls, data)}
    if "model" in data:
        model = parse_part(nn.Module, data["model"], "model")
        found.update(brought_by(model.cls, model.fields, data))
    return found
