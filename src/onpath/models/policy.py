"""Networks that plan: from an image of a grid world and a heading to the tokens of an action sequence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from onpath.codes import AGENT, GOAL, NUM_COLOURS, NUM_OBJECTS, NUM_STATES, WALL
from onpath.models.blocks import (
    Attention,
    KeysValues,
    ResidualConv,
    ResidualMLP,
    RMSNorm,
    Standardize,
    keep_where,
    read_rows,
    sinusoids,
)
from onpath.types import Readout, Spec


class PlanMLP(nn.Module):
    """A residual MLP over the whole plan and a fixed image size: no attention, the cheapest form per example.

    The image is read as planes of `planes` (objects that lie anywhere, in full) and as row and column sums of
    `located` (objects of which there is one), each feature standardised by the statistics of the training data
    (``calibrate``); the free cells would otherwise drown the few that tell layouts apart.
    spec: of the data, with the condition `image` uint8 (W, H, 3); its mask id is num_words.
    width, hidden, depth: of the residual blocks.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: int = 512,
        hidden: int = 1024,
        depth: int = 3,
        planes: tuple[int, ...] = (WALL,),
        located: tuple[int, ...] = (GOAL, AGENT),
    ) -> None:
        super().__init__()
        _check_sizes("plan_mlp", spec, width=width, hidden=hidden, depth=depth)
        for name, codes in (("planes", planes), ("located", located)):
            if not all(0 <= code <= 255 for code in codes) or len(set(codes)) < len(codes):
                raise ValueError(f"plan_mlp: {name} is {codes}; allowed are different object codes, 0 to 255")
        w, h = spec.cond["image"][:2]
        length, num_words = spec.length, spec.num_words
        self.image_size, self.length, self.num_words = (w, h), length, num_words
        self.planes, self.located = planes, located
        num_features = len(planes) * w * h + len(located) * (w + h) + 4
        self.standardize = Standardize(num_features)
        self.read_state = nn.Linear(num_features, width)
        self.read_plan = nn.Linear(length * (num_words + 1), width, bias=False)
        self.unconditional = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(ResidualMLP(width, hidden) for _ in range(depth))
        self.norm = RMSNorm()
        self.num_logits = spec.num_logits
        self.head = nn.Linear(width, length * self.num_logits)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, image: UInt8[Tensor, "B W H 3"], direction: Int64[Tensor, "B"]) -> Float[Tensor, "B F"]:
        """What the first layer sees, before standardisation: a fixed function of the image and the heading."""
        kind = image[..., 0]
        parts = [(kind == code).flatten(1) for code in self.planes]
        for code in self.located:
            plane = kind == code
            parts += [plane.any(2), plane.any(1)]
        parts.append(F.one_hot(direction, 4).bool())
        return torch.cat(parts, dim=1).float()

    def calibrate(self, image: UInt8[Tensor, "B W H 3"], direction: Int64[Tensor, "B"], **_: Tensor) -> None:
        """Takes the statistics of the inputs from examples of the training data (some thousands)."""
        self.standardize.fit(self.features(image, direction))

    def encode(
        self,
        image: UInt8[Tensor, "B W H 3"],
        direction: Int64[Tensor, "B"],
        drop: Bool[Tensor, "B"] | None = None,
        padding: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """The state as one vector of the first hidden layer. Padded positions are inputs like any other here."""
        if image.shape[1:3] != self.image_size:
            raise ValueError(
                f"plan_mlp was built for images of {self.image_size} cells and received {tuple(image.shape[1:3])}; "
                "train on that size, or take the model plan_transformer, which reads any size"
            )
        state = self.read_state(self.standardize(self.features(image, direction)))
        return keep_where(drop, state, self.unconditional)

    def forward(
        self,
        x: Int[Tensor, "M L"],
        t: Float[Tensor, "M"],
        memo: Float[Tensor, "B D"],
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Logits (M, L, V), or (N, V) at `rows`, or what `readout` makes of them. Needs no time."""
        one_hot = F.one_hot(x, self.num_words + 1).flatten(1).to(memo.dtype)
        copies = x.shape[0] // memo.shape[0]
        hidden = self.read_plan(one_hot) + (memo if copies == 1 else memo.repeat(copies, 1))
        for block in self.blocks:
            hidden = block(hidden)
        # one matrix product makes the few logits of every position, so rows are chosen afterwards
        logits = self.head(self.norm(hidden)).view(x.shape[0], self.length, self.num_logits)
        return read_rows(lambda logits: logits, logits, rows, readout, self.num_logits)


class PlanTransformer(nn.Module):
    """A transformer over the plan that reads an image of any size: the state is a memory, encoded once per plan.

    Cells are embedded (object, colour, state), passed through residual convolutions, pooled to patches with 2-D
    sinusoidal positions, and read by cross-attention; the agent's and the goal's cells are tokens of their own.
    spec: of the data. width, num_heads, depth: of the plan's blocks. convs: residual convolutions over the cells.
    patch: side of a patch in cells. time: whether the masked fraction is an input.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        width: int = 256,
        num_heads: int = 4,
        depth: int = 4,
        convs: int = 3,
        patch: int = 3,
        time: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes("plan_transformer", spec, width=width, num_heads=num_heads, depth=depth, patch=patch)
        if width % 8 or convs < 0:
            raise ValueError(
                f"plan_transformer: width is {width} and convs is {convs}; needed are a multiple of 8 (for its "
                "sines) and 0 or more"
            )
        self.length, self.num_logits, self.patch, self.width = spec.length, spec.num_logits, patch, width
        self.cell = nn.Embedding(NUM_OBJECTS + NUM_COLOURS + NUM_STATES, width // 4)
        self.convs = nn.ModuleList(ResidualConv(width // 4) for _ in range(convs))
        self.patches = nn.Linear(patch * patch * width // 4, width)
        self.place = nn.Linear(width // 4 + 2 * (width // 4), width)
        self.direction = nn.Embedding(4, width)
        self.unconditional = nn.Parameter(torch.zeros(width))
        self.token = nn.Embedding(spec.num_words + 1, width)
        self.position = nn.Parameter(torch.randn(spec.length, width) * 0.02)
        self.read_time = nn.Linear(1, width) if time else None
        # not within the blocks, which shards need to be called as a whole and in the forward
        self.memory = nn.ModuleList(KeysValues(width, num_heads) for _ in range(depth))
        self.blocks = nn.ModuleList(_PlanBlock(width, num_heads) for _ in range(depth))
        self.norm = RMSNorm()
        self.head = nn.Linear(width, spec.num_logits)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def encode(
        self,
        image: UInt8[Tensor, "B W H 3"],
        direction: Int64[Tensor, "B"],
        drop: Bool[Tensor, "B"] | None = None,
        padding: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[tuple[tuple[Tensor, Tensor], ...], Bool[Tensor, "B L"] | None]:
        """Keys and values of the state for every block, and the padding of the plan, which is never attended."""
        kind, colour, state = image.long().unbind(-1)
        codes = (kind, colour + NUM_OBJECTS, state + NUM_OBJECTS + NUM_COLOURS)
        cells = self.cell(torch.stack(codes, dim=-1)).sum(-2).movedim(-1, 1)
        for conv in self.convs:
            cells = conv(cells)
        tokens = torch.cat(
            [self._patches(cells), self._located(cells, image), self.direction(direction)[:, None]], dim=1
        )
        tokens = keep_where(drop, tokens, self.unconditional)
        return tuple(keys_values(tokens) for keys_values in self.memory), padding

    def _patches(self, cells: Float[Tensor, "B E W H"]) -> Float[Tensor, "B S D"]:
        side = self.patch
        w, h = cells.shape[2:]
        cells = F.pad(cells, (0, -h % side, 0, -w % side))
        parts = cells.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, E, W/p, p, H/p, p)
        tokens = self.patches(parts.permute(0, 2, 4, 1, 3, 5).flatten(3)).flatten(1, 2)
        x, y = torch.meshgrid(
            torch.arange(0, w, side, device=cells.device), torch.arange(0, h, side, device=cells.device), indexing="ij"
        )
        return tokens + self._grid_position(x.flatten(), y.flatten())

    def _grid_position(self, x: Int64[Tensor, "*s"], y: Int64[Tensor, "*s"]) -> Float[Tensor, "*s D"]:
        half = self.width // 2
        return torch.cat([sinusoids(x.float(), half), sinusoids(y.float(), half)], dim=-1)

    def _located(self, cells: Float[Tensor, "B E W H"], image: UInt8[Tensor, "B W H 3"]) -> Float[Tensor, "B 2 D"]:
        """A token for the agent's cell and one for the goal's (cell 0 where there is none)."""
        height = image.shape[2]
        kinds = image[..., 0].flatten(1)
        index = torch.stack([(kinds == code).to(torch.uint8).argmax(1) for code in (AGENT, GOAL)], dim=1)
        flat = cells.flatten(2).movedim(1, 2)
        local = flat.gather(1, index[..., None].expand(-1, -1, flat.shape[2]))
        quarter = self.width // 4
        x, y = index // height, index % height
        place = torch.cat([sinusoids(x.float(), quarter), sinusoids(y.float(), quarter)], dim=-1)
        return self.place(torch.cat([local, place.to(local.dtype)], dim=-1)) + self._grid_position(x, y)

    def forward(
        self,
        x: Int[Tensor, "M L"],
        t: Float[Tensor, "M"],
        memo: Any,
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Logits (M, L, V), or (N, V) at `rows`, or what `readout` makes of them."""
        memory, padding = memo
        copies = x.shape[0] // memory[0][0].shape[0]
        if copies > 1:
            memory = tuple(tuple(part.repeat(copies, 1, 1, 1) for part in pair) for pair in memory)
            padding = None if padding is None else padding.repeat(copies, 1)
        hidden = self.token(x) + self.position
        if self.read_time is not None:
            hidden = hidden + self.read_time(t.to(hidden.dtype)[:, None])[:, None]
        for block, pair in zip(self.blocks, memory, strict=True):
            hidden = block(hidden, pair, padding)
        return read_rows(self.head, self.norm(hidden), rows, readout, self.num_logits)


def _check_sizes(network: str, spec: Spec, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{network}: {name} is {size}; it must be 1 or more")
    if "image" not in spec.cond:
        raise ValueError(
            f"{network}: it reads images of grid worlds, and the data have the conditions {sorted(spec.cond)}; take a "
            "source with `image` and `direction`, or another model"
        )
    side = max(spec.cond["image"][:2])
    if sizes.get("patch", 1) > side:
        raise ValueError(f"{network}: patch is {sizes['patch']}; allowed are 1 to {side}, the side of the images")


class _PlanBlock(nn.Module):
    """Attention within the plan, attention to the state, and an MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.keys_values = KeysValues(width, num_heads)
        self.inner = Attention(width, num_heads)
        self.cross = Attention(width, num_heads)
        self.mlp = ResidualMLP(width, 4 * width)

    def forward(
        self,
        x: Float[Tensor, "M L D"],
        state: tuple[Tensor, Tensor],
        padding: Bool[Tensor, "M L"] | None,
    ) -> Float[Tensor, "M L D"]:
        x = self.inner(x, self.keys_values(x), padding)
        return self.mlp(self.cross(x, state))
