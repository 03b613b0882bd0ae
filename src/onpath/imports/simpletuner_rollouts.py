"""SimpleTuner's scheduled sampling as the section of an objective, and where the two part ways.

Facts: its scheduled_sampling_* options, their defaults, and what its rollouts do.
"""

from __future__ import annotations

from typing import Any, get_args

from onpath.imports.keys import Keys
from onpath.scheduled_sampling import Solver, Strategy

_PREFIX = "scheduled_sampling_"
_PLACE = "objective.scheduled_sampling"
_OPTIONS = (
    *("max_step_offset", "probability", "prob_start", "prob_end", "ramp_steps", "start_step", "ramp_shape"),
    *("sampler", "order", "strategy", "reflexflow", "reflexflow_alpha", "reflexflow_beta1", "reflexflow_beta2"),
)


def rollouts(keys: Keys, is_flow: bool) -> dict[str, Any] | None:
    """The section `scheduled_sampling`, None where it is off."""
    offset = keys.whole(f"{_PREFIX}max_step_offset", 0) or 0
    if offset <= 0:
        _leave(keys, "scheduled_sampling_max_step_offset is 0, which turns all of it off")
        return None
    probability, ramp_steps = keys.number(f"{_PREFIX}probability", 0.0), keys.whole(f"{_PREFIX}ramp_steps", 0)
    if not probability and not ramp_steps:
        keys.left_out.append(
            f"{_PREFIX}max_step_offset {offset}: its probability is 0 and there is no ramp, so nothing is rolled out"
        )
        if is_flow:
            keys.differences.append(
                "with an offset above 0 and probability 0 it rolls nothing out, and yet pays another forward of every "
                "sample and adds ReflexFlow's direction loss, of weight 10, to all of them"
            )
        _leave(keys, "nothing is rolled out")
        return None
    section: dict[str, Any] = {
        "max_step_offset": keys.became(f"{_PREFIX}max_step_offset", offset, f"{_PLACE}.max_step_offset"),
        "grid_steps": 1000,
        **_probability(keys, float(probability or 0.0), int(ramp_steps or 0)),
        **_solver(keys, is_flow),
        **_strategy(keys, offset),
    }
    reflex = _reflexflow(keys, is_flow)
    if reflex is not None:
        section["reflexflow"] = reflex
    _say_differences(keys, is_flow, offset)
    return section


def _leave(keys: Keys, why: str) -> None:
    for option in _OPTIONS:
        keys.leave(f"{_PREFIX}{option}", why)


def _probability(keys: Keys, probability: float, ramp_steps: int) -> dict[str, Any]:
    start_step = keys.whole(f"{_PREFIX}start_step", 0) or 0
    section: dict[str, Any] = {"start_step": start_step} if start_step else {}
    if start_step:
        keys.became(f"{_PREFIX}start_step", start_step, f"{_PLACE}.start_step")
    if not ramp_steps:
        for option in ("prob_start", "prob_end", "ramp_shape"):
            keys.leave(f"{_PREFIX}{option}", f"without {_PREFIX}ramp_steps there is no ramp, so it has no effect")
        if start_step:
            keys.differences.append("start_step is ignored there without a ramp: it rolls out from the first step on")
        return {"probability": keys.became(f"{_PREFIX}probability", probability, f"{_PLACE}.probability"), **section}
    start, end = keys.number(f"{_PREFIX}prob_start", 0.0), keys.number(f"{_PREFIX}prob_end", 0.5)
    shape = keys.choice(f"{_PREFIX}ramp_shape", ("linear", "cosine"), "linear")
    if probability:
        keys.left_out.append(f"{_PREFIX}probability {probability}: the ramp takes its place")
        if not start or not end:
            first, last = start or probability, end or probability
            keys.differences.append(
                f"a start or an end of 0.0 falls back to the probability {probability} there, so that its ramp runs "
                f"from {first} to {last}; this recipe ramps from {start} to {end}"
            )
    if start_step:
        keys.differences.append(f"before step {start_step} it rolls out with prob_start there, and not at all here")
    ramp = {"ramp_steps": ramp_steps, "prob_start": start, "prob_end": end, "ramp_shape": shape}
    for option, value in ramp.items():
        keys.became(f"{_PREFIX}{option}", value, f"{_PLACE}.{option}")
    return {**ramp, **section}


def _solver(keys: Keys, is_flow: bool) -> dict[str, Any]:
    sampler = keys.choice(f"{_PREFIX}sampler", get_args(Solver), "unipc")
    order = keys.whole(f"{_PREFIX}order", 2) or 2
    section: dict[str, Any] = {"sampler": keys.became(f"{_PREFIX}sampler", sampler, f"{_PLACE}.sampler")}
    most = {"unipc": 3, "dpm": 2}.get(str(sampler), 0)
    if not most:
        if order != 2:
            keys.left_out.append(f"{_PREFIX}order {order}: {sampler} has a fixed order")
    else:
        if not 1 <= order <= most:
            raise ValueError(f"import: {_PREFIX}order is {order}; {sampler} takes 1 to {most}; correct it in the file")
        section["order"] = keys.became(f"{_PREFIX}order", order, f"{_PLACE}.order")
    if is_flow and sampler != "euler":
        keys.differences.append(
            f"for flow matching it takes Euler steps whatever the sampler, here {sampler}; here {sampler} is what "
            f"runs. {_PLACE}.sampler: euler (without order) repeats that"
        )
    if sampler == "rk4" and not is_flow:
        keys.differences.append("rk4 raises an import error there at the first rollout; here it runs")
    return section


def _strategy(keys: Keys, offset: int) -> dict[str, Any]:
    strategy = keys.choice(f"{_PREFIX}strategy", get_args(Strategy), "uniform")
    if strategy == "uniform":
        keys.differences.append(
            "an offset of 0, which is no rollout, is among its draws, and so here: min_step_offset: 0"
        )
        return {"min_step_offset": 0}
    none = (0.5 / offset) ** 0.5 if strategy == "biased_early" else 1.0 - (1.0 - 0.5 / offset) ** 0.5
    keys.differences.append(
        f"{strategy} rounds there, which gives an offset of 0, no rollout, in {none:.1%} of the draws; here it runs "
        "from 1 (min_step_offset: 0 takes 0 in)"
    )
    if offset == 1:  # the only length, among which nothing is to be chosen
        return {}
    keys.became(f"{_PREFIX}strategy", strategy, f"{_PLACE}.strategy")
    return {"strategy": strategy}


def _reflexflow(keys: Keys, is_flow: bool) -> dict[str, float] | None:
    wanted = keys.flag(f"{_PREFIX}reflexflow")
    weights = {"alpha": 1.0, "beta1": 10.0, "beta2": 1.0}
    if not is_flow or wanted is False:
        why = "reflexflow is off" if wanted is False else "ReflexFlow is defined for flow matching only"
        if wanted:
            keys.left_out.append(f"{_PREFIX}reflexflow true: {why}")
        for name in weights:
            keys.leave(f"{_PREFIX}reflexflow_{name}", why)
        return None
    how = "true" if wanted else "not set, which turns it on for flow matching"
    keys.mapped.append(f"{_PREFIX}reflexflow {how} → {_PLACE}.reflexflow")
    found = {
        name: keys.became(
            f"{_PREFIX}reflexflow_{name}",
            keys.number(f"{_PREFIX}reflexflow_{name}", default),
            f"{_PLACE}.reflexflow.{name}",
        )
        for name, default in weights.items()
    }
    keys.differences += [
        "ReflexFlow's frequency weight is 1 + alpha·e/sum|e| there, e with its sign: over a latent of N numbers it "
        "differs from 1 by about alpha/N, which is nothing. Here it is 1 + alpha·|e|/mean|e|, so that alpha counts "
        "(the mean weight is 1 + alpha)",
        "ReflexFlow's direction loss falls on every sample there, rolled out or not; here on rolled ones only",
    ]
    return found


def _say_differences(keys: Keys, is_flow: bool, offset: int) -> None:
    keys.differences += [
        f"one step of its rollouts is 1/1000 of the path: {offset} steps are {offset / 10:g} % of it, where a sampler "
        f"of 20 steps goes 5 % at once. The recipe keeps that ({_PLACE}.grid_steps: 1000); "
        "grid_steps: 50 makes steps of the size that samplers take",
        "its rollouts go one sample at a time, in training mode with drop-out on; here they go as one batch, in "
        "evaluation mode",
        "the target is not recomputed for the drifted state there; here it leads from that state back to the image "
        f"(target: restoring). {_PLACE}.target: original repeats what it does",
    ]
    if not is_flow:
        keys.differences.append(
            "for eps and v models its rollouts walk towards noise, since their grid runs the wrong way; here towards "
            "the image"
        )
