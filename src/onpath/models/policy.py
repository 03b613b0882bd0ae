"""Networks that plan: from an image of a grid world and a heading to the tokens of an action sequence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from onpath.models.blocks import ResidualMLP, RMSNorm, Standardize, apply_readout, keep_where
from onpath.types import Readout, Spec

WALL, GOAL, AGENT = 2, 8, 10  # MiniGrid's object codes


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
        self.head = nn.Linear(width, length * num_words)
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
        logits = self.head(self.norm(hidden)).view(x.shape[0], self.length, self.num_words)
        if rows is None and readout is None:
            return logits
        flat = logits.reshape(-1, self.num_words)
        if rows is None:
            rows = torch.arange(flat.shape[0], device=flat.device)
        else:
            flat = flat[rows]
        return flat if readout is None else apply_readout(lambda logits: logits, flat, rows, readout)
