"""Draws the pictures of the page on concepts: ``python docs/pictures/concepts.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from onpath.data.trajectories import FourRoomsExpert
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.grids import UniformGrid
from onpath.schedules import (
    DATA,
    PRIOR,
    CosineSchedule,
    ExponentialSchedule,
    HalfCosineSchedule,
    LinearSchedule,
    MaskGITCosineSchedule,
    PolynomialSchedule,
    Schedule,
)

CURVES = (
    (HalfCosineSchedule(), "half cosine", "#97266d", (0, (1, 1))),
    (PolynomialSchedule(), "polynomial, power 2", "#2f855a", (0, (5, 1))),
    (LinearSchedule(), "linear", "#2b6cb0", "solid"),
    (CosineSchedule(), "cosine", "#b7791f", "dashed"),
    (MaskGITCosineSchedule(), "MaskGIT cosine", "#c53030", "dashdot"),
    (ExponentialSchedule(), "exponential, to 0.01", "#4a5568", "dotted"),
)
TOKENS = ("#7fb2e5", "#f0a3a3", "#f7d774", "#2e9e6b", "#ffffff")  # left, right, forward, end, [MASK]
EDGE = "#9aa1ac"


def tidy(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="#e2e5ea", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(axes: Axes) -> None:
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    for schedule, name, colour, style in CURVES:
        axes.plot(t, schedule.alpha(t), color=colour, ls=style, lw=1.8, label=name)
    tidy(axes, "time t: 0 is data, 1 is noise", "alpha(t), the share of signal")
    axes.legend(fontsize=8, frameon=False)


def draw_bounds(axes: Axes) -> None:
    schedule = LinearSchedule(alpha_min=0.15, alpha_max=0.85)
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    axes.plot(t, schedule.alpha(t), color="#2b6cb0", lw=1.8)
    times = UniformGrid(4).times(schedule)
    shown = [{PRIOR: 1.2, DATA: -0.2}.get(time, time) for time in times]
    alphas = schedule.alpha(torch.tensor(times, dtype=torch.float64)).tolist()
    for left, right in ((0, 1), (len(times) - 2, len(times) - 1)):
        axes.plot(shown[left : right + 1], alphas[left : right + 1], color="#c53030", ls="dashed", lw=1.4)
    axes.plot(shown, alphas, "o", color="#2b6cb0", ms=5)
    ends = [shown[0], shown[-1]]
    axes.plot(ends, [alphas[0], alphas[-1]], "s", color="#c53030", ms=7)
    axes.annotate("PRIOR", (shown[0], alphas[0]), xytext=(-10, -3), textcoords="offset points", ha="right", fontsize=9)
    axes.annotate("DATA", (shown[-1], alphas[-1]), xytext=(10, -3), textcoords="offset points", fontsize=9)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    tidy(axes, "time t", "alpha from 0.85 to 0.15")


def draw_masks(axes: Axes, schedule: Schedule, name: str) -> None:
    batch = FourRoomsExpert().examples(torch.tensor([3]))
    process = Masking(schedule, mask_id=len(TOKENS) - 1)
    times = [step / 10 for step in range(11)]
    key = Key(0).fold("corrupt")
    states = torch.cat([process.corrupt(batch, torch.tensor([time]), key).x for time in times])
    colours = matplotlib.colors.ListedColormap(TOKENS)
    axes.pcolormesh(states.flip(0), cmap=colours, vmin=-0.5, vmax=len(TOKENS) - 0.5, edgecolors=EDGE, lw=0.4)
    axes.set_yticks([10.5, 5.5, 0.5], ["t = 0", "0.5", "1"])
    axes.set_xticks([])
    axes.set_xlabel("position")
    axes.set_title(name, fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(folder: Path) -> None:
    matplotlib.rcParams["svg.hashsalt"] = "onpath"  # the same file at every drawing
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    draw_curves(left)
    draw_bounds(right)
    save(figure, folder / "schedules.svg")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained", sharey=True)
    draw_masks(left, LinearSchedule(), "linear")
    draw_masks(right, MaskGITCosineSchedule(), "MaskGIT cosine")
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor=EDGE) for colour in TOKENS]
    words = ["left", "right", "forward", "end", "masked"]
    figure.legend(handles, words, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    save(figure, folder / "masks.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
