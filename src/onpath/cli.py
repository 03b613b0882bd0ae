"""The command line. Only it and ``terminal`` write to the screen; torch is imported by need."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from onpath import terminal
from onpath.interrupts import Interrupts
from onpath.mistakes import message_of
from onpath.options import (
    DriftOptions,
    EvaluateOptions,
    EvaluationOverrides,
    Overrides,
    PlanOptions,
    RecipeArgument,
    RunArgument,
    SampleOptions,
    SamplerOverrides,
    SearchOverrides,
    of_evaluation,
    of_searches,
    require_generation,
    require_same_recipe,
    taking,
)
from onpath.recipes import path_of, shipped, summary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onpath.config import RunConfig
    from onpath.records import RunFolder
    from onpath.reports.live import Live
    from onpath.training.distributed import Processes

app = typer.Typer(
    help="Trains diffusion models on the states they will really meet when they generate.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint, with the settings of the run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and its cost; train nothing.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Keep report.html in the run's folder fresh while training.")
    ] = False,
) -> None:
    """Train a model from a recipe or a YAML file; under torchrun, with several processes."""
    from onpath.build import build
    from onpath.records import RunFolder

    path = run or Path("runs") / Path(recipe).stem
    with _processes() as processes, Interrupts() as interrupts:
        if resume:
            processes.first(lambda: require_same_recipe(RunFolder.open(path), recipe))
        config = processes.first(lambda: _config(recipe, overrides or [], path if resume else None))
        if dry_run:
            processes.first(lambda: terminal.show_dry_run(config))
            return
        parts = build(config)
        report = _live(path) if live and processes.rank == 0 else None
        job = parts.job()  # before the folder: a mistake leaves nothing behind
        folder = processes.first(lambda: RunFolder(path) if resume else _new_folder(path, parts.config, recipe))
        where = f"{parts.device}" if processes.count == 1 else f"{processes.count} processes, {parts.trainer.parallel}"
        terminal.console.print(f"training [bold]{escape(recipe)}[/bold] into {escape(str(path))} on {where}")
        for remark in parts.source.remarks:
            terminal.console.print(remark, markup=False, highlight=False)
        try:
            with terminal.progress_bar() as bar, report or nullcontext():
                parts.trainer.fit(
                    job,
                    folder,
                    resume=resume,
                    processes=processes,
                    on_progress=terminal.Shown(bar, report),
                    should_stop=interrupts,
                )
        except Exception:
            if not resume and processes.rank == 0:
                folder.discard()  # a mistake that the first step finds leaves nothing behind either
            raise
    terminal.show_last_metrics(folder)
    if interrupts():
        command = escape(f"onpath train {recipe} --run {path} --resume")
        terminal.console.print(
            f"stopped by {interrupts.name}, a checkpoint is written; go on with [bold]{command}[/bold]"
        )
        raise typer.Exit(interrupts.exit_code)
    terminal.console.print(f"next: [bold]onpath evaluate {escape(str(path))}[/bold]")


@app.command()
@taking(EvaluateOptions)
def evaluate(run: RunArgument, overrides: EvaluationOverrides = None, *, options: EvaluateOptions) -> None:
    """Measure a trained run, a policy on its tasks or a text model on held-out text, and write evaluation.json.

    Settings are those of `evaluation`, such as num_tasks=100, or of the sampler, such as sampler.order=margin.
    """
    from onpath.runs import load

    of_search, of_sampler, settings = of_evaluation(overrides)
    loaded = load(run, device=options.device, overrides=settings)
    loaded.folder.evaluation()  # a file that cannot be added to is refused now, not after the measurement
    label = " ".join(of_sampler)
    with terminal.errors.status("evaluating …"):
        rows, watched = options.measured(loaded, label, of_search)
    loaded.folder.write_evaluation(rows)
    loaded.folder.write_traces(watched)
    if options.as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        terminal.show_evaluation(rows)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, shown side by side.", metavar="RUN…")],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; report.html in the folder of the first run by default.")
    ] = None,
) -> None:
    """Write one self-contained HTML page on one or several runs, as far as they have got."""
    from onpath.reports import page

    path = output or runs[0] / "report.html"
    page.write(runs, path)
    terminal.console.print(f"wrote {escape(str(path))}; open it in a browser", soft_wrap=True, highlight=False)


@app.command()
@taking(SampleOptions)
def sample(run: RunArgument, overrides: SamplerOverrides = None, *, options: SampleOptions) -> None:
    """Generate from a trained run: text behind or within a prompt, images, or plans on validation conditions.

    On a terminal text is shown as it unmasks.
    """
    from onpath.runs import load
    from onpath.sampling.loop import last
    from onpath.sampling.states import ImageState

    for text in require_generation("sample", overrides):
        if options.steps is not None and text.startswith("grid"):
            raise ValueError(f"sample: --steps takes an even grid in place of {text!r}; leave one of them out")
    loaded = load(run, device=options.device, overrides=overrides or [])
    states = options.states(loaded)
    if loaded.codec and options.animation and terminal.console.is_terminal and not options.as_json:
        states = terminal.watched(states, loaded.codec)
    state = last(states)
    if isinstance(state, ImageState):
        path = loaded.folder.write_picture(options.file_name(overrides or []), loaded.sheet(state))
        told = {"picture": str(path), "forwards": state.num_forwards.tolist()}
        if options.as_json:
            sys.stdout.write(json.dumps(told) + "\n")
        else:
            terminal.console.print(f"wrote {escape(str(path))}", soft_wrap=True, highlight=False)
        return
    samples = loaded.written(state, options.prompt or [])
    loaded.folder.append_samples(options.seed, samples)
    if options.as_json:
        sys.stdout.write(json.dumps({name: [row[name] for row in samples] for name in samples[0]}) + "\n")
    elif loaded.codec:
        terminal.show_texts(state, loaded.codec)
    else:
        for index, row in enumerate(samples):
            terminal.console.print(f"[dim]{index}[/dim] {row['text']}", highlight=False)


@app.command()
@taking(PlanOptions)
def plan(run: RunArgument, overrides: SearchOverrides = None, *, options: PlanOptions) -> None:
    """Search for plans at test time: several searches side by side, within a budget of forwards.

    Settings are of the searches, such as search.leaves=8, or of the sampler.
    """
    from onpath.runs import load

    of_search, others = of_searches(overrides)
    with terminal.errors.status("searching …"):
        loaded = load(run, device=options.device, overrides=require_generation("plan", others))
        told = options.searched(loaded, of_search)
    if options.as_json:
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        terminal.show_plans(told)


@app.command()
@taking(DriftOptions)
def drift(run: RunArgument, overrides: SamplerOverrides = None, *, options: DriftOptions) -> None:
    """Compare a run's own states with those that it was trained on, and add the rows to evaluation.json."""
    from onpath.reports import drift_picture
    from onpath.runs import load

    label = " ".join(require_generation("drift", overrides))
    loaded, settings = load(run, device=options.device, overrides=overrides or []), options.settings()
    loaded.folder.evaluation()  # a file that cannot be added to is refused now
    with terminal.errors.status("walking …"):
        rows = loaded.drift(settings, label)
    loaded.folder.write_evaluation(rows)
    if options.picture is not None:
        drift_picture.write(rows, options.picture, loaded.folder.path.name)
    if options.as_json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        terminal.show_drift(rows)


@app.command()
def export(run: RunArgument, folder: Annotated[Path, typer.Argument(help="A new folder.", metavar="FOLDER")]) -> None:
    """Write the network of a trained run in the format of the model that it came from, LoRA merged into it."""
    from onpath.runs import load

    load(run, device="cpu").export(folder)
    terminal.console.print(f"wrote {escape(str(folder))}", soft_wrap=True, highlight=False)


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(help="A recipe's name, a YAML file, or the folder of a run.", metavar="RECIPE|RUN")
    ],
    overrides: Overrides = None,
) -> None:
    """Run the sanity checks of a recipe or a run, in under a minute, and print its schedule."""
    from onpath.runs import check as run_checks
    from onpath.runs import load

    is_run = (Path(target) / "config.yaml").is_file()
    config = _config(target, overrides or [], Path(target) if is_run else None)
    trained = load(target) if is_run else None
    with terminal.errors.status("checking …"):
        results, schedule = run_checks(config, trained)
    terminal.show_checks(results)
    terminal.show_schedule(schedule)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


@app.command("import")
def import_config(
    file: Annotated[Path, typer.Argument(help="A config.json of SimpleTuner.", metavar="FILE")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The recipe; printed by default.")] = None,
) -> None:
    """Make a recipe of another trainer's config, and say what became of each setting."""
    from onpath.imports.simpletuner import read

    made = read(file)
    if output is None:
        sys.stdout.write(made.recipe())
    else:
        made.write(output)
    told = terminal.errors if output is None else terminal.console
    told.print(made.report(), markup=False, highlight=False, soft_wrap=True)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe's file.")] = None) -> None:
    """List the recipes that ship with the package, or print one."""
    if name is not None:
        sys.stdout.write(path_of(name).read_text())
        return
    table = Table("recipe", "what it trains", box=None)
    for file in shipped():
        table.add_row(file.stem, summary(file))
    terminal.console.print(table)


def main() -> None:
    """Entry point: a user's mistake ends with one message and exit code 2, a bug with its traceback."""
    sys.path.insert(0, "")  # a user's own classes may lie in the working directory
    try:
        _require_one_process(sys.argv[1:])
        sys.exit(app(standalone_mode=False))
    except ConnectionError as error:
        _complain(str(error))
        sys.stderr.flush()
        os._exit(1)  # torch would wait for the lost process once more on the way out
    except Exception as error:
        message = message_of(error)
        if not message:
            raise
        _complain(message)
        sys.exit(2)


def _require_one_process(arguments: list[str]) -> None:
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1 and arguments[:1] != ["train"]:
        raise ValueError(
            f"{' '.join(arguments[:1]) or 'onpath'}: it runs in one process, and torchrun started {num_processes}; "
            "start it without torchrun (only train uses several)"
        )


@contextmanager
def _processes() -> Iterator[Processes]:
    """Those that train together, of which the first one speaks."""
    from onpath.training.distributed import FailedElsewhere, Processes

    try:
        with Processes.joined() as processes:
            terminal.console.quiet = processes.rank > 0
            yield processes
    except FailedElsewhere:
        sys.exit(2)


def _complain(message: str) -> None:
    terminal.errors.print(Text("error: ", style="bold red") + Text(message, style="default"), soft_wrap=True)


def _live(path: Path) -> Live:
    from onpath.reports.live import Live

    return Live(path, path / "report.html")


def _new_folder(path: Path, config: RunConfig, recipe: str) -> RunFolder:
    from onpath.overrides import read_yaml
    from onpath.records import RunFolder

    return RunFolder.create(path, config.as_dict(), read_yaml(path_of(recipe)))


def _config(recipe: str, overrides: list[str], run: Path | None) -> RunConfig:
    from onpath.config import RunConfig

    return RunConfig.load(run / "config.yaml" if run else path_of(recipe), overrides)
