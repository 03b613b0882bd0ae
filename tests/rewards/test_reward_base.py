"""What every reward promises, that of TRL included, and functions of a user as rewards."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from onpath.data.trajectories import FourRoomsExpert
from onpath.kinds import FAMILIES
from onpath.rewards.base import FunctionReward, Reward
from tables import REWARDS

COLUMNS: dict[str, Any] = {
    "answer": "#### 42",
    "numbers": [6, 7],
    "target": 42,
    "canvas": "1234341221434321",
    "givens": "1..4..12......2.",
    "solution": "1234341221434321",
    "task": FourRoomsExpert().columns(torch.arange(1))["task"][0],
}


@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS.keys())
def test_an_instance_is_a_reward_function_of_trl(reward: Reward) -> None:
    """TRL logs by __name__, calls with keywords only, adds columns and a state of its own, and wants a list."""
    assert reward.__name__ == reward.name and callable(reward) and not inspect.iscoroutinefunction(reward)
    if getattr(reward, "box", None) == (3, 2):
        return
    completions = ["6 * 7 = 42", "<answer>\n42\n</answer>", *[[{"role": "assistant", "content": "6 * 7 = 42"}]] * 2]
    columns = {name: [value] * 4 for name, value in COLUMNS.items()}
    given = {"prompts": ["6 * 7?"] * 4, "completions": completions, "completion_ids": [[1, 2], [3], [4], [5]]}
    said = reward(**given, **columns, trainer_state=None)
    assert isinstance(said, list) and [type(value) for value in said] == [float] * 4
    if not isinstance(reward, FunctionReward):
        assert said[0] == said[2] == said[3]  # a message is its content


def test_the_name_of_a_reward_is_its_kind() -> None:
    names = {
        kind: reward.name
        for kind, cls in FAMILIES[Reward].items()
        for reward in REWARDS.values()
        if type(reward) is cls
    }
    assert names.pop("function") == "shortness"
    assert all(kind == name for kind, name in names.items()) and len(names) == len(FAMILIES[Reward]) - 1


def test_a_reward_says_which_columns_it_needs() -> None:
    assert {name: reward.required_columns for name, reward in REWARDS.items() if reward.required_columns} == {
        "gsm8k_correct": ("answer",),
        "math": ("answer",),
        "countdown": ("numbers", "target"),
        "sudoku_solved": ("canvas", "givens"),
        "sudoku_solved, upright boxes": ("canvas", "givens"),
        "sudoku_cells": ("canvas", "givens", "solution"),
        "plan_success": ("task",),
        "plan_progress": ("task",),
    }
    assert FunctionReward("judges:needy").required_columns == ("book",)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("judges", "write it as package.module:function"),
        ("judges.shortness", "write it as package.module:function"),
        ("no_such_module:f", r"cannot be imported \(No module named 'no_such_module'\)"),
        ("judges:no_such_function", "cannot be imported .*no_such_function"),
        ("judges:NUMBER", "is 7, which is not a function"),
        ("onpath.rewards.countdown:Countdown", "goes under `class`"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FunctionReward(function)


def test_what_a_module_raises_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_judge.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError) as caught:
        FunctionReward("broken_judge:f")
    assert "reward: function 'broken_judge:f' cannot be imported for this reason" in caught.value.__notes__


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (kind, {"scale": scale})
        for kind in ("gsm8k_correct", "soft_format", "math", "sudoku_cells")
        for scale in (0.0, float("nan"))
    ]
    + [("countdown", {"correct": 0.0, "format": 0.0}), ("countdown", {"format": float("inf")})],
)
def test_a_scale_without_effect_is_refused(kind: str, fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{kind}: .* is (0.0|nan|1.0)"):
        FAMILIES[Reward][kind](**fields)
