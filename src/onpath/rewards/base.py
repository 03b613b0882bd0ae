"""What a reward is: a function of prompts and completions, in the calling convention of TRL."""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from onpath.functions import function_at

GIVEN = ("prompts", "completions", "completion_ids")
"""What every reward is called with; all other keywords are columns of the data."""


class Reward(ABC):
    """Judges completions: one number for each, or None where it has no opinion.

    An instance is called with keywords only: the decoded prompts, the decoded completions, their token ids, and every
    column of the data, each a list with one item for each completion. So it also serves as a reward function of TRL.
    ``__call__`` may be `async def`. A reward keeps no state: the same call gives the same numbers.
    """

    @abstractmethod
    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Any:
        """A list with a finite number or None for each completion, or an awaitable of one."""

    @property
    def name(self) -> str:
        """Its name in metrics and messages: that of the class, in snake case."""
        return re.sub(r"(?<=[A-Za-z0-9])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def __name__(self) -> str:  # by which TRL calls a reward in its logs
        return self.name

    @property
    def signature(self) -> inspect.Signature:
        """The parameters that it is called with."""
        return inspect.signature(self.__call__)

    @property
    def required_columns(self) -> tuple[str, ...]:
        """The columns of the data that it cannot do without."""
        fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = [p for p in self.signature.parameters.values() if p.kind not in fixed and p.default is p.empty]
        return tuple(p.name for p in parameters if p.name not in GIVEN)

    def check(self) -> None:
        """ValueError where something that it needs is not installed; to be called before the first rollout."""
        return


@dataclass(frozen=True)
class FunctionReward(Reward):
    """A function of yours, sync or `async def`, by `package.module:function`; it is called with keywords.

    ValueError where it cannot be imported or is not callable. In a config ``{kind: function, function:
    "mine:shortness"}``, for

        def shortness(completions, **columns):
            return [-len(completion) / 1000 for completion in completions]

    >>> FunctionReward("math:fsum").name
    'fsum'
    """

    function: str

    def __post_init__(self) -> None:
        self._resolved()

    def _resolved(self) -> Callable[..., Any]:
        return function_at(
            self.function,
            "reward",
            "prompts, completions, completion_ids and **columns (a class derived from onpath.rewards.base.Reward goes "
            "under `class`)",
        )

    @property
    def name(self) -> str:
        return self.function.rpartition(":")[2].rpartition(".")[2]

    @property
    def signature(self) -> inspect.Signature:
        return inspect.signature(self._resolved())

    def __call__(self, **given: Any) -> Any:
        return self._resolved()(**given)


def require_judged(rewards: Sequence[Reward], columns: Collection[str], setting: str) -> None:
    """ValueError where a reward needs what is not installed or a column beside those that there are, or stands twice.

    columns: of the data; `canvas` comes with every rollout. setting: where the rewards are named.
    """
    have, names = ("canvas", *columns), [reward.name for reward in rewards]
    for reward in rewards:
        if names.count(reward.name) > 1:
            raise ValueError(
                f"config: {setting} names {reward.name} {names.count(reward.name)} times; each is needed once alone, "
                "as metrics go by these names; remove one, or rename a function of your own"
            )
        reward.check()
        missing = [name for name in reward.required_columns if name not in have]
        if missing:
            raise ValueError(
                f"config: {setting}: {reward.name} needs the column {missing[0]}, and the data have {', '.join(have)}; "
                "name a column so, or take another reward"
            )


def text_of(completion: Any) -> str:
    """A completion as text: itself, or of a list of messages, as TRL passes them, the content of the last."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def check_scales(reward: str, **scales: float) -> None:
    """ValueError unless every scale is a finite number and one of them is not 0, else no completion would differ."""
    said = " and ".join(f"{name} is {value}" for name, value in scales.items())
    if not all(math.isfinite(value) for value in scales.values()) or not any(scales.values()):
        raise ValueError(f"{reward}: {said}; a finite number other than 0 is needed; to leave a reward out, remove it")
