"""Draws settings of the tree against each other: ``python docs/pictures/ablations.py OUT.png PANEL/LABEL=FILE …``.

A file holds what ``python -m benchmarks.search --searches mctd --set …`` printed for one setting.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from searches import points, styled

COLOURS = ("#2b6cb0", "#b7791f", "#2f855a", "#97266d", "#4a5568", "#c05621")


def main() -> None:
    panels: dict[str, list[tuple[str, Path]]] = {}
    for argument in sys.argv[2:]:
        name, _, file = argument.rpartition("=")
        panel, _, label = name.partition("/")
        panels.setdefault(panel, []).append((label, Path(file)))
    size = (3.4 * len(panels) + 0.6, 3.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for colour, (label, file) in zip(COLOURS, lines, strict=False):
            budgets, value, low, high = zip(*points(file, "mctd"), strict=True)
            axis.plot(budgets, value, marker="o", color=colour, ms=3.5, lw=1.4, label=label)
            axis.fill_between(budgets, low, high, color=colour, alpha=0.08, lw=0)
        styled(axis, title, budgets)
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    axes[0][0].set_ylabel("solved")
    figure.savefig(Path(sys.argv[1]), dpi=140)


if __name__ == "__main__":
    main()
