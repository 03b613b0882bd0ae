"""Finds the answer in a completion: between tags, in a box, behind ####, or as the last number.

Everything here takes time in proportion to the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

_BOX = "\\boxed{"
_MARK = "####"
_PLAIN = str.maketrans({"−": "-", "–": "-", "$": None, "€": None, "£": None})
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]{1,40})\}\{([^{}]{1,40})\}")
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?:(?<![\w)])(?P<sign>[-+]))?"  # after a word or a number it is a hyphen or an operator
    r"(?<![\w.])(?<![0-9][.,/])"
    rf"(?:(?P<whole>[0-9]+)[ ](?=[0-9]+/))?(?P<top>{_DIGITS})(?:[ ]?/[ ]?(?P<bottom>{_DIGITS}))?"
    r"(?![.,/]?[0-9]|[eE][-+]?[0-9]|[\^²³])"  # what is only a part of something else is no number
)
_MOST_CHARACTERS = 60


def tagged(text: str, tag: str = "answer") -> str | None:
    """What stands in the last pair of tags, over any number of lines; None where there is none.

    >>> tagged("<answer>1</answer> no: <answer>\\n2\\n</answer>")
    '\\n2\\n'
    """
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return None if start < 0 else text[start + len(tag) + 2 : end]


def boxed(text: str) -> str | None:
    r"""What the last \\boxed{} holds, braces within it included; None where there is none, or it is not closed.

    >>> boxed("so \\boxed{\\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(_BOX), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len(_BOX) : place]
    return None


def last_number(text: str) -> Fraction | None:
    r"""The last number of a text, exactly; None where there is none.

    A number has a sign, thousands separators, decimals, or is a fraction (3/4, 1 1/2, \\frac{3}{4}); a currency sign
    before it and a unit behind it are left out. Of digits only 0 to 9 count.

    >>> last_number("It costs $1,234.50 in all"), last_number("3 - 5 = -2"), last_number("1 1/2 cups")
    (Fraction(2469, 2), Fraction(-2, 1), Fraction(3, 2))
    """
    return _first(reversed(_matches(text)))


def final_number(text: str, anywhere: bool = True) -> Fraction | None:
    r"""The number that a text gives as its answer.

    It stands in the last <answer></answer>, else in the last \\boxed{}, else behind the last ####; else, if `anywhere`,
    it is the last number of the text. Between the tags the same holds.
    """
    inside = tagged(text)
    if inside is not None:
        return final_number(inside)
    inside = boxed(text)
    if inside is not None:
        return last_number(inside)
    _, mark, behind = text.rpartition(_MARK)
    if mark:
        return _first(_matches(behind.strip().partition("\n")[0]))
    return last_number(text) if anywhere else None


def _matches(text: str) -> list[re.Match[str]]:
    """The numbers of a text as they are written."""
    text = text.translate(_PLAIN).replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    text = _FRACTION.sub(r"\1/\2", re.sub(r"(?<=[0-9])(?=\\[dt]?frac)", " ", text))
    return list(_NUMBER.finditer(text))


def _first(matches: Iterable[re.Match[str]]) -> Fraction | None:
    """The value of the first that has one."""
    values = (_value(match) for match in matches)
    return next((value for value in values if value is not None), None)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > _MOST_CHARACTERS:
        return None
    top, bottom = (Fraction((match[name] or "1").replace(",", "")) for name in ("top", "bottom"))
    if bottom == 0:
        return None
    value = top / bottom + int(match["whole"] or 0)
    return -value if match["sign"] == "-" else value
