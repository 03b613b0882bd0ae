"""What is told of rollouts: rewards, lengths, costs, and how likely they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.experience.generation import Rollouts
from onpath.objectives.nelbo import bound_of
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.rewards.scoring import Scores
from onpath.rollouts import evaluating
from onpath.types import Denoiser, Experience

Sums = dict[str, tuple[float, float]]
_BOUND_ROLLOUTS = 32  # of each round, on whose tokens the bound is taken
_BOUND_STEPS = 8


def of_rollouts(rollouts: Rollouts, scores: Scores, end_id: int | None) -> Sums:
    """Figures as (sum, count) over the rollouts of a process."""
    experience, count = rollouts.experience, float(len(scores.total))
    lengths = rollouts.lengths
    sums = {
        "reward": (float(scores.total.sum()), count),
        "completions/mean_length": (float(lengths.sum()), count),
        "rollout_forwards": (float(rollouts.num_forwards), count),
        "rollout_seconds": (rollouts.seconds, 1.0),
        "logp/traj": (float(experience.log_prob.sum()), count),
    }
    if end_id is not None:
        cut = (lengths == experience.free.sum(1)).sum()
        sums["completions/clipped_ratio"] = (float(cut), count)
    for name, values in scores.by_name.items():
        said = values[~values.isnan()]
        sums[f"rewards/{name}/mean"] = (float(said.sum()), float(len(said)))
    return sums


def of_round(groups: Float[Tensor, "P G"], found: Sequence[Scores], lengths: Float[Tensor, "N"]) -> Sums:
    """Figures of a whole round, the same in every process: spreads over groups, rewards and lengths."""
    sums = {
        "reward_std": float(groups.std(1).mean()),
        "frac_reward_zero_std": float((groups.amax(1) == groups.amin(1)).float().mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
    }
    for name in found[0].by_name:
        values = torch.cat([one.by_name[name] for one in found])
        said = values[~values.isnan()]
        if len(said) > 1:
            sums[f"rewards/{name}/std"] = float(said.std())
    return {name: (value, 1.0) for name, value in sums.items()}


def likelihood(
    policy: PolicyGradient,
    denoiser: Denoiser,
    experience: Experience,
    place: Int64[Tensor, "N"],
    key: rng.Key,
    device: torch.device,
) -> Mapping[str, tuple[float, float]]:
    """`logp/nelbo`, the bound on the log-probability of the finished tokens by fresh masks, of the first rollouts of
    the round; and `logp/gap`, by how much the tokens were likelier along the trajectory that drew them.

    place: of each rollout of this process among those of all, rising.
    """
    own = int((place < _BOUND_ROLLOUTS).sum())
    part = experience.rows(slice(0, max(own, 1)))  # one without any of the first runs along and counts nothing
    bound = bound_of(policy.process, policy.grid, _BOUND_STEPS, policy.walker.fixed_counts)
    batch = replace(part.batch, x=part.tokens).to(device)
    with evaluating(denoiser):
        nats = -float(bound.of_examples(denoiser, batch, key.fold("bound"), 1).sum())
    if own == 0:
        return {}
    return {"logp/nelbo": (nats, own), "logp/gap": (float(part.log_prob.sum()) - nats, own)}
