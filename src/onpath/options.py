"""Arguments and options of the commands, as typer reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from onpath.evaluation.drift import Drift
    from onpath.evaluation.envs import Mode
    from onpath.records import RunFolder
    from onpath.runs import Run

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
RecipeArgument = Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.", metavar="RECIPE|FILE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings over the recipe's, such as training.steps=1000.", metavar="[KEY=VALUE]…"),
]
EvaluationOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings over those of the run, such as num_tasks=100.", metavar="[KEY=VALUE]…"),
]
SearchOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings such as search.leaves=8 or search.uct.backup=mean.", metavar="[KEY=VALUE]…"),
]
SamplerOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings such as sampler.order=confidence or grid.steps=40.", metavar="[KEY=VALUE]…"),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="auto, cpu or cuda, in place of the device that the run was trained on.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class SampleOptions:
    """The options of ``onpath sample``; num is None where it is not given."""

    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A text to go on with; [MASK:8] in it is filled with 8 tokens. May be given several times."),
    ] = None
    num: Annotated[
        int | None, typer.Option(help="How many; of each prompt, 1 by default, else 4, of images 16.", min=1)
    ] = None
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0
    steps: Annotated[
        int | None, typer.Option(help="Steps in place of those of the run's grid; of tokens, on an even grid.", min=1)
    ] = None
    label: Annotated[int | None, typer.Option(help="Class of the images; each in turn by default.", min=0)] = None
    length: Annotated[int | None, typer.Option(help="Tokens of a text, its prompt among them.", min=1)] = None
    new: Annotated[int | None, typer.Option(help="Tokens behind each prompt, in place of --length.", min=1)] = None
    temperature: Annotated[
        float | None, typer.Option(help="0 takes the likeliest token, in place of the sampler's.", min=0.0)
    ] = None
    device: DeviceOption = None
    animation: Annotated[bool, typer.Option(help="Show on a terminal how texts unmask.")] = True
    as_json: JsonOption = False

    def states(self, run: Run) -> Iterator[Any]:
        """The states of generating what is asked for; ValueError for an option that a run of its kind does not have."""
        import torch

        from onpath.sampling.grids import EvenGrid
        from onpath.sampling.loop import Knobs
        from onpath.types import ImageSpec

        prompts, num = self.prompt or [], self.num or (1 if self.prompt else 4)
        if isinstance(run.parts.spec, ImageSpec):
            self._refuse(("prompt", "length", "new", "temperature"), "is of tokens, and this run makes images")
            grid = None if self.steps is None else run.parts.grid.with_steps(self.steps)
            return run.watch(run.images(self.num or 16, self.label), seed=self.seed, grid=grid)
        self._refuse(("label",), "is of images, and this run makes none")
        batch, grid, knobs = None, None if self.steps is None else EvenGrid(self.steps), None
        if run.codec or prompts or self.length or self.new:
            batch = run.request(prompts, num, length=self.length, num_new_tokens=self.new)
        if self.temperature is not None:
            size = num * max(1, len(prompts))
            knobs = Knobs(temperature=torch.full((size,), self.temperature, device=run.parts.device))
        return run.watch(batch, num_samples=num, seed=self.seed, grid=grid, knobs=knobs)

    def file_name(self, overrides: list[str]) -> str:
        """What tells this picture from those of other settings: `seed-0-label-3-steps-10`."""
        given = {name: getattr(self, name) for name in ("label", "steps", "num")}
        parts = [f"{name}-{value}" for name, value in given.items() if value is not None]
        plain = [re.sub(r"[^\w.=-]+", "-", text) for text in overrides]
        return "-".join([f"seed-{self.seed}", *parts, *plain])

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"sample: --{name} {why}; leave it out")


@dataclass(frozen=True)
class DriftOptions:
    """The options of ``onpath drift``; what is not given is as in ``evaluation.drift.Drift``."""

    times: Annotated[str | None, typer.Option(help="Times from 0 (data) to 1 (noise), such as 0.2,0.5,0.8.")] = None
    offsets: Annotated[str | None, typer.Option(help="Lengths of the walk in grid steps, such as 1,5,all.")] = None
    examples: Annotated[int | None, typer.Option(help="How many held-out examples, 256 by default.", min=2)] = None
    split: Annotated[str | None, typer.Option(help="validation (the default), test or train.")] = None
    picture: Annotated[Path | None, typer.Option(help="Draw it into this file, PNG, SVG or PDF.")] = None
    device: DeviceOption = None
    as_json: JsonOption = False

    def settings(self) -> Drift:
        """The settings asked for; ValueError for those that there are not."""
        from onpath.evaluation.drift import Drift

        told: dict[str, Any] = {"split": self.split, "num_examples": self.examples}
        try:
            if self.times is not None:
                told["times"] = tuple(map(float, self.times.split(",")))
            if self.offsets is not None:
                told["offsets"] = tuple(one if one == "all" else int(one) for one in self.offsets.split(","))
        except ValueError as error:
            raise ValueError(
                f"drift: --times is {self.times} and --offsets is {self.offsets} ({error}); write them like "
                "--times 0.2,0.5,0.8 and --offsets 1,5,all"
            ) from error
        return Drift(**{name: value for name, value in told.items() if value is not None})


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of ``onpath evaluate``."""

    device: DeviceOption = None
    as_json: JsonOption = False
    traces: Annotated[int, typer.Option(help="Plans or texts that the report shows step by step.", min=0)] = 8
    search: Annotated[
        str | None, typer.Option(help="Searches instead of modes: mctd,best_of_n,…; see onpath plan.")
    ] = None
    budget: Annotated[str | None, typer.Option(help="Of each search, in forwards: 10,40,160 by default.")] = None
    tasks: Annotated[int | None, typer.Option(help="Of each search, 500 by default.", min=1)] = None
    failed: Annotated[str | None, typer.Option(help="Search tasks alone that the policy fails in this mode.")] = None

    def measured(self, run: Run, label: str, of_search: list[str]) -> tuple[list[dict[str, Any]], list[Any]]:
        """The run's own evaluation, or that of searches with settings over theirs: rows, and traces for the report."""
        from dataclasses import replace

        from onpath.evaluation.search import measure
        from onpath.searches import named

        if self.search is None:
            given = [f"--{name}" for name in ("budget", "tasks", "failed") if getattr(self, name) is not None]
            for told in (*given, *of_search):
                raise ValueError(f"evaluate: {told} is of searches; name one with --search, or leave it out")
            rows = run.evaluate(label=label)
            return rows, run.traces(self.traces, label) if self.traces else []
        try:
            budgets = [int(one) for one in (self.budget or "10,40,160").split(",")]
        except ValueError as error:
            raise ValueError(f"evaluate: --budget is {self.budget}; write forwards like --budget 10,40,160") from error
        methods, label = named(self.search.split(","), of_search, _dropout(run)), " ".join([label, *of_search]).strip()
        given = {"failed": _mode(self.failed), "num_traces": self.traces}
        rows, traces = measure(run.subject, methods, budgets, self.tasks or 500, **given)
        return (
            [{**row, "mode": f"{row['mode']} {label}".strip(), "step": run.step} for row in rows],
            [replace(one, mode=f"{one.mode} {label}".strip(), step=run.step) for one in traces],
        )


@dataclass(frozen=True)
class PlanOptions:
    """The options of ``onpath plan``."""

    search: Annotated[
        str, typer.Option(help="mctd, tokens, mcts, beam, remask, best_of_n or greedy; several with commas.")
    ] = "mctd"
    budget: Annotated[int, typer.Option(help="Forwards of each task: rows through the network.", min=1)] = 160
    seconds: Annotated[float | None, typer.Option(help="Of the clock, for all tasks of a search together.")] = None
    replan: Annotated[
        int | None, typer.Option(help="Carry out so many actions, then search on with the budget again.", min=1)
    ] = None
    num: Annotated[int, typer.Option(help="Tasks, or puzzles.", min=1)] = 8
    failed: Annotated[
        str | None, typer.Option(help="Only tasks that the policy fails in this mode, such as open@10.")
    ] = None
    picture: Annotated[Path | None, typer.Option(help="Draw tree and plan of the first task into this file.")] = None
    device: DeviceOption = None
    as_json: JsonOption = False

    def searched(self, run: Run, of_search: list[str]) -> list[dict[str, Any]]:
        """What each search has found for each task, as plain data."""
        from onpath.evaluation.search import planner_of, tasks_of, written
        from onpath.search.base import search
        from onpath.search.closed_loop import carry_out
        from onpath.searches import named

        if self.replan is not None and (self.seconds is not None or self.picture is not None):
            told = "--seconds" if self.seconds is not None else "--picture"
            raise ValueError(f"plan: {told} is of one search, and --replan makes many; leave one of them out")
        methods = named(self.search.split(","), of_search, _dropout(run))
        tasks = tasks_of(run.subject, self.num, failed=_mode(self.failed))
        planner, rows = planner_of(run.subject, tasks), []
        for name, method in methods.items():
            if self.replan is not None:
                found = carry_out(method, planner, self.budget, self.replan)
            else:
                found = search(method, planner, self.budget, seconds=self.seconds)
            rows += [{"search": name, **written(run.subject, one, tasks)} for one in found]
            if self.picture is not None and name == next(iter(methods)):
                from onpath.reports import search_picture

                search_picture.write(found[0], tasks.problem, self.picture)
        return rows


def _mode(text: str | None) -> Mode | None:
    """A mode of execution by its name."""
    from onpath.evaluation.envs import Mode

    return None if text is None else Mode.parse(text)


def _dropout(run: Run) -> float | None:
    """How often the condition was left out in training, where the objective has such a setting."""
    rate: float | None = run.parts.config.objective.fields.get("condition_dropout")
    return rate


def of_searches(overrides: list[str] | None) -> tuple[list[str], list[str]]:
    """The settings of searches, and the others."""
    own = [text for text in overrides or [] if text.startswith("search.")]
    return own, [text for text in overrides or [] if text not in own]


def of_evaluation(overrides: list[str] | None) -> tuple[list[str], list[str], list[str]]:
    """Those of searches, those of the sampler, and all but the first under the sections of a config: what names no
    section is of `evaluation`."""
    of_search, others = of_searches(overrides)
    of_sampler = [text for text in others if text.startswith(("sampler.", "sampler="))]
    whole = [text for text in others if text in of_sampler or text.startswith("evaluation.")]
    return of_search, of_sampler, [text if text in whole else f"evaluation.{text}" for text in others]


def require_generation(command: str, overrides: list[str] | None) -> list[str]:
    """The settings over those of a run; ValueError where one is not of how it generates."""
    for text in overrides or []:
        if not text.startswith(("sampler.", "sampler=", "grid.", "grid=")):
            raise ValueError(
                f"{command}: {text!r} would have no effect; allowed are settings of the sampler and the grid"
            )
    return overrides or []


def require_same_recipe(run: RunFolder, recipe: str) -> None:
    """ValueError where the recipe is another than the run began with: it would not take effect."""
    from onpath.overrides import differing, read_yaml
    from onpath.recipes import path_of

    begun, given = run.path / "recipe.yaml", path_of(recipe)
    if given.resolve() == (run.path / "config.yaml").resolve():
        return  # the run's own settings, which it goes on with
    changed = differing(read_yaml(begun), read_yaml(given)) if begun.is_file() else []
    if changed:
        raise ValueError(
            f"resume: {recipe} differs from what {run.path} began with, in {', '.join(changed)}. A resumed run goes "
            "on with its own settings: give those that shall change as KEY=VALUE, or start a new run with --run"
        )


def taking(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command whose last argument is a dataclass into one with its fields as options, which typer reads."""

    def spread(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(options, include_extras=True)
        own = inspect.signature(command, eval_str=True)
        kept = list(own.parameters.values())[:-1]
        made = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in fields(options)
        ]

        def call(**told: Any) -> None:
            arguments = {one.name: told.pop(one.name) for one in kept}
            command(**arguments, options=options(**told))

        call.__name__, call.__doc__ = command.__name__, command.__doc__
        call.__annotations__ = {one.name: one.annotation for one in (*kept, *made)}
        call.__signature__ = own.replace(parameters=[*kept, *made])  # type: ignore[attr-defined]
        return call

    return spread
