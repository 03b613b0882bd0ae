"""Requests: what is given and what is free, row by row and in one batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onpath.data.prompts import masked_ids
from onpath.data.text import TextFile
from onpath.data.tokenizers import Bytes, Characters

SOURCE = TextFile("unread.txt", Characters("abc "), length=8)
MASK = 4


def test_a_prompt_is_given_and_the_rest_of_its_row_is_free() -> None:
    batch = SOURCE.request(["abc", "", "a b c"], torch.tensor([4, 5, 6]))
    assert batch.x.tolist()[0] == [0, 1, 2, *[MASK] * 5] and batch.padding is None
    assert batch.given is not None and batch.given.sum(1).tolist() == [3, 0, 5]
    assert batch.free_counts().tolist() == [5, 8, 3] and batch.ids.tolist() == [4, 5, 6]


@pytest.mark.parametrize("marker", ["[MASK:3]", "▒▒▒", "[MASK][MASK:2]", "▒[MASK]▒"])
def test_free_positions_inside_a_prompt(marker: str) -> None:
    batch = SOURCE.request([f"a{marker}b"], torch.arange(1))
    assert batch.x.tolist() == [[0, MASK, MASK, MASK, 1]] and batch.free_counts().tolist() == [3]
    longer = SOURCE.request([f"a{marker}b"], torch.arange(1), 7)
    assert longer.x.tolist() == [[0, MASK, MASK, MASK, 1, MASK, MASK]] and longer.free_counts().tolist() == [5]


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_ragged_batch_holds_each_row_as_it_stands_alone(side: str) -> None:
    prompts = ["abc", "a", "", "b▒c a"]
    batch = SOURCE.request(prompts, torch.arange(4), num_new_tokens=2, padding_side=side)  # type: ignore[arg-type]
    assert batch.x.shape == (4, 7) and batch.padding is not None and batch.given is not None
    assert not bool((batch.given & batch.padding).any()) and batch.free_counts().tolist() == [2, 2, 2, 3]
    for row, prompt in enumerate(prompts):
        alone = SOURCE.request([prompt], torch.tensor([row]), num_new_tokens=2)
        kept = ~batch.padding[row]
        assert alone.padding is None and torch.equal(batch.x[row][kept], alone.x[0])
        width = int(kept.sum())
        assert bool(kept[:width].all() if side == "right" else kept[7 - width :].all())


def test_a_row_may_be_longer_than_those_of_training() -> None:
    assert SOURCE.request(["abc"], torch.arange(1), 30).x.shape == (1, 30)


@given(st.lists(st.one_of(st.integers(1, 5), st.text("ab c", min_size=1, max_size=5)), max_size=6))
def test_markers_and_texts_keep_their_order(parts: list[int | str]) -> None:
    ids = masked_ids(Bytes(), "".join(f"[MASK:{part}]" if isinstance(part, int) else part for part in parts))
    assert ids == [i for part in parts for i in ([256] * part if isinstance(part, int) else part.encode())]


@pytest.mark.parametrize(
    ("prompts", "fields", "message"),
    [
        ([], {}, "there are 0 prompts and 1 ids; give one prompt or more"),
        (["a", "b"], {}, "there are 2 prompts and 1 ids"),
        (["abcabcab"], {}, "'abcabcab' has 8 tokens, and its row 8.*prompts of up to 7; shorten it"),
        (["abc"], {"length": 2}, "has 3 tokens, and its row 2"),
        (["a▒b"], {"length": 2}, "has 3 tokens, and its row 2"),
        (["abx"], {}, "'abx' cannot be encoded.*holds 'x'.*leave it out"),
        (["a[MASK:0]"], {}, "asks for 0 free positions; allowed are 1 to 1048576; correct the number"),
        (["a"], {"num_new_tokens": 0}, "num_new_tokens is 0; allowed are 1 to"),
        (["a"], {"length": 9, "num_new_tokens": 1}, "length is 9 and num_new_tokens is 1; give one of them"),
    ],
)
def test_what_cannot_be_asked(prompts: list[str], fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SOURCE.request(prompts, torch.arange(1), **fields)
