"""The carriers that travel between the parts, and the protocol of a network.

Letters in shapes: B batch, L positions, V vocabulary, D width, N rows, C channels, H W image sides,
K steps, G group. A *row* is one position of one sequence, as flat index ``b * L + position``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

Readout = Callable[[Float[Tensor, "N V"], Int64[Tensor, "N"]], Any]
"""``readout(logits of a chunk of rows, flat indices of the chunk)`` returns a tensor (N, …) or a tuple of such.
It runs inside the network's forward, chunk after chunk, so the (B, L, V) logits need not exist. Chunks keep the order
of the rows and, but for the last, are of even size: under guidance a row and its unconditional twin are neighbours."""


@dataclass(frozen=True)
class Spec:
    """What a network and a process must know of the data.

    length: positions L of a sequence. num_words: tokens 0 … num_words-1 that may be emitted.
    mask_id: the id of [MASK]. cond: shape of one example of each condition. mask_logit: whether the network predicts
    [MASK] as well, for an objective that asks for it. line_length: positions of a line where the tokens are a grid
    that is written line by line, 0 where they are not.
    """

    length: int
    num_words: int
    mask_id: int
    cond: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    mask_logit: bool = False
    line_length: int = 0

    @property
    def num_logits(self) -> int:
        """Width of the head: the words, and [MASK] where it is predicted."""
        return max(self.num_words, self.mask_id + 1) if self.mask_logit else self.num_words

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Spec:
        """The spec whose fields JSON has kept.

        >>> Spec.of({"length": 40, "num_words": 4, "mask_id": 4, "cond": {"image": [19, 19, 3]}}).cond
        {'image': (19, 19, 3)}
        """
        return cls(**{**saved, "cond": {name: tuple(shape) for name, shape in saved["cond"].items()}})


@dataclass(frozen=True)
class ImageSpec:
    """What a network and a process must know of images.

    shape: (C, H, W) of an image, or of the latents of one, its values about -1 to 1. num_classes: of the condition
    `label`, 0 where there is none. cond: shape of one example of each condition.
    """

    shape: tuple[int, int, int]
    num_classes: int = 0
    cond: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> ImageSpec:
        """The spec whose fields JSON has kept."""
        cond = {name: tuple(shape) for name, shape in saved["cond"].items()}
        return cls(**{**saved, "shape": tuple(saved["shape"]), "cond": cond})


DataSpec = Spec | ImageSpec


def spec_of(saved: Mapping[str, Any]) -> DataSpec:
    """The spec of tokens or of images whose fields JSON has kept."""
    return ImageSpec.of(saved) if "shape" in saved else Spec.of(saved)


@dataclass(frozen=True)
class Batch:
    """Clean examples, which of their positions are given, and their conditions.

    x: (B, L) token ids, or (B, C, H, W) images.
    ids: (B,) int64, global example ids. They key every random draw and stay on the CPU.
    given: (B, L), True where the token is known at generation time (a prompt); never corrupted, never scored.
    padding: (B, L), True where there is no token; never attended, corrupted or scored.
    num_free: (B,) int64 on the CPU, positions neither given nor padding; None where that is all L of them.
    documents: (B, L) the document of each position, where several are packed into a row; attention stays within one.
    cond: conditions by name, each (B, …); handed to ``Denoiser.encode`` as keyword arguments.
    """

    x: Shaped[Tensor, "B *rest"]
    ids: Int64[Tensor, "B"]
    given: Bool[Tensor, "B L"] | None = None
    padding: Bool[Tensor, "B L"] | None = None
    num_free: Int64[Tensor, "B"] | None = None
    documents: Int64[Tensor, "B L"] | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_free is None and not (self.given is None and self.padding is None):
            raise ValueError(
                "batch: given or padding is set without num_free, the number of free positions of each row; "
                "make the batch with Batch.of_tokens, which counts them"
            )

    @classmethod
    def of_tokens(
        cls,
        x: Int64[Tensor, "B L"],
        ids: Int64[Tensor, "B"],
        *,
        given: Bool[Tensor, "B L"] | None = None,
        padding: Bool[Tensor, "B L"] | None = None,
        documents: Int64[Tensor, "B L"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> Batch:
        """A batch of sequences; counts the free positions, so call it where the data are made (on the CPU)."""
        fixed = [m for m in (given, padding) if m is not None]
        num_free = None
        if fixed:
            blocked = fixed[0] if len(fixed) == 1 else fixed[0] | fixed[1]
            num_free = (~blocked).sum(-1).cpu()
        fields = {"given": given, "padding": padding, "num_free": num_free, "documents": documents}
        return cls(x=x, ids=ids.cpu(), **fields, cond=dict(cond or {}))

    @property
    def size(self) -> int:
        return self.x.shape[0]

    def free(self) -> Bool[Tensor, "B L"]:
        """(B, L), True at positions that the process may corrupt and the objective may score."""
        free = torch.ones_like(self.x, dtype=torch.bool)
        if self.given is not None:
            free = free & ~self.given
        if self.padding is not None:
            free = free & ~self.padding
        return free

    def free_counts(self) -> Int64[Tensor, "B"]:
        """(B,) int64 on the CPU: how many positions of each row are free."""
        if self.num_free is not None:
            return self.num_free
        return torch.full((self.size,), self.x.shape[1], dtype=torch.int64)

    def conditions(self) -> dict[str, Tensor]:
        """What ``Denoiser.encode`` receives: the conditions, and padding and documents where there are any."""
        structure = {"padding": self.padding, "documents": self.documents}
        return {**self.cond, **{name: value for name, value in structure.items() if value is not None}}

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`; ids and counts stay on the CPU."""

        # towards the host a copy that is not waited for may be read before it is there
        unwaited = torch.device(device).type != "cpu"

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=unwaited)

        return replace(
            self,
            x=move(self.x),
            given=None if self.given is None else move(self.given),
            padding=None if self.padding is None else move(self.padding),
            documents=None if self.documents is None else move(self.documents),
            cond={name: move(value) for name, value in self.cond.items()},
        )

    def rows(self, index: Int64[Tensor, "N"] | slice) -> Batch:
        """The examples at `index` (a slice, or int64 indices on the CPU), everything else kept."""

        def pick(tensor: Tensor) -> Tensor:
            return tensor[index if isinstance(index, slice) else index.to(tensor.device)]

        def pick_any(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else pick(tensor)

        return Batch(
            x=pick(self.x),
            ids=pick(self.ids),
            given=pick_any(self.given),
            padding=pick_any(self.padding),
            num_free=pick_any(self.num_free),
            documents=pick_any(self.documents),
            cond={name: pick(value) for name, value in self.cond.items()},
        )


@dataclass(frozen=True)
class Noisy:
    """A state of the forward process.

    x: (B, L) tokens, some replaced by the mask id. masked: (B, L), True there.
    num_masked: (B,) int64 on the CPU where the counts were drawn on the CPU, else None.
    """

    x: Int64[Tensor, "B L"]
    masked: Bool[Tensor, "B L"]
    num_masked: Int64[Tensor, "B"] | None = None


@dataclass(frozen=True)
class Noised:
    """A state of Gaussian diffusion: x = a·x0 + s·noise.

    x: (B, C, H, W). t: (B,) fp64 on the CPU, the time of each row. noise: (B, C, H, W), what was mixed in; in a state
    that a model has made itself, what its source had.
    """

    x: Float[Tensor, "B *rest"]
    t: Float[Tensor, "B"]
    noise: Float[Tensor, "B *rest"]


@dataclass(frozen=True)
class Experience:
    """Finished rollouts, how they came about, and what they are worth; the groups of a prompt stand together.

    batch: the sequences as they ended, on the device of the network; ids are those of the rollouts. All else is on the
    CPU. tokens: (N, L) the same sequences. revealed_at: (N, L) the step of the sampler's walk that revealed each
    token, -1 where it was given. num_steps: of that walk. chance: (K,) with which each step reveals a masked position,
    None where the number of reveals is fixed. log_prob: (N, L) with which each token was drawn.
    advantage: (N,) of each rollout. peers: (N, G) those of its group. reward: (N,). group: (N,) the number of the
    prompt that each answers, the same for those that share conditions.
    proposed: (N, K, L) what each step drew at masked positions, revealed or not, where that is kept.
    old: (N, I, …) what the estimator read under the weights of the rollouts for each of I passes over them, None where
    the weights are still the same. iteration: the pass that this is, of num_iterations. round: its number, which keys
    draws.
    """

    batch: Batch
    tokens: Int64[Tensor, "N L"]
    revealed_at: Int64[Tensor, "N L"]
    num_steps: int
    log_prob: Float[Tensor, "N L"]
    advantage: Float[Tensor, "N"]
    peers: Float[Tensor, "N G"]
    reward: Float[Tensor, "N"]
    group: Int64[Tensor, "N"]
    chance: Float[Tensor, "K"] | None = None
    proposed: Int64[Tensor, "N K L"] | None = None
    old: Float[Tensor, "N I *rest"] | None = None
    iteration: int = 0
    num_iterations: int = 1
    round: int = 0

    @property
    def free(self) -> Bool[Tensor, "N L"]:
        """Positions that the rollout filled, on the CPU."""
        return self.revealed_at >= 0

    def rows(self, index: slice) -> Experience:
        """The rollouts at `index`."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "batch"}
        parts = {name: value[index] for name, value in own.items() if isinstance(value, Tensor) and name != "chance"}
        return replace(self, batch=self.batch.rows(index), **parts)

    def to(self, device: torch.device | str) -> Experience:
        """The same with what the network is shown on `device`."""
        return replace(self, batch=self.batch.to(device))


@dataclass(frozen=True)
class Loss:
    """A sum and what to divide it by, kept apart so that denominators can be summed over micro-batches and ranks.

    numerator: scalar with gradient. denominator: number of scored units (examples, tokens); a tensor only
    where it is not known on the host.
    metrics: name -> (sum, count), scalars without gradient, added up the same way.
    """

    numerator: Float[Tensor, ""]
    denominator: float | Tensor
    metrics: Mapping[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)

    @property
    def mean(self) -> Float[Tensor, ""]:
        return self.numerator / self.denominator


@runtime_checkable
class Denoiser(Protocol):
    """Any network x, t -> prediction.

    ``encode`` turns the conditions of a batch into what the forward needs, once per plan or prompt (None where
    there is nothing to encode; else a tensor with the batch first, or a tuple of memos, nested or not, so that samplers
    can take rows of it). A memo of B rows serves x of m·B rows: row i uses memo row i mod B, so that
    several corruptions or samples of an example share one encoding. In the forward `t` is the masked fraction (B,)
    of the free positions of `x`; `rows` are flat indices at which the head runs; without them it runs everywhere
    and, if there is no `readout` either, the result is (B, L, V). A denoiser of images gets x (B, C, H, W), the time t
    of its process, and neither rows nor readout; it returns (B, C, H, W), which is what `process.prediction` says.
    """

    def encode(self, **cond: Tensor) -> Any: ...

    def __call__(
        self,
        x: Shaped[Tensor, "B *rest"],
        t: Float[Tensor, "B"],
        memo: Any,
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any: ...


@runtime_checkable
class Calibrated(Protocol):
    """A network with fixed statistics of its inputs, taken once from training examples before the first step."""

    def calibrate(self, **cond: Tensor) -> None: ...


@runtime_checkable
class Exportable(Protocol):
    """A network with a format of its own, in which other programs read it."""

    def export(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Nets:
    """The networks an objective may ask: the trained one, its moving average, a frozen reference.

    local: the trained one for forwards without gradient, outside of what averages gradients over processes; None
    where that is `model` itself.
    """

    model: Denoiser
    ema: Denoiser | None = None
    reference: Denoiser | None = None
    local: Denoiser | None = None

    @property
    def current(self) -> Denoiser:
        """The trained network for forwards without gradient."""
        return self.model if self.local is None else self.local
