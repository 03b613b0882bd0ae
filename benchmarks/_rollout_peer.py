"""SimpleTuner's own rollout code, imported from a checkout of its repository and run as it is.

Its three files of scheduled sampling are executed unchanged. What they import beside torch and numpy is replaced: of
`simpletuner.helpers.models.common` they read the kinds of prediction alone. `skrample`, whose solvers they call for
eps and v, is the installed one where there is one (it needs Python 3.12), else a stand-in that computes the same.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

_FOLDER = Path("simpletuner/helpers/scheduled_sampling")
_FILES = ("plan.py", "rollout.py", "skrample_adapter.py")
_COMMON = "simpletuner.helpers.models.common"


class PredictionTypes(enum.Enum):
    """The kinds of prediction that SimpleTuner's rollout tells apart."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    FLOW_MATCHING = "flow_matching"


@dataclass(frozen=True)
class _Result:
    """What a step of skrample hands to the next: where it began, the image predicted there, and where it ended."""

    final: Tensor
    prediction: Tensor
    sample: Tensor


@dataclass(frozen=True)
class _Euler:
    """A first-order step of skrample 0.5: from entry `step` of the table to the one behind it."""

    order: int = 1
    require_previous = 0

    def sample(self, x: Tensor, image: Tensor, step: int, table: Any, pair: Any, *_: Any) -> _Result:
        (s, a), (s2, a2) = (pair(_entry(table, at)) for at in (step, step + 1))
        return _Result(x * (s2 / s) + image * (a2 - a * s2 / s), image, x)


@dataclass(frozen=True)
class _UniPC:
    """A step of UniPC of skrample 0.5 for order 2: the step before is corrected, then one is predicted."""

    order: int = 2
    require_previous = 2

    def sample(
        self, x: Tensor, image: Tensor, step: int, table: Any, pair: Any, noise: Any, previous: tuple[_Result, ...]
    ) -> _Result:
        if previous:
            last = previous[-1]
            x = _solved(last.sample, last.prediction, step - 1, (table, pair), previous[:-1], image)
        return _Result(_solved(x, image, step, (table, pair), previous, None), image, x)


def _entry(table: Any, at: int) -> float:
    return float(table[at]) if at < len(table) else 0.0


def _solved(x: Tensor, image: Tensor, step: int, grid: Any, previous: tuple[_Result, ...], reached: Any) -> Tensor:
    """The B2(h) form of UniPC with at most one point before, and with `reached` where it corrects; h taken positive."""
    table, pair = grid

    def log_ratio(at: int) -> float:
        s, a = pair(_entry(table, at))
        return math.log(a) - math.log(s)

    (s, _), (s2, a2) = (pair(_entry(table, at)) for at in (step, step + 1))
    now = log_ratio(step)
    h = abs(log_ratio(step + 1) - now)
    points, slopes = [], []
    if previous and min(step + 1, len(table) - step) >= 2:
        points.append((log_ratio(step - 1) - now) / h)
        slopes.append((previous[-1].prediction - image) / points[0])
    if reached is not None:
        points.append(1.0)
        slopes.append(reached - image)
    growth = math.expm1(-h)
    estimate = image
    if points:
        first = growth / -h - 1.0
        right = [first / growth, 2.0 * (first / -h - 0.5) / growth][: len(points)]
        weights = np.linalg.solve([[p**k for p in points] for k in range(len(points))], right).tolist()
        estimate = image + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
    return s2 / s * x - a2 * growth * estimate


def _polar(sigma: float) -> tuple[float, float]:
    """(s, a) of the ratio sigma = s/a where s² + a² = 1."""
    angle = math.atan(sigma)
    return math.sin(angle), math.cos(angle)


def _modules(folder: Path) -> dict[str, ModuleType]:
    """Packages of SimpleTuner without their own start-up, the kinds of prediction, and skrample if it is missing."""
    modules = {name: ModuleType(name) for name in ("simpletuner", "simpletuner.helpers", "simpletuner.helpers.models")}
    for name, module in modules.items():
        module.__path__ = [str(folder / name.replace(".", "/"))]
    modules[_COMMON] = ModuleType(_COMMON)
    vars(modules[_COMMON])["PredictionTypes"] = PredictionTypes
    if not _has_skrample():
        for name in ("skrample", "skrample.scheduling", "skrample.common", "skrample.sampling"):
            modules[name] = ModuleType(name)
        vars(modules["skrample"]).update(scheduling=modules["skrample.scheduling"], common=modules["skrample.common"])
        vars(modules["skrample.common"])["sigma_polar"] = _polar
        vars(modules["skrample.sampling"]).update(Euler=_Euler, UniPC=_UniPC)
    return modules


def _has_skrample() -> bool:
    return importlib.util.find_spec("skrample") is not None


@contextmanager
def _replaced(modules: dict[str, ModuleType]) -> Iterator[None]:
    """`modules` stand for what is installed until the block ends, and nothing of SimpleTuner stays behind."""
    before = {name: sys.modules.pop(name) for name in modules if name in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name in modules or name.startswith("simpletuner.")]:
            del sys.modules[name]
        sys.modules.update(before)


@dataclass(frozen=True)
class Peer:
    """SimpleTuner's code: `apply(model, batch, noise_schedule, config)` rolls out. solvers: who takes its steps."""

    apply: Any
    plan: Any
    solvers: str
    modules: dict[str, ModuleType]

    def rolled(
        self, model: Predicting, prepared: dict[str, Any], table: Any, config: SimpleNamespace
    ) -> dict[str, Any]:
        """The prepared batch with the states that its own loop reaches, a row at a time."""
        with _replaced(self.modules):  # its adapter looks for solvers at each call
            return self.apply(model, prepared, table, config)


def load(folder: str | Path) -> Peer:
    """The rollout code of a checkout; ValueError where the folder is none."""
    folder = Path(folder).resolve()
    missing = [name for name in _FILES if not (folder / _FOLDER / name).is_file()]
    if missing:
        raise ValueError(
            f"peer: {folder} holds no {_FOLDER}/{missing[0]}; give the folder of a checkout of bghira/SimpleTuner"
        )
    modules = _modules(folder)
    with _replaced(modules):
        package = ".".join(_FOLDER.parts)
        rollout, plan = (importlib.import_module(f"{package}.{name}") for name in ("rollout", "plan"))
    solvers = "skrample" if _has_skrample() else "a stand-in for skrample"
    return Peer(rollout.apply_scheduled_sampling_rollout, plan.ScheduledSamplingPlan, solvers, modules)


@dataclass(frozen=True)
class Predicting:
    """A denoiser as SimpleTuner's rollout calls a model. num_steps: of its table, 0 to num_steps - 1."""

    network: nn.Module
    PREDICTION_TYPE: PredictionTypes
    num_steps: int

    def model_predict(self, prepared_batch: dict[str, Any]) -> dict[str, Tensor]:
        t = prepared_batch["timesteps"].to(torch.float32) / (self.num_steps - 1)
        return {"model_prediction": self.network(prepared_batch["noisy_latents"], t, None)}


@dataclass(frozen=True)
class Table:
    """What the rollout reads of diffusers' schedulers: the number of steps, and for eps the products of alpha."""

    num_steps: int
    alphas_cumprod: Tensor

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(num_train_timesteps=self.num_steps)

    def add_noise(self, x0: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        alpha = self.alphas_cumprod.to(x0.device, x0.dtype)[steps].view(-1, *(1,) * (x0.dim() - 1))
        return alpha.sqrt() * x0 + (1.0 - alpha).sqrt() * noise
