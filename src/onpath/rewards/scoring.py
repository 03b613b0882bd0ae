"""Calls the rewards of a group of rollouts, each within a time limit, and adds up what they say."""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
import threading
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from onpath.rewards.base import GIVEN, Reward

_GRACE_S = 0.5
_LARGEST = torch.finfo(torch.float32).max
_ALLOWED = "allowed are a finite number or None for each completion"


@dataclass(frozen=True)
class Scores:
    """What rewards said of N completions.

    total: (N,) the weighted sum, in which None counts as nothing; always finite. by_name: (N,) of each reward, without
    its weight, NaN where it said None.
    """

    total: Float[Tensor, "N"]
    by_name: Mapping[str, Float[Tensor, "N"]]


def score(
    rewards: Sequence[Reward],
    weights: Sequence[float],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    time_limit_s: float,
) -> Scores:
    """The scores of completions, in fp32 on the CPU.

    Rewards that are plain functions run one after the other, each in a thread of its own; those that are `async def`
    then run together in one event loop, also where the caller is inside one. Each has `time_limit_s` seconds; what is
    late is left behind in its thread, which does not keep the process from ending. A limit cannot stop code that lets
    no other thread run, such as a huge power of integers. True counts as 1 and False as 0.
    ValueError that names the reward where one raises, hangs, or returns anything but a finite number or None for each
    completion, and where no reward with a weight has an opinion on some completion.
    """
    given = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    _check(rewards, weights, columns, given, time_limit_s)
    returned = _answers(rewards, given, time_limit_s)
    table = [_numbers(reward.name, returned[reward.name], prompts) for reward in rewards]
    values = torch.tensor(table, dtype=torch.float64).reshape(len(rewards), len(completions))
    weighted = values * torch.tensor(weights, dtype=torch.float64)[:, None]
    counted = torch.tensor([weight != 0 for weight in weights])
    silent = values[counted].isnan().all(0).nonzero().flatten().tolist()
    if silent:
        raise ValueError(
            f"rewards: {_names(r for r, w in zip(rewards, weights, strict=True) if w)} returned None for "
            f"{_place(silent[0], prompts)}{_more(silent)}; at least one reward with a weight must return a number for "
            "each completion; leave out such examples, or add a reward that judges them"
        )
    total = weighted.nansum(0)
    if bool((total.abs() > _LARGEST).any()):
        raise ValueError(f"rewards: their weighted sum is {float(total.abs().max()):g}, too large for fp32; scale them")
    by_name = {reward.name: row.float() for reward, row in zip(rewards, values, strict=True)}
    return Scores(total.float(), by_name)


def _check(
    rewards: Sequence[Reward],
    weights: Sequence[float],
    columns: Mapping[str, Sequence[Any]],
    given: Mapping[str, Sequence[Any]],
    time_limit_s: float,
) -> None:
    """ValueError where the call itself is wrong, before any reward is asked."""
    if not rewards or len(weights) != len(rewards):
        raise ValueError(
            f"rewards: there are {len(rewards)} rewards ({_names(rewards) or 'none'}) and {len(weights)} weights; give "
            "at least one reward and a weight for each"
        )
    if not all(math.isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"rewards: the weights are {list(weights)}; finite numbers, not all of them 0, are needed")
    twice = [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]
    if twice:
        raise ValueError(f"rewards: {_names(rewards)}: the name {twice[0]} stands twice; rename one, or remove it")
    if not time_limit_s > 0:
        raise ValueError(f"rewards: time_limit_s is {time_limit_s}; a number of seconds above 0 is needed")
    taken = [name for name in columns if name in GIVEN]
    if taken:
        raise ValueError(f"rewards: a column of the data is called {taken[0]}, which rewards get anyway; rename it")
    sizes = {name: len(values) for name, values in given.items()}
    if len(set(sizes.values())) > 1 or not given["completions"]:
        raise ValueError(f"rewards: there are {sizes}; one completion or more, and as many of all else, are needed")
    for reward in rewards:
        try:
            reward.signature.bind(**given)
        except TypeError as error:
            raise ValueError(
                f"reward {reward.name}: it cannot be called with {', '.join(given)} ({error}); give the data the "
                "columns that it needs, and let it take **columns for those that it does not"
            ) from error


def _answers(rewards: Sequence[Reward], given: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """What each reward returned, by name."""
    answers: dict[str, Any] = {}
    try:
        for reward in rewards:
            answers[reward.name] = _in_thread(reward, given, limit)
        waiting = {name: answer for name, answer in answers.items() if inspect.isawaitable(answer)}
        return {**answers, **_together(waiting, given["prompts"], limit)} if waiting else answers
    finally:
        for answer in answers.values():
            if inspect.iscoroutine(answer) and inspect.getcoroutinestate(answer) == inspect.CORO_CREATED:
                answer.close()  # it was never started, since another reward failed


def _in_thread(reward: Reward, given: Mapping[str, Any], limit: float) -> Any:
    """What a reward returns, be it an awaitable; ValueError where it raises or takes longer than `limit` seconds."""
    outcome: dict[str, Any] = {}
    finished = threading.Event()

    def work() -> None:
        try:
            with torch.no_grad():
                outcome["returned"] = reward(**given)
        except BaseException as error:
            outcome["raised"] = error
        finished.set()

    _start(work, reward.name)
    if not finished.wait(min(limit, threading.TIMEOUT_MAX)):
        raise ValueError(_too_slow(reward.name, limit, given["prompts"]))
    if "raised" in outcome:
        _raise_for(reward.name, outcome["raised"], given["prompts"])
    return outcome["returned"]


def _together(waiting: Mapping[str, Awaitable[Any]], prompts: Sequence[Any], limit: float) -> dict[str, Any]:
    """What all awaitables return, run in one event loop; ValueError as of ``_in_thread``."""
    returned: dict[str, Any] = {}
    raised: dict[str, BaseException] = {}
    finished = threading.Event()

    async def one(name: str, awaitable: Awaitable[Any]) -> None:
        try:
            returned[name] = await awaitable
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            raised[name] = error

    async def everything() -> None:
        tasks = [asyncio.ensure_future(one(name, awaitable)) for name, awaitable in waiting.items()]
        await asyncio.wait(tasks, timeout=min(limit, threading.TIMEOUT_MAX))
        finished.set()  # before the loop cancels what is left, which may refuse to end

    def work() -> None:
        with torch.no_grad():
            asyncio.run(everything())

    _start(work, ", ".join(waiting))
    finished.wait(min(limit + _GRACE_S, threading.TIMEOUT_MAX))
    for name, error in raised.items():
        _raise_for(name, error, prompts)
    late = [name for name in waiting if name not in returned]
    if late:
        raise ValueError(_too_slow(", ".join(late), limit, prompts))
    return returned


def _start(work: Callable[[], None], name: str) -> None:
    """Runs `work` in a thread that does not keep the process alive, on the same GPU as the caller."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        if device is not None:
            torch.cuda.set_device(device)  # which is a setting of each thread
        work()

    threading.Thread(target=run, name=f"reward {name}", daemon=True).start()


def _numbers(name: str, returned: Any, prompts: Sequence[Any]) -> list[float]:
    """What a reward returned as floats, NaN for None."""
    if isinstance(returned, Tensor | np.ndarray) and returned.ndim == 1:
        returned = returned.tolist()
    if not isinstance(returned, list | tuple) or len(returned) != len(prompts):
        is_list = isinstance(returned, list | tuple)
        said = f"a list of {len(returned)} values" if is_list else f"{_shown(returned)}, a {type(returned).__name__}"
        raise ValueError(f"reward {name}: returned {said}, {_asked(prompts)}; {_ALLOWED}, in a list of {len(prompts)}")
    return [_number(name, value, place, prompts) for place, value in enumerate(returned)]


def _number(name: str, value: Any, place: int, prompts: Sequence[Any]) -> float:
    if value is None:
        return math.nan
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, numbers.Real):  # bool is one: False is 0 and True is 1
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if abs(number) <= _LARGEST:
            return number
    raise ValueError(
        f"reward {name}: returned {_shown(value)}, a {type(value).__name__}, for {_place(place, prompts)}; {_ALLOWED}; "
        "return None where it has no opinion"
    )


def _raise_for(name: str, error: BaseException, prompts: Sequence[Any]) -> NoReturn:
    """ValueError for what a reward raised, with its traceback, so that it is told from a mistake of the config."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    raise ValueError(
        f"reward {name}: raised {type(error).__name__}: {error} (line {last.lineno} of {last.filename}), "
        f"{_asked(prompts)}; {_ALLOWED}; return None where it cannot judge"
    ).with_traceback(error.__traceback__) from error


def _too_slow(name: str, limit: float, prompts: Sequence[Any]) -> str:
    return (
        f"reward {name}: returned nothing within {limit:g} s, {_asked(prompts)}; raise time_limit_s, or give what it "
        "waits for a limit of its own"
    )


def _asked(prompts: Sequence[Any]) -> str:
    return f"asked about {len(prompts)} completions, the first with the prompt {_shown(prompts[0])}"


def _names(rewards: Any) -> str:
    return ", ".join(reward.name for reward in rewards)


def _place(place: int, prompts: Sequence[Any]) -> str:
    return f"completion {place} (counted from 0; prompt {_shown(prompts[place])})"


def _more(places: Sequence[int]) -> str:
    return f" and {len(places) - 1} more" if len(places) > 1 else ""


def _shown(value: Any, most: int = 60) -> str:
    """A value as it is written, cut short."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
