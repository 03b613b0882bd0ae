"""What a search takes a plan to be worth: the exact outcome, the network's own opinion, or a function of yours."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor

from onpath.functions import function_at
from onpath.search.problems import Judged, Place, Problem


class Evaluator(ABC):
    """Gives each plan a value in [0, 1], by which a search chooses; whether a plan solves its task is told apart."""

    @property
    def is_exact(self) -> bool:
        """Whether a value above .5 says that the task is solved, so that a search may stop there."""
        return False

    @abstractmethod
    def __call__(
        self,
        problem: Problem,
        places: Sequence[Place],
        plans: Int64[Tensor, "N L"],
        sure: Float[Tensor, "N L"],
        judged: Sequence[Judged],
    ) -> Sequence[float]:
        """The value of each plan from its place. sure: the probability that the network gave each token when it was
        drawn, 1 where it stood before. judged: what the simulator or the rules say, for those who may know it."""


@dataclass(frozen=True)
class Exact(Evaluator):
    """What the problem's own simulator or rules say."""

    @property
    def is_exact(self) -> bool:
        return True

    def __call__(
        self,
        problem: Problem,
        places: Sequence[Place],
        plans: Int64[Tensor, "N L"],
        sure: Float[Tensor, "N L"],
        judged: Sequence[Judged],
    ) -> Sequence[float]:
        return [one.value for one in judged]


@dataclass(frozen=True)
class Likelihood(Evaluator):
    """How likely the network itself finds a plan: the geometric mean of the probabilities of its tokens.

    For tasks that nothing can judge before they are tried. A plan whose tokens are drawn together is judged by its
    tokens one by one, so that it may be likely in each and impossible as a whole: sample in several steps then.
    """

    def __call__(
        self,
        problem: Problem,
        places: Sequence[Place],
        plans: Int64[Tensor, "N L"],
        sure: Float[Tensor, "N L"],
        judged: Sequence[Judged],
    ) -> Sequence[float]:
        values: list[float] = sure.double().clamp_min(1e-12).log().mean(1).exp().tolist()
        return values


@dataclass(frozen=True)
class FunctionEvaluator(Evaluator):
    """A function of yours, by `package.module:function`, called with the keywords problem, places, plans and sure.

    It gives a number from 0 to 1 for each plan; ValueError where it gives anything else, cannot be imported or is no
    function. For example

        def short(plans, **others):
            return [1 - (plan < 3).float().mean().item() for plan in plans]
    """

    function: str

    def __post_init__(self) -> None:
        function_at(self.function, "evaluator", "problem, places, plans and sure")

    def __call__(
        self,
        problem: Problem,
        places: Sequence[Place],
        plans: Int64[Tensor, "N L"],
        sure: Float[Tensor, "N L"],
        judged: Sequence[Judged],
    ) -> Sequence[float]:
        function = function_at(self.function, "evaluator", "problem, places, plans and sure")
        values = [float(value) for value in function(problem=problem, places=places, plans=plans, sure=sure)]
        bad = next((value for value in values if not (math.isfinite(value) and 0.0 <= value <= 1.0)), None)
        if len(values) != len(places) or bad is not None:
            given = f"{len(values)} numbers" if bad is None else f"the value {bad}"
            raise ValueError(
                f"evaluator: {self.function} gave {given} for {len(places)} plans; a number from 0 to 1 for each is "
                "needed: scale them"
            )
        return values
