"""Plain cross-entropy on masked tokens, with a curriculum over the mask ratio. A training loss, not a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from onpath import rng
from onpath.objectives.base import (
    Objective,
    check_dropout,
    corrections_of,
    dropped,
    rollout_metrics,
    score_masked,
    stratified,
    token_metrics,
)
from onpath.processes.masking import Masking
from onpath.ramps import Ramp, as_ramp
from onpath.rollouts import TokenRollouts, draw_state
from onpath.sampling.loop import Sampler
from onpath.scheduled_sampling import ScheduledSampling
from onpath.types import Batch, Loss, Nets, Noisy


@dataclass(frozen=True)
class MaskedCrossEntropy(Objective):
    """Mean cross-entropy over masked tokens; the ratio is low + (high - low)·mask_ratio(t), t uniform.

    low, high: bounds of the mask ratio, numbers or ramps over optimizer steps. Sampling starts fully masked, so a
    `high` that ends below 1 never trains the first state of a generation: it is refused unless `partial` is set.
    exact: mask a fixed number of tokens for a ratio instead of one coin a position.
    condition_dropout: share of examples trained without their condition, for guidance.
    scheduled_sampling: trains rows on states that the model has reached itself, by the run's own `sampler`; see
      ``ScheduledSampling``. Validation is on states of the process alone.
    Never reported as a NELBO; see ``ContinuousNELBO`` for the bound.
    """

    process: Masking
    low: float | Ramp = 0.0
    high: float | Ramp = 1.0
    partial: bool = False
    exact: bool = True
    condition_dropout: float = 0.0
    scheduled_sampling: ScheduledSampling | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        check_dropout(self.condition_dropout)
        _ = self.rollouts  # refused here where they cannot be
        low, high = as_ramp(self.low), as_ramp(self.high)
        final = high.value(2**62)
        for step in (0, *low.bends, *high.bends, 2**62):
            if not 0.0 <= low.value(step) <= high.value(step) <= 1.0:
                raise ValueError(
                    f"masked cross-entropy: the mask ratio runs from low {low.value(step)} to high {high.value(step)} "
                    f"at step {min(step, max(*low.bends, *high.bends))}; needed is 0 <= low <= high <= 1"
                )
        if not self.partial and final < 1.0:
            raise ValueError(
                f"masked cross-entropy: high ends at {final}, so the fully masked state from which sampling starts is "
                "never trained. Let it reach 1.0, or set partial: true if that is what you want"
            )

    @property
    def rollouts(self) -> TokenRollouts | None:
        """How rows come to states of the model's own; ValueError where the sampler cannot bring them there."""
        rule = self.scheduled_sampling
        return None if rule is None else TokenRollouts(rule, self.sampler)

    def conditional(self) -> MaskedCrossEntropy:
        return replace(self, condition_dropout=0.0, scheduled_sampling=None)

    def __call__(self, nets: Nets, batch: Batch, key: rng.Key, step: int) -> Loss:
        low, high = as_ramp(self.low).value(step), as_ramp(self.high).value(step)
        batch = dropped(self.process, batch, self.condition_dropout, key)
        t = stratified(key, batch.ids)
        ratio = low + (high - low) * self.process.schedule.mask_ratio(t)
        if self.exact:
            num_masked = torch.ceil(ratio * batch.free_counts()).long().clamp_min(1)
            num_masked = torch.minimum(num_masked, batch.free_counts())
            noisy = self.process.corrupt_count(batch, num_masked, key.fold("corrupt"))
        else:
            noisy = self.process.corrupt_ratio(batch, ratio.float().to(batch.x.device), key.fold("corrupt"))
        rollouts = self.rollouts
        drawn = draw_state(rollouts, self.process, nets, batch, noisy, key, step)
        assert isinstance(drawn.state, Noisy)
        corrections = corrections_of(rollouts, drawn)
        scores = score_masked(self.process, nets.model, batch, drawn.state, corrections=corrections)
        metrics = token_metrics(scores, drawn.state, batch)
        if self.scheduled_sampling is not None:
            metrics |= rollout_metrics(drawn, batch)
        return Loss(scores.cost.sum(), metrics["num_masked"][0], metrics)
