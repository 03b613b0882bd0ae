"""What plans are valued by: the exact outcome, the network's likelihood, a function; and the pyramid of `tokens`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from games import END, LENGTH, Unsure, mazes, planner

from onpath.search.base import search
from onpath.search.baselines import BestOfN
from onpath.search.evaluators import Evaluator, Exact, FunctionEvaluator, Likelihood
from onpath.search.mctd import MCTD
from onpath.search.planner import Ask, Meta, Pyramid

PLAIN = (Meta(temperature=1.0, steps=2, order="random"),)


def fewest_turns(plans: torch.Tensor, **others: Any) -> list[float]:
    return (1 - (plans < 2).float().mean(1)).tolist()


def not_a_share(plans: torch.Tensor, **others: Any) -> list[float]:
    return [2.0] * len(plans)


def too_few(plans: torch.Tensor, **others: Any) -> list[float]:
    return [0.5]


def test_a_likelihood_is_the_geometric_mean_of_what_the_network_gave_each_token() -> None:
    weights = [0.2, 0.2, 0.55, 0.05]
    asker = planner(mazes(), Unsure(weights))
    places = [mazes().start(task) for task in range(4)]
    answers = asker.answer([Ask(place, PLAIN[0], 0) for place in places])
    plans = torch.tensor([answer.plan for answer in answers])
    sure = torch.tensor([answer.sure for answer in answers])
    expected = [math.exp(sum(math.log(weights[token]) for token in plan) / LENGTH) for plan in plans.tolist()]
    found = Likelihood()(mazes(), places, plans, sure, [answer.judged for answer in answers])
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [MCTD, BestOfN])
def test_a_search_takes_the_plan_that_its_evaluator_likes_best(method: Any) -> None:
    by_turns = FunctionEvaluator("test_evaluators:fewest_turns")
    found = search(method(metas=PLAIN, evaluator=by_turns), planner(mazes()), 60)
    for progress in found:
        assert progress.best is not None and [one.value for one in progress.found] == sorted(
            one.value for one in progress.found
        )
        assert progress.best.value > 0.5  # with the exact evaluator it would say that the task is solved
    unsolved = [progress for progress in found if progress.best and not progress.best.solved]
    assert unsolved
    exact = search(method(metas=PLAIN), planner(mazes()), 60)
    assert [one.best and one.best.plan for one in exact] != [one.best and one.best.plan for one in found]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("test_evaluators:not_a_share", "the value 2.0"),
        ("test_evaluators:too_few", "1 numbers for 16 plans"),
    ],
)
def test_values_that_cannot_be_searched_by_are_refused(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(BestOfN(PLAIN, evaluator=FunctionEvaluator(function)), planner(mazes()), 8)


def test_what_cannot_take_effect_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be imported"):
        FunctionEvaluator("nowhere:at_all")
    with pytest.raises(ValueError, match="cannot tell a solution"):
        MCTD(stop="first", evaluator=Likelihood())
    with pytest.raises(ValueError, match="samples whole plans"):
        MCTD(slope=0.5)
    with pytest.raises(ValueError, match="slope above 0"):
        MCTD(mode="tokens", slope=0.0)
    with pytest.raises(ValueError, match="segment is 0"):
        BestOfN(segment=0)


@pytest.mark.parametrize(
    ("pyramid", "depths"),
    [
        (Pyramid(4, 1.0), [(4, 4, 3), (0, 4, 3), (0, 0, 3), (0, 0, 0)]),
        (Pyramid(4, 0.5), [(2, 4, 3), (0, 2, 3), (0, 0, 2), (0, 0, 0)]),
        (Pyramid(4, 0.25), [(1, 2, 3), (0, 1, 2), (0, 0, 1), (0, 0, 0)]),
    ],
)
def test_a_pyramid_masks_what_its_definition_says(pyramid: Pyramid, depths: list[tuple[int, ...]]) -> None:
    assert [pyramid.masked(depth, 11) for depth in range(4)] == depths
    for depth, counts in enumerate(depths):
        part = [-1 if at % 4 < counts[at // 4] else 0 for at in range(11)]
        assert pyramid.depth(part) == depth or not any(counts)


@pytest.mark.parametrize("slope", [1.0, 0.5, 0.25])
def test_nodes_of_tokens_stand_as_the_pyramid_has_it_and_keep_what_stood(slope: float) -> None:
    pyramid = Pyramid(3, slope)
    method = MCTD(mode="tokens", metas=(Meta(), Meta(temperature=0.5, steps=2)), segment=3, slope=slope)
    deepest = 0
    for progress in search(method, planner(mazes()), 120):
        left = [(progress.root, 0)]
        while left:
            node, depth = left.pop()
            assert node is not None and node.part is not None
            masked = [node.part[first : first + 3].count(-1) for first in range(0, LENGTH, 3)]
            assert tuple(masked) == (pyramid.masked(depth, LENGTH) if depth else (3,) * 4)
            for child in node.children.values():
                assert child.part is not None
                assert all(old in (-1, new) for old, new in zip(node.part, child.part, strict=True))
                left.append((child, depth + 1))
            deepest = max(deepest, depth)
    assert deepest >= 2


def test_exact_is_what_the_problem_says() -> None:
    exact: Evaluator = Exact()
    problem = mazes()
    plans = torch.full((4, LENGTH), END)
    places = [problem.start(task) for task in range(4)]
    judged = problem.judge(places, plans, torch.ones(4, LENGTH), 2)
    assert exact(problem, places, plans, torch.ones(4, LENGTH), judged) == [one.value for one in judged]
    assert exact.is_exact and not Likelihood().is_exact
