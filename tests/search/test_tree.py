"""Statistics of the tree against trees that were computed by hand."""

from __future__ import annotations

import math

import pytest

from onpath.search.problems import Place
from onpath.search.tree import UCT, Node


def grown(uct: UCT) -> tuple[Node, Node, Node]:
    """A root with two children; the values .2, .8 and .4 came through the first, .6 through the second."""
    root, first, second = (Node(Place(0, state)) for state in range(3))
    root.children = {1: first, 2: second}
    for child, value in ((first, 0.2), (first, 0.8), (first, 0.4), (second, 0.6)):
        for node in (root, child):
            node.waiting += 1
        uct.back_up([root, child], value)
    return root, first, second


@pytest.mark.parametrize(
    ("backup", "of_root", "of_first"),
    [
        ("max", 0.8, 0.8),
        ("mean", 0.5, 1.4 / 3),
        ("soft", math.log(sum(math.exp(5 * v) for v in (0.2, 0.8, 0.4, 0.6)) / 4) / 5, None),
    ],
)
def test_values_are_backed_up(backup: str, of_root: float, of_first: float | None) -> None:
    uct = UCT(backup=backup, sharpness=5.0)  # type: ignore[arg-type]
    root, first, second = grown(uct)
    assert (root.visits, first.visits, second.visits, root.waiting) == (4, 3, 1, 0)
    assert uct.value(root) == pytest.approx(of_root)
    if of_first is not None:
        assert uct.value(first) == pytest.approx(of_first)
    assert uct.value(second) == pytest.approx(0.6)


def test_a_soft_value_lies_between_mean_and_greatest() -> None:
    values = {backup: UCT(backup=backup).value(grown(UCT(backup=backup))[0]) for backup in ("max", "mean", "soft")}
    assert values["mean"] < values["soft"] < values["max"]


def test_a_visit_goes_by_value_and_by_how_little_is_known() -> None:
    uct = UCT(exploration=0.2)
    root, first, second = grown(uct)
    assert uct.score(root, first) == pytest.approx(0.8 + 0.2 * math.sqrt(math.log(4) / 3))
    assert uct.score(root, second) == pytest.approx(0.6 + 0.2 * math.sqrt(math.log(4) / 1))
    assert uct.child(root) is first
    assert UCT(exploration=2.0).child(root) is second


def test_visits_under_way_send_the_next_one_elsewhere() -> None:
    uct = UCT(exploration=0.5)
    root, first, second = grown(uct)
    chosen = []
    for _ in range(6):
        child = uct.child(root)
        chosen.append(child)
        for node in (root, child):
            node.waiting += 1
    expected, counts = [], {1: 3, 2: 1}
    for total in range(4, 10):
        scores = {1: 0.8, 2: 0.6}
        scores = {k: v + 0.5 * math.sqrt(math.log(total) / counts[k]) for k, v in scores.items()}
        best = max(scores, key=lambda k: scores[k])
        expected.append(first if best == 1 else second)
        counts[best] += 1
    assert chosen == expected and first in chosen and second in chosen


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"exploration is -1"):
        UCT(exploration=-1)
    with pytest.raises(ValueError, match=r"sharpness 0.*max, mean or soft"):
        UCT(sharpness=0)
