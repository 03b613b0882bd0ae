"""Monte Carlo tree diffusion: a tree over what is committed of a plan, grown by sampling the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onpath.search.base import Asks, PlanSearch, Progress
from onpath.search.planner import Answer, Ask, Meta, Pyramid
from onpath.search.problems import Problem
from onpath.search.tree import UCT, Node, every_node, together

Stop = Literal["first", "bound", "budget"]


@dataclass(frozen=True)
class MCTD(PlanSearch):
    """Monte Carlo tree diffusion for masked plans.

    A visit goes down the tree by UCT, samples a plan at a leaf, has it judged as a whole, and hands its value up.
    mode: `recondition`: a node is where the task stands after the tokens on the way to it are executed, and plans are
    sampled afresh from there, so that the network sees where it is. `tokens`: a node is a plan of which the first
    segments stand and the rest is masked, as in the paper; the next segment is sampled under the node's meta-action and
    the rest greedily in `finish` steps.
    Of the metas those without draws are taken once at a node. slope: of the pyramid in `tokens`. leaves:
    plans that are asked for together at the most, see ``tree.together``.
    widening: a node asks for more plans of its own as long as they are fewer than widening·sqrt(visits); the less the
    network knows, the more it should be.
    stop: at the `first` solution, at one that meets the `bound` of the problem, or when the `budget` is spent.
    Places are nodes once: a plan that leads to one that is known already, at no higher cost, joins it (transposition).
    Sources: MCTD, arXiv:2502.07202; virtual visits of parallel leaves: Fast-MCTD, arXiv:2506.09498.
    """

    mode: Literal["recondition", "tokens"] = "recondition"
    slope: float = 1.0
    finish: int = 2
    leaves: int = 32
    widening: float = 0.5
    uct: UCT = UCT()
    stop: Stop = "budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.finish, self.leaves) < 1 or self.widening <= 0:
            raise ValueError(
                f"mctd: finish is {self.finish}, leaves {self.leaves} and widening {self.widening}; all must be above 0"
            )
        if self.mode == "recondition" and (self.slope, self.finish) != (1.0, 2):
            raise ValueError(
                f"mctd: slope is {self.slope} and finish {self.finish}, but mode is recondition, which samples whole "
                "plans; set mode=tokens, or leave them out"
            )
        if self.stop != "budget" and not self.evaluator.is_exact:
            raise ValueError(
                f"mctd: stop is {self.stop}, but the evaluator {type(self.evaluator).__name__} cannot tell a solution; "
                "set stop=budget, or evaluator=exact"
            )
        Pyramid(self.segment or 1, self.slope)

    def run(self, problem: Problem, progress: Progress) -> Asks:
        root = progress.root
        if root is None:
            start = problem.start(progress.task)
            root = progress.root = Node(start, part=None if self.mode == "recondition" else problem.given(start))
        nodes = {self._name(node): node for node, _, _ in every_node(root)}
        pyramid = Pyramid(self.segment or problem.segment, self.slope)
        free = [at for at, token in enumerate(problem.given(root.place)) if token == -1]
        while True:
            chosen: list[tuple[list[Node], Ask]] = []
            left = progress.left
            while len(chosen) < together(root, self.leaves):
                path, meta = self._leaf(root)
                if meta is None:
                    break
                ask = self._ask(path[-1], meta, progress.asked + len(chosen), pyramid, free)
                if ask.cost > left:
                    self._release(path, meta)
                    break
                chosen.append((path, ask))
                left -= ask.cost
            if not chosen:
                return
            spent = progress.spent
            answers: list[Answer] = yield [ask for _, ask in chosen]
            for (path, ask), answer in zip(chosen, answers, strict=True):
                spent += ask.cost
                judged, leaf = answer.judged, path[-1]
                self.uct.back_up(path, judged.value)
                progress.report(spent, judged, problem.whole(leaf.way, answer.plan[: judged.used]))
                self._grow(path, answer, nodes, spent)
            if self._done(problem, progress):
                return

    def _leaf(self, root: Node) -> tuple[list[Node], Meta | None]:
        """The way down to where a plan is asked for, with a visit under way at each node of it, and the meta-action."""
        path, node = [root], root
        while True:
            meta = self._meta(node)
            if meta is not None and (not node.children or self._widens(node)):
                break
            if not node.children:
                break
            following = self.uct.child(node)
            if following in path:  # the way round a cycle
                break
            node = following
            path.append(node)
        if meta is not None:
            if meta.deterministic:
                node.tried.add(self.metas.index(meta))
            node.asked += 1
            for one in path:
                one.waiting += 1
        return path, meta

    def _widens(self, node: Node) -> bool:
        return node.asked < self.widening * (node.visits + node.waiting + 1) ** 0.5

    def _meta(self, node: Node) -> Meta | None:
        """The next meta-action of a node, None where all are without draws and have been tried."""
        for turn in range(len(self.metas)):
            place = (node.asked + turn) % len(self.metas)
            if place not in node.tried:
                return self.metas[place]
        return None

    def _release(self, path: list[Node], meta: Meta) -> None:
        """As if the leaf had not been chosen."""
        path[-1].asked -= 1
        path[-1].tried.discard(self.metas.index(meta))
        for node in path:
            node.waiting -= 1

    def _ask(self, node: Node, meta: Meta, number: int, pyramid: Pyramid, free: Sequence[int]) -> Ask:
        if node.part is None:
            return Ask(node.place, meta, number)
        depth = pyramid.depth([node.part[at] for at in free]) + 1
        if not any(pyramid.masked(depth, len(free))):
            return Ask(node.place, meta, number, node.part)
        return Ask(node.place, meta, number, node.part, pyramid, depth, self.finish)

    def _grow(self, path: list[Node], answer: Answer, nodes: dict[object, Node], spent: int) -> None:
        """The child that a plan leads to, unless it solves the task before, ends, or goes in a circle."""
        leaf = path[-1]
        if leaf.part is not None:
            if answer.part is None or answer.part.count(-1) == 0:
                return
            child = Node(leaf.place, part=answer.part, born=spent)
        elif answer.judged.ends:
            place, used = answer.judged.ends[0]
            child = Node(place, leaf.way + answer.plan[:used], born=spent)
        else:
            return
        name = self._name(child)
        known = nodes.setdefault(name, child)
        if known in path:
            return
        if known.place.spent > child.place.spent:  # a shorter way there
            known.place, known.way = child.place, child.way
        if known is child or name not in leaf.children:
            leaf.children[name] = known
            known.waiting += 1
            self.uct.back_up([known], answer.judged.value)

    def _name(self, node: Node) -> object:
        return node.place.state if node.part is None else node.part

    def _done(self, problem: Problem, progress: Progress) -> bool:
        best = progress.best
        if best is None or not best.solved or self.stop == "budget":
            return False
        return self.stop == "first" or best.cost <= problem.best_cost(progress.task)
