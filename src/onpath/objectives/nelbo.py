"""Bounds on the likelihood of masked diffusion: the continuous-time NELBO, and that of a sampler's own T steps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.objectives.base import (
    Objective,
    check_dropout,
    corrections_of,
    dropped,
    rollout_metrics,
    score_masked,
    stack_noisy,
    stratified,
    token_metrics,
)
from onpath.processes.masking import Masking
from onpath.rollouts import TokenRollouts, draw_state
from onpath.sampling.grids import Grid, UniformGrid
from onpath.sampling.loop import Sampler
from onpath.scheduled_sampling import ScheduledSampling
from onpath.types import Batch, Denoiser, Loss, Nets, Noisy


class Bound(Objective):
    """An objective that bounds -log p(x); with scheduled sampling it is trained on other states and bounds nothing."""

    process: Masking
    condition_dropout: float
    scheduled_sampling: ScheduledSampling | None
    sampler: Sampler | None

    @property
    def is_bound(self) -> bool:
        return self.scheduled_sampling is None

    @property
    def rollouts(self) -> TokenRollouts | None:
        """How rows come to states of the model's own; ValueError where the sampler cannot bring them there."""
        rule = self.scheduled_sampling
        return None if rule is None else TokenRollouts(rule, self.sampler)

    def __call__(self, nets: Nets, batch: Batch, key: rng.Key, step: int) -> Loss:
        batch = dropped(self.process, batch, self.condition_dropout, key)
        noisy, weights = self.states(batch, stratified(key, batch.ids), key.fold("corrupt"))
        rollouts = self.rollouts
        drawn = draw_state(rollouts, self.process, nets, batch, noisy, key, step)
        assert isinstance(drawn.state, Noisy)
        # a correction weighs as a token of the text does, whose weights over the states of an example are 1 on average
        corrections = corrections_of(rollouts, drawn, 1.0 / (len(weights) // batch.size))
        scores = score_masked(self.process, nets.model, batch, drawn.state, weights, corrections)
        nats, num_free = scores.cost.sum(), float(batch.free_counts().sum())
        metrics = token_metrics(scores, drawn.state, batch)
        if self.is_bound:
            metrics["nelbo_per_token"] = (nats.detach(), num_free)
            metrics["nelbo"] = (nats.detach(), float(batch.size))
        else:
            metrics |= rollout_metrics(drawn, batch)
        return Loss(nats, num_free, metrics)

    @abstractmethod
    def states(self, batch: Batch, draws: Float[Tensor, "B"], key: rng.Key) -> tuple[Noisy, Float[Tensor, "M"]]:
        """States (M, L), M a multiple of B, and weights (M,) whose weighted cross-entropies bound -log p(x) on average
        over `draws` (B,), uniform in [0, 1)."""

    def of_examples(self, denoiser: Denoiser, batch: Batch, key: rng.Key, num_draws: int) -> Float[Tensor, "B"]:
        """The bound of each example in nats, fp64: the mean over `num_draws` draws, stratified for each example."""
        total = torch.zeros(batch.size, dtype=torch.float64, device=batch.x.device)
        shift = rng.uniform(key.fold("strata"), batch.ids).double()
        for draw in range(num_draws):
            part = key.fold(f"draw {draw}")
            noisy, weights = self.states(batch, (shift + draw) / num_draws, part)
            scores = score_masked(self.process, denoiser, batch, noisy, weights)
            total.index_add_(0, scores.example % batch.size, scores.cost.double())
        return total / num_draws


@dataclass(frozen=True)
class ContinuousNELBO(Bound):
    """-∫ alpha'/(1 - alpha)·E_q Σ_masked CE dt, an upper bound on -log p(x), in nats per free token.

    masks: how the corruption is drawn; all are unbiased for schedules with ends 1 and 0.
      `pairs`: k stratified in 0..L, a subset of size k and its complement, weights (L+1)/k and (L+1)/(L-k), halved;
      `counts`: k stratified in 1..L, weight L/k;
      `bernoulli`: t stratified, one coin a position, weight -alpha'/(1 - alpha).
    condition_dropout: share of examples trained without their condition, for guidance.
    scheduled_sampling: trains rows on states that the model has reached itself, by the run's own `sampler`; see
      ``ScheduledSampling``. Validation is on states of the process alone.
    The integral is over du/u with u = 1 - alpha, hence the same for every schedule with these ends; one with bounds
    has a T-step bound only (``TrajectoryNELBO``) and is refused here.
    Source: MDLM, arXiv:2406.07524, Eq. 10; exact counts: arXiv:2406.03736, Eq. 3.13.
    """

    process: Masking
    masks: Literal["pairs", "counts", "bernoulli"] = "pairs"
    condition_dropout: float = 0.0
    scheduled_sampling: ScheduledSampling | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        check_dropout(self.condition_dropout)
        _ = self.rollouts  # refused here where they cannot be
        ends = self.process.schedule.end_points()
        if ends != (1.0, 0.0):
            raise ValueError(
                f"continuous NELBO: the schedule runs from alpha {ends[0]:g} to {ends[1]:g}; the integral is a bound "
                "for 1 to 0 only. Remove alpha_min and alpha_max, or take the objective trajectory_nelbo"
            )
        if self.masks not in ("pairs", "counts", "bernoulli"):
            raise ValueError(f"continuous NELBO: masks is {self.masks!r}; allowed are pairs, counts, bernoulli")

    def conditional(self) -> ContinuousNELBO:
        return replace(self, condition_dropout=0.0, scheduled_sampling=None)

    def states(self, batch: Batch, draws: Float[Tensor, "B"], key: rng.Key) -> tuple[Noisy, Float[Tensor, "M"]]:
        free = batch.free_counts()
        if self.masks == "bernoulli":
            # 1 - draws lies in (0, 1]: the weight is finite at every t that can be drawn
            t = (1.0 - draws).float().to(batch.x.device)
            schedule = self.process.schedule
            return self.process.corrupt(batch, t, key), -schedule.dalpha(t) / schedule.mask_ratio(t)
        if self.masks == "counts":
            count = (draws * free).long() + 1
            count = torch.minimum(count, free)
            return self.process.corrupt_count(batch, count, key), (free / count.clamp_min(1)).float()
        count = (draws * (free + 1)).long()
        ranks = self.process.ranks(batch, key)
        first = ranks < count.to(ranks.device)[:, None]
        noisy = stack_noisy(
            [self._masked(batch, m, c) for m, c in ((first, count), (batch.free() & ~first, free - count))]
        )
        sizes = torch.cat([count, free - count])
        weights = torch.where(sizes > 0, 0.5 * (free + 1).repeat(2) / sizes.clamp_min(1), 0.0)
        return noisy, weights.float()

    def _masked(self, batch: Batch, masked: Tensor, count: Int64[Tensor, "B"]) -> Noisy:
        return Noisy(batch.x.masked_fill(masked, self.process.mask_id), masked, count)


@dataclass(frozen=True)
class TrajectoryNELBO(Bound):
    """The bound of the sampler that walks on `grid`: Σ_j rho_j·E_q Σ_masked CE(z_j), in nats per free token.

    grid: the sampler's own grid; its T steps include those to and from the pure states of a bounded schedule, whose
    terms (reconstruction at the data end, all-mask at the other) make the number a bound for every schedule.
    steps_per_example: K of the T steps, stratified, weight T/K; 0 takes all of them.
    fixed_counts: False for the ancestral sampler (rho_j = (alpha_{j-1} - alpha_j)/(1 - alpha_j)), True for the one that
    reveals a fixed number n_j of the |M_j| masked positions, chosen uniformly (weight n_j/|M_j|).
    condition_dropout: share of examples trained without their condition, for guidance.
    scheduled_sampling: trains rows on states that the model has reached itself, by the run's own `sampler`; see
      ``ScheduledSampling``. Validation is on states of the process alone.
    Source: MDLM, arXiv:2406.07524, Eq. 7 and 8, with the first and last term written out.
    """

    process: Masking
    grid: Grid = UniformGrid(128)
    steps_per_example: int = 4
    fixed_counts: bool = False
    condition_dropout: float = 0.0
    scheduled_sampling: ScheduledSampling | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        check_dropout(self.condition_dropout)
        _ = self.rollouts  # refused here where they cannot be
        num_steps = len(self.grid.times(self.process.schedule)) - 1
        if not 0 <= self.steps_per_example <= num_steps:
            raise ValueError(
                f"trajectory NELBO: steps_per_example is {self.steps_per_example}; allowed are 0 (all) to the "
                f"{num_steps} steps of the grid"
            )

    def conditional(self) -> TrajectoryNELBO:
        return replace(self, condition_dropout=0.0, scheduled_sampling=None)

    def states(self, batch: Batch, draws: Float[Tensor, "B"], key: rng.Key) -> tuple[Noisy, Float[Tensor, "M"]]:
        times = torch.tensor(self.grid.times(self.process.schedule), dtype=torch.float64)
        num_steps = len(times) - 1
        num_sampled = self.steps_per_example or num_steps
        states, weights = [], []
        for sample in range(num_sampled):
            # strata of width T/K: each step of the grid is drawn K/T times on average
            index = ((sample + draws) * num_steps / num_sampled).long().clamp_max(num_steps - 1)
            noisy, weight = self._state(batch, times, index, key.fold(str(sample)))
            states.append(noisy)
            weights.append(weight * num_steps / num_sampled)
        return stack_noisy(states), torch.cat(weights)

    def _state(
        self, batch: Batch, times: Float[Tensor, "T"], index: Int64[Tensor, "B"], key: rng.Key
    ) -> tuple[Noisy, Float[Tensor, "B"]]:
        """A state at the noisier end of step `index` of each example, and the weight of that step."""
        t, s = times[index], times[index + 1]
        if not self.fixed_counts:
            weight = self.process.reveal_probability(t, s).float()
            return self.process.corrupt(batch, t.float(), key), weight
        before = self.process.scheduled_count(t, batch.free_counts())
        after = self.process.scheduled_count(s, batch.free_counts())
        weight = torch.where(before > 0, (before - after) / before.clamp_min(1), 0.0)
        return self.process.corrupt_count(batch, before, key), weight.float()


def bound_of(process: Masking, grid: Grid, steps_per_example: int, fixed_counts: bool) -> Bound:
    """The bound that fits a schedule: continuous where its ends are 1 and 0, else that of the sampler's walk on `grid`.

    steps_per_example: of that walk, drawn for each example; 0 takes all, and never more than there are.
    """
    if process.schedule.end_points() == (1.0, 0.0):
        return ContinuousNELBO(process)
    num_steps = len(grid.times(process.schedule)) - 1
    return TrajectoryNELBO(process, grid, min(steps_per_example, num_steps), fixed_counts)
