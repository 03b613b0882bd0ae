"""The reward of mathematics: what is equal, from any thread, and texts that would hang a process."""

from __future__ import annotations

import signal
import sys

import pytest

from onpath.rewards.maths import Math
from onpath.rewards.scoring import score

# known answer, completion, whether they are the same
PAIRS = [
    ("\\frac{1}{2}", "so it is $0.5$", True),
    ("\\frac{1}{2}", "Thus\n\\[\n\\boxed{\n\\frac{2}{4}\n}\n\\]", True),
    ("x^2+1", "\\boxed{1+x^2}", True),
    ("(x+1)^2", "\\boxed{x^2+2x+1}", True),
    ("x^2+1", "\\boxed{x^2-1}", False),
    ("\\{1,2\\}", "\\boxed{\\{2,1\\}}", True),
    ("(1,2)", "\\boxed{(2,1)}", False),
    ("\\text{(C)}", "\\boxed{C}", True),
    ("\\$36", "\\boxed{36}", True),
    ("1,234", "\\boxed{1234}", True),
    ("The sum is\n$7+7=\\boxed{14}$.", "<answer>\n14\n</answer>", True),
    ("2\\sqrt{2}", "$\\sqrt{8}$", True),
    ("7", "\\boxed{7}", True),
    ("7", "\\boxed{8}", False),
    ("7", "", False),
    ("7", "\\boxed{", False),
    ("7", "\\frac{{{", False),
    ("7", "(" * 1000, False),
    ("7", "\ud800\x00", False),
    ("7", "$" * 2000, False),
]


def test_what_is_equal_and_from_any_thread() -> None:
    known, completions, right = (list(column) for column in zip(*PAIRS, strict=True))
    before = signal.getsignal(signal.SIGALRM)
    size = len(PAIRS)
    scores = score([Math(scale=3.0)], [1.0], [""] * size, completions, [[]] * size, {"answer": known}, 300.0)
    assert scores.total.tolist() == [3.0 * is_right for is_right in right]
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.slow
def test_a_text_that_takes_too_long_scores_nothing_and_the_others_go_on() -> None:
    hanging = ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{" + "\\frac{1}{" * 400 + "1" + "}" * 400 + "}"]
    completions = ["\\boxed{7}", hanging[0], "\\boxed{7}", hanging[1], "\\boxed{7}"]
    assert Math(seconds_per_answer=3.0)(completions=completions, answer=["7"] * 5) == [1.0, 0.0, 1.0, 0.0, 1.0]


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="math: the column `answer` of completion 1 is empty"):
        Math()(completions=["7", "7"], answer=["7", " "])
    with pytest.raises(ValueError, match=r"seconds_per_answer is 0\.0"):
        Math(seconds_per_answer=0.0)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    for call in (Math().check, lambda: Math()(completions=["7"], answer=["7"])):
        with pytest.raises(ValueError, match=r'pip install "onpath\[rl\]"'):
            call()
