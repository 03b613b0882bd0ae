"""Tables and bars on the terminal: what the command line shows, and how."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onpath.config import RunConfig
    from onpath.evaluation.check import Check, ScheduleRow
    from onpath.reports.live import Live
    from onpath.training.reporter import Progress

console = Console(width=None if sys.stdout.isatty() else 120)  # a file or a pipe has no width: rich would take 80
errors = Console(stderr=True)


class Shown:
    """Draws the trainer's progress on a bar, and keeps a live report fresh where there is one."""

    def __init__(self, bar: Any, report: Live | None = None) -> None:
        self.bar, self.report = bar, report
        self.task = bar.add_task("train", total=None, loss="", rate="")

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            console.print(progress.note, markup=False, highlight=False)
            return
        failure = self.report.refresh() if self.report else ""
        if failure:
            console.print(failure, markup=False, highlight=False)
        self.bar.update(
            self.task,
            completed=progress.step,
            total=progress.num_steps,
            loss=f"loss {progress.loss:.4f}",
            rate=f"{progress.rate:,.0f} examples/s",
        )


def progress_bar() -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def show_dry_run(config: RunConfig) -> None:
    import yaml

    from onpath.build import estimate

    sys.stdout.write(yaml.safe_dump(config.as_dict(), sort_keys=False))
    table = Table("estimate", "value", box=None)
    for name, value in estimate(config).items():
        table.add_row(name, value)
    console.print(table)


def show_last_metrics(folder: Any) -> None:
    last: dict[str, dict[str, float]] = {}
    for row in folder.metrics():
        last[row["set"]] = row
    for name, row in last.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))
        console.print(f"[bold]{name}[/bold] at step {row['step']}: {figures}", highlight=False)


_COLUMNS = ("success", "spl", "optimal", "return", "bumps", "forwards_per_decision")


def show_evaluation(rows: list[dict[str, Any]]) -> None:
    """Timings where there are any, then one line of results for each set and mode."""
    by_mode: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_mode.setdefault((row["set"], row["mode"]), {})[row["metric"]] = row
    _show_timings(by_mode)
    table = Table("set", box=None)
    table.add_column("mode", no_wrap=True)  # cut short it would name another mode
    table.add_column("n")
    table.add_column("success [95 %]", no_wrap=True)
    for title in ("SPL", "optimal", "return", "bumps", "forwards"):
        table.add_column(title, overflow="fold")
    for (name, mode), metrics in by_mode.items():
        if "success" in metrics:
            low, high = metrics["success"]["ci95"]
            figures = [f"{metrics[m]['value']:.4g}" for m in _COLUMNS[1:]]
            success = f"{metrics['success']['value']:.4f} [{low:.3f}, {high:.3f}]"
            table.add_row(name, mode, str(metrics["success"]["n"]), success, *figures)
    console.print(table)
    for row in rows:
        if row["metric"] == "agreement":
            console.print(f"{row['set']} {row['mode']}: {row['value']:.2%} of {row['n']} episodes agree with MiniGrid")


def _show_timings(by_mode: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> None:
    """Milliseconds of a decision, p50 and p95, one column for each batch size; evaluation.json has the rest."""
    timed = [metric for metrics in by_mode.values() for metric in metrics if metric.startswith("ms_per_decision_")]
    sizes = dict.fromkeys(metric.removeprefix("ms_per_decision_").rpartition("_")[0] for metric in timed)
    table = Table(
        "set", "mode", *(f"ms per decision, {size.replace('batch', 'batch ')}: p50, p95" for size in sizes), box=None
    )
    for (name, mode), metrics in by_mode.items():
        cells = [
            ", ".join(
                f"{metrics[key]['value']:.2f}" for q in (50, 95) if (key := f"ms_per_decision_{size}_p{q}") in metrics
            )
            for size in sizes
        ]
        if any(cells):
            table.add_row(name, mode, *cells)
    if table.rows:
        console.print(table)


def show_checks(results: Sequence[Check]) -> None:
    table = Table("", "check", "measured", "needed", "what to do")
    for result in results:
        mark = "[green]ok[/green]" if result.passed else "[bold red]FAILED[/bold red]"
        measured = ", ".join(f"{name} {value:.4g}" for name, value in result.measured.items())
        table.add_row(mark, result.name, measured, result.required, "" if result.passed else result.advice)
    console.print(table)


def show_schedule(schedule: Sequence[ScheduleRow]) -> None:
    table = Table("t", "alpha", "mask share", title="schedule")
    for row in schedule:
        table.add_row(f"{row.t:.3f}", f"{row.alpha:.4f}", f"{row.mask_share:.4f}")
    console.print(table)
