"""The unmasking sampler: which positions, how many, and what token, three independent choices.

Two more may be added to them: a rule that masks again what was revealed, and blocks from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.masking import Masking, flat_rows, position_bits, remask_limit, reveal_chance, uniform_draws
from onpath.sampling.blocks import Blocks, Scope, block_scope, whole_scope
from onpath.sampling.counts import AdaptiveCount, AncestralCount, Count, ScheduleCount
from onpath.sampling.guidance import encoded, guided
from onpath.sampling.loop import Knobs, Sampler, Settings
from onpath.sampling.moves import Moves, busy_rows, ended, masked_again, revealed, spread
from onpath.sampling.orders import BLIND, Order, admitted, blind_scores, first, gumbel, sighted_scores
from onpath.sampling.remasking import Loop, Proofread, RandomRemask, Remask
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Categorical, Drawn, draw
from onpath.types import Batch, Denoiser, Noisy

Times = tuple[Float[Tensor, "B"], Float[Tensor, "B"]]


@dataclass(frozen=True)
class Unmasking(Sampler):
    """Reveals masked positions step by step; given positions never change, revealed ones by `remask` only.

    Only the rows in which a step reveals or reads something go through the network.

    order: which positions first: at random, by the probability of the token drawn, by the margin between the two
      likeliest tokens, by low entropy, or from the left.
    count: how many; see ``sampling.counts``. tokens: what; see ``Categorical``.
    order_noise: Gumbel noise times the masked fraction, on the log of the confidence (MaskGIT) or of the margin, or on
      the negative entropy itself.
    guidance: weight w of (1 + w)·cond - w·uncond; 0 runs one branch only.
    remask: which revealed positions are masked again; see ``sampling.remasking``. None: none.
    blocks: from left to right in blocks; see ``Blocks``. None: everywhere at once.
    stop_at_end: a row is finished where everything up to an end token is revealed; what follows is filled with it.
      Every step then waits for a GPU. `blocks` have a rule of their own, at the end of a block.
    end_id: the end token; a run sets it from its data.
    Sources: MaskGIT, arXiv:2202.04200, Section 3.3; LLaDA, arXiv:2502.09992; margin: arXiv:2502.06768.
    """

    order: Order = "random"
    count: Count = ScheduleCount()
    tokens: Categorical = Categorical()
    order_noise: float = 0.0
    guidance: float = 0.0
    remask: Remask | None = None
    blocks: Blocks | None = None
    stop_at_end: bool = False
    end_id: int | None = None

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
        if self.order_noise < 0 or (self.order_noise > 0 and self.order in BLIND):
            raise ValueError(
                f"unmasking: order_noise is {self.order_noise} with order {self.order!r}; it must be 0 or more and "
                "acts on the orders confidence, margin and entropy only"
            )
        _check_remask(self.remask, self.count, self.blocks)

    @property
    def fixed_counts(self) -> bool:
        return isinstance(self.count, ScheduleCount)

    def init(self, process: Masking, denoiser: Denoiser, start: Noisy, batch: Batch, knobs: Knobs) -> TokenState:
        if knobs.reveal is not None and (not self.fixed_counts or self.remask is not None):
            decides = self.count if not self.fixed_counts else self.remask
            raise ValueError(
                f"knobs: reveal sets the number of reveals of each row, but {type(decides).__name__} decides it; "
                "leave reveal out, or set count: ScheduleCount() without remask"
            )
        if self.stop_at_end and self.end_id is None:
            raise ValueError("unmasking: stop_at_end is set, but there is no end token; set end_id, or leave it out")
        is_guided = self.guidance != 0.0 or knobs.guidance is not None
        return TokenState(
            x=start.x,
            masked=start.masked,
            num_masked=start.num_masked if self.fixed_counts else None,
            revealed_at=torch.full_like(start.x, -1),
            confidence=torch.zeros_like(start.x, dtype=torch.float32),
            log_prob=torch.zeros_like(start.x, dtype=torch.float32),
            proposed=start.x,
            num_forwards=torch.zeros(batch.size, dtype=torch.int64),
            step=0,
            batch=batch,
            memo=encoded(process, denoiser, batch, is_guided),
            num_branches=2 if is_guided else 1,
            unsettled=None if self.remask is None or self.fixed_counts else start.masked.any(1),
            lockstep=knobs.lockstep,
        )

    def repairable(self, process: Masking, state: TokenState) -> TokenState:
        if not isinstance(self.remask, Proofread) or self.blocks is not None or self.stop_at_end:
            raise ValueError(
                f"repair: remask is {self.remask}, blocks {self.blocks}, stop_at_end {self.stop_at_end}; correcting a "
                "text takes remask: Proofread(), and reads all of it: no blocks, no stop_at_end"
            )
        return replace(
            state,
            x=state.batch.x,
            masked=torch.zeros_like(state.masked),
            num_masked=None,
            unsettled=state.masked.any(1),
        )

    def step(
        self,
        process: Masking,
        denoiser: Denoiser,
        state: TokenState,
        times: tuple[Any, Any],
        key: rng.Key,
        knobs: Knobs,
    ) -> TokenState:
        t, s = (torch.as_tensor(time, dtype=torch.float64).expand(state.batch.size) for time in times)
        scope = self._scope(process, state, (t, s), knobs)
        moves = self._moves(state, scope, (t, s), key, knobs)
        busy = busy_rows(state, moves)
        after = state
        if busy is None or len(busy) == state.batch.size:
            after = self._forward(process, denoiser, state, moves, key, knobs)
        elif len(busy):
            part = self._forward(process, denoiser, state.rows(busy), moves.rows(busy), key, knobs.rows(busy))
            after = state.merged(part, busy)
        after = masked_again(after, moves.remask, moves.num_remask, process.mask_id)
        if self.end_id is not None and self._may_end(state, after, scope):
            after = ended(after, self.end_id, None if self.stop_at_end else self.blocks)
        return replace(after, step=state.step + 1)

    def _may_end(self, before: TokenState, after: TokenState, scope: Scope) -> bool:
        """Whether an end token must be looked for, which waits for a GPU."""
        if self.stop_at_end or self.blocks is None or not self.blocks.stop_at_end:
            return self.stop_at_end
        if before.num_masked is None or after.num_masked is None:
            return True
        finishes = (after.num_masked <= scope.later) & (after.num_masked < before.num_masked)
        return bool(finishes.any())  # counts on the CPU

    def _scope(self, process: Masking, state: TokenState, times: Times, knobs: Knobs) -> Scope:
        schedule, rule = process.schedule, self.remask
        ratios = [
            rule.mask_ratio(schedule, time) if isinstance(rule, RandomRemask) else schedule.mask_ratio(time)
            for time in times
        ]
        whole = whole_scope(state, ratios[0], ratios[1])
        if self.blocks is None:
            return whole
        by_progress = isinstance(self.count, AdaptiveCount) or knobs.reveal is not None
        return block_scope(self.blocks, state, whole, by_progress=by_progress)

    def _moves(self, state: TokenState, scope: Scope, times: Times, key: rng.Key, knobs: Knobs) -> Moves:
        """What the step will do, as far as it is known before the forward."""
        eligible = state.masked & scope.inside
        if isinstance(self.count, AncestralCount):
            return self._coins(state, scope, eligible, times, (key, knobs))
        read = None
        if isinstance(self.remask, Proofread):
            read = scope.inside & ~state.masked & ~scope.last.to(state.x.device)[:, None]
        if scope.left is None:
            everything = eligible if self.fixed_counts else None
            return Moves(eligible, scope.last, reveal=everything, read=read)
        number = (scope.left - scope.target).clamp_min(0)
        if knobs.reveal is not None:
            number = torch.where(scope.last, scope.left, torch.minimum(knobs.reveal, scope.left))
        if read is not None:
            num_read = torch.where(scope.last, scope.left, scope.size)
            return Moves(eligible, scope.last, num_reveal=number, read=read, num_read=num_read, target=scope.target)
        remask, num_remask = self._remask_number(state, scope, times, key)
        if num_remask is not None:
            number = number + num_remask
        if self.order not in BLIND or not number.any():
            return Moves(eligible, scope.last, None, number, remask, num_remask, num_read=scope.left)
        scores = blind_scores(self.order, knobs.ordered(state.batch), key).masked_fill(~eligible, -torch.inf)
        return Moves(eligible, scope.last, first(scores, number) & eligible, number, remask, num_remask)

    def _coins(
        self, state: TokenState, scope: Scope, eligible: Bool[Tensor, "B L"], times: Times, settings: Settings
    ) -> Moves:
        """One coin for each position, masked or revealed."""
        (key, knobs), device = settings, state.x.device
        before, after = scope.before.to(device), scope.after.to(device)
        sigma, remask = 0.0, None
        if isinstance(self.remask, RandomRemask):
            shown, limit = scope.inside & ~state.masked, remask_limit(before, after)
            chance = self.remask.sigma(limit, shown.sum(1).double(), times).float()[:, None]
            chance = chance * self.remask.weights(state.confidence, shown)
            # what is revealed instead goes by the mean, which a rule that counts may not take from the row
            sigma = self.remask.sigma(limit, scope.size.to(device) * (1.0 - before), times)
            remask = (uniform_draws(key.fold("remask"), state.batch) < chance) & shown
            if state.unsettled is not None:
                remask = remask & state.unsettled[:, None]
        rho = reveal_chance(before, after, sigma).float()
        reveal = (uniform_draws(key.fold("reveal"), knobs.ordered(state.batch)) < rho[:, None]) & eligible
        return Moves(eligible, scope.last, reveal, remask=remask)

    def _remask_number(
        self, state: TokenState, scope: Scope, times: Times, key: rng.Key
    ) -> tuple[Bool[Tensor, "B L"] | None, Int64[Tensor, "B"] | None]:
        """The revealed positions to mask again, and their number on the CPU."""
        if not isinstance(self.remask, RandomRemask) or scope.left is None or state.num_masked is None:
            return None, None
        shown = scope.size - scope.left
        share = self.remask.sigma(remask_limit(scope.before, scope.after), shown.double(), times)
        mean = (share * shown).masked_fill(state.num_masked == 0, 0.0)
        number = (mean + rng.uniform(key.fold("remask count"), state.batch.ids)).floor().long()
        number = torch.minimum(torch.minimum(number, shown), scope.target)
        candidates = scope.inside & ~state.masked
        weights = self.remask.weights(state.confidence, candidates)
        scores = weights.log() + gumbel(key.fold("remask"), state.batch)
        return first(scores.masked_fill(~candidates, -torch.inf), number) & candidates, number

    def _forward(
        self, process: Masking, denoiser: Denoiser, state: TokenState, moves: Moves, key: rng.Key, knobs: Knobs
    ) -> TokenState:
        """The state after one forward of every row of it: tokens revealed, doubtful ones masked again."""
        wanted, number = moves.wanted()
        rows = flat_rows(wanted, None if number is None else int(number.sum()))
        drawn, doubtful = self._drawn(process, denoiser, state, rows, key, knobs), None
        number = moves.num_reveal
        if drawn.doubt is not None and moves.read is not None and isinstance(self.remask, Proofread):
            doubt = spread(wanted, rows, drawn.doubt, 0.0)
            doubtful = moves.read & (doubt > self.remask.threshold)
            if number is not None and moves.target is not None:
                more = torch.minimum(doubtful.sum(1), moves.target.to(doubt.device))
                doubtful = first(doubt.masked_fill(~doubtful, -torch.inf), more) & doubtful
                number = number.to(doubt.device) + more
        reveal = moves.reveal
        if reveal is None:
            reveal = self._sighted_choice(process, state, moves, (wanted, rows, drawn), number, (key, knobs))
        after = revealed(state, (wanted, rows, drawn), reveal, moves.num_reveal)
        if state.unsettled is not None and moves.read is not None:
            after = replace(after, unsettled=reveal.any(1))
        return masked_again(after, doubtful, None, process.mask_id)

    def _drawn(
        self,
        process: Masking,
        denoiser: Denoiser,
        state: TokenState,
        rows: Int64[Tensor, "N"],
        key: rng.Key,
        knobs: Knobs,
    ) -> Drawn:
        """One forward of every row of the state, tokens drawn at `rows` inside it."""
        batch, device = state.batch, state.x.device
        length = state.x.shape[1]
        greedy = self.tokens.temperature == 0 and knobs.temperature is None
        words = None if greedy else position_bits(key.fold("token"), batch).flatten()
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
            if isinstance(self.remask, Proofread):
                drawn = replace(drawn, doubt=_mask_probability(logits, process.mask_id))
            return drawn.columns()

        x, counts = state.x, state.num_masked
        counts = state.masked.sum(-1) if counts is None else counts.to(device)
        if is_guided:
            bare = process.unconditional(batch).x
            x = torch.cat([x, x if batch.given is None else torch.where(batch.given, bare, x)])
            counts = counts.repeat(2)
            rows = torch.stack([rows, rows + batch.size * length], dim=1).flatten()
        t = process.masked_fraction(batch, counts)
        columns = denoiser(x, t, state.memo, rows=rows, readout=readout)
        return Drawn.of_columns(columns, detailed=detailed)

    def _sighted_choice(
        self,
        process: Masking,
        state: TokenState,
        moves: Moves,
        seen: tuple[Bool[Tensor, "B L"], Int64[Tensor, "N"], Drawn],
        number: Int64[Tensor, "B"] | None,
        settings: Settings,
    ) -> Bool[Tensor, "B L"]:
        """The positions to reveal, given what the network is sure of; `seen` are (wanted, rows, drawn)."""
        (wanted, rows, drawn), (key, knobs) = seen, settings
        if self.order in BLIND:
            scores = blind_scores(self.order, knobs.ordered(state.batch), key)
        else:
            scores = spread(wanted, rows, sighted_scores(self.order, drawn), 0.0)
            if self.order_noise:
                scores = self._noisy(process, state, scores, key)
        scores = scores.masked_fill(~moves.eligible, -torch.inf)
        if number is not None:
            return first(scores, number) & moves.eligible
        assert isinstance(self.count, AdaptiveCount) and drawn.entropy is not None
        confidence = spread(wanted, rows, drawn.confidence, 0.0).masked_fill(~moves.eligible, 0.0)
        entropy = spread(wanted, rows, drawn.entropy, torch.inf).masked_fill(~moves.eligible, torch.inf)
        chosen = admitted(self.count, scores, confidence, entropy)
        return (chosen | moves.last.to(chosen.device)[:, None]) & moves.eligible

    def _noisy(self, process: Masking, state: TokenState, scores: Float[Tensor, "B L"], key: rng.Key) -> Tensor:
        scores = scores if self.order == "entropy" else scores.clamp_min(1e-20).log()
        fraction = process.masked_fraction(state.batch, state.masked.sum(-1))[:, None]
        return scores + self.order_noise * fraction * gumbel(key.fold("gumbel"), state.batch)


def _check_remask(remask: Remask | None, count: Count, blocks: Blocks | None) -> None:
    if isinstance(remask, RandomRemask) and isinstance(count, AdaptiveCount):
        raise ValueError(
            f"unmasking: remask {type(remask).__name__} masks a share again that follows the schedule, and count "
            f"{type(count).__name__} does not; set count: schedule or ancestral, or remask: proofread"
        )
    if isinstance(remask, Proofread) and isinstance(count, AncestralCount):
        raise ValueError(
            "unmasking: remask Proofread masks again what the network doubts, so coins for the reveals would no longer "
            "follow the schedule; set count: schedule or an adaptive one"
        )
    if isinstance(remask, Loop) and blocks is not None:
        raise ValueError(
            "unmasking: remask Loop goes round at times of the whole walk, and blocks have steps of their own; leave "
            "one of them out, or take remask: cap or rescale"
        )


def _mask_probability(logits: Float[Tensor, "N V"], mask_id: int) -> Float[Tensor, "N"]:
    if mask_id >= logits.shape[1]:
        raise ValueError(
            f"proofread: the network has {logits.shape[1]} logits and none for [MASK] ({mask_id}), so it cannot doubt "
            "a token; train it by an objective that predicts [MASK], such as masking_penalties"
        )
    return (logits[:, mask_id].float() - logits.float().logsumexp(-1)).exp()
