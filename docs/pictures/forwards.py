"""Draws success against forwards of a plan: ``python docs/pictures/forwards.py OUT.png RUN [RUN …]``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from onpath.records import RunFolder

COLOURS = ("#2b6cb0", "#b7791f", "#2f855a", "#97266d")


def points(rows: list[dict], kind: str) -> list[tuple[int, float, float, float]]:
    """(forwards, success, low, high) of the modes `kind`@n without further options, by n."""
    found = []
    for row in rows:
        name, _, steps = row["mode"].partition("@")
        if row["set"] == "test" and row["metric"] == "success" and name == kind and steps.isdigit():
            found.append((int(steps), row["value"], *row["ci95"]))
    return sorted(found)


def main() -> None:
    out, runs = Path(sys.argv[1]), [RunFolder.open(Path(path)) for path in sys.argv[2:]]
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for colour, run in zip(COLOURS, runs, strict=False):
        seed = run.config()["seed"]
        for kind, marker, style in (("open", "o", "-"), ("closed", "s", ":")):
            steps, value, low, high = zip(*points(run.evaluation(), kind), strict=True)
            words = "open loop" if kind == "open" else "plan again every action"
            axes.plot(steps, value, style, marker=marker, color=colour, ms=4, label=f"seed {seed}, {words}")
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    axes.minorticks_off()
    axes.set_xlabel("forwards of a plan")
    axes.set_ylabel("success, layouts never trained on")
    axes.set_ylim(top=1.005)
    axes.grid(color="#e2e5ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    figure.savefig(out, dpi=140)


if __name__ == "__main__":
    main()
