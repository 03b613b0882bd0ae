"""The tree of a search as a picture, and the best plan on its maze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onpath.search.base import Progress
from onpath.search.maze import MazeProblem
from onpath.search.problems import Problem
from onpath.search.tree import Node, every_node

_COLOURS = "viridis"


def write(progress: Progress, problem: Problem, path: Path) -> None:
    """Draws the tree of a search into `path`, whose ending says in what format; a maze stands beside it.

    A dot is a node, the larger the more visits went through it, its colour the greatest value that came of them; in the
    maze the dots are where they stand, and the line is the best plan.
    ValueError where the search grew no tree, matplotlib is not installed, or the format is none that it writes.
    """
    if progress.root is None:
        raise ValueError("plan: this search grows no tree to be drawn; take --search mctd, tokens or mcts")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f'plan: a picture needs matplotlib ({error}): pip install "onpath[report]"') from error

    is_maze = isinstance(problem, MazeProblem)
    figure = Figure(figsize=(10.0, 4.4) if is_maze else (6.0, 4.4), layout="constrained", dpi=150)
    axes = figure.subplots(1, 2 if is_maze else 1, squeeze=False)[0]
    dots = _draw_tree(axes[0], progress.root)
    figure.colorbar(dots, ax=axes[0], label="greatest value below", fraction=0.05)
    if isinstance(problem, MazeProblem):
        _draw_maze(axes[1], problem, progress)
    try:
        figure.savefig(path)
    except ValueError as error:
        raise ValueError(f"plan: the picture cannot be written to {path} ({error})") from error


def _draw_tree(axis: Any, root: Node) -> Any:
    """Leaves side by side, each node above the middle of its children."""
    found = every_node(root)
    own: dict[int, list[Node]] = {}
    for node, parent, _ in found:
        if parent is not None:
            own.setdefault(id(parent), []).append(node)
    across: dict[int, float] = {}
    next_leaf = 0.0
    left: list[tuple[Node, bool]] = [(root, False)]
    while left:
        node, is_back = left.pop()
        children = own.get(id(node), [])
        if is_back or not children:
            if not children:
                across[id(node)], next_leaf = next_leaf, next_leaf + 1.0
            else:
                across[id(node)] = sum(across[id(child)] for child in children) / len(children)
            continue
        left.append((node, True))
        left += [(child, False) for child in reversed(children)]
    for node, parent, depth in found:
        if parent is not None:
            axis.plot([across[id(parent)], across[id(node)]], [depth - 1, depth], color="0.75", linewidth=0.7, zorder=1)
    dots = axis.scatter(
        [across[id(node)] for node, _, _ in found],
        [depth for _, _, depth in found],
        s=[8 + 60 * (node.visits / root.visits) ** 0.5 for node, _, _ in found],
        c=[node.best for node, _, _ in found],
        cmap=_COLOURS,
        vmin=0.0,
        vmax=1.0,
        zorder=2,
    )
    axis.invert_yaxis()
    axis.set_xticks([])
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_ylabel("segments committed")
    axis.set_title(f"{len(found)} nodes, {root.visits} plans")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    return dots


def _draw_maze(axis: Any, problem: MazeProblem, progress: Progress) -> None:
    task = progress.task
    walls, goal = problem.worlds.walls[task], problem.worlds.goal[task].tolist()
    axis.imshow(walls.T.numpy(), cmap="Greys", vmin=0, vmax=2.5)
    assert progress.root is not None
    where = {node.place.state: node.best for node, _, _ in every_node(progress.root)}
    cells = [problem.cell(state) for state in where]
    axis.scatter(*zip(*cells, strict=True), c=list(where.values()), cmap=_COLOURS, vmin=0, vmax=1, s=16, zorder=3)
    best = progress.best
    if best is not None:
        line = problem.cells(task, best.plan)
        axis.plot(*zip(*line, strict=True), color="tab:orange", linewidth=2, zorder=2)
        told = f"reached after {best.cost} actions" if best.solved else "goal not reached"
        axis.set_title(f"{told}, {progress.spent} forwards")
    start = problem.cell(problem.start(task).state)
    axis.plot(*start, marker="o", color="tab:red", markersize=7, zorder=4)
    axis.plot(*goal, marker="*", color="tab:green", markersize=13, zorder=4)
    axis.set_xticks([])
    axis.set_yticks([])
