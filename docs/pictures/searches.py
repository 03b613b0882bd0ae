"""Draws success against the budget of searches: ``python docs/pictures/searches.py OUT.png TITLE=FILE [TITLE=FILE …]``.

A file holds what ``python -m benchmarks.search`` printed; the rows over all of its runs are drawn.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "mctd": "#2b6cb0",
    "mcts": "#b7791f",
    "beam": "#2f855a",
    "remask": "#97266d",
    "best_of_n": "#4a5568",
    "tokens": "#c05621",
}


def points(file: Path, search: str) -> list[tuple[int, float, float, float]]:
    """(budget, success, low, high) over all runs of a file, by budget."""
    found = []
    for line in file.read_text().splitlines():
        row = json.loads(line)
        name, _, budget = row["case"].removeprefix("all, ").partition("@")
        if row["metric"] == "success" and row["case"].startswith("all, ") and name == search:
            found.append((int(budget), row["value"], *row["ci95"]))
    return sorted(found)


def styled(axis: Any, title: str, budgets: Sequence[int]) -> None:
    """The axes of a panel."""
    axis.set_xscale("log")
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.minorticks_off()
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("budget of a task, forwards")
    axis.set_ylim(0, 1.02)
    axis.grid(color="#e2e5ea", lw=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    out, panels = Path(sys.argv[1]), [argument.split("=", 1) for argument in sys.argv[2:]]
    size = (3.4 * len(panels) + 0.6, 3.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (title, file) in zip(axes[0], panels, strict=True):
        for search, colour in COLOURS.items():
            budgets, value, low, high = zip(*points(Path(file), search), strict=True)
            axis.plot(budgets, value, marker="o", color=colour, ms=3.5, lw=1.4, label=search)
            axis.fill_between(budgets, low, high, color=colour, alpha=0.13, lw=0)
        styled(axis, title, budgets)
    axes[0][0].set_ylabel("solved")
    axes[0][-1].legend(fontsize=8, frameon=False, loc="upper left")
    figure.savefig(out, dpi=140)


if __name__ == "__main__":
    main()
