"""Drift of a run as a picture, for papers and talks; the report draws its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(rows: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Draws the rows of ``Drift.measure`` into `path`, whose ending says in what format; see docs/drift.md.

    From noise on the left to data: bias in percent, with the 95 % interval of the longest walk, and the loss ratio with
    its floor, dashed.
    ValueError where there are no rows, matplotlib is not installed, or the format is none that it writes.
    """
    offsets = list(dict.fromkeys(row["offset"] for row in rows if row["metric"] == "bias"))
    if not offsets:
        raise ValueError(
            f"drift: there are no rows to draw into {path}; the grid has too few steps, take grid.steps=20"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f'drift: a picture needs matplotlib ({error}): pip install "onpath[report]"') from error

    figure = Figure(figsize=(9.0, 3.4), layout="constrained", dpi=150)
    bias, loss = figure.subplots(1, 2)
    for place, offset in enumerate(offsets):
        # in order of length, the longest walk darkest
        colour = _COLOURS[round((place + 1) / len(offsets) * (len(_COLOURS) - 1))]
        name = "from noise" if offset == "all" else f"{offset} step{'s' if offset > 1 else ''}"
        t, value, low, high = _line(rows, "bias", offset, 100.0)
        bias.plot(t, value, color=colour, marker="o", markersize=3, label=name)
        if place == len(offsets) - 1:
            bias.fill_between(t, low, high, color=colour, alpha=0.12, linewidth=0)
        t, value, _, _ = _line(rows, "loss_ratio", offset)
        loss.plot(t, value, color=colour, marker="o", markersize=3, label=name)
        t, value, _, _ = _line(rows, "floor", offset)
        loss.plot(t, value, color=colour, linewidth=0.9, linestyle="--")
    for axes, level, head in ((bias, 0.0, "bias of own states, %"), (loss, 1.0, "loss, own / forward (dashed: floor)")):
        axes.axhline(level, color="#666666", linewidth=0.8)
        axes.annotate(
            "as in training",
            (0.01, level),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            color="#444444",
            xytext=(0, 3),
            textcoords="offset points",
        )
        axes.set_title(head, fontsize=10, loc="left")
        axes.set_xlabel("t, from noise to data")
        axes.set_xlim(1.0, 0.0)
        axes.spines[["top", "right"]].set_visible(False)
    loss.set_yscale("log")
    bias.legend(frameon=False, fontsize=8, title="own steps", title_fontsize=8)
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"drift: the picture {path} cannot be written ({error}); name a .png, .svg or .pdf") from error


_COLOURS = ("#c6c2ff", "#a49cf0", "#7d72dd", "#5a4bc4", "#3a2a9e", "#1d1266")


def _line(
    rows: Sequence[Mapping[str, Any]], metric: str, offset: Any, scale: float = 1.0
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Times, values and the two ends of their intervals."""
    found = sorted(
        (row for row in rows if row["metric"] == metric and row["offset"] == offset), key=lambda row: row["t"]
    )
    ends = [row.get("ci95") or (row["value"], row["value"]) for row in found]
    times, values = [row["t"] for row in found], [scale * row["value"] for row in found]
    return times, values, [scale * low for low, _ in ends], [scale * high for _, high in ends]
