"""The tree of a search: nodes with their statistics, selection by UCT with virtual visits, back-up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from onpath.search.problems import Place

Backup = Literal["max", "mean", "soft"]


@dataclass(slots=True, eq=False)
class Node:
    """A place in a search, or part of a plan.

    place: where it stands. way: tokens from the start of the task to it. part: the part of a plan that stands already,
    None for one that is sampled afresh. visits, total, best: number, sum and greatest of the values backed up.
    powers: sum of exp(λ·value), for soft back-up. waiting: visits under way, whose values are not known yet.
    asked: plans asked for here. tried: metas without draws that need not be asked for again. children: by state. born:
    forwards that were spent when it came to be.
    """

    place: Place
    way: tuple[int, ...] = ()
    part: tuple[int, ...] | None = None
    visits: int = 0
    total: float = 0.0
    best: float = 0.0
    powers: float = 0.0
    waiting: int = 0
    asked: int = 0
    tried: set[int] = field(default_factory=set)
    children: dict[Any, Node] = field(default_factory=dict)
    born: int = 0


def every_node(root: Node) -> list[tuple[Node, Node | None, int]]:
    """Every node that was visited once, with its first parent and its depth, from the root on."""
    seen, found = {id(root)}, []
    left: deque[tuple[Node, Node | None, int]] = deque([(root, None, 0)])
    while left:
        node, parent, depth = left.popleft()
        found.append((node, parent, depth))
        for child in node.children.values():
            if id(child) not in seen and child.visits:
                seen.add(id(child))
                left.append((child, node, depth + 1))
    return found


def together(root: Node, most: int) -> int:
    """Leaves that are chosen at once: one while little is known, then a sixth of the visits, at the most `most`.

    So a search of a few forwards loses nothing by them, and one of many goes through the network seldom.
    """
    return min(most, 1 + root.visits // 6)


@dataclass(frozen=True)
class UCT:
    """Which child a visit goes on to: the greatest of value + exploration·sqrt(log N / n).

    N, n: visits of node and child, those under way included (virtual visits), so that leaves that are chosen together
    differ. backup: a node's value is the greatest in its subtree, the mean, or (1/λ)·log of the mean of exp(λ·value),
    λ = sharpness, which lies between the two.
    Sources: UCT: Kocsis and Szepesvári 2006; virtual visits: Chaslot, Winands and van den Herik 2008; the greatest
    value: MCTD, arXiv:2502.07202; soft: Diffusion Tree Sampling, arXiv:2506.20701.
    """

    exploration: float = 0.2
    backup: Backup = "max"
    sharpness: float = 10.0

    def __post_init__(self) -> None:
        if self.exploration < 0 or self.sharpness <= 0 or self.backup not in ("max", "mean", "soft"):
            raise ValueError(
                f"uct: exploration is {self.exploration}, sharpness {self.sharpness} and backup {self.backup!r}; "
                "needed are an exploration of 0 or more, a sharpness above 0, and max, mean or soft"
            )

    def value(self, node: Node) -> float:
        """Of what has been backed up; 0 without a visit."""
        if not node.visits:
            return 0.0
        if self.backup == "max":
            return node.best
        return (
            node.total / node.visits if self.backup == "mean" else math.log(node.powers / node.visits) / self.sharpness
        )

    def score(self, parent: Node, child: Node) -> float:
        """What a visit goes by; a child that nothing is known of comes first."""
        visits = child.visits + child.waiting
        if not visits:
            return math.inf
        everything = max(1, parent.visits + parent.waiting)
        return self.value(child) + self.exploration * math.sqrt(math.log(everything) / visits)

    def child(self, node: Node) -> Node:
        """The child with the greatest score, of equal ones the first."""
        return max(node.children.values(), key=lambda child: self.score(node, child))

    def back_up(self, path: Sequence[Node], value: float) -> None:
        """The value of a visit, at every node on its way; the visit is no longer under way."""
        for node in path:
            node.waiting -= 1
            node.visits += 1
            node.total += value
            node.best = max(node.best, value)
            if self.backup == "soft":
                node.powers += math.exp(self.sharpness * value)
