"""Draws how cost grows: ``python docs/pictures/performance.py SCALING.jsonl FOLDER``, of ``benchmarks.scaling``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Point = tuple[float, float]
AXES = {"L": "positions L", "V": "words V", "B": "batch B", "K": "forwards K"}
TICKS = [power * factor for power in (0.1, 1, 10, 100, 1000) for factor in (1, 3)]
NETWORKS = {
    "plan_transformer": ("plan transformer", "#b7791f", "s", (0, (6, 1.5))),
    "plan_mlp": ("plan MLP", "#2b6cb0", "o", "solid"),
}
SAMPLERS = {
    "table, confidence": ("sampler alone, confidence", "#2f855a", "^", (0, (1, 1))),
    "table, random": ("sampler alone, random order", "#97266d", "v", "dashdot"),
}


def points(rows: Iterable[dict], metric: str, name: str) -> list[Point]:
    """(size, value) of a series, by size."""
    axis = metric[-1]
    chosen = [row for row in rows if row["metric"] == metric and f", {name}, L " in row["case"]]
    return sorted((float(re.findall(rf"\b{axis} (\d+)", row["case"])[0]), row["value"]) for row in chosen)


def tidy(axes: Axes, x: str, ticks: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel(x)
    axes.grid(color="#e2e5ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def guide(axes: Axes, line: list[Point], name: str = "in proportion") -> None:
    """A straight line of slope one through the last point of a series."""
    (first, _), (last, value) = line[0], line[-1]
    axes.plot([first, last], [value * first / last, value], color="#9aa1ac", lw=4, alpha=0.45, zorder=0, label=name)


def draw_growth(rows: list[dict], metric: str, kinds: dict, path: Path) -> None:
    """One panel for each of L, V, B, K; a line for each kind."""
    figure, panels = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained", sharey=True)
    values: list[float] = []
    for axes, (axis, words) in zip(panels.flat, AXES.items(), strict=True):
        if axis == "K" and metric == "step":
            words = "states of an example K"
        lines = {name: points(rows, f"{metric} over {axis}", name) for name in kinds}
        tidy(axes, words, sorted({x for line in lines.values() for x, _ in line}))
        values += [y for line in lines.values() for _, y in line]
        for name, (label, colour, marker, style) in kinds.items():
            axes.plot(*zip(*lines[name], strict=True), color=colour, marker=marker, ls=style, ms=5, label=label)
        guide(axes, next(iter(lines.values())))
    for axes in panels[:, 0]:
        axes.set_ylabel("milliseconds")
        axes.set_yticks([tick for tick in TICKS if min(values) / 2 < tick < max(values) * 2])
        axes.set_ylim(min(values) * 0.7, max(values) * 1.5)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    save(figure, path)


def draw_memory(rows: list[dict], path: Path) -> None:
    """Peaks over the rows of a step, with all logits and over chunks."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for axes, step in zip(panels, ("sampling step", "training step"), strict=True):
        lines: dict[str, list[Point]] = {}
        for row in rows:
            if row["metric"] == f"peak of a {step}":
                length, size, chunk = (int(n) for n in re.findall(r"(?:L|B|of) (\d+)", row["case"]))
                lines.setdefault(f"chunks of {chunk:,} rows", []).append((length * size, row["value"]))
                lines.setdefault("all logits", []).append((length * size, row["baseline"]))
        styles = {"all logits": ("#c53030", "o", "solid"), "chunks of 8,192 rows": ("#b7791f", "s", (0, (6, 1.5)))}
        styles["chunks of 512 rows"] = ("#2f855a", "^", (0, (1, 1)))
        tidy(axes, f"positions of a {step}, B·L", sorted({x for x, _ in lines["all logits"]}))
        for name, (colour, marker, style) in styles.items():
            line = sorted(set(lines[name]))
            size = 10 if name == "all logits" else 5  # so that it shows below a line that covers it
            axes.plot(*zip(*line, strict=True), color=colour, marker=marker, ls=style, ms=size, label=name)
    panels[0].set_ylabel("peak, MiB")
    panels[0].set_yticks([128, 256, 512, 1024, 2048], ["128", "256", "512", "1,024", "2,048"])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    rows, folder = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()], Path(sys.argv[2])
    matplotlib.rcParams["svg.hashsalt"] = "onpath"  # the same file at every drawing
    draw_growth(rows, "call", NETWORKS | SAMPLERS, folder / "performance-calls.svg")
    draw_growth(rows, "step", NETWORKS, folder / "performance-steps.svg")
    draw_memory(rows, folder / "performance-memory.svg")


if __name__ == "__main__":
    main()
