"""What sources of generated puzzles have in common: rows of one form, in which the problem is given."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

from jaxtyping import Int64
from torch import Tensor

from onpath.data.prompts import Side
from onpath.data.source import TextSource
from onpath.types import Batch

Split = Literal["train", "validation", "test"]
SPLITS: tuple[str, ...] = get_args(Split)


class Puzzles(TextSource):
    """A source of puzzles without end, made when they are asked for; example n is a pure function of n."""

    @abstractmethod
    def at_split(self, split: str) -> Puzzles: ...

    def asked(self, ids: Int64[Tensor, "B"]) -> list[str]:
        """The puzzles as people read and type them, `▒` for each position of the answer."""
        batch = self.prompts(ids)
        shown = batch.x.masked_fill(batch.free(), self.codec.mask_id)
        return [self.words(row) for row in shown.tolist()]

    def request(
        self,
        prompts: Sequence[str],
        ids: Int64[Tensor, "B"],
        length: int | None = None,
        *,
        num_new_tokens: int | None = None,
        padding_side: Side = "right",
    ) -> Batch:
        """A batch to solve: each prompt is a puzzle and makes a row as long as in training.

        ids: (B,) which key the draws. ValueError for another length, and for what is no puzzle of this source.
        """
        row = self.spec().length
        if length not in (None, row) or num_new_tokens is not None:
            raise ValueError(
                f"prompt: length is {length} and num_new_tokens is {num_new_tokens}, but a puzzle has {row} tokens "
                "with its answer; leave both out"
            )
        return super().request(prompts, ids, length, padding_side=padding_side)


def require_split(split: str) -> None:
    """ValueError for a split that there is not."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; allowed are {', '.join(SPLITS)}")
