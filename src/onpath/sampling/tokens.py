"""What is done with the logits of a row: guidance, the choice of a token, and how sure the network is of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Categorical:
    """Draws from softmax(logits / temperature), restricted to the `top_k` likeliest tokens and the `top_p` nucleus.

    temperature: 0 or more; 0 is greedy, the likeliest token. top_k: 0 keeps all. top_p in (0, 1]: 1 keeps all.
    Source of the nucleus: Holtzman et al., arXiv:1904.09751.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"token choice: temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}; needed are "
                "temperature >= 0 (0 is greedy), top_k >= 0 (0 is off), 0 < top_p <= 1 (1 is off)"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(
                f"token choice: temperature is 0 with top_k {self.top_k} and top_p {self.top_p}; 0 takes the likeliest "
                "token, so these have no effect: remove them, or raise the temperature"
            )

    @property
    def restricted(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0


@dataclass(frozen=True)
class Drawn:
    """Chosen tokens of N rows.

    token: (N,). confidence: its probability. margin: of the two likeliest tokens. entropy: in nats. doubt: probability
    of [MASK]. The last three where they were asked for.
    """

    token: Int64[Tensor, "N"]
    confidence: Float[Tensor, "N"]
    margin: Float[Tensor, "N"] | None = None
    entropy: Float[Tensor, "N"] | None = None
    doubt: Float[Tensor, "N"] | None = None

    def columns(self) -> tuple[Tensor, ...]:
        """What was asked for, as a readout returns it."""
        every = (self.token, self.confidence, self.margin, self.entropy, self.doubt)
        return tuple(column for column in every if column is not None)

    @classmethod
    def of_columns(cls, columns: tuple[Tensor, ...], *, detailed: bool) -> Drawn:
        """The inverse of ``columns``; `detailed` says whether margin and entropy are among them."""
        if detailed:
            return cls(*columns)
        return cls(columns[0], columns[1], doubt=columns[2] if len(columns) > 2 else None)


def guided(logits: Float[Tensor, "N2 V"], weight: Float[Tensor, "N"]) -> Float[Tensor, "N V"]:
    """(1 + w)·cond - w·uncond of rows that alternate between the two branches.

    Source: classifier-free guidance, arXiv:2207.12598, Eq. 6.
    """
    logits = logits.float().clamp_min(-1e9)  # a token that both branches exclude must not become -inf - -inf
    cond, uncond = logits[0::2], logits[1::2]
    return cond + weight[:, None] * (cond - uncond)


def draw(
    logits: Float[Tensor, "N V"],
    words: Int64[Tensor, "N"] | None,
    choice: Categorical,
    temperature: Float[Tensor, "N"] | None,
    *,
    detailed: bool = True,
) -> Drawn:
    """One token a row and the network's certainty of it, by inverse CDF with one 32-bit word a row.

    words: (N,) in [0, 2**32), None for greedy rows only. temperature: (N,), in place of the one of `choice`.
    The confidence, margin and entropy are those of softmax(logits), whatever the temperature. detailed: margin and
    entropy too; for a small vocabulary they cost more than the rest.
    """
    logits = logits.float()
    level, token = logits.max(-1)
    total = logits.logsumexp(-1)
    if words is not None:
        heat = torch.full_like(level, choice.temperature) if temperature is None else temperature
        drawn = _inverse_cdf(_restrict((logits - total[:, None]) / heat.clamp_min(1e-6)[:, None], choice), words)
        token = torch.where(heat > 0, drawn, token)
        level = logits.gather(-1, token[:, None])[:, 0]
    confidence = (level - total).exp()
    return Drawn(token, confidence, *_details(logits - total[:, None])) if detailed else Drawn(token, confidence)


def _details(log_probs: Float[Tensor, "N V"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Margin and entropy."""
    probs = log_probs.exp()
    best = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    return best[:, 0] - best[:, -1], -(probs * log_probs.clamp_min(-1e4)).sum(-1)


def _restrict(logits: Float[Tensor, "N V"], choice: Categorical) -> Float[Tensor, "N V"]:
    if not choice.restricted:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if choice.top_k:
        keep[:, choice.top_k :] = False
    if choice.top_p < 1.0:
        probs = ordered.masked_fill(~keep, -torch.inf).softmax(-1)
        keep &= probs.cumsum(-1) - probs < choice.top_p  # the first token always stays
    return logits.masked_fill(~keep.gather(-1, index.argsort(-1)), -torch.inf)


def _inverse_cdf(logits: Float[Tensor, "N V"], words: Int64[Tensor, "N"]) -> Int64[Tensor, "N"]:
    # fp64: in fp32 the running sum loses a flat tail of probabilities near 5e-5
    cdf = logits.double().softmax(-1).cumsum(-1)
    level = (words.double() + 0.5) * 2.0**-32 * cdf[:, -1]
    return torch.searchsorted(cdf, level[:, None], right=True)[:, 0].clamp_max(logits.shape[-1] - 1)
