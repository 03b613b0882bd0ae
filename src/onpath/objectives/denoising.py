"""The loss of Gaussian diffusion and flow matching: squared error of what the network predicts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from onpath import rng
from onpath.objectives.base import Objective, check_dropout, dropped, stratified
from onpath.objectives.reflexflow import anti_drift, compensation
from onpath.objectives.weighting import LossWeight, TimeDensity, UniformTimes, Unweighted
from onpath.processes.gaussian import Gaussian
from onpath.rollouts import DrawnStates, draw_state, evaluating
from onpath.sampling.states import taken
from onpath.scheduled_sampling import ReflexFlow, ScheduledSampling
from onpath.types import Batch, Loss, Nets, Noised

Images = Float[Tensor, "B *rest"]
_Metrics = dict[str, tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True)
class Denoising(Objective):
    """Mean squared error of the network's prediction, at times of a density, on states of the process or of the model.

    time_density: how often each time is trained. weight: how much its error weighs. These are two separate choices.
    condition_dropout: share of examples trained without their condition, for guidance.
    input_perturbation: gamma: the state is made with noise + gamma·(other noise), the target keeps the noise;
      0 is off, .1 is usual (DDPM-IP, arXiv:2301.11706, Algorithm 1).
    scheduled_sampling: trains rows on states that the model has reached itself; see ``ScheduledSampling``.
    Beside the loss it reports `image_error`, the squared error of the image that a prediction stands for, by value;
      with eps times min(1, (a/s)²), as the error of the noise, which (s/a)² makes one of the image, would drown all
      others near t = 1.
    Validation is on states of the process alone. Source: arXiv:2006.11239, Eq. 14; arXiv:2210.02747, Eq. 14.
    """

    process: Gaussian
    time_density: TimeDensity = UniformTimes()
    weight: LossWeight = Unweighted()
    condition_dropout: float = 0.0
    input_perturbation: float = 0.0
    scheduled_sampling: ScheduledSampling | None = None

    def __post_init__(self) -> None:
        check_dropout(self.condition_dropout)
        if self.input_perturbation < 0:
            raise ValueError(
                f"denoising: input_perturbation is {self.input_perturbation}; it must be 0 (off) or more, 0.1 is usual"
            )
        rule = self.scheduled_sampling
        if rule is None:
            return
        if self.input_perturbation:
            raise ValueError(
                f"denoising: input_perturbation is {self.input_perturbation} beside scheduled_sampling, which makes "
                "states of its own; set input_perturbation=0, or leave scheduled_sampling out"
            )
        if rule.correction:
            raise ValueError(
                f"denoising: scheduled_sampling.correction is {rule.correction}, which is of tokens; leave it out"
            )
        if rule.reflexflow is not None and self.process.path != "flow":
            raise ValueError(
                f"denoising: scheduled_sampling.reflexflow is set, but the process has path {self.process.path}; it is "
                "defined for flow matching only: set process.path=flow, or leave reflexflow out"
            )

    def conditional(self) -> Denoising:
        return replace(self, condition_dropout=0.0, input_perturbation=0.0, scheduled_sampling=None)

    def __call__(self, nets: Nets, batch: Batch, key: rng.Key, step: int) -> Loss:
        batch = dropped(self.process, batch, self.condition_dropout, key)
        t = self.time_density.times(stratified(key, batch.ids))
        state = self.process.corrupt(batch, t, key.fold("corrupt"))
        if self.input_perturbation:
            other = self.process.draw(batch, key.fold("perturbation"))
            shaken = self.process.mixed(batch.x, state.noise + self.input_perturbation * other, t)
            state = replace(shaken, noise=state.noise)
        drawn = draw_state(self.scheduled_sampling, self.process, nets, batch, state, key, step)
        return _Step(self, nets, batch, drawn).loss()


@dataclass(frozen=True)
class _Step:
    """One evaluation of the loss, on states that are drawn already."""

    objective: Denoising
    nets: Nets
    batch: Batch
    drawn: DrawnStates

    def loss(self) -> Loss:
        process, state, batch = self.objective.process, self._state, self.batch
        memo = self.nets.model.encode(**batch.conditions())
        output = self._forward(state, memo)
        weights = self.objective.weight.weights(process, state.t)
        error = output - process.target(batch.x, state.noise, state.t)
        image = process.image_of(output.detach(), state.x, state.t)
        in_image = (image - batch.x).square().flatten(1).mean(1)
        if process.prediction == "eps":
            bound = process.gain(state.t).clamp_min(1.0).square().reciprocal()
            in_image = in_image * bound.to(in_image.device, in_image.dtype, non_blocking=True)
        metrics: _Metrics = {"image_error": (in_image.sum(), float(batch.size))}
        if self.drawn.joined is None:
            terms = error.square().flatten(1).mean(1)
        else:
            terms = self._rolled_terms(output, error, memo, metrics)
        total = (terms * weights.to(terms.device, terms.dtype, non_blocking=True)).sum()
        if self.objective.scheduled_sampling is not None:
            metrics |= self.drawn.costs(batch.size, batch.size, self._num_more)
        return Loss(total, float(batch.size), metrics)

    @property
    def _state(self) -> Noised:
        assert isinstance(self.drawn.state, Noised)
        return self.drawn.state

    @property
    def _rule(self) -> ScheduledSampling:
        assert self.objective.scheduled_sampling is not None
        return self.objective.scheduled_sampling

    @property
    def _num_more(self) -> int:
        """Rows through the network beside the rollout and the forward of the loss; one with gradient counts 3."""
        if self._rule.reflexflow is None or self.drawn.joined is None:
            return 0
        return len(self.drawn.joined) * (4 if self._rule.reflexflow.mode == "jump" else 1)

    def _forward(self, state: Noised, memo: Any) -> Images:
        return self.nets.model(state.x, _seen(state), memo).float()

    def _rolled_terms(self, output: Images, error: Images, memo: Any, metrics: _Metrics) -> Float[Tensor, "B"]:
        """The loss of each example, those of the rollout on their own terms."""
        assert self.drawn.joined is not None and isinstance(self.drawn.clean, Noised)
        joined = self.drawn.joined.to(error.device, non_blocking=True)
        x0, output = self.batch.x[joined], output[joined]
        reached = Noised(self._state.x[joined], self._state.t[self.drawn.joined], self._state.noise[joined])
        reflex = self._rule.reflexflow
        own = error[joined]
        if self._rule.target == "restoring" and not (reflex is not None and reflex.mode == "jump"):
            own = self._restoring(output, reached, x0)
        squared = own.square()
        if reflex is not None:
            squared, drift = self._reflexes(reflex, output, reached, squared, memo)
            metrics["frequency_compensated"] = (squared.detach().flatten(1).mean(1).sum(), float(len(joined)))
            metrics["anti_drift"] = (drift.detach().sum(), float(len(joined)))
            mean = reflex.beta2 * squared.flatten(1).mean(1) + reflex.beta1 * drift
        else:
            mean = squared.flatten(1).mean(1)
        metrics["rolled_loss"] = (mean.detach().sum(), float(len(joined)))
        return error.square().flatten(1).mean(1).index_copy(0, joined, mean)

    def _restoring(self, output: Images, reached: Noised, x0: Images) -> Images:
        """The error against the prediction that leads from the reached state back to the image, s bounded from below.

        The target is of size 1/s near the data, where the state is s·(prediction) away from the image.
        """
        process = self.objective.process
        left = process.residual(output, reached.x, x0, reached.t)
        if process.prediction == "x0":
            return left
        _, s = process.coefficients(reached.t)
        return left / process.over(s.clamp_min(self._rule.s_min), left)

    def _reflexes(
        self, reflex: ReflexFlow, output: Images, reached: Noised, squared: Images, memo: Any
    ) -> tuple[Images, Float[Tensor, "B"]]:
        """The compensated squared errors of the rows of the rollout, and their drift."""
        assert self.drawn.joined is not None and isinstance(self.drawn.clean, Noised)
        process, clean = self.objective.process, self.drawn.clean
        part = self.batch.rows(self.drawn.joined)
        current = self.nets.current
        with evaluating(current):
            memo_apart = current.encode(**part.conditions())
            at_clean = current(clean.x, _seen(clean), memo_apart).float()
        drifted, x = output, reached.x
        if reflex.mode == "jump":
            _, s = process.coefficients(reached.t)
            _, s_end = process.coefficients(clean.t)
            x = reached.x + process.over(s_end - s, output) * self._velocity(output, reached.x, reached.t)
            landed = Noised(x, clean.t, clean.noise)
            drifted = self._forward(landed, taken(memo, self.drawn.joined))
        velocities = [self._velocity(one, at, clean.t) for one, at in ((at_clean, clean.x), (drifted, x))]
        weights = compensation(velocities[0], velocities[1], reflex.alpha)
        return weights * squared, anti_drift(velocities[1], x - part.x)

    def _velocity(self, output: Images, x: Images, t: Float[Tensor, "B"]) -> Images:
        """noise - x0 of flow matching, from whatever is predicted."""
        process = self.objective.process
        if process.prediction == "flow":
            return output
        _, s = process.coefficients(t)
        return (x - process.image_of(output, x, t)) / process.over(s.clamp_min(self._rule.s_min), x)


def _seen(state: Noised) -> Float[Tensor, "B"]:
    """The times of a state as a network receives them."""
    return state.t.to(state.x.device, torch.float32, non_blocking=True)
