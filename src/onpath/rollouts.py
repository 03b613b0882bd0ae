"""States to train on: those of the forward process, or those that the model reaches by itself.

Scheduled sampling: a row that takes part begins some steps of a sampling grid nearer to noise, and the model's own
weights denoise it back to the time that it is trained at, with no gradient. Rows of all lengths share each forward.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn as nn
from jaxtyping import Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.base import Process
from onpath.processes.gaussian import Gaussian
from onpath.sampling.loop import Knobs, Sampler, roll
from onpath.scheduled_sampling import ScheduledSampling
from onpath.types import Batch, Denoiser, Nets, Noised, Noisy


@dataclass(frozen=True)
class Drawn:
    """The states of a step of training.

    state: of all rows. joined: indices of the rows on states of the model's own, None for none. clean: the state that
    the forward process gives those rows at their time. num_forwards: rows that went through a network without gradient.
    seconds: that this took on the host.
    """

    state: Noised | Noisy
    joined: Int64[Tensor, "N"] | None = None
    clean: Noised | Noisy | None = None
    num_forwards: int = 0
    seconds: float = 0.0


def draw_state(
    rule: ScheduledSampling | None,
    process: Process,
    nets: Nets,
    batch: Batch,
    state: Noised | Noisy,
    key: rng.Key,
    step: int,
) -> Drawn:
    """The states to train on: `state`, of the forward process, with the rows that take part replaced.

    key: the stream of the optimizer step; rollouts draw from a stream of their own, so that with probability 0 every
    other draw is what it would be without them. step: drives the ramp of the probability.
    """
    probability = 0.0 if rule is None else rule.probability_at(step)
    if rule is None or probability == 0.0:
        return Drawn(state)
    begun = time.perf_counter()
    key = key.fold("rollout")
    draws = rng.uniform(key, batch.ids, (2,)).double()
    assert isinstance(state, Noised) and isinstance(process, Gaussian)
    offsets = rule.offsets(draws[:, 1]).masked_fill(draws[:, 0] >= probability, 0)
    source = (state.t + offsets / rule.grid_steps).clamp(max=1.0)
    # a source that was held at 1 is a shorter way off; a way of no length is none
    lengths = ((source - state.t) * rule.grid_steps - 1e-6).ceil().long()
    joined = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
    if not len(joined):
        return Drawn(state)
    drawn = _rolled_images(rule, process, nets, batch, state, (source, lengths, joined), key)
    return replace(drawn, seconds=time.perf_counter() - begun)


def trajectory(
    denoiser: Denoiser,
    process: Process,
    sampler: Sampler,
    batch: Batch,
    start: Noised,
    walks: tuple[Float[Tensor, "T B"], Int64[Tensor, "B"]],
    key: rng.Key,
) -> Float[Tensor, "B *rest"]:
    """Where the rows of `start` come to by the sampler, each on a grid of its own, with no gradient and no drop-out.

    walks: times (T, B) and numbers of steps (B,), falling, as ``sampling.loop.roll`` takes them.
    """
    with evaluating(denoiser):
        state = sampler.init(process, denoiser, start, batch, Knobs())
        arrived = [part.x for part in roll(denoiser, process, sampler, *walks, state, key)]
    return torch.cat(arrived[::-1])


@contextmanager
def evaluating(denoiser: Denoiser) -> Iterator[None]:
    """The network in evaluation mode and without gradient, and back as it was."""
    network = cast(nn.Module, denoiser) if isinstance(denoiser, nn.Module) else None
    trained = network is not None and network.training
    if network is not None:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if network is not None:
            network.train(trained)


def _rolled_images(
    rule: ScheduledSampling,
    process: Gaussian,
    nets: Nets,
    batch: Batch,
    state: Noised,
    plan: tuple[Tensor, Tensor, Tensor],
    key: rng.Key,
) -> Drawn:
    """The rows of `plan` (sources of all rows, lengths of all rows, indices) on states of the model's own."""
    sources, lengths, joined = plan
    on_device = joined.to(state.x.device)
    clean = Noised(state.x[on_device], state.t[joined], state.noise[on_device])
    part, source, lengths = batch.rows(joined), sources[joined], lengths[joined]
    start = process.mixed(part.x, clean.noise, source)
    if rule.reflexflow is not None and rule.reflexflow.mode == "jump":
        moved = Noised(state.x.index_copy(0, on_device, start.x), state.t.index_copy(0, joined, source), state.noise)
        return Drawn(moved, joined, clean)
    average = nets.ema if rule.weights == "average" or rule.mode == "inject" else None
    if average is None and (rule.weights == "average" or rule.mode == "inject"):
        raise ValueError(
            f"scheduled sampling: mode {rule.mode} with weights {rule.weights} needs the moving average of the "
            "weights, and there is none; train with the trainer, or hand Nets an ema"
        )

    def arrival(denoiser: Denoiser, times: Float[Tensor, "T N"], num_steps: Int64[Tensor, "N"]) -> Tensor:
        return trajectory(denoiser, process, rule.solver, part, start, (times, num_steps), key)

    if rule.mode == "rollout":
        to_go = (lengths - torch.arange(int(lengths[0]) + 1)[:, None]).clamp_min(0)
        times = torch.minimum(source, clean.t + to_go / rule.grid_steps)
        x = arrival(nets.current if average is None else average, times, lengths)
        num_steps = int(lengths.sum())
    else:
        assert average is not None
        ends = []
        for denoiser, count in ((nets.current, rule.coarse_steps), (average, rule.fine_steps)):
            share = torch.linspace(1.0, 0.0, count + 1, dtype=torch.float64)[:, None]
            ends.append(arrival(denoiser, clean.t + share * (source - clean.t), torch.full_like(lengths, count)))
        x = clean.x + ends[0] - ends[1]
        num_steps = len(joined) * (rule.coarse_steps + rule.fine_steps)
    reached = replace(state, x=state.x.index_copy(0, on_device, x))
    return Drawn(reached, joined, clean, num_steps * rule.solver.forwards_per_step)
