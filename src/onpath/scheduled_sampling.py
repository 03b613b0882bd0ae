"""Settings of scheduled sampling: which rows of a batch are trained on states that the model reaches by itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from jaxtyping import Float, Int64
from torch import Tensor

from onpath.ramps import CosineRamp, LinearRamp, Ramp, as_ramp
from onpath.sampling.solvers import DPMSolver, Euler, ODESolver, RungeKutta, UniPC

Solver = Literal["unipc", "euler", "dpm", "rk4"]
Strategy = Literal["uniform", "biased_early", "biased_late"]
Mode = Literal["rollout", "inject"]
Target = Literal["restoring", "original"]
Weights = Literal["current", "average"]
Shape = Literal["linear", "cosine"]
_RAMP = ("prob_start", "prob_end", "ramp_shape")


@dataclass(frozen=True)
class ReflexFlow:
    """Two more terms of the loss of flow matching, for rows that take part in a rollout.

    alpha: strength of the frequency compensation, whose weights 1 + alpha·e/mean(e) multiply the flow loss where the
      prediction at the model's own state departs from that at the clean one (e, absolute, mean by example).
    beta1: weight of the anti-drift term |v/|v| - d/|d||² by example, d = x - x0 the way that leads away from the
      image. beta2: weight of the compensated flow loss.
    mode: `rollout` takes the loss at the state that the rollout ends in; `jump` takes the clean loss at the source,
      goes to the target time in one Euler step with gradient, and takes the anti-drift term there.
    Sources: ReflexFlow, arXiv:2512.04904 (withdrawn); jump: DEFAR, arXiv:2606.28226.
    """

    alpha: float = 1.0
    beta1: float = 10.0
    beta2: float = 1.0
    mode: Literal["rollout", "jump"] = "rollout"

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta1, self.beta2) < 0 or self.mode not in ("rollout", "jump"):
            raise ValueError(
                f"reflexflow: alpha is {self.alpha}, beta1 {self.beta1}, beta2 {self.beta2}, mode {self.mode!r}; "
                "needed are numbers of 0 or more, and mode rollout or jump"
            )


@dataclass(frozen=True)
class ScheduledSampling:
    """Which rows are trained on states of the model's own, and how these come about.

    max_step_offset: longest rollout, in steps of a uniform grid of `grid_steps` over [0, 1]. min_step_offset: shortest;
      a rollout of length 0 is none.
    probability: share of the rows, a number or a ramp over optimizer steps; or, where `ramp_steps` > 0, from
      `prob_start` to `prob_end` over so many steps, by `ramp_shape`. Before `start_step` it is 0 either way.
    sampler, order: the solver; `order` is that of dpm (1, 2) and unipc (1 to 3). Tokens are rolled out by the run's own
      sampler.
    strategy: of the length, `uniform` or with a bias to short (`biased_early`) or to long ones (`biased_late`).
    mode: `rollout` trains on the state that is reached. `inject` trains on the state of the forward process plus the
      difference of two rollouts from the same source, one of `coarse_steps` steps by the current weights and one of
      `fine_steps` by the average: the model's own error on top of the right state. Images only. With `training.ema: 0`
      the average is the current weights: what is left is the error of the coarse steps, so their numbers must differ.
    target: of a state reached by images: `restoring` leads from it back to the image, `original` is that of the state
      which the forward process would have had, as the first systems of this kind did. `s_min` bounds how much the first
      weighs near the data: its error counts as that of an image times min(1/s, 1/s_min)².
    weights: `current`, or `average` for the moving average.
    correction: of tokens: weight of the cross-entropy at positions that the rollout revealed wrongly, 0 leaves them.
    reflexflow: see ``ReflexFlow``; flow matching only.
    Sources: scheduled sampling, arXiv:1506.03099; for diffusion, arXiv:2210.05147.
    """

    max_step_offset: int = 0
    min_step_offset: int = 1
    grid_steps: int = 50
    probability: float | Ramp = 0.0
    prob_start: float = 0.0
    prob_end: float = 0.5
    ramp_steps: int = 0
    start_step: int = 0
    ramp_shape: Shape = "linear"
    sampler: Solver = "unipc"
    order: int = 2
    strategy: Strategy = "uniform"
    mode: Mode = "rollout"
    coarse_steps: int = 1
    fine_steps: int = 4
    target: Target = "restoring"
    s_min: float = 0.05
    weights: Weights = "current"
    correction: float = 0.0
    reflexflow: ReflexFlow | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_step_offset <= max(1, self.max_step_offset) or self.grid_steps < 1:
            raise ValueError(
                f"scheduled sampling: offsets from {self.min_step_offset} to {self.max_step_offset} on "
                f"{self.grid_steps} steps; needed are 0 <= min_step_offset <= max_step_offset and grid_steps of 1 or "
                "more"
            )
        if self.max_step_offset > self.grid_steps:
            raise ValueError(
                f"scheduled sampling: max_step_offset is {self.max_step_offset}, but the whole way has grid_steps "
                f"{self.grid_steps}; allowed are 0 (off) to {self.grid_steps}"
            )
        if self.max_step_offset == 0:
            why = "max_step_offset is 0, which rolls nothing out"
            self._refuse({f.name for f in fields(self)}, why, "max_step_offset above 0")
        self._check_choices()
        self._check_probability()
        self._check_effects()

    @property
    def is_on(self) -> bool:
        return self.max_step_offset > 0

    def probability_at(self, step: int) -> float:
        """The share of rows that take part at an optimizer step."""
        if step < self.start_step or not self.is_on:
            return 0.0
        return self.ramp.value(step)

    @property
    def ramp(self) -> Ramp:
        """The probability over optimizer steps, from `start_step` on."""
        if not self.ramp_steps:
            return as_ramp(self.probability)
        shape = LinearRamp if self.ramp_shape == "linear" else CosineRamp
        return shape(self.prob_start, self.prob_end, self.ramp_steps, self.start_step)

    @property
    def solver(self) -> ODESolver:
        """The solver of images, without guidance: a rollout follows the network that is trained."""
        if self.sampler == "unipc":
            return UniPC(order=self.order)
        if self.sampler == "dpm":
            return DPMSolver(order=self.order)
        return Euler() if self.sampler == "euler" else RungeKutta()

    def offsets(self, draws: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """Lengths of rollouts in grid steps for uniform draws in [0, 1)."""
        low, high = self.min_step_offset, self.max_step_offset
        share = {"uniform": draws, "biased_early": draws**2, "biased_late": 1.0 - draws**2}[self.strategy]
        return (low + (share.double() * (high - low + 1)).long()).clamp(max=high)

    def _check_choices(self) -> None:
        choices = {"sampler": Solver, "strategy": Strategy, "mode": Mode, "target": Target}
        choices |= {"weights": Weights, "ramp_shape": Shape}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(
                    f"scheduled sampling: {name} is {getattr(self, name)!r}; allowed are {', '.join(get_args(allowed))}"
                )
        if self.ramp_steps < 0 or self.start_step < 0 or min(self.coarse_steps, self.fine_steps) < 1:
            raise ValueError(
                f"scheduled sampling: ramp_steps {self.ramp_steps}, start_step {self.start_step}, coarse_steps "
                f"{self.coarse_steps}, fine_steps {self.fine_steps}; needed are 0 or more of the first two and 1 or "
                "more of the others"
            )
        if not 0 < self.s_min <= 1 or self.correction < 0:
            raise ValueError(
                f"scheduled sampling: s_min is {self.s_min} and correction is {self.correction}; needed are "
                "0 < s_min <= 1 and correction of 0 or more"
            )

    def _check_probability(self) -> None:
        if self.ramp_steps:
            if self.probability != 0.0:
                raise ValueError(
                    f"scheduled sampling: probability is {self.probability}, but ramp_steps is {self.ramp_steps}, and "
                    "the ramp wins; set prob_start and prob_end, or leave ramp_steps out"
                )
        else:
            self._refuse(set(_RAMP), "ramp_steps is 0, so there is no ramp", "ramp_steps above 0")
        ramp = self.ramp
        values = [ramp.value(step) for step in (0, *ramp.bends, 2**62)]
        if not all(0.0 <= value <= 1.0 for value in values):
            raise ValueError(f"scheduled sampling: the probability runs through {values}; it must stay within 0 and 1")
        if self.is_on and not any(values):
            raise ValueError(
                f"scheduled sampling: max_step_offset is {self.max_step_offset}, but the probability is 0 at every "
                "step, so nothing would be rolled out; set probability above 0 or a ramp, or leave scheduled_sampling "
                "out"
            )

    def _check_effects(self) -> None:
        if self.min_step_offset == self.max_step_offset:
            why = f"all offsets are {self.max_step_offset}, so there is no length to choose"
            self._refuse({"strategy"}, why, "min_step_offset below max_step_offset")
        if self.sampler in ("euler", "rk4"):
            self._refuse({"order"}, f"{self.sampler} has a fixed order", "sampler dpm or unipc")
        _ = self.solver  # which refuses an order that it does not have
        if self.mode == "inject":
            why = "mode inject re-aims at the image by itself and takes both kinds of weights"
            self._refuse({"target", "weights", "reflexflow"}, why, "mode rollout")
        else:
            self._refuse({"coarse_steps", "fine_steps"}, "mode rollout walks on the grid", "mode inject")
        jumps = self.reflexflow is not None and self.reflexflow.mode == "jump"
        if jumps:
            why = "reflexflow in mode jump takes one Euler step with gradient instead of a rollout"
            self._refuse({"sampler", "order", "weights", "target", "s_min"}, why, "reflexflow.mode rollout")
        elif self.target == "original":
            self._refuse({"s_min"}, "target original has no such bound", "target restoring")

    def _refuse(self, names: set[str], why: str, needed: str) -> None:
        """ValueError where one of these fields is set and can have no effect."""
        for field in fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise ValueError(
                    f"scheduled sampling: {field.name} is {getattr(self, field.name)!r}, but {why}; leave it out, or "
                    f"set {needed}"
                )
