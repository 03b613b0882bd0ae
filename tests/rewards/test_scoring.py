"""Rewards are called as TRL calls them, and whatever goes wrong in one is told by its name."""

from __future__ import annotations

import asyncio
import math
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import judges
from onpath.mistakes import message_of
from onpath.rewards.base import FunctionReward, Reward
from onpath.rewards.gsm8k import GSM8KCorrect, SoftFormat
from onpath.rewards.scoring import Scores, score

COMPLETIONS = ["a", "bb", "ccc", "dddd", "a"]
PROMPT = "a prompt that is longer than what a message has room for " * 3


def judged(
    *names: str,
    weights: Sequence[float] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    limit: float = 30.0,
) -> Scores:
    rewards = [FunctionReward(f"judges:{name}") for name in names]
    size = len(COMPLETIONS)
    prompts, ids = [PROMPT] * size, [[1, 2]] * size
    return score(rewards, weights or [1.0] * len(names), prompts, COMPLETIONS, ids, columns or {}, limit)


# --- what they say ------------------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum() -> None:
    text = "<reasoning>6 * 7</reasoning><answer>42</answer>"
    rewards = [GSM8KCorrect(), SoftFormat()]
    scores = score(rewards, [1.0, 2.0], ["", ""], [text, "41"], [[1], [2]], {"answer": ["#### 42"] * 2}, 10.0)
    assert scores.total.tolist() == [3.0, 0.0]
    assert {name: row.tolist() for name, row in scores.by_name.items()} == {
        "gsm8k_correct": [2.0, 0.0],
        "soft_format": [0.5, 0.0],
    }


def test_none_counts_as_nothing() -> None:
    scores = judged("shortness", "of_a_only", weights=[0.5, 4.0])
    assert scores.total.tolist() == [-0.5 + 4.0, -1.0, -1.5, -2.0, -0.5 + 4.0]
    assert scores.by_name["of_a_only"].isnan().tolist() == [False, True, True, True, False]
    assert scores.total.dtype == scores.by_name["shortness"].dtype == torch.float32


def test_every_kind_of_number_is_one() -> None:
    scores = judged("odd_types", "as_tensor", weights=[1.0, 10.0])
    assert scores.by_name["odd_types"].tolist() == [1.0, 0.5, 2.0, 3.0, 0.25]
    assert scores.total.tolist() == [1.0, 10.5, 22.0, 33.0, 40.25]


def test_functions_are_called_as_trl_calls_them_and_without_gradient() -> None:
    scores = judged("seen", "gradient", columns={"answer": list("12345")})
    assert scores.by_name["seen"].tolist() == [1.0] * 5
    assert scores.by_name["gradient"].tolist() == [0.0] * 5


# --- async --------------------------------------------------------------------------------------------------------


def test_async_rewards_run_together() -> None:
    judges._met.clear()
    assert judged("meets_one", "shortness", "meets_two").total.tolist() == [1.0, 0.0, -1.0, -2.0, 1.0]


@dataclass(frozen=True)
class Patient(Reward):
    """A class whose call is async."""

    async def __call__(self, *, completions: Sequence[Any], **columns: Any) -> Any:
        await asyncio.sleep(0)
        return [0.25] * len(completions)


def test_a_running_loop_is_no_hindrance() -> None:
    async def notebook() -> Scores:
        return score([Patient()], [1.0], ["", ""], ["a", "b"], [[1], [2]], {}, 10.0)

    scores = asyncio.run(notebook())
    assert scores.total.tolist() == [0.25, 0.25] and list(scores.by_name) == ["patient"]
    assert judged("shy", "shortness").total[0] == -0.5


def test_what_was_never_begun_is_closed() -> None:
    with pytest.raises(ValueError, match="raising"):  # a coroutine left over would warn, which is an error here
        judged("shy", "hanging_later", "raising")


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raising", "raising_later"])
def test_what_a_reward_raises_is_told_with_its_traceback(name: str) -> None:
    with pytest.raises(ValueError, match=rf"reward {name}: raised KeyError: 'no such word' \(line \d+ of ") as caught:
        judged("shortness", name)
    assert isinstance(caught.value.__cause__, KeyError)
    for error in (caught.value, caught.value.__cause__):
        assert name in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert "asked about 5 completions, the first with the prompt 'a prompt that" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_reward_cannot_end_the_process() -> None:
    with pytest.raises(ValueError, match="reward leaving: raised SystemExit: 3"):
        judged("leaving")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "returned nan, a float, for completion 1 "),
        ("infinite", "returned -inf, a float, for completion 0 "),
        ("too_large", "returned 1000000"),
        ("words", "returned '0.5', a str, for completion 0 "),
        ("imaginary", "returned 1j, a complex, for completion 0 "),
        ("too_few", "returned a list of 4 values, asked about 5 completions"),
        ("one_number", "returned 0.5, a float, asked about 5 completions"),
        ("by_name", "returned {'a': 0.5,"),
    ],
)
def test_a_wrong_return_names_function_example_value_and_what_is_allowed(name: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        judged("shortness", name)
    message = str(caught.value)
    assert message.startswith(f"reward {name}: {said}")
    assert "'a prompt that is" in message and "allowed are a finite number or None for each" in message
    assert len(message) < 400


def test_a_completion_on_which_nobody_has_an_opinion_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of_a_only, silent returned None for completion 1 \(.*\) and 2 more"):
        judged("of_a_only", "silent")
    with pytest.raises(ValueError, match="silent returned None for completion 0"):  # what weighs nothing says nothing
        judged("shortness", "silent", weights=[0.0, 1.0])
    assert judged("shortness", "silent").total.tolist() == [-1.0, -2.0, -3.0, -4.0, -1.0]


@pytest.mark.parametrize(
    "names", [("hanging",), ("shy", "hanging_later"), ("refusing_to_end",), ("blocking_the_loop",)]
)
def test_a_reward_that_hangs_is_left_behind(names: tuple[str, ...]) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=rf"reward {names[-1]}: returned nothing within 0.2 s, .*raise time_limit_s"):
        judged("shortness", *names, limit=0.2)
    assert time.monotonic() - began < 4.0  # and not an hour, nor the 5 s of the one that cannot be cancelled


def test_the_process_ends_beside_a_reward_that_hangs() -> None:
    code = (
        "from onpath.rewards.base import FunctionReward\nfrom onpath.rewards.scoring import score\n"
        "for name in ('hanging', 'blocking_the_loop'):\n"
        "    try:\n        score([FunctionReward(f'judges:{name}')], [1.0], [''], [''], [[]], {}, 0.1)\n"
        "    except ValueError as error:\n        print(str(error)[:40])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(judges.__file__).parent)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "reward hanging: returned nothing within ",
        "reward blocking_the_loop: returned nothi",
    ]


# --- what is refused before any reward is asked -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ((), {}, "there are 0 rewards"),
        (("raising", "shy"), {"weights": [1.0]}, r"there are 2 rewards \(raising, shy\) and 1 weights"),
        (("raising",), {"weights": [0.0]}, "not all of them 0"),
        (("raising",), {"weights": [math.nan]}, r"the weights are \[nan\]; finite numbers"),
        (("raising", "raising"), {}, "the name raising stands twice"),
        (("raising",), {"limit": 0.0}, "time_limit_s is 0.0"),
        (("raising",), {"columns": {"prompts": [""] * 5}}, "a column of the data is called prompts"),
        (("raising",), {"columns": {"answer": [""] * 4}}, "'answer': 4"),
        (("needy",), {}, r"reward needy: it cannot be called .*missing a required argument: 'book'"),
        (("closed",), {}, r"reward closed: it cannot be called .*let it take \*\*columns"),
    ],
)
def test_a_call_that_cannot_work_is_refused(names: tuple[str, ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judged(*names, **settings)


def test_no_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="one completion or more"):
        score([SoftFormat()], [1.0], [], [], [], {}, 1.0)


def test_a_sum_too_large_for_fp32_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for fp32"):
        judged("shortness", weights=[3e38])


def test_a_bug_in_a_function_of_yours_is_told_from_a_mistake_in_the_data() -> None:
    """The command line shows the traceback of the first, and a line about the second."""

    def shown(call: Callable[[], Any]) -> tuple[str, Exception]:
        with pytest.raises(ValueError) as caught:
            call()
        below = caught.value.__traceback__
        while below is not None and below.tb_frame.f_code.co_filename == __file__:
            below = below.tb_next
        error = caught.value.with_traceback(below)
        return message_of(error), error

    said, error = shown(lambda: judged("raising"))
    assert said == "" and re.search(
        r"comes from raising in .*judges.py, which is not part of Onpath", error.__notes__[0]
    )
    data = {"answer": ["unknown"]}
    said, _ = shown(lambda: score([GSM8KCorrect()], [1.0], [""], ["42"], [[1]], data, 10.0))
    assert "the column `answer` of completion 0 is 'unknown'" in said
