"""Draws a plan that unmasks step by step: ``python docs/pictures/plan.py RUN OUT.png [TASK]``."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import onpath
from onpath import rng
from onpath.envs import fourrooms, gridworld
from onpath.sampling.loop import walk
from onpath.sampling.states import TokenState
from onpath.types import Batch

WALL, FLOOR, GOAL, PATH, AGENT = "#3b4252", "#f4f5f7", "#2e9e6b", "#d9822b", "#b23a48"
TOKENS = {0: ("#7fb2e5", "L"), 1: ("#f0a3a3", "R"), 2: ("#f7d774", "F"), 3: ("#2e9e6b", "·"), 4: ("#ffffff", "")}
HEADINGS = (">", "v", "<", "^")  # right, down, left, up, with y growing downwards


def poses_of(worlds: gridworld.Worlds, agents: gridworld.Agents, plan: list[int]) -> list[gridworld.Agents]:
    """The agent before each action of the plan and after the last one."""
    poses = [agents]
    for token in plan:
        if token >= 3 or bool(gridworld.at_goal(worlds, poses[-1])):
            break
        poses.append(gridworld.step(worlds, poses[-1], torch.tensor([token])))
    return poses


def draw_maze(axes: Axes, worlds: gridworld.Worlds, poses: list[gridworld.Agents], tokens: list[int]) -> None:
    """The maze, and those moves of the finished plan whose tokens are revealed by now."""
    walls = worlds.walls[0]
    axes.imshow(~walls.T, cmap=matplotlib.colors.ListedColormap([WALL, FLOOR]), interpolation="nearest")
    goal = worlds.goal[0].tolist()
    axes.add_patch(Rectangle((goal[0] - 0.5, goal[1] - 0.5), 1, 1, color=GOAL))
    for token, before, after in zip(tokens, poses, poses[1:], strict=False):
        if token < 3:
            x, y = zip(before.position[0].tolist(), after.position[0].tolist(), strict=True)
            axes.plot(x, y, color=PATH, lw=3, solid_capstyle="round")
    start = poses[0]
    axes.plot(*start.position[0].tolist(), marker=HEADINGS[int(start.direction)], color=AGENT, ms=7)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_tokens(axes: Axes, tokens: list[int]) -> None:
    """The canvas as a strip of cells, ten to a line."""
    for place, token in enumerate(tokens):
        colour, letter = TOKENS[token]
        x, y = place % 10, -(place // 10)
        axes.add_patch(Rectangle((x, y), 0.92, 0.92, facecolor=colour, edgecolor="#9aa1ac", lw=0.6))
        axes.text(x + 0.46, y + 0.43, letter, ha="center", va="center", fontsize=7, color="#22262e")
    axes.set_xlim(-0.1, 10.1)
    axes.set_ylim(-3.2, 1.1)
    axes.axis("off")


def states_of(run: onpath.Run, task: int) -> tuple[gridworld.Worlds, gridworld.Agents, list[TokenState]]:
    parts = run.parts
    worlds, agents = fourrooms.tasks("test", rng.Key(seed=1), torch.tensor([task]))
    batch = Batch.of_tokens(
        torch.zeros(1, parts.spec.length, dtype=torch.int64),
        torch.tensor([task]),
        cond={"image": gridworld.observe(worlds, agents), "direction": agents.direction},
    )
    states = list(walk(run.denoiser, parts.process, parts.sampler, parts.grid, batch, rng.Key(0)))
    return worlds, agents, states


def main() -> None:
    run, out = onpath.load(sys.argv[1], device="cpu"), Path(sys.argv[2])
    worlds, agents, states = states_of(run, int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    poses = poses_of(worlds, agents, states[-1].x[0].tolist())
    shown = [0, 2, 4, 7, len(states) - 1]
    figure, rows = plt.subplots(2, len(shown), figsize=(12.5, 3.9), height_ratios=(3, 1.2), layout="constrained")
    for column, index in enumerate(shown):
        tokens = states[index].x[0].tolist()
        masked = int(states[index].masked.sum())
        draw_maze(rows[0, column], worlds, poses, tokens)
        draw_tokens(rows[1, column], tokens)
        rows[0, column].set_title(f"after {index} forwards: {masked} of {len(tokens)} masked", fontsize=9)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
