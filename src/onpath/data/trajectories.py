"""Action sequences as training examples: an exact expert on FourRooms, and a user's own files.

Tokens are the actions 0 … num_actions-1 and END = num_actions, which fills the canvas after the last action and
is corrupted and supervised like any action. Conditions: "image" uint8 (B, W, H, 3) and "direction" int64 (B,).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from onpath.codes import AGENT, EMPTY, GOAL
from onpath.data.experts import PURPOSE, PlanExpert, between, cuts, drawn_symmetry, one_of
from onpath.data.shuffle import shuffled
from onpath.data.source import ActionSource
from onpath.data.trajectory_files import Trajectories, load
from onpath.envs import expert, fourrooms, gridworld, symmetry
from onpath.envs.expert import Field
from onpath.envs.gridworld import Agents, Worlds
from onpath.rng import Key, bits
from onpath.types import Batch, Spec


@dataclass(frozen=True)
class FourRoomsExpert(PlanExpert):
    """Shortest plans on FourRooms, endless or so many `episodes`; the fields are those of `PlanExpert`.

    length: the canvas, at least 36, the longest plan, unless padding is "zero".

    >>> batch = FourRoomsExpert().examples(torch.arange(4))
    >>> batch.x.shape, batch.cond["image"].shape
    (torch.Size([4, 40]), torch.Size([4, 19, 19, 3]))
    """

    length: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        between("length", self.length, fourrooms.LONGEST if self.padding == "end" else 1, None)

    @property
    def canvas(self) -> int:
        return self.length

    @property
    def grid_side(self) -> int:
        return fourrooms.SIDE

    def drawn(
        self, key: Key, groups: Int64[Tensor, "G"], world: Int64[Tensor, "B"], rows: Int64[Tensor, "B"]
    ) -> tuple[Worlds, Agents, Field]:
        layout, goal = fourrooms.goals(self.split, key, groups)
        worlds = fourrooms.worlds_of(layout, goal)
        agents = fourrooms.starts(layout[world], goal[world], key, rows)
        return worlds, agents, expert.solve(worlds, bound=fourrooms.LONGEST)


@dataclass(frozen=True)
class TrajectoryFile(ActionSource):
    """A user's demonstrations from an .npz or .jsonl file (format: `trajectory_files.load`), over epochs.

    num_actions: actions 0 … num_actions-1 may occur. max_seq_len: the canvas; longer demonstrations are refused.
    validation_share: share of the *mazes* kept for validation. A maze is assigned by a hash of its grid without
    agent and goal, the same for its rotations and reflections, so it never stands in both splits.
    suffixes: cut each demonstration at a uniform place; needs grids of floor, walls, goal and agent only, because the
    actions before the cut are simulated. rotate: by quarter turns (half turns where W and H differ). reflect: mirror,
    and swap actions 0 and 1. Example n of epoch n // N is a pure function of n and the file.
    """

    path: str
    split: Literal["train", "validation"] = "train"
    num_actions: int = 3
    max_seq_len: int = 40
    validation_share: float = 0.1
    suffixes: bool = False
    rotate: bool = False
    reflect: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("split", self.split, ("train", "validation"))
        between("num_actions", self.num_actions, 2, None)
        between("max_seq_len", self.max_seq_len, 1, None)
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share is {self.validation_share}; allowed is 0 up to, but not, 1")

    @property
    def num_examples(self) -> int | None:
        return len(self._rows())

    @property
    def end_id(self) -> int | None:
        return self.num_actions

    def spec(self) -> Spec:
        shape = tuple(self.trajectories().image.shape[1:])
        cond = {"image": shape, "direction": ()}
        return Spec(self.max_seq_len, num_words=self.num_actions + 1, mask_id=self.num_actions + 1, cond=cond)

    def at_split(self, split: str) -> TrajectoryFile:
        return replace(self, split=split)

    def trajectories(self) -> Trajectories:
        """The whole file, both splits, read once and kept while it does not change on disk."""
        data = _load(*_stamp(self.path), self.num_actions, self.max_seq_len)
        if self.suffixes:
            _require_simulated(*_stamp(self.path), self.num_actions, self.max_seq_len)
        return data

    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        data, split_rows = self.trajectories(), self._rows()
        key = Key(seed=self.seed, purpose=f"{PURPOSE}/{self.split}")
        rows = split_rows[shuffled(ids, len(split_rows), key)]
        image, direction = data.image[rows].to(device), data.direction[rows].to(device)
        actions, num_actions = data.actions[rows].to(device), data.num_actions[rows].to(device)
        where = ids.to(device)
        if self.suffixes:
            cut = cuts(num_actions, key, where)
            image, direction = self._advance(image, actions, cut)
            index = cut[:, None] + torch.arange(actions.shape[1], device=cut.device)
            actions = actions.gather(1, index.clamp(max=actions.shape[1] - 1))
            num_actions = num_actions - cut
        if self.rotate or self.reflect:
            square = image.shape[1] == image.shape[2]
            turned = drawn_symmetry(key, where, self.rotate, self.reflect, square)
            image, actions = symmetry.transform_image(image, turned), symmetry.transform_actions(actions, turned)
            direction = symmetry.transform_directions(direction, turned)
        x = self._canvas(actions, num_actions)
        return Batch.of_tokens(x, ids, cond={"image": image, "direction": direction})

    def _canvas(self, actions: Int64[Tensor, "B T"], num_actions: Int64[Tensor, "B"]) -> Int64[Tensor, "B L"]:
        x = actions.new_full((len(actions), self.max_seq_len), self.num_actions)
        x[:, : actions.shape[1]] = actions
        ended = torch.arange(self.max_seq_len, device=x.device) >= num_actions[:, None]
        return x.masked_fill(ended, self.num_actions)

    def _advance(
        self, image: UInt8[Tensor, "B W H 3"], actions: Int64[Tensor, "B T"], cut: Int64[Tensor, "B"]
    ) -> tuple[UInt8[Tensor, "B W H 3"], Int64[Tensor, "B"]]:
        worlds, agents = gridworld.read(image)
        agents = gridworld.follow(worlds, agents, actions, cut)
        return gridworld.observe(worlds, agents), agents.direction

    def _rows(self) -> Int64[Tensor, "N"]:
        held_out = _held_out(*_stamp(self.path), self.num_actions, self.max_seq_len, self.validation_share)
        rows = (held_out if self.split == "validation" else ~held_out).nonzero()[:, 0]
        if len(rows):
            return rows
        raise ValueError(
            f"{self.path}: no maze falls into the {self.split} split at validation_share {self.validation_share}; "
            f"collect more different mazes, change validation_share, or keep validation demonstrations in their own "
            f"file and read it with validation_share=0 and split 'train'"
        )


def _stamp(path: str) -> tuple[str, int, int]:
    """The file and what changes with its contents, so that a cached reading is never an old one."""
    file = Path(path)
    stat = file.stat() if file.is_file() else None
    return str(path), stat.st_mtime_ns if stat else 0, stat.st_size if stat else 0


@lru_cache(maxsize=4)
def _load(path: str, _changed_ns: int, _size: int, num_actions: int, max_seq_len: int) -> Trajectories:
    return load(path, num_actions, max_seq_len)


@lru_cache(maxsize=4)
def _require_simulated(path: str, changed_ns: int, size: int, num_actions: int, max_seq_len: int) -> None:
    """ValueError with the first row of the file that the simulator cannot walk in."""
    image = _load(path, changed_ns, size, num_actions, max_seq_len).image
    for first in range(0, len(image), 4096):
        try:
            gridworld.read(image[first : first + 4096])
        except ValueError as error:
            raise ValueError(
                f"{path}: suffixes cannot be simulated: {error} (counted from row {first}); or set suffixes=False"
            ) from error


@lru_cache(maxsize=8)
def _held_out(
    path: str, changed_ns: int, size: int, num_actions: int, max_seq_len: int, share: float
) -> Bool[Tensor, "N"]:
    image = _load(path, changed_ns, size, num_actions, max_seq_len).image
    place = bits(Key(purpose=f"{PURPOSE}/split"), mazes(image)).double() / 2**32
    return place < share


def mazes(image: UInt8[Tensor, "N W H 3"]) -> Int64[Tensor, "N"]:
    """A number for the maze of each image: equal for equal grids without agent and goal, and for their rotations
    and reflections; different ones agree with probability 2**-60 or so."""
    kind = image[..., 0].long()
    return symmetry.orbit(kind.masked_fill((kind == AGENT) | (kind == GOAL), EMPTY), Key(purpose=f"{PURPOSE}/mazes"))
