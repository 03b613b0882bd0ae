"""Draws what training on own states is worth: ``python docs/pictures/exposure.py ROWS.jsonl FILE.png [SOLVER]``.

ROWS are the lines of ``benchmarks.exposure``; each arm is a line with a dot for each seed.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLES = {
    "plain": ("plain", "#1f2933", "o", "solid"),
    "inject": ("inject", "#0f766e", "D", "solid"),
    "inject-all": ("inject, every row", "#059669", "X", (0, (4, 2))),
    "perturbation": ("input perturbation", "#2b6cb0", "v", (0, (1, 1))),
    "rollout-restoring": ("rollout, restoring", "#b7791f", "s", (0, (6, 1.5))),
    "rollout-original": ("rollout, original", "#c53030", "^", "dashdot"),
    "reflexflow-rollout": ("ReflexFlow", "#7b2cbf", "P", (0, (3, 1))),
}
Points = dict[str, dict[int, list[float]]]


def points(rows: list[dict], solver: str) -> tuple[Points, float]:
    """Distances by arm and number of steps, one for each seed; and the floor of training images."""
    found: Points = {}
    floors = []
    for row in rows:
        case = re.fullmatch(r".+?, (.+), seed \d+", row["case"])
        if case is None:
            continue
        metric = re.fullmatch(rf"frechet {solver} (\d+)", row["metric"])
        if metric is not None:
            found.setdefault(case[1], {}).setdefault(int(metric[1]), []).append(row["value"])
        elif row["metric"] == "frechet train":
            floors.append(row["value"])
    return found, statistics.fmean(floors)


def draw(rows: list[dict], path: Path, solver: str) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.4), layout="constrained", facecolor="white")
    found, floor = points(rows, solver)
    shown = {arm: found[arm] for arm in STYLES if arm in found}
    ticks = sorted({count for line in shown.values() for count in line})
    for arm, line in shown.items():
        name, colour, marker, style = STYLES[arm]
        means = [statistics.fmean(line[count]) for count in ticks]
        axes.plot(range(len(ticks)), means, color=colour, ls=style, marker=marker, ms=6, label=name)
        for place, count in enumerate(ticks):
            axes.plot([place] * len(line[count]), line[count], color=colour, marker=".", ls="", ms=4, alpha=0.5)
    axes.axhline(floor, color="#9aa1ac", lw=4, alpha=0.45, zorder=0)
    axes.annotate(
        "training images at the same number",
        (len(ticks) - 1, floor),
        (0, -12),
        ha="right",
        textcoords="offset points",
        color="#52606d",
    )
    axes.set_xticks(range(len(ticks)), [str(count) for count in ticks])
    axes.set_xlabel(f"denoising steps ({solver})")
    axes.set_ylabel("Fréchet distance to held-out images")
    axes.grid(color="#e2e5ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    draw(rows, Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "euler")


if __name__ == "__main__":
    main()
