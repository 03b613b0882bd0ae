"""What is trained on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn

from onpath.data.source import Source
from onpath.experience.rounds import Rounds
from onpath.objectives.base import Objective


@dataclass(frozen=True)
class Job:
    """What is trained on what: the objects that the trainer moves, slices and counts.

    validated: the objective of validation, None for the same. bounds: more that validation reports beside it (a NELBO).
    identity: JSON values by name that a resumed run must share with its checkpoint (the schedule, the seed, …).
    config: plain data that replaces config.yaml of the folder once a run goes on; empty leaves that as it is.
    rounds: where rollouts with rewards come from, in place of the examples of `source`; those of `validation` are then
    prompts, whose rewards are reported.
    """

    model: nn.Module
    objective: Objective
    source: Source
    validation: Source
    seed: int = 0
    device: torch.device = torch.device("cpu")
    validated: Objective | None = None
    bounds: tuple[Objective, ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    rounds: Rounds | None = None
