"""What is searched: states that a plan leads through, and what a plan is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from onpath.types import Batch

State = Any
"""Where a task stands after part of a plan is committed: hashable, equal where nothing that follows differs."""


@dataclass(frozen=True)
class Place:
    """A state of a task, and what has been spent on the way there, such as actions."""

    task: int
    state: State
    spent: int = 0


@dataclass(frozen=True)
class Judged:
    """What a whole plan is worth from a place.

    value: in [0, 1], above .5 where the task is solved, the higher the cheaper; at most .5 where it is not.
    cost: spent from the start of the task until it is solved. used: positions of the plan until then.
    ends: the places after each segment of the plan, with the positions of it that lead there from the place (0 where a
    plan is written as a whole).
    """

    value: float
    solved: bool
    cost: int
    used: int
    ends: tuple[tuple[Place, int], ...]


class Problem(ABC):
    """Tasks that are solved by a sequence of tokens, with the simulator or the rules that judge it.

    Nothing here remembers anything: the same arguments give the same answers, so searches share nothing by it.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How many tasks there are."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Positions of a plan."""

    @property
    @abstractmethod
    def segment(self) -> int:
        """Positions of a segment, unless a search says otherwise."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Denoising steps of a plan, unless a search says otherwise."""

    @property
    def most_actions(self) -> int | None:
        """Tokens that can be carried out one after the other before the task is lost; None where none are."""
        return None

    @abstractmethod
    def start(self, task: int) -> Place:
        """Where a task begins."""

    def given(self, place: Place) -> tuple[int, ...]:
        """What stands of a plan from a place before anything is sampled, -1 where it is free."""
        return (-1,) * self.length

    @abstractmethod
    def request(self, places: Sequence[Place], ids: Int64[Tensor, "N"]) -> Batch:
        """What the network is asked for a plan from each place, on the CPU; draws are keyed by `ids`."""

    @abstractmethod
    def judge(
        self, places: Sequence[Place], plans: Int64[Tensor, "N L"], sure: Float[Tensor, "N L"], segment: int
    ) -> list[Judged]:
        """What each plan is worth from its place, with the ends of its segments of so many positions.

        sure: how sure the network was of each token, for problems that commit the surest positions first.
        """

    @abstractmethod
    def moves(self, place: Place) -> list[tuple[int, Place]]:
        """Every single token that can come next, and where it leads."""

    def whole(self, way: tuple[int, ...], plan: tuple[int, ...]) -> tuple[int, ...]:
        """What solves the task from its start: the tokens on the way to a place, then those of a plan from there."""
        return way + plan

    @abstractmethod
    def best_cost(self, task: int) -> int:
        """What the cheapest solution costs at least: a bound that needs no search, 0 where nothing is known."""
