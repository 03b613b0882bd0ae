"""Draws what rollouts cost: ``python docs/pictures/rollouts.py ROWS.jsonl FOLDER``, of ``benchmarks.rollout``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLES = {
    1.0: ("all rows", "#c53030", "o", "solid"),
    0.5: ("half of the rows", "#b7791f", "s", (0, (6, 1.5))),
    0.25: ("a quarter", "#2f855a", "^", (0, (1, 1))),
    0.1: ("a tenth", "#2b6cb0", "v", "dashdot"),
}


def points(rows: list[dict]) -> dict[float, list[tuple[int, float]]]:
    """Multiples of a plain step by probability, over the longest offset."""
    found: dict[float, list[tuple[int, float]]] = {}
    for row in rows:
        matched = re.search(r", offset (\d+), probability ([\d.]+)$", row["case"])
        if matched:
            found.setdefault(float(matched[2]), []).append((int(matched[1]), row["ratio"]))
    return found


def draw(rows: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained", facecolor="white")
    lines = points(rows)
    for probability, (name, colour, marker, style) in STYLES.items():
        line = sorted(lines[probability])
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, ls=style, ms=5)
        axes.annotate(name, line[-1], (8, 0), textcoords="offset points", va="center", color=colour)
    axes.axhline(1.0, color="#9aa1ac", lw=4, alpha=0.45, zorder=0)
    axes.set_xticks(sorted({x for line in lines.values() for x, _ in line}))
    axes.set_xlim(-0.5, 25.5)
    axes.set_ylim(0)
    axes.set_xlabel("longest rollout, steps of a grid of 50 (lengths from 1, all alike)")
    axes.set_ylabel("time of a training step, plain = 1")
    axes.grid(color="#e2e5ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    draw(rows, Path(sys.argv[2]) / "rollout-overhead.png")


if __name__ == "__main__":
    main()
