"""Log-probability and entropy of words against torch's own, with words that are left out."""

from __future__ import annotations

import pytest
import torch

from onpath.objectives.drawn_words import drawn, log_softmax, scored

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(5, 7, generator=GENERATOR) * 3
TARGETS = torch.tensor([[0, 1], [2, 2], [6, 0], [3, 4], [1, 0]])  # two of each row, also the same
ABOVE = torch.randn(5, 2, generator=GENERATOR)


@pytest.mark.parametrize("left_out", [False, True])
def test_scores_are_those_of_a_categorical(left_out: bool) -> None:
    logits = LOGITS.clone()
    if left_out:
        logits[:, 5] = -torch.inf
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    found, entropy = scored(mine, TARGETS)
    exact = torch.distributions.Categorical(logits=theirs)
    wanted = exact.log_prob(TARGETS.T).T
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(entropy, exact.entropy().detach())
    assert not entropy.requires_grad and torch.equal(drawn(logits, TARGETS), found)
    (found * ABOVE).sum().backward()
    (wanted * ABOVE).sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad.nan_to_num(0.0))


def test_the_gradient_of_the_scores_is_that_of_differences() -> None:
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: scored(z, TARGETS)[0], logits)


def test_words_left_out_are_finite() -> None:
    logits = LOGITS.clone()
    logits[:, 5] = -torch.inf
    logits.requires_grad_()
    words = log_softmax(logits)
    entropy = -(words.exp() * words).sum()
    entropy.backward()
    assert words.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
