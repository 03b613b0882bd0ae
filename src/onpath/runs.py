"""Trained runs: loading one, generating with it, measuring and checking it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pad_sequence

from onpath import rng
from onpath.build import Parts, build
from onpath.config import RunConfig
from onpath.data.pairs import TextPairs
from onpath.data.prompt_sets import Prompts
from onpath.data.prompts import Canvas, request
from onpath.data.puzzles import Puzzles
from onpath.data.source import ActionSource, ImageSource, TextSource
from onpath.data.tokenizers import Tokenizer
from onpath.evaluation.check import Check, check_all
from onpath.evaluation.check_images import check_images
from onpath.evaluation.drift import Drift
from onpath.evaluation.pictures import png, sheet
from onpath.evaluation.plans import planner
from onpath.evaluation.policy import Actor, PlanPolicy
from onpath.evaluation.proofreading import corrected
from onpath.evaluation.schedule_table import ScheduleRow, schedule_table
from onpath.evaluation.settings import Evaluation, Row, Subject
from onpath.processes.gaussian import Gaussian
from onpath.processes.masking import Masking
from onpath.records import RunFolder, Trace
from onpath.sampling.grids import Grid
from onpath.sampling.loop import Knobs, Sampler, last, walk
from onpath.sampling.states import ImageState, TokenState
from onpath.schedules import Schedule
from onpath.training import checkpoint
from onpath.types import Batch, Denoiser, Exportable, ImageSpec, Spec, spec_of


@dataclass(frozen=True)
class Run:
    """A trained run: its parts, the moving average of its weights, and the step that they are from.

    identity: what the checkpoint says that it was trained with, see ``Parts.identity``.
    """

    folder: RunFolder
    parts: Parts
    denoiser: Denoiser
    step: int
    identity: Mapping[str, Any]

    def sample(
        self,
        batch: Batch | None = None,
        *,
        prompts: Sequence[str] = (),
        num_samples: int | None = None,
        seed: int = 0,
        grid: Grid | None = None,
        sampler: Sampler | None = None,
        knobs: Knobs | None = None,
    ) -> Any:
        """Generates with the run's own schedule, on `batch`'s conditions and given positions.

        prompts: without a batch, texts to go on with; see ``request``. num_samples: for each of them, 1 by default.
        Without prompts it is how many in all, 4 by default, on the first conditions of the validation split.
        The result's ``x`` is (B, L).
        """
        states = self.watch(
            batch, prompts=prompts, num_samples=num_samples, seed=seed, grid=grid, sampler=sampler, knobs=knobs
        )
        return last(states)

    def watch(
        self,
        batch: Batch | None = None,
        *,
        prompts: Sequence[str] = (),
        num_samples: int | None = None,
        seed: int = 0,
        grid: Grid | None = None,
        sampler: Sampler | None = None,
        knobs: Knobs | None = None,
    ) -> Iterator[Any]:
        """Yields the state after every step of ``sample``, the prior first."""
        parts = self.parts
        if batch is None:
            is_text = bool(prompts) or self.codec is not None
            batch = self.request(prompts, num_samples) if is_text else self._conditions(num_samples or 4)
        yield from walk(
            self.denoiser,
            parts.process,
            sampler or parts.sampler,
            grid or parts.grid,
            batch.to(parts.device),
            rng.Key(seed).fold("sample"),
            knobs,
        )

    def request(
        self,
        prompts: Sequence[str] = (),
        num_samples: int | None = None,
        *,
        length: int | None = None,
        num_new_tokens: int | None = None,
    ) -> Batch:
        """A batch that goes on with each prompt `num_samples` (1) times, in `length` tokens or with so many new ones.

        `[MASK:8]` inside a prompt is filled with 8 tokens; see ``TextSource.request``. Without prompts, `num_samples`
        (4) rows: on the first prompts of the validation split of pairs or puzzles, else with all positions free.
        ValueError for a run whose tokens are not text.

        >>> # state = run.sample(run.request(["ROMEO:"], num_new_tokens=100)); run.words(state.x[0].tolist())
        """
        source = self.parts.source
        if not isinstance(source, TextSource):
            raise ValueError(
                f"prompt: {self.folder.path} was trained on {type(source).__name__}, which is not text; leave prompts "
                "and their lengths out: such a run generates on conditions of its validation split"
            )
        num = num_samples or (1 if prompts else 4)
        if not prompts and isinstance(source, TextPairs | Prompts):
            ids = torch.arange(num)
            shown = source.at_split("validation").prompts(ids)
            if length is None and num_new_tokens is None:
                return shown
            assert shown.given is not None
            framed = [x[given].tolist() for x, given in zip(shown.x, shown.given, strict=True)]
            canvas = Canvas(source.length, length, num_new_tokens)
            return request(source.codec, [source.words(row) for row in framed], framed, ids, canvas)
        if not prompts and isinstance(source, Puzzles):
            prompts, num = source.at_split("validation").asked(torch.arange(num)), 1
        wanted = [prompt for prompt in prompts or [""] for _ in range(num)]
        return source.request(wanted, torch.arange(len(wanted)), length, num_new_tokens=num_new_tokens)

    def repair(self, texts: Sequence[str], *, threshold: float = 0.65, passes: int = 8, seed: int = 0) -> TokenState:
        """Corrects texts: what the network doubts with more than `threshold` is masked and filled in, `passes` times.

        For a run whose network predicts [MASK] for wrong words (``MaskingPenalties``); ValueError for any other. The
        result's ``x`` is (B, L), rows that are shorter than the longest padded on the right; see ``written``.
        """
        codec = self.codec
        spec = self.parts.spec
        if codec is None or not (isinstance(spec, Spec) and spec.mask_logit):
            raise ValueError(
                f"repair: the network of {self.folder.path} does not predict [MASK] for wrong words; train one with "
                "the objective masking_penalties, as the recipe shakespeare-proofread does"
            )
        rows = [torch.tensor(codec.encode(text), dtype=torch.int64) for text in texts]
        x = pad_sequence(rows, batch_first=True, padding_value=codec.pad_id)
        padding = torch.arange(x.shape[1]) >= torch.tensor([[len(row)] for row in rows])
        batch = Batch.of_tokens(x, torch.arange(len(rows)), padding=padding).to(self.parts.device)
        return corrected(self.subject, batch, rng.Key(seed), threshold, passes)

    def images(self, num_samples: int = 16, label: int | None = None) -> Batch:
        """A request for images: of the class `label`, or of each class in turn where the data have any.

        ValueError for a run on something else, or a class that there is not.
        """
        source, spec = self.parts.source, self.parts.spec
        if not isinstance(source, ImageSource) or not isinstance(spec, ImageSpec):
            raise ValueError(f"sample: {self.folder.path} was trained on {type(source).__name__}, which has no images")
        if set(spec.cond) - {"label"} or not spec.num_classes:
            if label is not None:
                raise ValueError(f"sample: label is {label}, but the data of this run have no classes; leave it out")
            shown = source.at_split("validation").examples(torch.arange(num_samples))
            return replace(shown, x=torch.zeros_like(shown.x))
        if label is not None and not 0 <= label < spec.num_classes:
            raise ValueError(f"sample: label is {label}; allowed are 0 to {spec.num_classes - 1}")
        labels = torch.arange(num_samples) % spec.num_classes if label is None else torch.full((num_samples,), label)
        return Batch(torch.zeros(num_samples, *spec.shape), torch.arange(num_samples), cond={"label": labels})

    def _conditions(self, num_samples: int) -> Batch:
        """Those of the first validation examples."""
        source = self.parts.source.at_split("validation")
        if isinstance(source, ImageSource):
            return self.images(num_samples)
        return source.prompts(torch.arange(num_samples), self.parts.device)

    @property
    def codec(self) -> Tokenizer | None:
        """From tokens to text and back; None where tokens are not text."""
        source = self.parts.source
        return source.codec if isinstance(source, TextSource) else None

    def words(self, tokens: Sequence[int]) -> str:
        """A sample as people read it."""
        source = self.parts.source
        return source.words(tokens) if isinstance(source, ActionSource | TextSource) else " ".join(map(str, tokens))

    def written(self, state: TokenState, prompts: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Each row of a state as plain data without its padding: text, tokens, revealed_at, confidence, forwards.

        revealed_at is -1, and the confidence None, where a token was given. A text has its prompt, too: that of
        `prompts`, each of which as many rows went on with, or what was given.
        """
        return [self._written_row(state, row, prompts) for row in range(state.batch.size)]

    def _written_row(self, state: TokenState, row: int, prompts: Sequence[str]) -> dict[str, Any]:
        batch = state.batch
        kept = slice(None) if batch.padding is None else ~batch.padding[row]
        tokens, steps = state.x[row][kept].tolist(), state.revealed_at[row][kept].tolist()
        sure = state.confidence[row][kept].tolist()
        told = {
            "text": self.words(tokens),
            "tokens": tokens,
            "revealed_at": steps,
            "confidence": [None if at < 0 else round(share, 4) for at, share in zip(steps, sure, strict=True)],
            "forwards": int(state.num_forwards[row]),
        }
        if self.codec is None:
            return told
        given = [] if batch.given is None else batch.x[row][batch.given[row]].tolist()
        return told | {"prompt": prompts[row * len(prompts) // batch.size] if prompts else self.words(given)}

    def sheet(self, state: ImageState) -> bytes:
        """The images of a state as one PNG, ten to a row, small ones enlarged; ValueError for latents."""
        source = self.parts.source
        assert isinstance(source, ImageSource)
        pixels = source.pixels(state.x)
        factor = max(1, 64 // pixels.shape[1])
        pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        columns = min(10, len(pixels))
        short = -len(pixels) % columns
        whole = torch.cat([pixels, pixels.new_full((short, *pixels.shape[1:]), 128)])
        return png(sheet(whole.unflatten(0, (-1, columns))))

    @property
    def subject(self) -> Subject:
        """The run as an evaluation takes it."""
        return self.parts.subject(self.denoiser)

    def policy(self) -> PlanPolicy:
        """The run as a planner of actions; see ``actor`` for one environment at a time."""
        return planner(self.subject)

    def actor(self) -> Actor:
        """The run as a policy for one Gymnasium environment: ``action = actor.act(observation)``."""
        return Actor(self.policy(), self.parts.device)

    def evaluate(self, settings: Evaluation | None = None, label: str = "") -> list[Row]:
        """Result rows {set, mode, metric, value, ci95, n, step}, by the run's settings or other ones.

        label: added to the name of every mode, to tell results of another sampler apart. Drift is measured beside it,
        as the settings say, unless evaluation.json holds it of more examples or the data are gone. ValueError for a run
        of which this cannot be measured.
        """
        settings = settings or self.parts.evaluation
        rows = self._labelled(settings.measure(self.subject), label)
        if settings.drift is None or not isinstance(self.parts.process, Gaussian | Masking):
            return rows
        try:
            beside = settings.drift.measure(self.subject)
        except ValueError:  # the data may be gone, which tasks in an environment do not need; onpath drift says so
            return rows
        return rows + self._unless_held(self._labelled(beside, label), label)

    def drift(self, settings: Drift | None = None, label: str = "") -> list[Row]:
        """How far own states have drifted from those of training: rows {…, t, offset}, see ``Drift.measure``.

        >>> # run.folder.write_evaluation(run.drift(Drift(num_examples=64)))
        """
        return self._labelled((settings or Drift()).measure(self.subject), label)

    def _labelled(self, rows: list[Row], label: str) -> list[Row]:
        return [{**row, "mode": f"{row['mode']} {label}".strip(), "step": self.step} for row in rows]

    def _unless_held(self, rows: list[Row], label: str) -> list[Row]:
        """Rows of drift, none of them where the folder has those of the same weights and of more examples."""
        size = max((row["n"] for row in rows), default=0)
        held = [row for row in self.folder.evaluation() if "offset" in row and row.get("step") == self.step]
        held = [row for row in held if row["mode"].split(" ")[3:] == label.split()]
        return [] if any(row["n"] > size for row in held) else rows

    def traces(self, num: int = 8, label: str = "") -> list[Trace]:
        """How the first `num` generations of an evaluation come about, step by step; `label` as for ``evaluate``."""
        made = self.parts.evaluation.traces(self.subject, num)
        return [replace(one, mode=f"{one.mode} {label}".strip(), step=self.step) for one in made]

    def export(self, folder: str | Path) -> None:
        """Writes the network into the new folder `folder` in its own format; ValueError where it has none."""
        if not isinstance(self.denoiser, Exportable):
            raise ValueError(
                f"export: {type(self.denoiser).__name__} has no format but that of its checkpoints; the moving "
                f"average is in average.safetensors of the newest folder below {self.folder.checkpoints}"
            )
        self.denoiser.export(Path(folder))


def load(path: str | Path, *, device: str | None = None, overrides: Iterable[str] = ()) -> Run:
    """The run in folder `path` with the moving average of its newest checkpoint that verifies.

    device: auto, cpu or cuda, in place of the run's own. overrides: ``key.path=value`` settings over those of the
      training, such as ``grid.steps=40``.
    ValueError where there is no run, no whole checkpoint, or the checkpoint's schedule is not the config's.
    """
    folder = RunFolder.open(Path(path))
    config = RunConfig.load(folder.path / "config.yaml", [*overrides, *([f"device={device}"] if device else [])])
    newest, skipped = checkpoint.newest(folder.checkpoints)
    if newest is None:
        faults = f" ({'; '.join(skipped)})" if skipped else ""
        todo = "copy a whole one there, or train again" if skipped else "train it first"
        raise ValueError(f"run: {path} has no checkpoint that verifies{faults}; {todo}")
    saved = checkpoint.read(newest, for_training=False)
    spec = saved.extra["identity"].get("spec")
    trained = RunConfig.load(folder.path / "config.yaml")
    parts = build(config, spec_of(spec) if spec else None, trained)
    checkpoint.require_identity(saved, parts.identity)
    model = parts.model.to(parts.device).eval()
    checkpoint.fill(model, saved.average)
    model.requires_grad_(False)
    return Run(folder, parts, cast(Denoiser, model), saved.step, saved.extra["identity"])


def _saved_schedule(run: Run) -> Schedule:
    """The schedule that the checkpoint of a run says it was trained with."""
    told = {**run.parts.config.as_dict(), "schedule": run.identity["schedule"]}
    return cast(Schedule, RunConfig.parse(told).schedule.make())


def check(config: RunConfig, run: Run | None = None) -> tuple[tuple[Check, ...], tuple[ScheduleRow, ...]]:
    """The sanity checks of a config, or of a trained run, and its schedule as a table."""
    parts = build(config)
    if parts.trainer.threads:
        torch.set_num_threads(parts.trainer.threads)
    parts.calibrate()
    parts.model.to(parts.device)
    every = check_images if isinstance(parts.process, Gaussian) else check_all
    checks = every(
        parts.model,
        parts.objective,
        parts.source,
        parts.trainer.optimizer,
        trained=None if run is None else cast(nn.Module, run.denoiser),
        schedules=() if run is None else (_saved_schedule(run),),
    )
    return checks, schedule_table(parts.process.schedule)
