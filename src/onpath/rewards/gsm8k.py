"""Rewards for word problems that end in one number, as those of GSM8K: the right number, and the form of the answer.

Source of the forms: d1, arXiv:2504.12216.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from onpath.rewards.answers import final_number, tagged
from onpath.rewards.base import Reward, check_scales, text_of

_INTEGER = re.compile(r"[-+]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")


@dataclass(frozen=True)
class GSM8KCorrect(Reward):
    r"""`scale` where the number that a completion gives as its answer is that of the column `answer`, else 0.

    The number stands in <answer></answer>, in \\boxed{}, behind ####, or, if `anywhere`, is the last of the text; see
    ``answers.final_number``. `answer` is GSM8K's own text, which ends in ``#### 42``, or a bare number.
    ValueError where an `answer` holds no number.
    Source of the data and its ####: GSM8K, arXiv:2110.14168.

    >>> GSM8KCorrect()(prompts=["6 times 7?"], completions=["<answer>\n42\n</answer>"], completion_ids=[[1]],
    ...                answer=["6 * 7 = <<6*7=42>>42 #### 42"])
    [2.0]
    """

    scale: float = 2.0
    anywhere: bool = True

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)

    def __call__(self, *, completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        right = [_known(text, place) for place, text in enumerate(answer)]
        found = [final_number(text_of(completion), self.anywhere) for completion in completions]
        return [self.scale if one == two else 0.0 for one, two in zip(found, right, strict=True)]


def _known(answer: Any, place: int) -> Fraction:
    number = final_number(str(answer))
    if number is None:
        raise ValueError(
            f"gsm8k_correct: the column `answer` of completion {place} is {str(answer)[-60:]!r}, which holds no "
            "number; it must end in `#### 42` or be a number"
        )
    return number


@dataclass(frozen=True)
class SoftFormat(Reward):
    """`scale` where one block of reasoning is followed by one block with an answer, whatever the line breaks, else 0.

    reasoning: the tag of the first block; the second is <answer>. Nothing but space may stand between them, and each
    tag occurs once.
    """

    scale: float = 0.5
    reasoning: str = "reasoning"

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [self.scale if self._holds(text_of(completion)) else 0.0 for completion in completions]

    def _holds(self, text: str) -> bool:
        parts = _parts(text, self.reasoning)
        return parts is not None and not parts[2].strip() and bool(parts[3].strip())


@dataclass(frozen=True)
class StrictFormat(Reward):
    """`scale` where a completion is a block of reasoning and a block with an answer, each tag on its own line, else 0.

    That is <reasoning>, lines, </reasoning>, <answer>, lines, </answer> and nothing else. reasoning: the tag of the
    first block.
    """

    scale: float = 0.5
    reasoning: str = "reasoning"

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [self.scale if self._holds(text_of(completion)) else 0.0 for completion in completions]

    def _holds(self, text: str) -> bool:
        parts = _parts(text, self.reasoning)
        if parts is None:
            return False
        before, thoughts, between, answer, after = parts
        lines = all(part[:1] == part[-1:] == "\n" and part.strip() for part in (thoughts, answer))
        return lines and before == "" and between == "\n" and after in ("", "\n")


@dataclass(frozen=True)
class IntegerAnswer(Reward):
    """`scale` where <answer></answer> holds an integer and nothing else but space, else 0.

    It may have a sign and thousands separators. Its digits are 0 to 9.
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        found = [tagged(text_of(completion)) for completion in completions]
        return [self.scale if _INTEGER.fullmatch((text or "").strip()) else 0.0 for text in found]


def _parts(text: str, reasoning: str) -> list[str] | None:
    """What stands before, in, between, in and behind two tagged blocks; None unless each of the four tags is there
    once, in order."""
    parts, rest = [], text
    for tag in (f"<{reasoning}>", f"</{reasoning}>", "<answer>", "</answer>"):
        if text.count(tag) != 1 or tag not in rest:
            return None
        part, _, rest = rest.partition(tag)
        parts.append(part)
    return [*parts, rest]
