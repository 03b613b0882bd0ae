"""Generating images on the conditions of held-out ones, and pictures of them for the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from onpath import rng
from onpath.data.source import ImageSource
from onpath.evaluation.pictures import picture
from onpath.evaluation.settings import Subject
from onpath.records import Trace
from onpath.sampling.loop import last, walk
from onpath.sampling.states import ImageState
from onpath.types import Batch

Group = tuple[str, Int64[Tensor, "_"]]
"""A name, and the places of the held-out images that it is of."""

_MOST_CLASSES = 10
_LOOKED_THROUGH = 1000  # held-out images, for some of each class


def requested(held: Batch, index: Int64[Tensor, "B"]) -> Batch:
    """What is asked of the sampler: the conditions of held-out images, and nothing of the images themselves."""
    batch = held.rows(index)
    return Batch(torch.zeros_like(batch.x), batch.ids, cond=batch.cond)


def generation(subject: Subject, request: Batch) -> Iterator[ImageState]:
    """The states of generating with everything that belongs to the subject; a sample depends on its id alone."""
    key = rng.Key(subject.seed).fold("evaluate").fold("samples")
    parts = (subject.denoiser, subject.process, subject.sampler, subject.grid)
    return walk(*parts, request.to(subject.device), key)


def pictures(subject: Subject, set_name: str, steps: tuple[int, ...], num: int) -> list[Trace]:
    """What a report shows: `num` images of each class, the held-out ones and those generated in each of `steps`, and
    how the first of them come about. They are among the samples that an evaluation of the set measures.

    None for latents, which cannot be looked at.
    """
    source = cast(ImageSource, subject.source).at_split(set_name)
    assert isinstance(source, ImageSource)
    held = source.examples(torch.arange(min(source.num_examples or _LOOKED_THROUGH, _LOOKED_THROUGH)))
    try:
        source.pixels(held.x[:1])
    except ValueError:
        return []
    rows = _by_class(held, source, num)
    index = torch.cat([where for _, where in rows])
    found = [_grid("held-out", rows, source.pixels(held.x[index]))]
    for count in steps:
        state = last(generation(replace(subject, grid=subject.grid.with_steps(count)), requested(held, index)))
        found.append(_grid(f"samples@{count}", rows, source.pixels(state.x)))
    chosen = [(label, where[:1]) for label, where in rows if len(where)] if len(rows) > 1 else _singly(rows[0][1])
    return found + _strips(subject, held, source, chosen[:num])


def _by_class(held: Batch, source: ImageSource, num: int) -> list[Group]:
    """The places of the first `num` held-out images of each class, or of all where there are no classes."""
    labels = held.cond.get("label")
    if labels is None or not source.classes:
        return [("", torch.arange(min(num * _MOST_CLASSES, held.size)))]
    names = source.classes[:_MOST_CLASSES]
    return [(name, (labels == label).nonzero()[:num, 0]) for label, name in enumerate(names)]


def _singly(where: Int64[Tensor, "N"]) -> list[Group]:
    return [("", one) for one in where.split(1)]


def _grid(mode: str, rows: list[Group], pixels: UInt8[Tensor, "N H W C"]) -> Trace:
    """Images in the order of `rows`, a picture of each row."""
    parts = pixels.split([len(where) for _, where in rows])
    shown = [picture(label, part[None]) for (label, _), part in zip(rows, parts, strict=True) if len(part)]
    return Trace(kind="image", set="generated", mode=mode, task=0, length=0, pictures=shown)


def _strips(subject: Subject, held: Batch, source: ImageSource, chosen: list[Group]) -> list[Trace]:
    """How each chosen image comes about: its states in a row and below, where the sampler keeps them, the images that
    the network expected behind them."""
    states = list(generation(subject, requested(held, torch.cat([where for _, where in chosen]))))
    lines = [torch.stack([source.pixels(state.x) for state in states])]
    if all(state.images for state in states[1:]):
        expected = [state.images[0] for state in states[1:]] + [states[-1].x]
        lines.append(torch.stack([source.pixels(x) for x in expected]))
    whole = torch.stack(lines)  # (lines, states, samples, H, W, C)
    mode = f"denoising@{len(states) - 1}"
    return [
        Trace(
            kind="image",
            set="generated",
            mode=mode,
            task=place,
            length=len(states) - 1,
            pictures=[picture(label, whole[:, :, place])],
        )
        for place, (label, _) in enumerate(chosen)
    ]
