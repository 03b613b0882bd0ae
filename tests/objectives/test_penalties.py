"""The penalty curriculum against a loop over positions, and the share of every kind of corruption."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onpath.objectives.penalties import MaskingPenalties
from onpath.processes.masking import Masking
from onpath.processes.replacing import replaced_words
from onpath.ramps import Constant, LinearRamp, Piecewise
from onpath.rng import Key
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Nets
from worlds import HashDenoiser

WORDS, MASK, LENGTH = 5, 5, 12
PROCESS, KEY = Masking(LinearSchedule(), MASK), Key(3, "train", 7)


def batch(size: int = 40) -> Batch:
    x = torch.randint(0, WORDS, (size, LENGTH), generator=torch.Generator().manual_seed(0))
    given, padding = torch.zeros(2, size, LENGTH, dtype=torch.bool).unbind(0)
    given[::3, :4] = True
    padding[1::3, 9:] = True
    return Batch.of_tokens(x, 50 + torch.arange(size), given=given, padding=padding)


def objective(**settings: Any) -> MaskingPenalties:
    return MaskingPenalties(PROCESS, WORDS, **settings)


def by_position(made: MaskingPenalties, step: int, network: HashDenoiser) -> tuple[float, int]:
    """The loss as the definition says it, one position after the other."""
    data, (keep, correct) = batch(), made.penalties(step)
    x, masked, replaced = made.spoiled(data, KEY)
    logits = network(x, torch.zeros(len(x)), None)
    total, count = 0.0, 0
    for b, i in data.free().nonzero().tolist():
        log_probs = logits[b, i].double().log_softmax(-1)
        target = MASK if replaced[b, i] else int(data.x[b, i])
        penalty = keep if masked[b, i] else 1.0 if replaced[b, i] else correct
        if made.weights == "argmax":
            weight = penalty if int(log_probs.argmax()) == MASK else 1.0
        else:
            weight = 1.0 + (penalty - 1.0) * float(log_probs[MASK].exp())
        total -= weight * float(log_probs[target])
        count += 1
    return total, count


@pytest.mark.parametrize("weights", ["argmax", "smooth"])
@pytest.mark.parametrize("step", [0, 300, 5000])
def test_equals_the_definition_position_by_position(weights: str, step: int) -> None:
    made, network = objective(weights=weights), HashDenoiser(WORDS, with_mask=True)
    loss = made(Nets(network), batch(), KEY, step)
    total, count = by_position(made, step, network)
    torch.testing.assert_close(float(loss.numerator), total, rtol=1e-5, atol=0)
    assert loss.denominator == count


def test_discounts_act_where_they_are_said_to() -> None:
    network = HashDenoiser(WORDS, with_mask=True)
    plain = float(objective(penalty_keep_mask=1.0, penalty_mask_correct=1.0)(Nets(network), batch(), KEY, 0).numerator)
    for name in ("penalty_keep_mask", "penalty_mask_correct"):
        settings = {"penalty_keep_mask": 1.0, "penalty_mask_correct": 1.0, name: 0.0}
        assert float(objective(**settings)(Nets(network), batch(), KEY, 0).numerator) < plain - 1.0


def test_a_network_that_knows_pays_nothing() -> None:
    made, data = objective(), batch()
    x, _, replaced = made.spoiled(data, KEY)
    answers = data.x.masked_fill(replaced, MASK)

    class Knows:
        def encode(self, **cond: Any) -> None:
            return None

        def __call__(self, given: Any, t: Any, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
            assert torch.equal(given, x)
            logits = 60.0 * torch.nn.functional.one_hot(answers, WORDS + 1).float().flatten(0, 1)
            return readout(logits[rows], rows)

    loss = made(Nets(Knows()), data, KEY, 0)
    assert float(loss.numerator) < 1e-4
    shares = {name: float(a) / float(b) for name, (a, b) in loss.metrics.items()}
    assert shares["accuracy"] == 1 and shares["doubted_replaced"] == 1 and shares["doubted_untouched"] == 0


def test_shares_of_the_corruption() -> None:
    data = Batch.of_tokens(torch.zeros(20_000, LENGTH, dtype=torch.int64), torch.arange(20_000))
    x, masked, replaced = objective(guaranteed_correct=0.1).spoiled(data, KEY)
    assert not (masked & replaced).any()
    assert torch.equal(x == MASK, masked) and torch.equal((x != 0) & ~masked, replaced)
    # r_m ~ U(0, c) has mean c/2, r_r ~ U(0, c - r_m) has mean c/4; standard errors are below .003
    assert abs(float(masked.float().mean()) - 0.45) < 0.01
    assert abs(float(replaced.float().mean()) - 0.225) < 0.01
    spoiled = (masked | replaced).float().mean(1)
    assert float((spoiled.mean() - 0.675).abs()) < 0.01
    wrong = x[replaced]
    assert torch.bincount(wrong, minlength=WORDS)[1:].double().div(len(wrong)).sub(0.25).abs().max() < 0.01


@pytest.mark.parametrize("mask_id", [5, 2])
def test_another_word_and_never_the_mask(mask_id: int) -> None:
    words = torch.tensor([i for i in range(5 + (mask_id < 5)) if i != mask_id])
    x = words[torch.randint(0, len(words), (400, 30), generator=torch.Generator().manual_seed(1))]
    data = Batch.of_tokens(x, torch.arange(400))
    new = replaced_words(data, torch.ones_like(x, dtype=torch.bool), 5 + (mask_id < 5), mask_id, KEY)
    assert (new != x).all() and (new != mask_id).all()
    for word in words.tolist():
        seen = new[x == word]
        shares = torch.stack([(seen == other).double().mean() for other in words.tolist() if other != word])
        assert (shares - 0.25).abs().max() < 0.05


def test_ramps_of_any_kind_and_the_floor() -> None:
    made = objective(penalty_keep_mask=Piecewise(((0, 1.0), (10, 0.5))), penalty_mask_correct=Constant(0.3), floor=0.4)
    assert made.penalties(5) == (0.75, 0.4)
    assert objective(floor=0.1).penalties(0) == (1.0, 0.1)
    assert objective(floor=0.1).penalties(1000) == (0.25, 0.5)


def test_a_discount_of_zero_gives_no_gradient() -> None:
    """At step 0 of the curriculum nothing teaches right words to stay where [MASK] is the answer; a floor does."""
    data = Batch.of_tokens(torch.zeros(8, LENGTH, dtype=torch.int64), torch.arange(8))
    for floor, learns in ((0.0, False), (0.1, True)):
        logits = torch.zeros(8 * LENGTH, WORDS + 1)
        logits[:, MASK] = 5.0
        logits.requires_grad_()
        made = objective(floor=floor)
        _, masked, replaced = made.spoiled(data, KEY)

        class Doubts:
            def encode(self, **cond: Any) -> None:
                return None

            def __call__(self, x: Any, t: Any, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
                return readout(logits[rows], rows)  # noqa: B023

        made(Nets(Doubts()), data, KEY, 0).numerator.backward()
        assert logits.grad is not None
        untouched = ~(masked | replaced).flatten()
        assert bool((logits.grad[untouched] != 0).any()) is learns


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"penalty_keep_mask": 1.5}, "penalty_keep_mask"),
        ({"penalty_mask_correct": LinearRamp(0.0, -0.5, 10)}, "penalty_mask_correct"),
        ({"guaranteed_correct": 1.0}, "guaranteed_correct"),
        ({"floor": 2.0}, "floor"),
    ],
)
def test_refusals(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        objective(**settings)
