"""What a set of texts looks like: how long, how varied, how much copied, and how likely to another model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from onpath.evaluation.settings import Row, row
from onpath.evaluation.statistics import mean_interval

Tokens = Int64[Tensor, "_"]

_PRIME = 0x9E3779B97F4A7C15 - (1 << 64)  # odd; products wrap around in int64, as a polynomial hash wants


def text_rows(set_name: str, mode: str, texts: Sequence[Tokens], training: Tokens, copy_length: int) -> list[Row]:
    """Scores of texts as token ids, the end token and what follows it left out.

    length in tokens; unigram_entropy in nats, the mean over texts of the entropy of a text's own token frequencies;
    distinct_1, 2, 3: different n-grams over all n-grams of the texts together; copied: share of runs of `copy_length`
    tokens that stand in `training`. Texts are never filtered before.
    """
    lengths = torch.tensor([float(len(text)) for text in texts], dtype=torch.float64)
    entropies = torch.tensor([unigram_entropy(text) for text in texts], dtype=torch.float64)
    n = len(texts)
    rows = [
        row(set_name, mode, "length", float(lengths.mean()), mean_interval(lengths), n),
        row(set_name, mode, "unigram_entropy", float(entropies.mean()), mean_interval(entropies), n),
    ]
    for size in (1, 2, 3):
        rows.append(row(set_name, mode, f"distinct_{size}", distinct(texts, size), None, n))
    rows.append(row(set_name, mode, f"copied_{copy_length}", copied(texts, training, copy_length), None, n))
    return rows


def unigram_entropy(text: Tokens) -> float:
    """Entropy in nats of the frequencies of the tokens of one text; 0 where it has none."""
    _, counts = text.unique(return_counts=True)
    shares = counts.double() / max(1, len(text))
    return float(-(shares * shares.log()).sum())


def distinct(texts: Sequence[Tokens], size: int) -> float:
    """Different n-grams of `size` tokens over all of them; 0 where there are none.

    Source: distinct-n, Li et al., arXiv:1510.03055, Section 5.3.
    """
    found = torch.cat([ngrams(text, size) for text in texts]) if texts else torch.zeros(0, dtype=torch.int64)
    return len(found.unique()) / max(1, len(found))


def copied(texts: Sequence[Tokens], training: Tokens, size: int) -> float:
    """Share of the runs of `size` tokens of the texts that stand somewhere in `training`; 0 where there are none."""
    found = torch.cat([ngrams(text, size) for text in texts]) if texts else torch.zeros(0, dtype=torch.int64)
    return float(torch.isin(found, ngrams(training, size)).double().mean()) if len(found) else 0.0


def ngrams(text: Tokens, size: int) -> Int64[Tensor, "N"]:
    """A 64-bit hash of every run of `size` tokens; different runs collide with probability 2⁻⁶⁴ or so."""
    count = max(0, len(text) - size + 1)
    value = torch.zeros(count, dtype=torch.int64)
    for place in range(size):
        value = (value ^ (value >> 29)) * _PRIME + text[place : place + count].long() + 1
    return value * _PRIME ^ (value >> 31)


def perplexity_row(set_name: str, mode: str, texts: Sequence[str], name: str) -> Row:
    """Perplexity of texts under the causal language model `name` of transformers (a folder or a hub name): exp of the
    mean nats of its own tokens, the first of each text left out.

    ValueError where it cannot be loaded. A low value alone is no sign of quality: repetition is likely too.
    """
    nats, count = 0.0, 0
    tokenizer, model = _causal(name)
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] < 2:
            continue
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].float().log_softmax(-1)
        nats -= float(log_probs.gather(1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    return row(set_name, mode, "perplexity", math.exp(nats / max(1, count)), None, len(texts))


def _causal(name: str) -> tuple:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ValueError(
            f'evaluation: causal needs {error.name}, which is not installed; install it: pip install "onpath[text]"'
        ) from error
    try:
        return AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"evaluation: causal is {name!r}, which cannot be loaded as a causal language model ({error}); give a "
            "folder or a hub name of one, or leave it out"
        ) from error
