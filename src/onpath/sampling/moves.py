"""What one step does to the state: positions revealed, masked again, or filled behind an end token."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from onpath.sampling.blocks import Blocks
from onpath.sampling.states import TokenState
from onpath.sampling.tokens import Drawn


@dataclass(frozen=True)
class Moves:
    """What is known of a step before its forward, by row.

    eligible: (B, L) masked positions that may be revealed. last: (B,) whether all of them must be.
    reveal: (B, L) those that are, None where the network has a say. num_reveal: (B,) on the CPU, how many, None where
      that is open; what replaces doubtful positions is not counted.
    remask: (B, L) revealed positions to mask again, None for none. num_remask: (B,) on the CPU, how many.
    read: (B, L) revealed positions that the network reads for what it doubts.
    num_read: (B,) on the CPU, positions at which the head runs where the choice is the network's.
    target: (B,) on the CPU, how many may be masked afterwards.
    """

    eligible: Bool[Tensor, "B L"]
    last: Bool[Tensor, "B"]
    reveal: Bool[Tensor, "B L"] | None = None
    num_reveal: Int64[Tensor, "B"] | None = None
    remask: Bool[Tensor, "B L"] | None = None
    num_remask: Int64[Tensor, "B"] | None = None
    read: Bool[Tensor, "B L"] | None = None
    num_read: Int64[Tensor, "B"] | None = None
    target: Int64[Tensor, "B"] | None = None

    def rows(self, index: Int64[Tensor, "N"]) -> Moves:
        """The moves of the rows at `index` (int64 on the CPU)."""

        def pick(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor[index.to(tensor.device)]

        return Moves(**{f.name: pick(getattr(self, f.name)) for f in fields(self)})

    def wanted(self) -> tuple[Bool[Tensor, "B L"], Int64[Tensor, "B"] | None]:
        """Positions at which the head must run, and their number by row on the CPU where it is known."""
        asked = self.eligible if self.reveal is None else self.reveal
        number = self.num_read if self.reveal is None else self.num_reveal
        return asked if self.read is None else asked | self.read, number


def busy_rows(state: TokenState, moves: Moves) -> Int64[Tensor, "N"] | None:
    """Rows that this step sends through the network, on the CPU; None for all, as where finding them stalls a GPU.

    The network hears of an input only what has been revealed in it, so a row in which nothing is revealed, and nothing
    is to be read, needs no forward.
    """
    if state.lockstep:
        return None
    if moves.num_reveal is not None:
        return moves.num_reveal.nonzero()[:, 0]
    if state.masked.device.type != "cpu":
        return None
    work = (moves.eligible if moves.reveal is None else moves.reveal).any(1)
    if moves.read is not None and state.unsettled is not None:
        work = work | (state.unsettled & moves.read.any(1))
    return work.nonzero()[:, 0]


def spread(like: Bool[Tensor, "B L"], rows: Int64[Tensor, "N"], values: Tensor, fill: float) -> Tensor:
    """(B, L) with `values` at the True ones of `rows` and `fill` elsewhere."""
    whole = values.new_full((like.numel(),), fill).index_copy_(0, rows, values).view(like.shape)
    # only where the positions could not be counted do `rows` hold others too, and then they hold all
    return whole if len(rows) < like.numel() else torch.where(like, whole, fill)


def revealed(
    state: TokenState,
    seen: tuple[Bool[Tensor, "B L"], Int64[Tensor, "N"], Drawn],
    reveal: Bool[Tensor, "B L"],
    num_reveal: Int64[Tensor, "B"] | None,
) -> TokenState:
    """The state with the drawn tokens at `reveal`, and a forward more in every row."""
    wanted, rows, drawn = seen
    token, confidence = spread(wanted, rows, drawn.token, 0), spread(wanted, rows, drawn.confidence, 0.0)
    log_prob = spread(wanted, rows, drawn.log_prob, 0.0)
    return replace(
        state,
        x=torch.where(reveal, token, state.x),
        masked=state.masked & ~reveal,
        num_masked=None if num_reveal is None or state.num_masked is None else state.num_masked - num_reveal,
        revealed_at=torch.where(reveal, state.step, state.revealed_at),
        confidence=torch.where(reveal, confidence, state.confidence),
        log_prob=torch.where(reveal, log_prob, state.log_prob),
        proposed=token,
        num_forwards=state.num_forwards + state.num_branches,
    )


def masked_again(
    state: TokenState, again: Bool[Tensor, "B L"] | None, number: Int64[Tensor, "B"] | None, mask_id: int
) -> TokenState:
    """The state with `again` masked, `number` (B,) on the CPU of them; None leaves the count to the reveals."""
    if again is None:
        return state
    num_masked = state.num_masked
    if num_masked is not None and number is not None:
        num_masked = num_masked + number
    return replace(
        state,
        x=state.x.masked_fill(again, mask_id),
        masked=state.masked | again,
        num_masked=num_masked,
        revealed_at=state.revealed_at.masked_fill(again, -1),
        confidence=state.confidence.masked_fill(again, 0.0),
        log_prob=state.log_prob.masked_fill(again, 0.0),
    )


def ended(state: TokenState, end_id: int, blocks: Blocks | None) -> TokenState:
    """The state in which rows that hold an end token are finished: what is free behind it is filled with it.

    Only an end token counts that everything free before it, or before the end of its block, is revealed with.
    """
    free = state.batch.free()
    if blocks is None:
        seen = free & (state.masked.cumsum(1) == 0)
    else:
        place = blocks.of_positions(free)
        open_from = torch.where(state.masked, place, place.shape[1]).amin(1)
        seen = free & (place < open_from[:, None])
    behind = free & ((seen & (state.x == end_id)).cumsum(1) > 0)
    filled = behind & (state.x != end_id)
    stopped = behind.any(1)
    on_host = stopped.cpu()  # the counts of these rows are known by looking only
    return replace(
        state,
        x=state.x.masked_fill(filled, end_id),
        masked=state.masked & ~behind,
        num_masked=None if state.num_masked is None else state.num_masked.masked_fill(on_host, 0),
        revealed_at=torch.where(filled, state.step, state.revealed_at),
        confidence=state.confidence.masked_fill(filled, 1.0),
        log_prob=state.log_prob.masked_fill(filled, 0.0),
        unsettled=None if state.unsettled is None else state.unsettled & ~stopped,
    )
