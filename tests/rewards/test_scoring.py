"""Rewards are called as TRL calls them, and whatever goes wrong in one is told by its name."""

from __future__ import annotations

import math

from onpath.rewards.gsm8k import GSM8KCorrect, SoftFormat
from onpath.rewards.scoring import score


def test_the_total_is_the_weighted_sum() -> None:
    text = "<reasoning>6 * 7</reasoning><answer>42</answer>"
    scores = score(
        [GSM8KCorrect(), SoftFormat()],
        [1.0, 2.0],
        ["", ""],
        [text, "41"],
        [[1], [2]],
        {"answer": ["#### 42", "#### 42"]},
        10.0,
    )
    assert scores.total.tolist() == [3.0, 0.0]
    assert {name: row.tolist() for name, row in scores.by_name.items()} == {
        "gsm8k_correct": [2.0, 0.0],
        "soft_format": [0.5, 0.0],
    }
    assert math.isfinite(float(scores.total.sum()))
