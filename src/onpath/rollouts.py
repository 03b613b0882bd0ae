"""States to train on: those of the forward process, or those that the model reaches by itself.

Scheduled sampling: a row that takes part begins some steps of a sampling grid nearer to noise, and the model's own
weights denoise it back to the time that it is trained at, with no gradient. Rows of all lengths share each forward.
Of tokens the time is the number of masks: a row begins with more of them, and the run's own sampler reveals the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
import torch.nn as nn
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.base import Process
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking, rounded, uniform_draws
from onpath.sampling.counts import AdaptiveCount, ScheduleCount
from onpath.sampling.loop import Knobs, Sampler, roll
from onpath.sampling.orders import first
from onpath.sampling.states import TokenState
from onpath.sampling.unmasking import Unmasking
from onpath.scheduled_sampling import ScheduledSampling
from onpath.schedules import LinearSchedule, Schedule
from onpath.types import Batch, Denoiser, Nets, Noised, Noisy


@dataclass(frozen=True)
class DrawnStates:
    """The states of a step of training.

    state: of all rows. joined: indices of the rows on states of the model's own, None for none. clean: the state that
    the forward process gives those rows at their time. num_forwards: rows that went through a network without gradient.
    seconds: that this took on the host.
    revealed: of tokens, (M, L) the positions whose token is the model's own, num_revealed of them.
    """

    state: Noised | Noisy
    joined: Int64[Tensor, "N"] | None = None
    clean: Noised | Noisy | None = None
    num_forwards: int = 0
    seconds: float = 0.0
    revealed: Bool[Tensor, "M L"] | None = None
    num_revealed: int = 0

    def costs(self, num_states: int, num_examples: int, num_more: int = 0) -> dict[str, tuple[Tensor | float, float]]:
        """As (sum, count) pairs: the share of the states that took part, rows through the network for each example,
        `num_more` of them beside the rollouts, and seconds."""
        return {
            "rollout_share": (float(0 if self.joined is None else len(self.joined)), float(num_states)),
            "rollout_forwards": (float(self.num_forwards + num_more), float(num_examples)),
            "rollout_seconds": (self.seconds, 1.0),
        }


_OF_IMAGES = ("sampler", "order", "mode", "coarse_steps", "fine_steps", "target", "s_min", "reflexflow")


@dataclass(frozen=True)
class TokenRollouts:
    """Scheduled sampling of tokens: the rule, and the run's sampler, by which rows are revealed.

    sampler: its order and its choice of tokens are kept. Its counts are those of the schedule, so that each row ends
    with the number of masks that it is trained at, and there is no guidance: a rollout follows the network that is
    trained. ValueError where the sampler cannot be followed so, and for settings that are of images.
    """

    rule: ScheduledSampling
    sampler: Sampler | None

    def __post_init__(self) -> None:
        for field in fields(self.rule):
            value = getattr(self.rule, field.name)
            if field.name in _OF_IMAGES and value != field.default:
                raise ValueError(
                    f"scheduled sampling: {field.name} is {value!r}, which is of images; tokens are revealed by the "
                    "run's own sampler; leave it out"
                )
        sampler = self.sampler
        if not isinstance(sampler, Unmasking):
            raise ValueError(
                f"scheduled sampling: the sampler is {sampler}, and tokens are rolled out by the one that the run "
                "generates with; hand the objective sampler=Unmasking()"
            )
        refused = {
            "remask": (sampler.remask is not None, "masks revealed tokens again"),
            "blocks": (sampler.blocks is not None, "goes from left to right"),
            "count": (isinstance(sampler.count, AdaptiveCount), "reveals as many as the network is sure of"),
            "stop_at_end": (sampler.stop_at_end, "fills what follows an end token"),
        }
        for name, (given, does) in refused.items():
            if given:
                raise ValueError(
                    f"scheduled sampling: sampler.{name} is {getattr(sampler, name)}, which {does}, so a rollout by it "
                    "would not end with the number of masks that a row is trained at; leave sampler."
                    f"{name} out, or objective.scheduled_sampling"
                )

    @property
    def walker(self) -> Unmasking:
        """The sampler with the counts of the schedule, without guidance."""
        assert isinstance(self.sampler, Unmasking)
        return replace(self.sampler, count=ScheduleCount(), guidance=0.0)


def draw_state(
    rule: ScheduledSampling | TokenRollouts | None,
    process: Process,
    nets: Nets,
    batch: Batch,
    state: Noised | Noisy,
    key: rng.Key,
    step: int,
) -> DrawnStates:
    """The states to train on: `state`, of the forward process, with the rows that take part replaced.

    rule: for tokens a ``TokenRollouts``. state: of tokens it may hold m·B states of B examples, each of which is rolled
    out by draws of its own. key: the stream of the optimizer step; rollouts draw from a stream of their own, so that
    with probability 0 every other draw is what it would be without them. step: drives the ramp of the probability.
    """
    settings = rule.rule if isinstance(rule, TokenRollouts) else rule
    probability = 0.0 if settings is None else settings.probability_at(step)
    if rule is None or probability == 0.0:
        return DrawnStates(state)
    begun = time.perf_counter()
    key = key.fold("rollout")
    if isinstance(rule, TokenRollouts):
        assert isinstance(state, Noisy) and isinstance(process, Masking)
        drawn = _drawn_tokens(rule, process, nets, batch, state, key.fold(f"step {step}"), probability)
    else:
        assert isinstance(state, Noised) and isinstance(process, Gaussian)
        draws = rng.uniform(key, batch.ids, (2,)).double()
        offsets = rule.offsets(draws[:, 1]).masked_fill(draws[:, 0] >= probability, 0)
        source = (state.t + offsets.double() / rule.grid_steps).clamp(max=1.0)
        # a source that was held at 1 is a shorter way off; a way of no length is none
        lengths = ((source - state.t) * rule.grid_steps - 1e-6).ceil().long()
        joined = lengths.argsort(descending=True, stable=True)[: int((lengths > 0).sum())]
        if not len(joined):
            return DrawnStates(state)
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
    """The network in evaluation mode and without gradient, and every part of it back as it was."""
    modes = [(part, part.training) for part in denoiser.modules()] if isinstance(denoiser, nn.Module) else []
    for part, _ in modes:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _rolled_images(
    rule: ScheduledSampling,
    process: Gaussian,
    nets: Nets,
    batch: Batch,
    state: Noised,
    plan: tuple[Tensor, Tensor, Tensor],
    key: rng.Key,
) -> DrawnStates:
    """The rows of `plan` (sources of all rows, lengths of all rows, indices) on states of the model's own."""
    sources, lengths, joined = plan
    on_device = joined.to(state.x.device, non_blocking=True)
    clean = Noised(state.x[on_device], state.t[joined], state.noise[on_device])
    part, source, lengths = batch.rows(joined), sources[joined], lengths[joined]
    start = process.mixed(part.x, clean.noise, source)
    if rule.reflexflow is not None and rule.reflexflow.mode == "jump":
        moved = Noised(state.x.index_copy(0, on_device, start.x), state.t.index_copy(0, joined, source), state.noise)
        return DrawnStates(moved, joined, clean)
    average = _average(rule, nets)

    def arrival(denoiser: Denoiser, times: Float[Tensor, "T N"], num_steps: Int64[Tensor, "N"]) -> Tensor:
        return trajectory(denoiser, process, rule.solver, part, start, (times, num_steps), key)

    if rule.mode == "rollout":
        to_go = (lengths - torch.arange(int(lengths[0]) + 1)[:, None]).clamp_min(0)
        times = torch.minimum(source, clean.t + to_go.double() / rule.grid_steps)
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
    return DrawnStates(reached, joined, clean, num_steps * rule.solver.forwards_per_step)


def _average(rule: ScheduledSampling, nets: Nets) -> Denoiser | None:
    """The moving average of the weights where the rule asks for it; ValueError where there is none."""
    if rule.weights != "average" and rule.mode != "inject":
        return None
    if nets.ema is None:
        raise ValueError(
            f"scheduled sampling: mode {rule.mode} with weights {rule.weights} needs the moving average of the "
            "weights, and there is none; train with the trainer, or hand Nets an ema"
        )
    return nets.ema


def _drawn_tokens(
    rollouts: TokenRollouts,
    process: Masking,
    nets: Nets,
    batch: Batch,
    state: Noisy,
    key: rng.Key,
    probability: float,
) -> DrawnStates:
    """The states with those that take part begun with more masks, and revealed by the sampler to as many as before."""
    states, count = _one_by_one(batch, state), _num_masked(state)
    walks = _walks(rollouts.rule, process.schedule, states, count, key, probability)
    num_steps = (walks[:-1] > walks[1:]).sum(0)
    joined = num_steps.argsort(descending=True, stable=True)[: int((num_steps > 0).sum())]
    if not len(joined):
        return DrawnStates(replace(state, num_masked=count))
    on_device = joined.to(state.x.device, non_blocking=True)
    part, walks, num_steps = states.rows(joined), walks[:, joined], num_steps[joined]
    clean = Noisy(state.x[on_device], state.masked[on_device], count[joined])
    start = _more_masked(process, part, clean, walks[0], key.fold("source"))
    denoiser = _average(rollouts.rule, nets) or nets.current
    # by the linear schedule a time is the masked share that belongs to it: the walk is one of counts
    linear = replace(process, schedule=LinearSchedule())
    shares = walks[: int(num_steps[0]) + 1].double() / part.free_counts()
    with evaluating(denoiser):
        begun = rollouts.walker.init(linear, denoiser, start, part, Knobs())
        arrived: list[TokenState] = [*roll(denoiser, linear, rollouts.walker, shares, num_steps, begun, key)][::-1]
    x, masked = (torch.cat(rows) for rows in ([one.x for one in arrived], [one.masked for one in arrived]))
    revealed = torch.zeros_like(state.masked).index_copy(0, on_device, start.masked & ~masked)
    reached = Noisy(state.x.index_copy(0, on_device, x), state.masked.index_copy(0, on_device, masked), count)
    num_forwards = sum(int(one.num_forwards.sum()) for one in arrived)
    num_revealed = int((walks[0] - count[joined]).sum())
    return DrawnStates(reached, joined, clean, num_forwards, revealed=revealed, num_revealed=num_revealed)


def _one_by_one(batch: Batch, state: Noisy) -> Batch:
    """The batch with a row for each of its m·B states, under ids of their own."""
    copies = state.x.shape[0] // batch.size
    if copies == 1:
        return batch
    repeated = batch.rows(torch.arange(batch.size).repeat(copies))
    return replace(repeated, ids=repeated.ids * copies + torch.arange(copies).repeat_interleave(batch.size))


def _num_masked(state: Noisy) -> Int64[Tensor, "M"]:
    """Masked positions of each state, on the CPU."""
    if state.num_masked is not None:
        return state.num_masked
    if state.masked.device.type != "cpu":
        raise ValueError(
            "scheduled sampling: the objective masks by coins, so how many positions are masked is not known without "
            "waiting for the GPU; draw exact counts: masks: pairs or counts (nelbo), exact: true "
            "(masked_cross_entropy), or sampler.count: schedule (trajectory_nelbo)"
        )
    return state.masked.sum(1)


def _walks(
    rule: ScheduledSampling,
    schedule: Schedule,
    states: Batch,
    count: Int64[Tensor, "M"],
    key: rng.Key,
    probability: float,
) -> Int64[Tensor, "T M"]:
    """Masked positions on the way of each state, from its source to `count`; steps that reveal nothing come last."""
    free = states.free_counts().clamp_min(1)
    draws = rng.uniform(key, states.ids, (2,)).double()
    # where nothing is masked nothing is scored
    stays = (draws[:, 0] >= probability) | (count == 0)
    offsets = rule.offsets(draws[:, 1]).masked_fill(stays, 0)
    target = schedule.t_of(1.0 - count.double() / free).clamp(0.0, 1.0)
    to_go = (offsets - torch.arange(rule.max_step_offset + 1)[:, None]).clamp_min(0)
    on_the_way = rounded(schedule.mask_ratio((target + to_go.double() / rule.grid_steps).clamp(max=1.0)) * free)
    walks = torch.where(to_go > 0, torch.maximum(on_the_way, count), count)
    idle_last = (walks[:-1] == walks[1:]).int().argsort(dim=0, stable=True)
    return torch.cat([walks[:1], walks[1:].gather(0, idle_last)])


def _more_masked(process: Masking, batch: Batch, state: Noisy, count: Int64[Tensor, "N"], key: rng.Key) -> Noisy:
    """A state with `count` masks, those of `state` and a uniform choice of others."""
    scores = torch.where(state.masked, 2.0, uniform_draws(key, batch)).masked_fill(~batch.free(), -torch.inf)
    masked = first(scores, count)
    return Noisy(batch.x.masked_fill(masked, process.mask_id), masked, count)
