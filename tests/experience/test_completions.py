"""What is kept of a round to be read: the extremes of its first groups, and how they came about."""

from __future__ import annotations

import json

import pytest
import torch

from onpath.experience.completions import extremes
from policies import collected, policy_parts, rounds_of


@pytest.mark.parametrize("most", [0, 1, 3, 4, 50])
def test_the_best_and_the_worst_of_the_first_groups(most: int) -> None:
    reward = torch.rand(24, generator=torch.Generator().manual_seed(0))
    reward[8:12] = 0.5  # a group in which all are alike has one to show
    group = torch.arange(24).div(4, rounding_mode="floor").add(3).tolist()
    expected: list[int] = []
    for number in range(3, 9):
        members = [row for row in range(24) if group[row] == number]
        ranked = sorted(members, key=lambda row: float(reward[row]))
        expected += [ranked[-1], ranked[0]] if number != 5 else [8]
    assert extremes(reward, group, most) == expected[:most]


def test_a_completion_is_told_as_it_came_about() -> None:
    parts = policy_parts("experience.log_completions=6", "experience.rewards=[sudoku_cells]")
    found = collected(parts)
    experience, rounds = found.experience, rounds_of(parts)
    size = rounds.settings.num_generations
    assert len(found.completions) <= 6
    for one in json.loads(json.dumps(found.completions)):
        rows = (experience.tokens == torch.tensor(one["tokens"])).all(1).nonzero().flatten().tolist()
        row = next(row for row in rows if experience.revealed_at[row].tolist() == one["revealed_at"])
        assert one["reward"] == pytest.approx(float(experience.reward[row]))
        assert one["advantage"] == pytest.approx(float(experience.advantage[row]))
        assert one["log_prob"] == pytest.approx(experience.log_prob[row].tolist(), abs=1e-4)
        assert one["group"] == row // size and one["line"] == 4
        members = experience.reward[row // size * size :][:size]
        assert one["reward"] in (pytest.approx(float(members.max())), pytest.approx(float(members.min())))
        assert "".join(one["words"]) == one["columns"]["canvas"]
        assert one["columns"]["givens"] == one["prompt"].replace("▒", ".")
        free = [word for word, step in zip(one["words"], one["revealed_at"], strict=True) if step >= 0]
        assert "".join(free) == one["completion"]


def test_nothing_is_kept_where_nothing_is_asked_for() -> None:
    assert collected(policy_parts("experience.log_completions=0")).completions == ()
