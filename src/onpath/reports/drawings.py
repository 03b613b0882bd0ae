"""What is drawn of a config, as numbers: its settings, its schedule, every ramp, and the mask shares it trains on."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from onpath.build import training_states
from onpath.components import Part, parameters_of
from onpath.config import RunConfig
from onpath.data.source import Source, step_ids
from onpath.kinds import RunSections
from onpath.models.blocks import read_rows
from onpath.objectives.base import Objective
from onpath.ramps import Ramp, as_ramp
from onpath.rng import Key
from onpath.sampling.grids import Grid
from onpath.schedules import Schedule
from onpath.training.trainer import Trainer
from onpath.types import Denoiser, Nets, Readout, Spec

NUM_BINS = 20
_POINTS = 100
_STEPS_LOOKED_AT, _EXAMPLES_OF_A_STEP, _LOGITS_OF_A_STEP = 8, 256, 2**26


def settings(config: RunConfig) -> list[dict[str, Any]]:
    """Every setting as {path, value, default, differs}; one without a default counts as differing."""
    rows = []
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if isinstance(value, Part):
            rows += list(_settings_of(value, section.name))
        else:
            _, default = parameters_of(RunSections)[section.name]
            rows.append(_setting(section.name, value, default))
    return rows


def _settings_of(part: Part, path: str) -> Iterator[dict[str, Any]]:
    if part.kind:
        yield {"path": path, "value": part.kind, "default": None, "differs": True}
    defaults = {name: default for name, (_, default) in parameters_of(part.cls).items()}
    for name, value in part.fields.items():
        inner = f"{path}.{name}"
        if not isinstance(value, Part):
            yield _setting(inner, value, defaults.get(name, inspect.Parameter.empty))
            continue
        same = _equal(value, defaults.get(name))
        yield from ({**row, "differs": row["differs"] and not same} for row in _settings_of(value, inner))


def _equal(part: Part, default: Any) -> bool:
    return dataclasses.is_dataclass(default) and part.cls is type(default) and part.make() == default


def _setting(path: str, value: Any, default: Any) -> dict[str, Any]:
    known = default is not inspect.Parameter.empty
    return {
        "path": path,
        "value": _written(value),
        "default": _written(default) if known else None,
        "differs": not known or value != default,
    }


def _written(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    return (
        {None: "none", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else (f"{value:g}" if isinstance(value, float) else str(value))
    )


def schedule_curve(schedule: Schedule, grid: Grid) -> dict[str, Any]:
    """alpha and mask share at times in [0, 1], and where the sampler's grid stands.

    grid: t and mask share of each time; the pure states of a bounded schedule are drawn at its ends and named `pure`.
    """
    t = torch.linspace(0.0, 1.0, _POINTS + 1, dtype=torch.float64)
    times = torch.tensor(grid.times(schedule), dtype=torch.float64)
    share = schedule.mask_ratio(times).tolist()
    return {
        "t": _rounded(t),
        "alpha": _rounded(schedule.alpha(t)),
        "mask_share": _rounded(schedule.mask_ratio(t)),
        "grid": [
            {"t": round(min(1.0, max(0.0, time)), 6), "mask_share": round(at, 6), "pure": not 0.0 <= time <= 1.0}
            for time, at in zip(times.tolist(), share, strict=True)
        ],
    }


def ramps(config: RunConfig, num_steps: int) -> list[dict[str, Any]]:
    """Every setting that may be a ramp, and the learning rate, as values over steps 0 to num_steps."""
    steps = sorted({round(index * num_steps / _POINTS) for index in range(_POINTS + 1)})
    found = []
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if isinstance(value, Part):
            for path, ramp in _ramps_of(value, section.name):
                found.append({"path": path, "steps": steps, "values": [ramp.value(step) for step in steps]})
    trainer = cast(Trainer, config.training.make())
    peak = config.training.fields["optimizer"].fields.get("learning_rate")
    if peak is not None:
        rates = [peak * trainer.rate_factor(step, num_steps) for step in steps]
        found.append({"path": "training.optimizer.learning_rate", "steps": steps, "values": rates})
    return found


def _ramps_of(part: Part, path: str) -> Iterator[tuple[str, Ramp]]:
    hints = typing.get_type_hints(part.cls) if dataclasses.is_dataclass(part.cls) else {}
    for name, value in part.fields.items():
        inner = f"{path}.{name}"
        if isinstance(value, Part) and issubclass(value.cls, Ramp):
            yield inner, value.make()
        elif isinstance(value, Part):
            yield from _ramps_of(value, inner)
        elif Ramp in typing.get_args(hints.get(name)):
            yield inner, as_ramp(value)


@dataclass(frozen=True)
class States:
    """What a config trains on, without a network: enough to draw its states again."""

    source: Source
    objective: Objective
    trainer: Trainer
    seed: int

    @classmethod
    def of(cls, config: RunConfig) -> States:
        source, objective = training_states(config)
        return cls(source, objective, cast(Trainer, config.training.make()), config.seed)

    @property
    def num_steps(self) -> int:
        return self.trainer.num_steps(self.source)

    def mask_shares(self, num_steps: int) -> dict[str, Any]:
        """How the masked shares of the first `num_steps` optimizer steps are spread; of images, the times.

        The run's own objective is asked again, with a network that only notes what it is given: draws depend on seed,
        step and example alone, so these are the states that training saw. A few evenly spaced steps and the first
        examples of each are looked at, few where words are many.
        counts: of shares in ((k - 1)/20, k/20], 0 with the first, for each such step.
        """
        last = max(0, num_steps - 1)
        steps = sorted({round(index * last / (_STEPS_LOOKED_AT - 1)) for index in range(_STEPS_LOOKED_AT)})
        shares = [self._shares(step) for step in steps]
        bins = [((share * NUM_BINS - 1e-4).ceil().long() - 1).clamp(0, NUM_BINS - 1) for share in shares]
        together = torch.cat(shares)
        return {
            "steps": steps,
            "counts": [torch.bincount(one, minlength=NUM_BINS).tolist() for one in bins],
            "mean": float(together.double().mean()),
            "num_states": len(together),
            "now": [float(shares[-1].min()), float(shares[-1].max())],
        }

    def _shares(self, step: int) -> Tensor:
        spec, objective = self.source.spec(), self.objective.conditional()  # which rolls nothing out
        if isinstance(spec, Spec):
            spec = dataclasses.replace(spec, mask_logit=objective.predicts_mask)
            size, num_logits = spec.length * spec.num_logits, spec.num_logits
        else:
            size, num_logits = math.prod(spec.shape), 0
        most = max(2, min(_EXAMPLES_OF_A_STEP, _LOGITS_OF_A_STEP // size))
        ids = step_ids(step, self.trainer.batch_size)[:most]
        noting = _Noting(num_logits)
        key = Key(self.seed).fold("train").at(step)
        with torch.no_grad():
            objective(Nets(cast(Denoiser, noting)), self.source.examples(ids), key, step)
        return torch.cat(noting.shares)


class _Noting:
    """A network that knows nothing, and notes the masked fraction, or the time, of every state that it is shown."""

    def __init__(self, num_logits: int) -> None:
        self.num_logits = num_logits
        self.shares: list[Tensor] = []

    def encode(self, **cond: Tensor) -> None:
        return None

    def __call__(
        self, x: Tensor, t: Tensor, memo: Any, *, rows: Tensor | None = None, readout: Readout | None = None
    ) -> Any:
        self.shares.append(t.float())
        if x.is_floating_point():
            return torch.zeros_like(x)
        return read_rows(self._nothing, x[..., None].float(), rows, readout, self.num_logits)

    def _nothing(self, hidden: Tensor) -> Tensor:
        return torch.zeros(*hidden.shape[:-1], self.num_logits)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) if math.isfinite(value) else 0.0 for value in values.tolist()]


def kinds(config: RunConfig) -> Mapping[str, str]:
    """The kind of each section."""
    parts = {section.name: getattr(config, section.name) for section in dataclasses.fields(config)}
    return {name: part.kind for name, part in parts.items() if isinstance(part, Part) and part.kind}
