"""Where batches come from: a source maps global example ids to clean examples, without any state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from onpath.data.prompts import Canvas, Side, masked_ids, request
from onpath.data.tokenizers import Tokenizer
from onpath.types import Batch, DataSpec, ImageSpec, Spec

_MOST_EXAMPLES = 4096


class Source(ABC):
    """A stateless map from example ids to examples; the same id is the same example in every process and resume."""

    @abstractmethod
    def spec(self) -> DataSpec:
        """The shapes of every batch of this source, and its vocabulary where it has one."""

    @abstractmethod
    def examples(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        """The examples with these global ids (int64, on the CPU), with their tensors on `device`."""

    @abstractmethod
    def at_split(self, split: str) -> Source:
        """The same source over `train`, `validation` or `test` examples."""

    @property
    def num_examples(self) -> int | None:
        """Examples of one epoch, or None where the source never ends."""
        return None

    @property
    def end_id(self) -> int | None:
        """The token that ends an example, None where there is none."""
        return None

    @property
    def has_answers(self) -> bool:
        """Whether examples hold what is to be learned; prompts alone can be answered and rewarded, but not learned."""
        return True

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of the data before a training, such as how many examples are left out."""
        return ()

    def prompts(self, ids: Int64[Tensor, "B"], device: torch.device | str = "cpu") -> Batch:
        """The examples as prompts to generate from: what is not given is free, and `x` is not read there.

        Padding and the ends of documents, which tell how long an answer is, are free as well.
        """
        batch = self.examples(ids, device)
        if batch.padding is None and batch.documents is None:
            return batch
        return Batch.of_tokens(batch.x, ids, given=batch.given, cond=batch.cond)

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """What a reward is told of the examples beside prompt and completion: a value for each id, by name."""
        return {}

    def settled(self) -> Mapping[str, Any]:
        """Settings that the data decide, such as an alphabet, by field; a run keeps them, and needs no data later."""
        return {}


class ActionSource(Source):
    """A source of action sequences: tokens are actions 0, 1, … and, where `end_id` is not None, an end token."""

    @abstractmethod
    def spec(self) -> Spec: ...

    @property
    @abstractmethod
    def end_id(self) -> int | None:
        """The token after the last action of a plan; it fills the canvas and is corrupted and scored like any other."""

    def words(self, tokens: Sequence[int]) -> str:
        """A plan as people read it: L left, R right, F forward, other actions by number, up to the end token.

        Source of the codes: MiniGrid's ``Actions``.
        """
        plan = list(tokens)
        if self.end_id is not None and self.end_id in plan:
            plan = plan[: plan.index(self.end_id)]
        return " ".join("LRF"[action] if action < 3 else str(action) for action in plan)

    def columns(self, ids: Int64[Tensor, "B"]) -> Mapping[str, Sequence[Any]]:
        """`task`: the condition `image` from which each plan sets out, (W, H, 3), where there is one."""
        different, which = torch.unique(ids, return_inverse=True)
        images = self.examples(different).cond.get("image")
        return {} if images is None else {"task": list(images[which])}


class TextSource(Source):
    """A source of text."""

    @abstractmethod
    def spec(self) -> Spec: ...

    @property
    @abstractmethod
    def codec(self) -> Tokenizer:
        """From text to token ids and back, its vocabulary settled."""

    def words(self, tokens: Sequence[int]) -> str:
        """Tokens as text, `▒` for [MASK]; begin and end tokens add nothing."""
        return self.codec.decode(tokens)

    @property
    def tokens(self) -> Int64[Tensor, "T"]:
        """The tokens of this split one after the other, padding left out; of many examples the first 4,096."""
        ids = torch.arange(min(self.num_examples or _MOST_EXAMPLES, _MOST_EXAMPLES))
        batch = self.examples(ids)
        told = torch.ones_like(batch.x, dtype=torch.bool) if self.has_answers else ~batch.free()
        return batch.x[told if batch.padding is None else told & ~batch.padding]

    def framed(self, prompt: str) -> list[int]:
        """The tokens of a prompt as it stands before an answer in training, [MASK] where it leaves positions free."""
        return masked_ids(self.codec, prompt)

    def request(
        self,
        prompts: Sequence[str],
        ids: Int64[Tensor, "B"],
        length: int | None = None,
        *,
        num_new_tokens: int | None = None,
        padding_side: Side = "right",
    ) -> Batch:
        """A batch to generate from: each prompt given, the positions behind it free and [MASK].

        prompts: `[MASK:8]`, or eight `▒`, inside one are free positions too. ids: (B,) which key the draws.
        length: tokens of each row (the prompt among them), or num_new_tokens: free positions behind each prompt; with
          neither, a prompt with free positions inside stands alone, any other fills a row as long as in training.
        padding_side: where rows that are shorter than the longest are padded.
        ValueError for a prompt that leaves no room, or cannot be written with these tokens.
        """
        canvas = Canvas(self.spec().length, length, num_new_tokens, padding_side)
        return request(self.codec, prompts, [self.framed(prompt) for prompt in prompts], ids, canvas)


class ImageSource(Source):
    """A source of images, or of their latents; x is (B, C, H, W) float32, pixels between -1 and 1."""

    @abstractmethod
    def spec(self) -> ImageSpec:
        """Shape, classes and conditions of every batch; a condition `label` is (B,) int64."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that `label` counts; empty where there are none."""
        return ()

    @property
    def features(self) -> str | None:
        """The pinned feature network by which samples are judged unless a config names one, None where none fits."""
        return None

    def pixels(self, x: Float[Tensor, "B C H W"]) -> UInt8[Tensor, "B H W C"]:
        """Images to look at. ValueError for latents, which only their own decoder can show."""
        return ((x.detach().cpu().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def step_ids(step: int, batch_size: int, part: int = 0, num_parts: int = 1) -> Int64[Tensor, "B"]:
    """Ids of part `part` of `num_parts` of the global batch of `batch_size` examples at an optimizer step.

    Parts are micro-batches and ranks in one numbering; the global batch does not depend on how it is cut.

    >>> step_ids(2, 8, part=1, num_parts=2)
    tensor([20, 21, 22, 23])
    """
    if batch_size % num_parts:
        raise ValueError(
            f"batch_size is {batch_size} and cannot be cut into {num_parts} equal parts (ranks x accumulation); "
            f"choose a multiple of {num_parts}"
        )
    size = batch_size // num_parts
    first = step * batch_size + part * size
    return torch.arange(first, first + size, dtype=torch.int64)
