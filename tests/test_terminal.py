"""What a terminal shows of a text that unmasks: every sign by what it is, in words and without colour too."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor

from onpath import terminal
from onpath.data.tokenizers import Bytes, Characters
from onpath.sampling.states import TokenState
from onpath.terminal import frame, unmasking
from onpath.types import Batch

CODEC = Characters("abcdef\n\x1b", end=True)


def state(words: str, sure: list[float] | None = None, step: int = 1, *, given: int = 1) -> TokenState:
    """One row of text as it stands, ▒ masked; the first `given` positions are the prompt."""
    ids = [CODEC.mask_id if word == "▒" else CODEC.encode(word)[0] for word in words]
    x = torch.tensor([ids])
    prompt = torch.arange(len(ids))[None] < given
    return TokenState(
        x=x,
        masked=x == CODEC.mask_id,
        num_masked=None,
        revealed_at=torch.zeros_like(x),
        confidence=torch.tensor([sure or [0.9] * len(ids)]),
        log_prob=torch.zeros_like(x, dtype=torch.float32),
        proposed=x,
        num_forwards=torch.zeros(1, dtype=torch.int64),
        step=step,
        batch=Batch.of_tokens(x, torch.arange(1), given=prompt),
        memo=None,
        num_steps=4,
    )


def styles(now: TokenState, before: TokenState | None) -> list[tuple[str, str]]:
    text = unmasking(now, before, 0, CODEC)
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_each_sign_by_what_it_is() -> None:
    now = state("ab▒d▒", [0.0, 0.9, 0.0, 0.3, 0.0])
    before = state("a▒▒dc", [0.0, 0.0, 0.0, 0.3, 0.2])
    assert styles(now, before) == [
        ("a", "bold"),  # given
        ("b", "green reverse"),  # new
        ("▒", "dim"),
        ("d", "yellow"),
        ("c", "red strike"),  # masked again: what stood there
    ]
    assert styles(state("abc", [0, 0.1, 0.6]), None) == [("a", "bold"), ("b", "red"), ("c", "cyan")]


def test_a_replaced_token_is_new() -> None:
    assert styles(state("ab"), state("ac"))[1] == ("b", "green reverse")


def test_nothing_steers_the_terminal() -> None:
    assert unmasking(state("a\x1b\nb"), None, 0, CODEC).plain == "a�\nb"


def test_one_end_token_of_many_is_shown() -> None:
    end = CODEC.end_id
    assert end is not None
    found = state("abcdef")
    found = replace(found, x=torch.tensor([[*CODEC.encode("ab"), end, end, end, *CODEC.encode("c")]]))
    assert unmasking(found, None, 0, CODEC).plain == "ab␃c"


def test_padding_is_not_shown() -> None:
    found = state("abcd")
    padding: Tensor = torch.tensor([[False, False, True, True]])
    found = replace(found, batch=replace(found.batch, padding=padding))
    assert unmasking(found, None, 0, CODEC).plain == "ab"


def test_a_character_of_several_tokens_stands_whole() -> None:
    codec = Bytes()
    found = state("aaa", given=0)
    found = replace(found, x=torch.tensor([codec.encode("€")]), masked=torch.zeros(1, 3, dtype=torch.bool))
    assert unmasking(found, None, 0, codec).plain == "€"


def test_a_frame_says_where_it_stands() -> None:
    texts = [str(line) for line in frame(state("ab▒d▒", step=2), None, CODEC).renderables]
    assert texts[0] == "ab▒d▒" and texts[-2] == "step 2 of 4, 2 of 4 tokens revealed"
    assert "masked again" in texts[-1]


def test_finished_texts_keep_their_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    two = state("ab").rows(torch.tensor([0, 0]))
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=20)
    monkeypatch.setattr(terminal, "console", screen)
    terminal.show_texts(two, CODEC)
    shown = screen.file.getvalue()
    assert shown.count("\x1b[1ma\x1b[0m\x1b[32mb\x1b[0m") == 2 and "\x1b[2m1 \x1b[0m" in shown


def test_every_state_is_shown_and_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=60, height=24)
    monkeypatch.setattr(terminal, "console", screen)
    monkeypatch.setattr(terminal, "_SECONDS", 0.0)
    states = [state("a▒▒", step=0), state("ab▒", step=1), state("abc", step=2)]
    assert list(terminal.watched(iter(states), CODEC)) == states
    shown = screen.file.getvalue()
    assert [f"step {step} of 4" in shown for step in range(4)] == [True, True, True, False]
    assert shown.endswith("\x1b[2K")  # and the terminal is clean


def test_a_frame_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), width=10, height=12)
    monkeypatch.setattr(terminal, "console", screen)
    three = state("abcdef" * 5).rows(torch.tensor([0, 0, 0]))
    texts = [str(line) for line in frame(three, None, CODEC).renderables]
    assert texts[0].splitlines() == ["abcdefabcd", "efabcdefab", "cdefabcdef"]
    assert len(texts) == 6 and texts[-2].endswith("tokens revealed, 1 more below")
    tall = [str(line) for line in frame(state("abcdef" * 50), None, CODEC).renderables]
    assert len(tall[0].splitlines()) == 8 and tall[0].endswith("…")
