"""Semi-autoregressive sampling: blocks from left to right, and what one step of a walk may touch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath.processes.masking import rounded
from onpath.sampling.counts import shared_out
from onpath.sampling.states import TokenState


@dataclass(frozen=True)
class Blocks:
    """Unmasks `size` free positions after another from the left; a later block is touched when the earlier are done.

    The steps of the walk are shared out over the blocks of a row, and the positions of a block over its steps: n things
    over k steps are n // k each, and one more in the first n % k. Within a block the mask ratio falls in equal parts. A
    row whose free positions fit into one block is unmasked as without blocks, by the schedule.

    size: free positions of a block, counted in each row, so rows may have prompts of any length and infills anywhere.
    stop_at_end: a row whose finished blocks hold the end token (where the data have one) is finished.
    Source: LLaDA, arXiv:2502.09992, Appendix B.4.
    """

    size: int = 32
    stop_at_end: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"blocks: size is {self.size}; it must be 1 or more; 32 is usual")

    def number(self, num_free: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """How many blocks rows with so many free positions have, at least one."""
        return ((num_free + self.size - 1) // self.size).clamp_min(1)

    def of_positions(self, free: Bool[Tensor, "B L"]) -> Int64[Tensor, "B L"]:
        """The block of each free position, -1 elsewhere."""
        return torch.where(free, (free.cumsum(1) - 1) // self.size, -1)


@dataclass(frozen=True)
class Scope:
    """What one step may touch, by row.

    inside: (B, L) positions, without padding and given ones. size: (B,) their number. before, after: (B,) fp64, the
    mask ratio among them that the step starts from and aims at. target: (B,) the same as a number after the step.
    last: (B,) whether the step must reveal all of them. left: (B,) masked ones, None where they are not counted;
    later: (B,) free positions behind them. These are on the CPU but where adaptive counts go on from block to block,
    of which then `size`, `before`, `after` and `target` say nothing.
    """

    inside: Bool[Tensor, "B L"]
    size: Int64[Tensor, "B"]
    before: Float[Tensor, "B"]
    after: Float[Tensor, "B"]
    target: Int64[Tensor, "B"]
    last: Bool[Tensor, "B"]
    left: Int64[Tensor, "B"] | None
    later: Int64[Tensor, "B"]


def whole_scope(state: TokenState, before: Float[Tensor, "B"], after: Float[Tensor, "B"]) -> Scope:
    """Every free position, with the mask ratios of the schedule."""
    size = state.batch.free_counts()
    return Scope(
        inside=state.batch.free(),
        size=size,
        before=before,
        after=after,
        target=rounded(after * size),
        last=after <= 0,
        left=state.num_masked,
        later=torch.zeros_like(size),
    )


def block_scope(blocks: Blocks, state: TokenState, whole: Scope, *, by_progress: bool) -> Scope:
    """The positions of the block at which each row is.

    by_progress: go on as soon as a block is finished, for counts that are not fixed ahead; else when its steps are
    over. Raises ValueError where the walk has fewer steps than a row has blocks.
    """
    free = state.batch.free_counts()
    number = blocks.number(free)
    steps = state.num_steps
    if steps is None or steps < int(number.max()):
        raise ValueError(
            f"blocks: a row has {int(number.max())} blocks of {blocks.size} and the walk has {steps} steps; each block "
            "needs one or more: raise the steps of the grid or the size of a block"
        )
    place = blocks.of_positions(whole.inside)
    if by_progress:
        block = _by_progress(blocks, state, place, number)
    else:
        block = _by_step(state.step, steps, number)
    free, number = free.to(block.device), number.to(block.device)
    first = shared_out(torch.full_like(block, steps), number, block)
    num_steps = shared_out(torch.full_like(block, steps), number, block + 1) - first
    done = (state.step - first).clamp_min(0)
    size = (free - block * blocks.size).clamp(0, blocks.size)
    alone = number == 1
    later = (free - (block + 1) * blocks.size).clamp_min(0)
    share = (done / num_steps, (done + 1) / num_steps)
    return Scope(
        inside=place == block.to(place.device)[:, None],
        size=size,
        before=torch.where(alone, whole.before.to(block.device), 1.0 - share[0].double()),
        after=torch.where(alone, whole.after.to(block.device), 1.0 - share[1].double()),
        target=torch.where(alone, whole.target.to(block.device), size - shared_out(size, num_steps, done + 1)),
        last=torch.where(alone, whole.last.to(block.device), done + 1 >= num_steps),
        left=None if state.num_masked is None else (state.num_masked - later).clamp_min(0),
        later=later,
    )


def _by_step(step: int, steps: int, number: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """The block that has step number `step`: the inverse of ``shared_out(steps, number, ·)``."""
    base, more = steps // number, steps % number
    early = more * (base + 1)
    return torch.where(step < early, step // (base + 1), more + (step - early) // base)


def _by_progress(
    blocks: Blocks, state: TokenState, place: Int64[Tensor, "B L"], number: Int64[Tensor, "B"]
) -> Int64[Tensor, "B"]:
    """The first block with a masked position, the last block where none has."""
    if state.num_masked is not None:
        return torch.minimum((state.batch.free_counts() - state.num_masked) // blocks.size, number - 1)
    first = torch.where(state.masked, place, torch.iinfo(torch.int64).max).amin(1)
    return torch.minimum(first, number.to(place.device) - 1)
