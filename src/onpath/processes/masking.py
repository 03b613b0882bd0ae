"""Absorbing-state (masked) diffusion: a position keeps its token with probability alpha(t), else it is [MASK]."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from onpath import rng
from onpath.processes.base import Process
from onpath.schedules import Schedule
from onpath.types import Batch, Noisy


@dataclass(frozen=True)
class Masking(Process):
    """Masked diffusion on a schedule. Given positions and padding are never touched.

    schedule: alpha(t), the one schedule of the run. mask_id: the id of [MASK].
    Source: MDLM, arXiv:2406.07524, Eq. 3 and 5.
    """

    schedule: Schedule
    mask_id: int

    def prior(self, batch: Batch, key: rng.Key | None = None) -> Noisy:
        """All free positions masked; nothing is drawn."""
        free = batch.free()
        return Noisy(batch.x.masked_fill(free, self.mask_id), free, batch.free_counts())

    def corrupt(self, batch: Batch, t: Float[Tensor, "B"] | Float[Tensor, "B L"], key: rng.Key) -> Noisy:
        """Masks each free position independently with probability 1 - alpha(t); t is (B,) or (B, L), any device."""
        ratio = self.schedule.mask_ratio(t.to(batch.x.device))
        return self.corrupt_ratio(batch, ratio, key)

    def corrupt_ratio(self, batch: Batch, ratio: Float[Tensor, "B"] | Float[Tensor, "B L"], key: rng.Key) -> Noisy:
        """Masks each free position independently with a probability in [0, 1] that needs no time."""
        draws = uniform_draws(key, batch)
        masked = (draws < (ratio if ratio.dim() == 2 else ratio[:, None])) & batch.free()
        return Noisy(batch.x.masked_fill(masked, self.mask_id), masked)

    def corrupt_count(self, batch: Batch, num_masked: Int64[Tensor, "B"], key: rng.Key) -> Noisy:
        """Masks exactly `num_masked` (B,) free positions of each row, a uniform subset of that size.

        The same key ranks the positions in the same order whatever the count, so a smaller count masks a subset.
        """
        ranks = self.ranks(batch, key)
        if num_masked.device.type == "cpu" and (num_masked > batch.free_counts()).any():
            raise ValueError(
                f"corrupt_count: num_masked goes up to {int(num_masked.max())} where rows have "
                f"{int(batch.free_counts().min())} free positions or more; lower it to the free positions of each row"
            )
        masked = (ranks < num_masked.to(ranks.device)[:, None]) & batch.free()
        counts = num_masked if num_masked.device.type == "cpu" else None
        return Noisy(batch.x.masked_fill(masked, self.mask_id), masked, counts)

    def ranks(self, batch: Batch, key: rng.Key) -> Int64[Tensor, "B L"]:
        """(B, L): a uniformly random order of the free positions, from 0; the other positions come after them."""
        length = batch.x.shape[1]
        free = batch.free()
        position = torch.arange(length, device=free.device)
        unique = torch.where(free, position_bits(key, batch), 1 << 32) * length + position
        return unique.argsort(-1).argsort(-1)

    def reveal_probability(self, t: Float[Tensor, "*b"], s: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """(alpha(s) - alpha(t)) / (1 - alpha(t)): the chance that a masked position is revealed between t and s < t.

        0 where nothing is masked at t. Source: MDLM, arXiv:2406.07524, Eq. 6.
        """
        return reveal_chance(self.schedule.mask_ratio(t), self.schedule.mask_ratio(s))

    def scheduled_count(self, t: Float[Tensor, "B"], num_free: Int64[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """Positions out of `num_free` that a sampler with fixed counts keeps masked at t: L·mask_ratio(t), rounded."""
        return rounded(self.schedule.mask_ratio(t.double()) * num_free)

    def masked_fraction(self, batch: Batch, num_masked: Int64[Tensor, "M"]) -> Float[Tensor, "M"]:
        """Masked share of the free positions, the time that a network receives; M is a multiple of B."""
        free = batch.free_counts().to(num_masked.device).clamp_min(1)
        return num_masked / free.repeat(len(num_masked) // batch.size)

    def words_only(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N words"]:
        """The logits without that of [MASK], if the network has one: the distribution that is sampled from.

        A last column is left out, one before other words is set to -inf.
        """
        if self.mask_id >= logits.shape[-1]:
            return logits
        if self.mask_id == logits.shape[-1] - 1:
            return logits[:, : self.mask_id]  # no copy
        logits = logits.clone()
        logits[:, self.mask_id] = -torch.inf
        return logits

    def unconditional(self, batch: Batch, rows: Bool[Tensor, "B"] | None = None) -> Batch:
        """Without its conditions (``cond["drop"]`` is True there); a batch without any loses its given tokens instead.

        Raises ValueError where there is neither a condition nor a given position.
        """
        if batch.cond or batch.given is None:
            return super().unconditional(batch, rows)
        drop = torch.ones(batch.size, dtype=torch.bool, device=batch.x.device) if rows is None else rows
        return replace(batch, x=batch.x.masked_fill(batch.given & drop[:, None], self.mask_id))


def rounded(count: Float[Tensor, "*b"]) -> Int64[Tensor, "*b"]:
    """The nearest integer, half a unit going down: a tie such as 40·0.0125 must not turn on the rounding of a ratio."""
    return (count + (0.5 - 1e-9)).long()


def position_bits(key: rng.Key, batch: Batch) -> Int64[Tensor, "B L"]:
    """A 32-bit word for each position, counted from the first one of its row that is not padding.

    So a row draws the same whether it is padded on the left, on the right or not at all.
    """
    words = rng.bits(key, batch.ids.to(batch.x.device), (batch.x.shape[1],))
    if batch.padding is None:
        return words
    length = batch.x.shape[1]
    before = batch.padding.long().cumprod(1).sum(1, keepdim=True)
    return words.gather(1, (torch.arange(length, device=words.device) - before) % length)


def uniform_draws(key: rng.Key, batch: Batch) -> Float[Tensor, "B L"]:
    """fp32 uniforms in [0, 1) made of ``position_bits``."""
    return (position_bits(key, batch) >> 8).to(torch.float32) * 2.0**-24


def reveal_chance(
    before: Float[Tensor, "*b"], after: Float[Tensor, "*b"], remasked: Float[Tensor, "*b"] | float = 0.0
) -> Float[Tensor, "*b"]:
    """Chance that a masked position is revealed in a step that takes the mask ratio from `before` to `after`.

    remasked: the share of the revealed positions that the same step masks again, at most ``remask_limit``. With
    alpha = 1 - ratio it is (alpha_s - (1 - remasked)·alpha_t)/(1 - alpha_t), which keeps the marginal at `after`;
    0 where nothing is masked. Source: ReMDM, arXiv:2503.00307, Section 3.1.
    """
    return torch.where(before > 0, (before - after + remasked * (1.0 - before)) / before.clamp_min(1e-30), 0.0)


def remask_limit(before: Float[Tensor, "*b"], after: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """The largest share of revealed positions that a step may mask again: min(1, (1 - alpha_s)/alpha_t), 1 at alpha 0.

    Source: ReMDM, arXiv:2503.00307, Section 3.1.
    """
    return torch.where(before < 1, after / (1.0 - before).clamp_min(1e-30), 1.0).clamp_max(1.0)


def flat_rows(mask: Bool[Tensor, "B L"], total: int | None) -> Int64[Tensor, "N"]:
    """Flat indices of the True positions of `mask`, `total` of them; None where their number is not known ahead.

    Without a known number on a GPU, where counting would wait for the device, every position is returned; the caller
    then leaves the others out of what it makes of them.
    """
    flat = mask.flatten()
    if total is not None:
        return torch.nonzero_static(flat, size=total)[:, 0]
    if flat.device.type == "cpu":
        return flat.nonzero()[:, 0]
    return torch.arange(flat.numel(), device=flat.device)
