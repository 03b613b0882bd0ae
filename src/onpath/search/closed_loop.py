"""Search while a plan is carried out: some actions, then the search goes on from where they led, with the same tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onpath.search.base import Found, Progress, Search, search
from onpath.search.mctd import MCTD
from onpath.search.planner import Planner
from onpath.search.problems import Place
from onpath.search.tree import Node, every_node


def carry_out(
    method: Search,
    planner: Planner,
    budget: int,
    replan_every: int = 4,
    tasks: Sequence[int] | None = None,
    *,
    keeps_tree: bool = True,
    most_decisions: int | None = None,
) -> list[Progress]:
    """Every task from its start to its end: `budget` forwards, `replan_every` actions of the best plan, and so on.

    The best plan of each Progress is what was carried out. keeps_tree: the node that the actions led to becomes the
    root, with its statistics and all below it; without it every decision begins anew, but for the best plan so far.
    most_decisions: None is until the task is over.
    ValueError for a search whose nodes are no states that actions lead to, or no action between decisions.
    """
    longest = planner.problem.most_actions
    if longest is None or not isinstance(method, MCTD) or method.mode != "recondition":
        raise ValueError(
            "closed loop: it goes on with the tree of mctd in its mode recondition, on tasks with actions to carry "
            "out; search without it here"
        )
    if budget < 1 or replan_every < 1:
        raise ValueError(
            f"closed loop: budget is {budget} and replan_every {replan_every}; needed are 1 forward and 1 action or "
            "more, 16 and 4 are usual"
        )
    every = [Progress(task, 0) for task in (range(planner.problem.size) if tasks is None else tasks)]
    done = dict.fromkeys(range(len(every)), 0)
    going = list(done)
    for _ in range(longest if most_decisions is None else most_decisions):
        for index in going:
            every[index].budget = every[index].spent + budget
        search(method, planner, budget, going=[every[index] for index in going])
        for index in going:
            number = min(replan_every, longest - done[index])
            done[index] = _advance(every[index], planner, done[index], number, keeps_tree)
        going = [index for index in going if every[index].found and not _is_over(every[index], done[index], longest)]
        if not going:
            break
    for progress, number in zip(every, done.values(), strict=True):
        best = progress.best
        if best is not None and number >= longest and not best.solved:  # no more of it was carried out
            progress.found[:] = [replace(best, cost=number, plan=best.plan[:number])]
    return every


def _is_over(progress: Progress, done: int, longest: int) -> bool:
    best = progress.best
    return done >= longest or (best is not None and best.solved and best.cost <= done)


def _advance(progress: Progress, planner: Planner, done: int, number: int, keeps_tree: bool) -> int:
    """Carries out the next actions of the best plan and makes where they lead the root; how many are done then."""
    best, root = progress.best, progress.root
    if best is None or root is None:
        return done
    way = best.plan[: done + number]
    place = root.place
    for token in way[done:]:
        place = dict(planner.problem.moves(place)).get(token, Place(place.task, place.state, place.spent + 1))
    known = next((node for node, _, _ in every_node(root) if node.place.state == place.state), None)
    progress.root = _moved(known, place, way) if known is not None and keeps_tree else Node(place, way)
    if len(way) == len(best.plan) and not best.solved:  # it ends here, so that any other is better
        progress.found[:] = [Found(progress.spent, -1.0, False, len(way), way)]
    return len(way)


def _moved(root: Node, place: Place, way: tuple[int, ...]) -> Node:
    """A node as root, reached by this way; what is below it on other ways than through it is left out."""
    old, later = root.way, place.spent - root.place.spent
    below = [node for node, _, _ in every_node(root) if node is not root]
    kept = {id(node) for node in below if node.way[: len(old)] == old and len(node.way) > len(old)}
    root.place, root.way = place, way
    for node in below:
        if id(node) in kept:
            node.way = way + node.way[len(old) :]
            node.place = Place(node.place.task, node.place.state, node.place.spent + later)
    for node in (root, *below):
        node.children = {name: child for name, child in node.children.items() if id(child) in kept}
    return root
