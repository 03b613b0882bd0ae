"""What is kept of a round to be read: of its first prompts the best and the worst completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from onpath.data.source import Source, TextSource
from onpath.experience.generation import Generator, Rollouts
from onpath.rewards.scoring import Scores
from onpath.types import Spec

_DIGITS = 4  # of a log-probability


def extremes(reward: Float[Tensor, "N"], group: Sequence[int], most: int) -> list[int]:
    """The rows with the highest and the lowest reward of each of the first groups, `most` rows in all.

    Of equal ones the first; a group whose rewards are all the same has one. group: of each row.

    >>> import torch
    >>> extremes(torch.tensor([0.0, 1.0, 0.5, 2.0, 2.0]), [7, 7, 7, 8, 8], 3)
    [1, 0, 3]
    """
    rows: list[int] = []
    for number in dict.fromkeys(group):
        if len(rows) >= most:
            break
        members = [row for row, own in enumerate(group) if own == number]
        values = reward[members]
        rows += dict.fromkeys((members[int(values.argmax())], members[int(values.argmin())]))
    return rows[:most]


def kept(
    maker: Generator, rollouts: Rollouts, scores: Scores, advantage: Float[Tensor, "N"], group: Sequence[int], most: int
) -> tuple[Mapping[str, Any], ...]:
    """These completions with all that a reader wants to know of each, as JSON.

    prompt, completion: as people read them. group: which prompt of the source. reward, rewards, advantage: what they
    were worth. columns: what rewards were told, of it what is text or numbers. line: positions of a line, where a
    completion is a grid, else 0. tokens, words: of the whole row, padding left out, and how they are written;
    revealed_at: the step that revealed each, -1 where it was given; log_prob: with which it was drawn.
    """
    return tuple(
        {
            "prompt": rollouts.prompts[row],
            "completion": rollouts.completions[row],
            "group": group[row],
            "reward": float(scores.total[row]),
            "rewards": {name: _number(values[row]) for name, values in scores.by_name.items()},
            "advantage": float(advantage[row]),
            "columns": {name: values[row] for name, values in rollouts.columns.items() if _is_plain(values[row])},
            "line": _line(maker.source),
            **_of_tokens(maker, rollouts, row),
        }
        for row in extremes(scores.total, group, most)
    )


def _of_tokens(maker: Generator, rollouts: Rollouts, row: int) -> dict[str, list[Any]]:
    experience = rollouts.experience
    padding = experience.batch.padding
    shown = slice(None) if padding is None else ~padding[row].cpu()
    tokens = experience.tokens[row][shown].tolist()
    return {
        "tokens": tokens,
        "words": _words(maker.source, tokens),
        "revealed_at": experience.revealed_at[row][shown].tolist(),
        "log_prob": [round(value, _DIGITS) for value in experience.log_prob[row][shown].tolist()],
    }


def _words(source: Source, tokens: Sequence[int]) -> list[str]:
    """Each token as it is written."""
    if isinstance(source, TextSource):
        return list(source.codec.pieces(tokens))
    return ["end" if token == source.end_id else "LRF"[token] if token < 3 else str(token) for token in tokens]


def _line(source: Source) -> int:
    spec = source.spec()
    return spec.line_length if isinstance(spec, Spec) else 0


def _is_plain(value: Any) -> bool:
    """Whether this is text or numbers, and not more than a reader reads."""
    if isinstance(value, str):
        return len(value) <= 2000
    if isinstance(value, list | tuple):
        return len(value) <= 100 and all(isinstance(item, int | float | str) for item in value)
    return value is None or isinstance(value, int | float)


def _number(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
