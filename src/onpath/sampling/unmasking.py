"""The unmasking sampler: which positions, how many, and what token, three independent choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.masking import Masking, flat_rows
from onpath.sampling.counts import AdaptiveCount, AncestralCount, Count, ScheduleCount
from onpath.sampling.loop import Knobs, Sampler, State
from onpath.sampling.tokens import Categorical, Drawn, draw, guided
from onpath.types import Batch, Denoiser

Order = Literal["random", "confidence", "margin", "entropy", "left_to_right"]
_BLIND = ("random", "left_to_right")  # orders that are known before the forward


@dataclass(frozen=True)
class Unmasking(Sampler):
    """Reveals masked positions step by step; revealed and given positions never change.

    Only the rows in which a step reveals something go through the network.

    order: which positions first: at random, by the probability of the token drawn, by the margin between the two
      likeliest tokens, by low entropy, or from the left.
    count: how many; see ``sampling.counts``. tokens: what; see ``Categorical``.
    order_noise: Gumbel noise times the masked fraction, on the log of the confidence (MaskGIT) or of the margin, or on
      the negative entropy itself.
    guidance: weight w of (1 + w)·cond - w·uncond; 0 runs one branch only.
    Sources: MaskGIT, arXiv:2202.04200, Section 3.3; LLaDA, arXiv:2502.09992; margin: arXiv:2502.06768.
    """

    order: Order = "random"
    count: Count = ScheduleCount()
    tokens: Categorical = Categorical()
    order_noise: float = 0.0
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in ("random", "confidence", "margin", "entropy", "left_to_right"):
            raise ValueError(
                f"unmasking: order is {self.order!r}; allowed are random, confidence, margin, entropy, left_to_right"
            )
        if isinstance(self.count, AncestralCount) and self.order != "random":
            raise ValueError(
                f"unmasking: the ancestral count reveals each position by its own coin, so order {self.order!r} "
                "would have no effect; set order: random, or count: schedule"
            )
        if self.order_noise < 0 or (self.order_noise > 0 and self.order in _BLIND):
            raise ValueError(
                f"unmasking: order_noise is {self.order_noise} with order {self.order!r}; it must be 0 or more and "
                "acts on the orders confidence, margin and entropy only"
            )

    @property
    def fixed_counts(self) -> bool:
        return isinstance(self.count, ScheduleCount)

    def init(self, process: Masking, denoiser: Denoiser, batch: Batch, knobs: Knobs) -> State:
        if knobs.reveal is not None and not self.fixed_counts:
            raise ValueError(
                f"knobs: reveal sets the number of reveals of each row, but {type(self.count).__name__} decides it; "
                "leave reveal out, or set count: ScheduleCount()"
            )
        prior = process.prior(batch)
        cond = batch.conditions()
        is_guided = self.guidance != 0.0 or knobs.guidance is not None
        if is_guided:
            bare = process.unconditional(batch).conditions()
            flags = torch.zeros(batch.size, dtype=torch.bool, device=batch.x.device)
            both = {**cond, "drop": flags} if "drop" in bare else cond
            cond = {name: torch.cat([both[name], bare[name]]) for name in both}
        return State(
            x=prior.x,
            masked=prior.masked,
            num_masked=prior.num_masked if self.fixed_counts else None,
            revealed_at=torch.full_like(prior.x, -1),
            confidence=torch.zeros(prior.x.shape, device=prior.x.device),
            num_forwards=torch.zeros(batch.size, dtype=torch.int64),
            step=0,
            batch=batch,
            memo=denoiser.encode(**cond),
            num_branches=2 if is_guided else 1,
        )

    def step(
        self, process: Masking, denoiser: Denoiser, state: State, times: tuple[Any, Any], key: rng.Key, knobs: Knobs
    ) -> State:
        t, s = (torch.as_tensor(time, dtype=torch.float64).expand(state.batch.size) for time in times)
        num_reveal = self._num_reveal(process, state, s, knobs)
        blind = self._blind_choice(process, state, (t, s), num_reveal, key)
        busy = _busy(state, blind, num_reveal)
        if busy is not None and len(busy) == 0:
            return replace(state, step=state.step + 1)
        if busy is not None and len(busy) < state.batch.size:
            part = state.rows(busy)
            return state.merged(self.step(process, denoiser, part, (t[busy], s[busy]), key, knobs.rows(busy)), busy)
        total = None if num_reveal is None else int(num_reveal.sum())
        if blind is None and state.num_masked is not None:
            total = int(state.num_masked.sum())
        rows = flat_rows(state.masked if blind is None else blind, total)
        drawn = self._forward(process, denoiser, state, rows, key, knobs)
        if blind is None:
            reveal = self._sighted_choice(process, state, rows, drawn, (s, num_reveal), key)
        else:
            reveal = blind
        return self._reveal(state, rows, drawn, reveal, num_reveal)

    def _num_reveal(
        self, process: Masking, state: State, s: Float[Tensor, "B"], knobs: Knobs
    ) -> Int64[Tensor, "B"] | None:
        """Reveals of a step where they are known ahead, on the CPU."""
        if state.num_masked is None:
            return None
        target = process.scheduled_count(s, state.batch.free_counts())
        if knobs.reveal is None:
            return (state.num_masked - target).clamp_min(0)
        asked = torch.minimum(knobs.reveal, state.num_masked)
        return torch.where(process.schedule.mask_ratio(s) > 0, asked, state.num_masked)

    def _blind_choice(
        self,
        process: Masking,
        state: State,
        times: tuple[Float[Tensor, "B"], Float[Tensor, "B"]],
        num_reveal: Int64[Tensor, "B"] | None,
        key: rng.Key,
    ) -> Bool[Tensor, "B L"] | None:
        """The positions to reveal where they do not depend on the network: its head then runs at these only."""
        length = state.x.shape[1]
        if isinstance(self.count, AncestralCount):
            rho = process.reveal_probability(*times).float().to(state.x.device)
            draws = rng.uniform(key.fold("reveal"), state.batch.ids.to(state.x.device), (length,))
            return (draws < rho[:, None]) & state.masked
        if num_reveal is None or self.order not in _BLIND:
            return None
        scores = self._blind_scores(state, key).masked_fill(~state.masked, -torch.inf)
        return _first(scores, num_reveal) & state.masked

    def _blind_scores(self, state: State, key: rng.Key) -> Float[Tensor, "B L"]:
        length = state.x.shape[1]
        if self.order == "random":
            return rng.uniform(key.fold("order"), state.batch.ids.to(state.x.device), (length,))
        return -torch.arange(length, device=state.x.device, dtype=torch.float32).expand(state.x.shape)

    def _forward(
        self, process: Masking, denoiser: Denoiser, state: State, rows: Int64[Tensor, "N"], key: rng.Key, knobs: Knobs
    ) -> Drawn:
        """One forward of every row of the state, tokens drawn at `rows` inside it."""
        batch, device = state.batch, state.x.device
        length = state.x.shape[1]
        greedy = self.tokens.temperature == 0 and knobs.temperature is None
        words = None if greedy else rng.bits(key.fold("token"), batch.ids.to(device), (length,)).flatten()
        detailed = self.order in ("margin", "entropy") or isinstance(self.count, AdaptiveCount)
        is_guided = state.num_branches == 2
        weight = knobs.guidance
        if weight is None:
            weight = torch.full((batch.size,), self.guidance, device=device)

        def readout(logits: Tensor, chunk: Int64[Tensor, "N"]) -> tuple[Tensor, ...]:
            if is_guided:
                chunk = chunk[0::2]
                logits = guided(logits, weight[chunk // length])
            heat = None if knobs.temperature is None else knobs.temperature[chunk // length]
            chosen = None if words is None else words[chunk]
            drawn = draw(process.words_only(logits), chosen, self.tokens, heat, detailed=detailed)
            if drawn.margin is None or drawn.entropy is None:
                return drawn.token, drawn.confidence
            return drawn.token, drawn.confidence, drawn.margin, drawn.entropy

        x, counts = state.x, state.num_masked
        counts = state.masked.sum(-1) if counts is None else counts.to(device)
        if is_guided:
            bare = process.unconditional(batch).x
            x = torch.cat([x, x if batch.given is None else torch.where(batch.given, bare, x)])
            counts = counts.repeat(2)
            rows = torch.stack([rows, rows + batch.size * length], dim=1).flatten()
        t = process.masked_fraction(batch, counts)
        return Drawn(*denoiser(x, t, state.memo, rows=rows, readout=readout))

    def _sighted_choice(
        self,
        process: Masking,
        state: State,
        rows: Int64[Tensor, "N"],
        drawn: Drawn,
        until: tuple[Float[Tensor, "B"], Int64[Tensor, "B"] | None],
        key: rng.Key,
    ) -> Bool[Tensor, "B L"]:
        """The positions to reveal in the step to s, given what the network is sure of; `until` is (s, their number)."""
        s, num_reveal = until
        scores = _spread(state.masked, rows, self._scores(process, state, drawn, rows, key), -torch.inf)
        if num_reveal is not None:
            return _first(scores, num_reveal) & state.masked
        order = scores.argsort(dim=-1, descending=True, stable=True)
        ranks = _inverse(order)
        assert isinstance(self.count, AdaptiveCount) and drawn.entropy is not None
        confidence = _spread(state.masked, rows, drawn.confidence, 0.0).gather(1, order)
        entropy = _spread(state.masked, rows, drawn.entropy, torch.inf).gather(1, order)
        admitted = self.count.admit(confidence, entropy).gather(1, ranks)
        last = (process.schedule.mask_ratio(s) <= 0).to(ranks.device)
        return (admitted | (ranks == 0) | last[:, None]) & state.masked

    def _scores(
        self, process: Masking, state: State, drawn: Drawn, rows: Int64[Tensor, "N"], key: rng.Key
    ) -> Float[Tensor, "N"]:
        if self.order in _BLIND:
            return self._blind_scores(state, key).flatten()[rows]
        score = drawn.confidence
        if drawn.margin is not None and drawn.entropy is not None and self.order != "confidence":
            score = drawn.margin if self.order == "margin" else -drawn.entropy
        if not self.order_noise:
            return score
        ids, length = state.batch.ids.to(rows.device), state.x.shape[1]
        uniform = rng.uniform(key.fold("gumbel"), ids, (length,)).flatten()[rows] + 2.0**-25
        log_score = score if self.order == "entropy" else score.clamp_min(1e-20).log()
        fraction = process.masked_fraction(state.batch, state.masked.sum(-1))[rows // length]
        return log_score - self.order_noise * fraction * (-uniform.log()).log()

    def _reveal(
        self,
        state: State,
        rows: Int64[Tensor, "N"],
        drawn: Drawn,
        reveal: Bool[Tensor, "B L"],
        num_reveal: Int64[Tensor, "B"] | None,
    ) -> State:
        token = _spread(state.masked, rows, drawn.token, 0)
        confidence = _spread(state.masked, rows, drawn.confidence, 0.0)
        return replace(
            state,
            x=torch.where(reveal, token, state.x),
            masked=state.masked & ~reveal,
            num_masked=None if num_reveal is None or state.num_masked is None else state.num_masked - num_reveal,
            revealed_at=torch.where(reveal, state.step, state.revealed_at),
            confidence=torch.where(reveal, confidence, state.confidence),
            num_forwards=state.num_forwards + state.num_branches,
            step=state.step + 1,
        )


def _busy(
    state: State, blind: Bool[Tensor, "B L"] | None, num_reveal: Int64[Tensor, "B"] | None
) -> Int64[Tensor, "N"] | None:
    """Rows in which this step reveals something, on the CPU; None where finding them would stall a GPU.

    The network hears of an input only what has been revealed in it, so the other rows need no forward.
    """
    if num_reveal is not None:
        return num_reveal.nonzero()[:, 0]
    if state.masked.device.type == "cpu":
        return (state.masked if blind is None else blind).any(1).nonzero()[:, 0]
    return None


def _spread(like: Bool[Tensor, "B L"], rows: Int64[Tensor, "N"], values: Tensor, fill: float) -> Tensor:
    """(B, L) with `values` at the masked ones of `rows` and `fill` elsewhere."""
    whole = values.new_full((like.numel(),), fill).index_copy_(0, rows, values).view(like.shape)
    # only where masked positions could not be counted do `rows` hold others too, and then they hold all
    return whole if len(rows) < like.numel() else torch.where(like, whole, fill)


def _inverse(order: Int64[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
    ranks = torch.empty_like(order)
    return ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def _first(scores: Float[Tensor, "B L"], count: Int64[Tensor, "B"]) -> Bool[Tensor, "B L"]:
    """True at the ``count[b]`` (on the CPU) highest scores of row b, ties from the left."""
    length = scores.shape[1]
    word = (scores.float() + 0.0).view(torch.int32)  # adding 0 makes one zero of the two
    rising = (word ^ (word >> 31 & 0x7FFFFFFF)).long()  # integers in the order of the floats
    unique = rising * length - torch.arange(length, device=scores.device)
    widest = int(count.max())
    index = unique.topk(widest, dim=1).indices
    chosen = torch.arange(widest, device=scores.device) < count.to(scores.device)[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, chosen)
