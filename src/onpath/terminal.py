"""Tables and bars on the terminal: what the command line shows, and how."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onpath.config import RunConfig
    from onpath.data.tokenizers import Tokenizer
    from onpath.evaluation.check import Check
    from onpath.evaluation.schedule_table import ScheduleRow
    from onpath.reports.live import Live
    from onpath.sampling.states import TokenState
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

    with errors.status("estimating …"):
        rows = estimate(config)  # before anything is written: a mistake that it finds stands alone
    sys.stdout.write(yaml.safe_dump(config.as_dict(), sort_keys=False))
    table = Table("estimate", "value", box=None)
    for name, value in rows.items():
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
    """Timings where there are any, then one line for each set and mode of a policy, or for each figure of a text."""
    by_mode: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    drifted = [row for row in rows if "offset" in row]
    rows = [row for row in rows if "offset" not in row]
    for row in rows:
        by_mode.setdefault((row["set"], row["mode"]), {})[row["metric"]] = row
    _show_timings(by_mode)
    played = {key: metrics for key, metrics in by_mode.items() if "success" in metrics}
    if played or not rows:
        _show_successes(played)
    else:
        _show_figures(by_mode)
    for row in rows:
        if row["metric"] == "agreement":
            console.print(f"{row['set']} {row['mode']}: {row['value']:.2%} of {row['n']} episodes agree with MiniGrid")
    if drifted:
        show_drift(drifted)


def show_plans(told: list[dict[str, Any]]) -> None:
    """A line for each task and search: whether it is solved, at what cost, after how many forwards, and the plan."""
    table = Table("search", "task", "solved", "actions", "shortest", "found after", "forwards", "plan", box=None)
    for one in told:
        cells = [one[name] for name in ("cost", "shortest", "found_after", "forwards")]
        marks = ["–" if cell is None else str(cell) for cell in cells]
        solved = "[green]yes[/green]" if one["solved"] else "[red]no[/red]"
        table.add_row(one["search"], str(one["task"]), solved, *marks, Text(one["plan"]))
    console.print(table, highlight=False)


def show_drift(rows: list[dict[str, Any]]) -> None:
    """Bias, then loss against that of forward states with the floor behind it: a line for each time, from noise to
    data, and a column for each length of the walk."""
    if not rows:
        console.print("drift: the grid has one step, so there is no state between noise and data to compare")
        return
    found = {(row["t"], row["offset"], row["metric"]): row for row in rows}
    times = sorted({row["t"] for row in rows}, reverse=True)
    offsets = list(dict.fromkeys(row["offset"] for row in rows if row["offset"] != 0))
    names = ["from noise" if one == "all" else f"+{one} step{'s' if one > 1 else ''}" for one in offsets]
    bias, loss = Table("t", *names, box=None), Table("t", "forward", *names, box=None)
    for t in times:
        cells, ratios = [], []
        for offset in offsets:
            one, ratio = found.get((t, offset, "bias")), found.get((t, offset, "loss_ratio"))
            cells.append(f"{one['value']:+.1%} ± {one['ci95'][1] - one['value']:.1%}" if one else "–")
            floor = found.get((t, offset, "floor"))
            ratios.append(f"{ratio['value']:.3f} ({floor['value']:.3f})" if ratio and floor else "–")
        bias.add_row(f"{t:.3g}", *cells)
        forward = found.get((t, 0, "loss"))
        loss.add_row(f"{t:.3g}", f"{forward['value']:.4g}" if forward else "–", *ratios)
    console.print("[bold]bias[/bold] of own states, 95 %; 0 is as in training", bias, highlight=False)
    console.print("[bold]loss[/bold], own / forward states (floor: of a calibrated network)", loss, highlight=False)
    console.print(f"over {max(row['n'] for row in rows)} examples; how to read it: docs/drift.md", highlight=False)


def _show_successes(by_mode: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> None:
    table = Table("set", box=None)
    table.add_column("mode", no_wrap=True)  # cut short it would name another mode
    table.add_column("n")
    table.add_column("success [95 %]", no_wrap=True)
    for title in ("SPL", "optimal", "return", "bumps", "forwards"):
        table.add_column(title, overflow="fold")
    for (name, mode), metrics in by_mode.items():
        low, high = metrics["success"]["ci95"]
        told = {"forwards_per_decision": metrics.get("forwards", {"value": None}), **metrics}  # those of a search
        values = [told.get(name, {"value": None})["value"] for name in _COLUMNS[1:]]
        figures = ["–" if value is None else f"{value:.4g}" for value in values]
        success = f"{metrics['success']['value']:.4f} [{low:.3f}, {high:.3f}]"
        table.add_row(name, mode, str(metrics["success"]["n"]), success, *figures)
    console.print(table)


def _show_figures(by_mode: dict[tuple[str, str], dict[str, dict[str, Any]]]) -> None:
    """One line for each figure, under the set and the mode that it is of."""
    table = Table("set", box=None)
    table.add_column("mode", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for title in ("value", "± se", "[95 %]", "n"):
        table.add_column(title, justify="right", no_wrap=True)
    for (name, mode), metrics in by_mode.items():
        whose = [name, mode]
        for metric, row in metrics.items():
            error, interval = row.get("se"), row.get("ci95")
            table.add_row(
                *whose,
                metric.replace("_", " "),
                f"{row['value']:.4g}",
                "" if error is None else f"± {error:.2g}",
                "" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]",
                str(row["n"]),
            )
            whose = ["", ""]
    console.print(table)


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
    table = Table("t", "alpha", "1 - alpha", title="schedule")
    for row in schedule:
        table.add_row(f"{row.t:.3f}", f"{row.alpha:.4f}", f"{row.mask_share:.4f}")
    console.print(table)


_SECONDS, _SLOWEST = 6.0, 0.25  # of a whole animation; of one of its frames
_SURE = ((0.25, "red"), (0.5, "yellow"), (0.75, "cyan"), (1.01, "green"))  # colours below these probabilities


def watched(states: Iterator[TokenState], codec: Tokenizer) -> Iterator[TokenState]:
    """The same states, each shown on the terminal as long as an eye needs; the terminal is clean after the last."""
    from rich.live import Live as Screen

    before: TokenState | None = None
    with Screen(console=console, auto_refresh=False, transient=True) as screen:
        for state in states:
            due = time.monotonic() + min(_SLOWEST, _SECONDS / (state.num_steps or 1))
            screen.update(frame(state, before, codec), refresh=True)
            yield state
            before = state
            time.sleep(max(0.0, due - time.monotonic()))


def frame(state: TokenState, before: TokenState | None, codec: Tokenizer) -> Group:
    """The texts of a state as far as they fit on the screen, with what their colours mean."""
    room, shown = max(1, console.height - 5), []
    for row in range(state.batch.size):
        lines = unmasking(state, before, row, codec).wrap(console, console.width)
        if shown and len(lines) > room:
            break
        cut = [Text("…", style="dim")] if len(lines) > room else []
        shown += [Text("\n").join([*lines[:room], *cut]), Text()]
        room -= len(lines) + 1
    hidden = state.batch.size - len(shown) // 2
    masked, free = int(state.masked.sum()), int(state.batch.free().sum())
    told = f"step {state.step} of {state.num_steps}, {free - masked} of {free} tokens revealed"
    keys = [Text(told + (f", {hidden} more below" if hidden else ""), style="bold")]
    names = [("bold", "given"), ("reverse", "new"), ("red strike", "masked again")]
    bounds = ("< .25", "< .5", "< .75", "≥ .75")
    names += [(colour, bound) for (_, colour), bound in zip(_SURE, bounds, strict=True)]
    keys.append(Text("  ").join([Text("▒ masked", style="dim"), *(Text(name, style=style) for style, name in names)]))
    return Group(*shown, *keys)


def unmasking(state: TokenState, before: TokenState | None, row: int, codec: Tokenizer) -> Text:
    """One text of a state: what is given in bold, what is new since `before` inverted, the rest by its probability.

    A masked position is a dim ▒; one that is masked again shows, struck out, the word that stood there before.
    """
    from onpath.data.tokenizers import MASK_SIGN

    def listed(tensor: Any) -> list[Any]:
        return tensor[row].tolist()

    tokens, masked, sure = listed(state.x), listed(state.masked), listed(state.confidence)
    free = listed(state.batch.free())
    padding = [False] * len(tokens) if state.batch.padding is None else listed(state.batch.padding)
    old_tokens, old_masked = (tokens, masked) if before is None else (listed(before.x), listed(before.masked))
    pieces = codec.pieces(tokens)
    lost = any(now and not was for now, was in zip(masked, old_masked, strict=True))
    old_pieces = codec.pieces(old_tokens) if lost else pieces
    text = Text(overflow="fold")
    for place, piece in enumerate(pieces):
        ended = place and not masked[place] and tokens[place - 1 : place + 1] == [codec.end_id] * 2
        if padding[place] or ended:  # of many end tokens in a row one says enough
            continue
        if masked[place]:
            again = not old_masked[place]
            text.append(_plain(old_pieces[place]) if again else MASK_SIGN, "red strike" if again else "dim")
        elif not free[place]:
            text.append(_plain(piece), "bold")
        else:
            fresh = old_masked[place] or old_tokens[place] != tokens[place]
            colour = next(colour for bound, colour in _SURE if sure[place] < bound)
            text.append(_plain(piece), f"{colour} reverse" if fresh and before is not None else colour)
    return text


def show_texts(state: TokenState, codec: Tokenizer) -> None:
    """Finished texts, with the colours of ``unmasking`` where the terminal has any."""
    for row in range(state.batch.size):
        number = [(f"{row} ", "dim")] if state.batch.size > 1 else []
        between = "\n" if row + 1 < state.batch.size else ""
        console.print(Text.assemble(*number, unmasking(state, None, row, codec), between), soft_wrap=True)


def _plain(piece: str) -> str:
    """Text that cannot steer a terminal: signs of control are replaced, but for line ends and tabs."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in piece)
