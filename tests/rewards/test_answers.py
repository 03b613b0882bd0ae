"""Answers are found in transcripts written by hand, over line breaks, and in numbers written in any way."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onpath.rewards.answers import boxed, final_number, last_number, tagged

TRANSCRIPTS = {
    # tags, over lines, the last pair, with something in front
    "<reasoning>\n48 / 2 = 24, 48 + 24 = 72\n</reasoning>\n<answer>\n72\n</answer>\n": 72,
    "<answer>71</answer> I was wrong. <answer>\n72\n</answer> 73": 72,
    "<answer>\nShe sells\n\n$1,072.50\n\nin all.\n</answer>": Fraction(2145, 2),
    "<answer>\\boxed{72} of 80</answer>": 72,
    "<answer>#### 72 (of 80)</answer>": 72,
    "<answer>48 / 2 = 24</answer>": 24,
    "<answer></answer> 72": None,
    "<answer>seventy-two</answer> \\boxed{72}": None,
    "72 <answer>71": 71,  # never closed, so this is plain text
    "</answer> 72 <answer>": 72,
    # boxes, with braces in them, over lines
    "so \\boxed{72}.": 72,
    "first \\boxed{71}, then \\boxed{\n72\n} out of 80": 72,
    "\\boxed{\\frac{3}{4}} of 12": Fraction(3, 4),
    "\\boxed{-2\\dfrac{1}{2}}": Fraction(-5, 2),
    "\\boxed{\\$72\\text{ dollars}}": 72,
    "\\boxed{1{,}072}": 1072,
    "\\boxed{x = 72}": 72,
    "\\boxed{72": 72,
    "\\boxed{} 72": None,
    # GSM8K's own form
    "Natalie sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72": 72,
    "#### 1,072\nThat is 80 more.": 1072,
    "#### -3": -3,
    "#### $72 in 2 weeks": 72,
    "####\n72": 72,
    "#### none": None,
    # numbers in prose
    "It takes 72.": 72,
    "It takes 72.0 hours, not 80": 80,
    "10 - 4 = 6": 6,
    "10-4": 4,
    "= -4": -4,
    "(-4)": -4,
    "it fell to −4 °C": -4,
    "-$4": -4,
    "$-4": -4,
    "1 1/2 cups": Fraction(3, 2),
    "7/2": Fraction(7, 2),
    "7 / 2": Fraction(7, 2),
    "5/0": None,
    ".5": Fraction(1, 2),
    "5km": 5,
    "50%": 50,
    "€72": 72,
    "no number": None,
    "": None,
    # what is a part of something else is no number
    "x2": None,
    "1e3": None,
    "3²": None,
    "2^5": 5,
    "12,34": None,
    "1.234.567": None,
    "1/2/2020": None,
    "٣": None,
    "１２": None,  # noqa: RUF001
    "1" * 5000: None,
}


@pytest.mark.parametrize("text", TRANSCRIPTS, ids=lambda text: ascii(text)[1:40])
def test_the_answer_of_a_transcript(text: str) -> None:
    assert final_number(text) == TRANSCRIPTS[text]


def test_a_number_without_a_mark_counts_only_if_asked_for() -> None:
    assert final_number("It takes 72.", anywhere=False) is None
    for text in ("<answer>it takes 72.</answer>", "\\boxed{72}", "#### 72"):
        assert final_number(text, anywhere=False) == 72


WRITTEN = ["{}", "${}", "{} dollars", "x = {}", "is {}.", "**{}**", "({})", "\\({}\\)", "${}$", "{}%", "\n{}\n"]
PLACED = [
    "<answer>{}</answer> 5",
    "<answer>\n{}\n</answer>",
    "3 \\boxed{{{}}} 4",
    "9\n#### {}\n7 is no answer",
    "6, so {}",
]


@given(
    number=st.integers(-(10**12), 10**12).map(Decimal) | st.decimals(-(10**9), 10**9, places=2),
    separated=st.booleans(),
    written=st.sampled_from(WRITTEN),
    placed=st.sampled_from(PLACED),
)
def test_a_number_is_read_however_it_is_written(number: Decimal, separated: bool, written: str, placed: str) -> None:
    """Written by Python's own formatting, alone, with a unit or a currency, in every place of an answer."""
    text = f"{number:,f}" if separated else f"{number:f}"
    assert final_number(placed.format(written.format(text))) == Fraction(number)


@given(top=st.integers(-999, 999), bottom=st.integers(1, 999))
def test_a_fraction_is_exact(top: int, bottom: int) -> None:
    sign = "-" if top < 0 else ""
    for text in (f"{top}/{bottom}", f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}", f"\\tfrac{{{top}}}{{{bottom}}}"):
        assert last_number(f"It is {text} of it") == Fraction(top, bottom)


@given(st.text(alphabet="0123456789.,/-+$<>answer\\boxed{}# \n²٣", max_size=60))
def test_no_text_is_too_odd(text: str) -> None:
    found = final_number(text)
    assert found is None or isinstance(found, Fraction)
    inside = boxed(text)
    assert inside is None or f"\\boxed{{{inside}}}" in text
    inside = tagged(text)
    assert inside is None or f"<answer>{inside}</answer>" in text


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1,",
        "1,111,",
        "1 ",
        "1 1",
        "1/",
        "1.",
        "-",
        "\\frac{",
        "\\frac{1}{",
        "\\boxed{",
        "<answer>",
        "####",
        "1" * 99 + "e9 ",
        "{,}",
    ],
)
def test_time_grows_with_the_text_and_not_with_its_square(piece: str) -> None:
    """100 kB take a fraction of a second of this thread; with their square, they would take minutes."""
    text = (piece * 100_000)[:100_000]
    began = time.thread_time()
    final_number(text)
    assert time.thread_time() - began < 2.0
