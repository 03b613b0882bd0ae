"""What is measured of a policy that answers prompts: what rewards say of its answers to held-out ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from onpath import rng
from onpath.data.source import ActionSource, Source, TextSource
from onpath.evaluation.drift import BRIEF, Drift
from onpath.evaluation.settings import Evaluation, Row, Subject, row
from onpath.evaluation.statistics import mean_interval, score_interval
from onpath.evaluation.traces import events
from onpath.experience.generation import Generator, Rollouts
from onpath.records import Trace
from onpath.rewards.base import Reward, require_judged
from onpath.rewards.scoring import score
from onpath.sampling.grids import Grid
from onpath.sampling.loop import walk


@dataclass(frozen=True)
class RewardEvaluation(Evaluation):
    """One answer to each of the first held-out prompts, by the run's own sampler, and what rewards say of them.

    sets: `test`, `validation` or `train` prompts; where data have no test set, `test` is that of validation.
    num_examples: prompts of each set. steps: numbers of denoising steps, empty for the run's own. rewards: what judges
    the answers; a config leaves them out where the data say what is right, as puzzles do, or the run is trained on
    rewards. batch_size: answers that go through the network together; they are the same in any number.
    time_limit_s: for each reward, set and number of steps. drift: of own states, measured beside it; null leaves it
    out.
    """

    sets: tuple[Literal["test", "validation", "train"], ...] = ("test",)
    num_examples: int = 500
    steps: tuple[int, ...] = ()
    rewards: tuple[Reward, ...] = ()
    batch_size: int = 256
    time_limit_s: float = 300.0
    drift: Drift | None = replace(BRIEF, num_examples=16)

    def __post_init__(self) -> None:
        if not self.sets or self.num_examples < 1 or self.batch_size < 1 or not self.time_limit_s > 0:
            raise ValueError(
                f"evaluation: sets is {self.sets}, num_examples is {self.num_examples}, batch_size is "
                f"{self.batch_size} and time_limit_s is {self.time_limit_s}; needed are a set, 1 or more, 1 or more, "
                "and a number above 0"
            )
        if not all(step >= 1 for step in self.steps):
            raise ValueError(f"evaluation: steps is {self.steps}; each must be 1 or more")

    def require(self, subject: Subject) -> None:
        source = subject.source
        if not isinstance(source, TextSource | ActionSource):
            raise ValueError(
                f"evaluation: kind rewards judges text and actions, and the run was trained on "
                f"{type(source).__name__}; leave evaluation.kind out"
            )
        if not self.rewards:
            raise ValueError(
                f"evaluation: rewards is empty, and nothing tells what judges answers to {type(source).__name__}; set "
                "evaluation.rewards, such as [gsm8k_correct]"
            )
        require_judged(self.rewards, source.columns(torch.arange(1)), "evaluation.rewards")

    def measure(self, subject: Subject) -> list[Row]:
        self.require(subject)
        places = [(name, *grid) for name in self.sets for grid in self._grids(subject)]
        has_end = subject.source.end_id is not None
        return [
            row
            for name, mode, grid in places
            for row in self._rows((name, mode), self._answers(subject, name, grid), has_end)
        ]

    def traces(self, subject: Subject, num: int) -> list[Trace]:
        """How the first answers of the first set come about; none of plans, which evaluations of kind plans watch."""
        name, (mode, grid) = self.sets[0], self._grids(subject)[0]
        source = subject.source.at_split(name)
        if not isinstance(source, TextSource):
            return []
        ids = self._ids(source)[:num]
        request = source.prompts(ids).to(subject.device)
        made = walk(subject.denoiser, subject.process, subject.sampler, grid, request, _key(subject))
        states, words = list(made), source.codec.pieces
        return [
            Trace(
                kind="text",
                set=name,
                mode=mode,
                task=task,
                length=request.x.shape[1],
                line=source.spec().line_length,
                generations=[
                    {
                        "after": 0,
                        "steps": len(states) - 1,
                        "events": events(states, place, lambda token: words([token])[0]),
                    }
                ],
            )
            for place, task in enumerate(ids.tolist())
        ]

    def _grids(self, subject: Subject) -> list[tuple[str, Grid]]:
        """What answers are called, and the times on which they are made."""
        own = len(subject.grid.inner(subject.process.schedule)) - 1
        grids = [(steps, subject.grid.with_steps(steps)) for steps in self.steps] or [(own, subject.grid)]
        return [(f"samples@{steps}", grid) for steps, grid in grids]

    def _ids(self, source: Source) -> torch.Tensor:
        return torch.arange(min(self.num_examples, source.num_examples or self.num_examples))

    def _answers(self, subject: Subject, set_name: str, grid: Grid) -> Rollouts:
        source = subject.source.at_split(set_name)
        ids = self._ids(source)
        maker = Generator(subject.process, subject.sampler, grid, source, batch_size=self.batch_size)
        return maker.rollouts(subject.denoiser, ids, ids, _key(subject), subject.device)

    def _rows(self, place: tuple[str, str], answers: Rollouts, has_end: bool) -> Iterator[Row]:
        """place: set and mode. has_end: whether how long an answer is, is its own choice."""
        given = (answers.prompts, answers.completions, answers.completion_ids, answers.columns)
        scores = score(self.rewards, (1.0,) * len(self.rewards), *given, self.time_limit_s)
        for name, values in scores.by_name.items():
            said = values[~values.isnan()].double()
            yield row(*place, f"rewards/{name}", float(said.mean()), score_interval(said), len(said))
        forwards, size = answers.forwards.double(), len(answers.completions)
        if has_end:
            lengths = torch.tensor([len(ids) for ids in answers.completion_ids], dtype=torch.float64)
            yield row(*place, "completions/mean_length", float(lengths.mean()), mean_interval(lengths), size)
        yield row(*place, "forwards", float(forwards.mean()), mean_interval(forwards), size)
        yield row(*place, "seconds_per_completion", answers.seconds / size, None, size)


def _key(subject: Subject) -> rng.Key:
    return rng.Key(subject.seed).fold("evaluate").fold("answers")
