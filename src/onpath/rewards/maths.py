"""The reward of mathematics: an answer that equals the known one, judged by the library math-verify."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from onpath.rewards.base import Reward, check_scales, text_of

_PROCESS = str(Path(__file__).with_name("math_process.py"))


@dataclass(frozen=True)
class Math(Reward):
    r"""`scale` where a completion's answer equals that of the column `answer`, as numbers, formulas or sets, else 0.

    `answer` is LaTeX or a number, or a solution that ends in \\boxed{}. What equals what is the judgement of
    math-verify. It works in a process of its own, so that no completion can harm or hold up this one: where one answer
    takes longer than `seconds_per_answer`, it scores 0, and so does whatever makes that process fail.
    ValueError where an `answer` is empty, and without math-verify: pip install "onpath[rl]".
    Source of the task: MATH, arXiv:2103.03874.
    """

    scale: float = 1.0
    seconds_per_answer: float = 5.0

    def __post_init__(self) -> None:
        check_scales(self.name, scale=self.scale)
        if not self.seconds_per_answer > 0:
            raise ValueError(f"math: seconds_per_answer is {self.seconds_per_answer}; a number above 0 is needed")

    def check(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError('math: math-verify is needed to judge answers: pip install "onpath[rl]"')

    def __call__(self, *, completions: Sequence[Any], answer: Sequence[Any], **columns: Any) -> list[float | None]:
        self.check()
        empty = [place for place, known in enumerate(answer) if not str(known).strip()]
        if empty:
            raise ValueError(f"math: the column `answer` of completion {empty[0]} is empty; leave out such examples")
        pairs = [(delimited(str(one)), text_of(two)) for one, two in zip(answer, completions, strict=True)]
        return [self.scale if right else 0.0 for right in self._judge(pairs)]

    def _judge(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (known answer, completion) is right. A pair at which the process dies is wrong."""
        judged: list[bool] = []
        command = [sys.executable, "-P", _PROCESS, str(self.seconds_per_answer)]
        while len(judged) < len(pairs):
            left = json.dumps(list(islice(pairs, len(judged), None)))
            done = subprocess.run(command, input=left, capture_output=True, encoding="utf-8", check=False)
            lines = done.stdout.split()
            if not lines:
                raise RuntimeError(f"math: the process that judges answers did not start: {done.stderr[-1000:]}")
            judged += [line == "right" for line in lines[1:]]
            if len(judged) < len(pairs):
                judged.append(False)
        return judged


def delimited(answer: str) -> str:
    r"""A known answer as a text in which math-verify finds it: bare LaTeX is put into \\boxed{}."""
    is_bare = "\\boxed" not in answer and answer.replace("\\$", "").count("$") < 2
    return f"\\boxed{{{answer}}}" if is_bare else answer
