"""What a tree is compared with: other ways to spend the same forwards on a task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from onpath import rng
from onpath.search.base import Asks, Look, PlanSearch, Progress, Search, Seen
from onpath.search.planner import Answer, Ask, Meta
from onpath.search.problems import Place, Problem
from onpath.search.tree import UCT, Node, together

_FREE = -1


@dataclass(frozen=True)
class Greedy(Search):
    """One plan, the likeliest token everywhere."""

    steps: int = 10

    def run(self, problem: Problem, progress: Progress) -> Asks:
        start = problem.start(progress.task)
        ask = Ask(start, Meta(temperature=0.0, steps=min(self.steps, progress.budget)), 0)
        (answer,) = yield [ask]
        progress.report(progress.spent, answer.judged, answer.plan[: answer.judged.used])


@dataclass(frozen=True)
class BestOfN(PlanSearch):
    """Plans from the start, each on its own, as many as the budget allows; the best is taken.

    leaves: plans that are asked for together.
    """

    leaves: int = 16

    def run(self, problem: Problem, progress: Progress) -> Asks:
        start, number = problem.start(progress.task), 0
        while asks := _affordable(
            [Ask(start, self.metas[i % len(self.metas)], i) for i in range(number, number + self.leaves)], progress
        ):
            answers: list[Answer] = yield asks
            _report(progress, asks, answers)
            number += len(asks)


@dataclass(frozen=True)
class Remask(PlanSearch):
    """Masks a part of the best plan again and samples that part anew, keeping what is at least as good.

    Of each plan a run of positions is masked, whose place and length are drawn; every other one is sampled from masks
    alone, so that a bad first plan is no end. leaves: plans that are asked for together.
    Source of its like: remask-and-resample of UnMaskFork, arXiv:2602.04344.
    """

    leaves: int = 4

    def run(self, problem: Problem, progress: Progress) -> Asks:
        start, number = problem.start(progress.task), 0
        best: Answer | None = None
        key = rng.Key(0, "remask").at(progress.task)
        while asks := _affordable(
            [self._ask(start, best, i, key, problem.length) for i in range(number, number + self.leaves)], progress
        ):
            answers: list[Answer] = yield asks
            _report(progress, asks, answers)
            for answer in answers:
                if best is None or answer.judged.value >= best.judged.value:
                    best = answer
            number += len(asks)

    def _ask(self, start: Place, best: Answer | None, number: int, key: rng.Key, length: int) -> Ask:
        meta = self.metas[number % len(self.metas)]
        if best is None or number % 2:
            return Ask(start, meta, number)
        first, last = _span(key, number, length)
        kept = tuple(_FREE if first <= at < last else token for at, token in enumerate(best.plan))
        return Ask(start, meta, number, kept)


@dataclass(frozen=True)
class Beam(PlanSearch):
    """The best places after each segment of the plan, from which plans are sampled afresh.

    The plans that the budget allows are shared out over the segments; after each of them the `width` best places stay.
    """

    width: int = 4
    rounds: int = 5

    @property
    def anytime(self) -> bool:
        return False

    def run(self, problem: Problem, progress: Progress) -> Asks:
        beam: list[tuple[Place, tuple[int, ...]]] = [(problem.start(progress.task), ())]
        dearest = max(meta.cost for meta in self.metas)
        plans = max(1, progress.budget // dearest)
        share, number = max(1, plans // min(self.rounds, plans)), 0
        while beam:
            asks = [
                Ask(beam[i % len(beam)][0], self.metas[i % len(self.metas)], number + i)
                for i in range(min(share, plans - number))
            ]
            asks = _affordable(asks, progress)
            if not asks:
                return
            answers: list[Answer] = yield asks
            ways = [beam[i % len(beam)][1] for i in range(len(asks))]
            _report(progress, asks, answers, ways)
            number += len(asks)
            ends: dict[Any, tuple[float, Place, tuple[int, ...]]] = {}
            for way, answer in zip(ways, answers, strict=True):
                for place, used in answer.judged.ends[:1]:
                    value = answer.judged.value
                    if place.state not in ends or ends[place.state][0] < value:
                        ends[place.state] = (value, place, way + answer.plan[:used])
            ranked = sorted(ends.values(), key=lambda end: -end[0])[: self.width]
            beam = [(place, way) for _, place, way in ranked]


@dataclass(frozen=True)
class MCTS(Search):
    """Monte Carlo tree search over single actions with the policy as prior (PUCT).

    A node is expanded by one forward of nothing but masks: its first token gives the prior of the actions, and the
    likeliest plan its value. leaves: nodes that are expanded together at the most, see ``tree.together``.
    Source: PUCT as in AlphaZero, arXiv:1712.01815.
    """

    exploration: float = 0.5
    leaves: int = 32
    uct: UCT = UCT(exploration=0.0)

    def run(self, problem: Problem, progress: Progress) -> Asks:
        root = progress.root = Node(problem.start(progress.task))
        priors: dict[int, Sequence[float]] = {}
        while progress.left > 0:
            paths = []
            while len(paths) < min(together(root, self.leaves), progress.left):
                path = self._leaf(root, priors)
                if path[-1].asked:
                    break
                path[-1].asked = 1
                for node in path:
                    node.waiting += 1
                paths.append(path)
            if not paths:
                return
            spent = progress.spent
            seen: list[Seen] = yield [Look(path[-1].place) for path in paths]
            for path, one in zip(paths, seen, strict=True):
                spent += 1
                leaf = path[-1]
                self.uct.back_up(path, one.judged.value)
                progress.report(spent, one.judged, problem.whole(leaf.way, one.plan[: one.judged.used]))
                priors[id(leaf)] = [math.exp(value) for value in one.log_prob]
                for action, place in problem.moves(leaf.place):
                    if all(place.state != node.place.state for node in path):
                        leaf.children[action] = Node(place, (*leaf.way, action), born=spent)

    def _leaf(self, root: Node, priors: dict[int, Sequence[float]]) -> list[Node]:
        path, node = [root], root
        while node.children:
            going = [pair for pair in node.children.items() if pair[1].children or not pair[1].asked]
            if not going:
                break
            scores = [self._score(node, child, priors[id(node)][action]) for action, child in going]
            node = going[scores.index(max(scores))][1]
            path.append(node)
        return path

    def _score(self, parent: Node, child: Node, prior: float) -> float:
        """Value and a bonus for what the policy likes; a child that nothing is known of is worth what its parent is."""
        visits = child.visits + child.waiting
        value = self.uct.value(child if child.visits else parent)
        return value + self.exploration * prior * math.sqrt(parent.visits + parent.waiting) / (1 + visits)


def _affordable(asks: list[Ask], progress: Progress) -> list[Ask]:
    """The first of them that what is left pays for."""
    kept, left = [], progress.left
    for ask in asks:
        left -= ask.cost
        if left < 0:
            break
        kept.append(ask)
    return kept


def _report(
    progress: Progress, asks: Sequence[Ask], answers: Sequence[Answer], ways: Sequence[tuple[int, ...]] | None = None
) -> None:
    spent = progress.spent - sum(ask.cost for ask in asks)
    for row, (ask, answer) in enumerate(zip(asks, answers, strict=True)):
        spent += ask.cost
        way = () if ways is None else ways[row]
        progress.report(spent, answer.judged, way + answer.plan[: answer.judged.used])


def _span(key: rng.Key, number: int, length: int) -> tuple[int, int]:
    """A run of positions, a tenth to all of them."""
    at, size = rng.uniform(key, torch.tensor([number]), (2,))[0].tolist()
    span = max(1, round(length * (0.1 + 0.9 * size)))
    first = int(at * (length - span + 1))
    return first, first + span
