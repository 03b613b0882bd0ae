"""What is done with the logits of a row: guidance, the choice of a token, and how sure the network is of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

    token: (N,). confidence: its probability. log_prob: log of the probability with which it was drawn, at the
    temperature and among the words that were left; 0 where nothing is drawn. margin: of the two likeliest tokens.
    entropy: in nats. doubt: probability of [MASK]. The last three where they were asked for.
    """

    token: Int64[Tensor, "N"]
    confidence: Float[Tensor, "N"]
    log_prob: Float[Tensor, "N"]
    margin: Float[Tensor, "N"] | None = None
    entropy: Float[Tensor, "N"] | None = None
    doubt: Float[Tensor, "N"] | None = None

    def columns(self) -> tuple[Tensor, ...]:
        """What was asked for, as a readout returns it."""
        every = (self.token, self.confidence, self.log_prob, self.margin, self.entropy, self.doubt)
        return tuple(column for column in every if column is not None)

    @classmethod
    def of_columns(cls, columns: tuple[Tensor, ...], *, detailed: bool) -> Drawn:
        """The inverse of ``columns``; `detailed` says whether margin and entropy are among them."""
        if detailed:
            return cls(*columns)
        return cls(*columns[:3], doubt=columns[3] if len(columns) > 3 else None)


_CHUNK = 2**17  # logits at a time on a CPU: larger temporaries leave its caches and are paged in anew each time
_BLOCK = 256  # words that are added up before they are looked at one by one


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
    entropy too.
    """
    size = max(1, _CHUNK // logits.shape[1])
    if logits.device.type != "cpu" or len(logits) <= size:
        return _draw(logits, words, choice, temperature, detailed=detailed)
    parts = [
        _draw(
            logits[part],
            None if words is None else words[part],
            choice,
            None if temperature is None else temperature[part],
            detailed=detailed,
        ).columns()
        for part in (slice(begin, begin + size) for begin in range(0, len(logits), size))
    ]
    return Drawn.of_columns(tuple(torch.cat(column) for column in zip(*parts, strict=True)), detailed=detailed)


def _draw(
    logits: Float[Tensor, "N V"],
    words: Int64[Tensor, "N"] | None,
    choice: Categorical,
    temperature: Float[Tensor, "N"] | None,
    *,
    detailed: bool,
) -> Drawn:
    centred = _in_blocks(logits)
    weights = centred.exp()
    sums = weights.sum(-1)
    total = sums.double().sum(-1)
    if words is None:
        token = _likeliest(centred)
        log_prob = torch.zeros(token.shape, device=token.device)
    elif temperature is None and choice.temperature == 1.0 and not choice.restricted:
        token = _inverse_cdf(weights, sums, words)
        log_prob = _log_prob(centred, total, token)
    else:
        heat = total.new_full(total.shape, choice.temperature) if temperature is None else temperature
        energy = _restrict(centred / heat.float().clamp_min(1e-6)[:, None, None], choice)
        tempered = energy.exp()
        sums = tempered.sum(-1)
        token = _inverse_cdf(tempered, sums, words)
        log_prob = _log_prob(energy, sums.double().sum(-1), token)
        if temperature is not None or choice.temperature == 0:
            token, log_prob = torch.where(heat > 0, token, _likeliest(centred)), log_prob.masked_fill(heat <= 0, 0.0)
    confidence = (weights.flatten(1).gather(1, token[:, None])[:, 0] / total).float()
    return Drawn(token, confidence, log_prob, *(_details(centred, weights, total) if detailed else ()))


def _log_prob(energy: Float[Tensor, "N M K"], total: Float[Tensor, "N"], token: Int64[Tensor, "N"]) -> Tensor:
    """(N,) log of exp(energy) at `token` over its sum `total`."""
    return (energy.flatten(1).gather(1, token[:, None])[:, 0] - total.log()).float()


def _in_blocks(logits: Float[Tensor, "N V"]) -> Float[Tensor, "N M K"]:
    """Logits less their greatest, fp32, M blocks of K words; -inf where the last block goes beyond the words."""
    number = -(-logits.shape[1] // _BLOCK)
    width = -(-logits.shape[1] // number)
    logits = logits.float()
    centred = logits - logits.amax(-1, keepdim=True)
    beyond = number * width - logits.shape[1]
    return F.pad(centred, (0, beyond), value=-torch.inf).unflatten(1, (number, width))


def _likeliest(centred: Float[Tensor, "N M K"]) -> Int64[Tensor, "N"]:
    block = centred.amax(-1).argmax(-1)
    return block * centred.shape[2] + _block(centred, block).argmax(-1)


def _block(values: Float[Tensor, "N M K"], index: Int64[Tensor, "N"]) -> Float[Tensor, "N K"]:
    return values[torch.arange(len(values), device=values.device), index]


def _details(
    centred: Float[Tensor, "N M K"], weights: Float[Tensor, "N M K"], total: Float[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Margin of the two likeliest words, and entropy."""
    tops = weights.amax(-1)
    block = tops.argmax(-1)
    inner = _block(weights, block)
    others = tops.scatter(1, block[:, None], 0.0).amax(-1)  # the best of the other blocks
    best = inner.topk(min(2, inner.shape[1]), dim=-1).values
    second = torch.maximum(best[:, -1], others) if inner.shape[1] > 1 else others
    margin = (best[:, 0] - second) / total if centred[0].numel() > 1 else torch.zeros_like(total)
    surprise = (weights * centred.clamp_min(-1e4)).sum(-1).double().sum(-1) / total
    return margin.float(), (total.log() - surprise).float()


def _restrict(centred: Float[Tensor, "N M K"], choice: Categorical) -> Float[Tensor, "N M K"]:
    if not choice.restricted:
        return centred
    ordered, index = centred.flatten(1).sort(dim=-1, descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if choice.top_k:
        keep[:, choice.top_k :] = False
    if choice.top_p < 1.0:
        probs = ordered.masked_fill(~keep, -torch.inf).softmax(-1)
        keep &= probs.cumsum(-1) - probs < choice.top_p  # the first token always stays
    keep = torch.zeros_like(keep).scatter_(1, index, keep)
    return centred.masked_fill(~keep.view_as(centred), -torch.inf)


def _inverse_cdf(
    weights: Float[Tensor, "N M K"], sums: Float[Tensor, "N M"], words: Int64[Tensor, "N"]
) -> Int64[Tensor, "N"]:
    """The first token at which the running sum of the weights exceeds (word + 1/2)/2**32 of it all.

    fp64: in fp32 the running sum loses a flat tail of probabilities near 5e-5. Only the sums of the blocks are summed
    on, and then one block, so that no fp64 number is made for every word.
    """
    until = sums.double().cumsum(-1)
    level = (words.double() + 0.5) * 2.0**-32 * until[:, -1]
    block = torch.searchsorted(until, level[:, None], right=True).clamp_max(until.shape[1] - 1)
    before = (until.gather(1, block) - sums.double().gather(1, block)).clamp_min(0.0)
    inner = _block(weights, block[:, 0]).double().cumsum(-1)
    # below the block's own sum, which differs from the fp32 one in its last digits: a word of weight 0 is never taken
    rest = torch.minimum(level[:, None] - before, inner[:, -1:].nextafter(inner.new_zeros(1)))
    place = torch.searchsorted(inner, rest, right=True).clamp_max(inner.shape[1] - 1)
    return (block * weights.shape[2] + place)[:, 0]
