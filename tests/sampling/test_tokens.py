"""The choice of a token: frequencies against closed forms, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from onpath import rng
from onpath.rng import Key
from onpath.sampling.guidance import guided
from onpath.sampling.tokens import Categorical, Drawn, draw
from statistical import chi_square_p

LOGITS = torch.tensor([2.0, 0.5, 0.4, -1.0, 1.3, -30.0])
COUNT = 50_000


def words(count: int, purpose: str = "words") -> torch.Tensor:
    return rng.bits(Key(1, purpose), torch.arange(count))


def many(choice: Categorical, temperature: torch.Tensor | None = None) -> Drawn:
    return draw(LOGITS.expand(COUNT, -1), words(COUNT), choice, temperature)


def expected(temperature: float, keep: list[int]) -> torch.Tensor:
    weights = [math.exp(float(x) / temperature) if i in keep else 0.0 for i, x in enumerate(LOGITS)]
    return torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)


CASES = {
    "plain": (Categorical(), 1.0, [0, 1, 2, 3, 4, 5]),
    "hot": (Categorical(temperature=2.5), 2.5, [0, 1, 2, 3, 4, 5]),
    "cold": (Categorical(temperature=0.3), 0.3, [0, 1, 2, 3, 4, 5]),
    "top 1": (Categorical(top_k=1), 1.0, [0]),
    "top 3": (Categorical(top_k=3), 1.0, [0, 1, 4]),
    "top 99": (Categorical(top_k=99), 1.0, [0, 1, 2, 3, 4, 5]),
    # probabilities in order: .508 .252 .113 .103 .025 0
    "top p .5": (Categorical(top_p=0.5), 1.0, [0]),
    "top p .6": (Categorical(top_p=0.6), 1.0, [0, 4]),
    "top p .8": (Categorical(top_p=0.8), 1.0, [0, 4, 1]),
    "top p tiny": (Categorical(top_p=1e-6), 1.0, [0]),
    # the nucleus is that of what top-k left: .668 .332 within the first two
    "top 2 and p .66": (Categorical(top_k=2, top_p=0.66), 1.0, [0]),
    # the nucleus is that of the tempered distribution: .317 .240 .174 .167 .096 .005
    "top p .6 at 2.5": (Categorical(temperature=2.5, top_p=0.6), 2.5, [0, 4, 1]),
}


@pytest.mark.parametrize(("choice", "temperature", "keep"), CASES.values(), ids=CASES.keys())
def test_frequencies(choice: Categorical, temperature: float, keep: list[int]) -> None:
    counts = torch.bincount(many(choice).token, minlength=len(LOGITS))
    wanted = expected(temperature, keep) * COUNT
    rare = wanted < 5
    assert counts[rare].sum() <= 3 * wanted[rare].sum() + 3 * (wanted[rare].sum() > 0)
    if (~rare).sum() > 1:
        assert chi_square_p(counts[~rare], wanted[~rare]) > 1e-4
    else:
        assert counts[~rare].sum() == COUNT


def test_greedy_takes_the_likeliest() -> None:
    noise = torch.randn(100, 7, generator=torch.Generator().manual_seed(0))
    for drawn in (
        draw(noise, None, Categorical(temperature=0.0), None),
        draw(noise, words(100), Categorical(top_k=1), None),
    ):
        assert torch.equal(drawn.token, noise.argmax(-1))


def test_temperature_of_a_row() -> None:
    """Rows at 0 are greedy, the others are drawn at their own temperature, all in one call."""
    heat = torch.tensor([0.0, 0.5, 1.0, 3.0]).repeat(COUNT // 4)
    token = many(Categorical(), heat).token
    assert (token[heat == 0] == 0).all()
    for temperature in (0.5, 1.0, 3.0):
        counts = torch.bincount(token[heat == temperature], minlength=len(LOGITS))
        wanted = expected(temperature, list(range(6))) * (COUNT // 4)
        assert chi_square_p(counts[wanted >= 5], wanted[wanted >= 5]) > 1e-4


def test_the_words_are_the_levels_of_the_cdf() -> None:
    """Token = first v with Σ_{u<=v} p_u > (word + 1/2)/2**32: the exact inverse, one row at a time."""
    noise = torch.randn(200, 9, generator=torch.Generator().manual_seed(1))
    levels = words(200)
    token = draw(noise, levels, Categorical(), None).token
    for row in range(200):
        probs = [math.exp(float(x)) for x in noise[row].double()]
        left = (int(levels[row]) + 0.5) / 2**32 * sum(probs)
        expected_token = 0
        while left >= probs[expected_token]:
            left -= probs[expected_token]
            expected_token += 1
        assert int(token[row]) == expected_token


@pytest.mark.parametrize("word", [0, 1, 2**31, 2**32 - 1])
def test_impossible_tokens_are_never_drawn(word: int) -> None:
    minus = -torch.inf
    logits = torch.tensor([[minus, 1.0, minus, 1.0, minus], [minus, minus, 0.0, minus, minus]])
    token = draw(logits, torch.full((2,), word), Categorical(temperature=3.0), None).token
    assert token[0] in (1, 3) and token[1] == 2


def test_certainty_is_that_of_the_network_whatever_the_temperature() -> None:
    exact = [math.exp(float(x)) for x in LOGITS.double()]
    exact = [p / sum(exact) for p in exact]
    for choice in (Categorical(), Categorical(temperature=4.0), Categorical(temperature=0.0), Categorical(top_k=2)):
        drawn = many(choice)
        torch.testing.assert_close(drawn.confidence, torch.tensor(exact)[drawn.token])
        assert float(drawn.margin[0]) == pytest.approx(exact[0] - exact[4], rel=1e-5)
        assert float(drawn.entropy[0]) == pytest.approx(-sum(p * math.log(p) for p in exact), rel=1e-5)


def test_one_word_vocabulary() -> None:
    drawn = draw(torch.zeros(3, 1), words(3), Categorical(), None)
    assert drawn.token.tolist() == [0, 0, 0] and drawn.confidence.tolist() == [1.0] * 3
    assert drawn.entropy.tolist() == [0.0] * 3


def test_half_precision_logits_are_drawn_in_full() -> None:
    drawn = draw(LOGITS.bfloat16().expand(COUNT, -1), words(COUNT), Categorical(), None)
    assert drawn.confidence.dtype == torch.float32
    wanted = LOGITS.bfloat16().double().softmax(-1)[:5] * COUNT
    assert chi_square_p(torch.bincount(drawn.token, minlength=6)[:5], wanted) > 1e-4


def test_guidance_formula() -> None:
    both = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
    weight = torch.tensor([0.0, 1.0, -1.0, 2.5])
    out = guided(both, weight)
    for row in range(4):
        cond, bare = both[2 * row], both[2 * row + 1]
        torch.testing.assert_close(out[row], (1 + weight[row]) * cond - weight[row] * bare)
    assert torch.equal(out[0], both[0])


def test_a_zipf_tail_keeps_its_entropy() -> None:
    """V = 50,000: the sample entropy of 7.56 nats is that of the distribution, tail included."""
    size, count = 50_000, 800
    log_p = -torch.arange(1, size + 1).double().log()
    log_p = log_p - log_p.logsumexp(0)
    entropy = float(-(log_p.exp() * log_p).sum())
    assert entropy == pytest.approx(7.56, abs=0.005)
    surprise = []
    for part in range(8):
        level = rng.bits(Key(3, "zipf", part), torch.arange(count // 8))
        token = draw(log_p.float().expand(count // 8, -1), level, Categorical(), None).token
        surprise.append(-log_p[token])
    surprise = torch.cat(surprise)
    assert abs(float(surprise.mean()) - entropy) < 4 * float(surprise.std()) / count**0.5
    # a fifth of the mass is beyond rank 4,700
    tail = float(log_p[4700:].exp().sum())
    share = float((surprise > -float(log_p[4700])).double().mean())
    assert abs(share - tail) < 4 * (tail * (1 - tail) / count) ** 0.5


def test_a_flat_tail_is_reached_to_its_end() -> None:
    """20,000 tokens of 5e-5 each, whose running sum in fp32 would drift: the quantiles of the index are exact."""
    size = 20_000
    levels = torch.arange(256) * 2**24
    token = draw(torch.zeros(256, size), levels, Categorical(), None).token
    assert torch.equal(token, ((levels.double() + 0.5) / 2**32 * size).long())


@pytest.mark.parametrize("size", [2, 255, 256, 257, 3001, 40_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_blocks_of_words_change_nothing(size: int, temperature: float) -> None:
    """Tokens, confidence, margin and entropy equal those of one fp64 softmax, for any number of words."""
    logits = 3 * torch.randn(40, size, generator=torch.Generator().manual_seed(4))
    logits[:, size // 2] = -torch.inf
    drawn = draw(logits, words(40), Categorical(temperature), None)
    probs = logits.double().softmax(-1)
    cdf = (logits.double() / temperature).softmax(-1).cumsum(-1)
    level = (words(40).double() + 0.5) / 2**32
    exact = torch.searchsorted(cdf, level[:, None], right=True)[:, 0]
    near = (cdf - level[:, None]).abs().amin(1) < 1e-6  # fp32 logits may fall on either side there
    assert (drawn.token == exact)[~near].all() and near.sum() <= 1
    torch.testing.assert_close(
        drawn.confidence.double(), probs.gather(1, drawn.token[:, None])[:, 0], rtol=1e-5, atol=0
    )
    best = probs.topk(2, dim=1).values
    torch.testing.assert_close(drawn.margin.double(), best[:, 0] - best[:, 1], rtol=1e-4, atol=1e-6)
    entropy = -(probs * probs.clamp_min(1e-300).log()).sum(1)
    torch.testing.assert_close(drawn.entropy.double(), entropy, rtol=1e-5, atol=1e-5)
    assert torch.equal(draw(logits, None, Categorical(0.0), None).token, logits.argmax(-1))


def test_a_long_tail_beyond_the_first_block_is_drawn_as_often_as_it_should_be() -> None:
    """One likely word and 20,000 of 2.5e-5: by quarters of the tail, a chi-square test."""
    logits = torch.cat([torch.tensor([0.0]), torch.full((20_000,), -9.9034876)])  # exp(-9.9035) = 5e-5
    token = torch.cat(
        [draw(logits.expand(200, -1), words(200, f"tail {part}"), Categorical(), None).token for part in range(20)]
    )
    cells = torch.where(token == 0, 0, 1 + (token - 1).clamp_min(0) // 5000)
    assert chi_square_p(torch.bincount(cells, minlength=5), torch.tensor([0.5] + [0.125] * 4) * len(token)) > 1e-4


REFUSED = {
    "cold": {"temperature": -0.1},
    "top k": {"top_k": -1},
    "top p 0": {"top_p": 0.0},
    "top p 2": {"top_p": 2.0},
    "greedy top k": {"temperature": 0.0, "top_k": 5},
    "greedy top p": {"temperature": 0.0, "top_p": 0.9},
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED.keys())
def test_refusals(fields: dict) -> None:
    with pytest.raises(ValueError, match="temperature"):
        Categorical(**fields)
