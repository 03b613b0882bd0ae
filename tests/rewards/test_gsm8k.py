"""Rewards of GSM8K on transcripts written by hand: every scale is honoured, and answers may cross lines."""

from __future__ import annotations

import itertools

import pytest

from onpath.rewards.base import Reward
from onpath.rewards.gsm8k import GSM8KCorrect, IntegerAnswer, SoftFormat, StrictFormat

# in the form of the data set: calculations in <<>>, the answer behind ####
GOLD = "3 boxes hold 3*24 = <<3*24=72>>72 eggs.\nShe sells them for 72*15 = $<<72*15=1080>>1080.\n#### 1,080"
STRICT = "<reasoning>\n3 * 24 = 72\n72 * 15 = 1080\n</reasoning>\n<answer>\n1080\n</answer>"
SOFT = "<reasoning>3 * 24 = 72,\n72 * 15 = 1080</reasoning> \n\n<answer>1080 dollars</answer>"

# completion: right, strict, soft, integer
TABLE = {
    STRICT: (1, 1, 1, 1),
    STRICT + "\n": (1, 1, 1, 1),
    STRICT.replace("1080\n</answer>", "$1,080.00\n</answer>"): (1, 1, 1, 0),
    STRICT.replace("1080\n</answer>", "1,080\n</answer>"): (1, 1, 1, 1),
    STRICT.replace("1080\n</answer>", "-1080\n</answer>"): (0, 1, 1, 1),
    STRICT.replace("1080\n</answer>", "1079\n</answer>"): (0, 1, 1, 1),
    STRICT.replace("1080\n</answer>", "10²\n</answer>"): (0, 1, 1, 0),
    STRICT.replace("1080\n</answer>", "\n</answer>"): (0, 0, 0, 0),
    SOFT: (1, 0, 1, 0),
    SOFT.replace(" dollars", ""): (1, 0, 1, 1),
    "Well.\n" + STRICT: (1, 0, 1, 1),
    STRICT + "\nThat is all.": (1, 0, 1, 1),
    STRICT + STRICT: (1, 0, 0, 1),
    STRICT.replace("</reasoning>\n", "</reasoning>\nhence\n"): (1, 0, 0, 1),
    "<answer>\n1080\n</answer>\n<reasoning>\nsurely\n</reasoning>": (1, 0, 0, 1),
    "<answer>1080</answer>": (1, 0, 0, 1),
    "The total is\n\\boxed{1080}": (1, 0, 0, 0),
    GOLD: (1, 0, 0, 0),
    "72 eggs make 1080": (1, 0, 0, 0),
    "1080 or 1081": (0, 0, 0, 0),
    "": (0, 0, 0, 0),
}
REWARDS: list[Reward] = [GSM8KCorrect(), StrictFormat(), SoftFormat(), IntegerAnswer()]
SCALES = (2.0, 0.5, 0.5, 0.5)


def said(reward: Reward, *completions: str, answer: str = GOLD) -> list[float]:
    size = len(completions)
    return reward(
        prompts=[""] * size, completions=list(completions), completion_ids=[[]] * size, answer=[answer] * size
    )


def test_transcripts() -> None:
    for reward, scale, column in zip(REWARDS, SCALES, zip(*TABLE.values(), strict=True), strict=True):
        assert said(reward, *TABLE) == [scale * right for right in column], reward.name


@pytest.mark.parametrize("scale", [0.25, -1.0, 3.0])
def test_scales_are_honoured(scale: float) -> None:
    for reward in (GSM8KCorrect(scale), StrictFormat(scale), SoftFormat(scale), IntegerAnswer(scale)):
        assert said(reward, STRICT, "") == [scale, 0.0]


def test_another_tag_for_reasoning() -> None:
    text = STRICT.replace("reasoning>", "think>")
    assert (
        said(StrictFormat(reasoning="think"), text, STRICT)
        == said(SoftFormat(reasoning="think"), text, STRICT)
        == [0.5, 0.0]
    )


def test_answers_of_the_data_in_every_form() -> None:
    forms = ["72", "#### 72", "so 72 it is\n#### 72", "#### 72.0", "$72"]
    for one, two in itertools.product(forms, forms):
        assert said(GSM8KCorrect(), one, answer=two) == [2.0]
    assert said(GSM8KCorrect(anywhere=False), "72", "#### 72", answer="72") == [0.0, 2.0]


def test_data_without_a_number_is_refused() -> None:
    with pytest.raises(
        ValueError, match="gsm8k_correct: the column `answer` of completion 0 is 'unknown', which holds no"
    ):
        said(GSM8KCorrect(), "72", answer="unknown")
