"""Evaluation by rewards against a solver, enumeration and the same answers made one by one."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.build import build
from onpath.config import RunConfig
from onpath.data.countdown import CountdownPuzzles
from onpath.data.images import Digits
from onpath.data.source import Source
from onpath.data.sudoku import Sudoku
from onpath.evaluation.rewards import RewardEvaluation
from onpath.evaluation.settings import Subject
from onpath.evaluation.statistics import mean_interval, score_interval, wilson
from onpath.processes.masking import Masking
from onpath.rewards.countdown import Countdown
from onpath.rewards.sudoku import SudokuCells, SudokuSolved
from onpath.sampling.counts import AncestralCount
from onpath.sampling.grids import EvenGrid
from onpath.sampling.tokens import Categorical
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from worlds import HashDenoiser, read

JUDGED = RewardEvaluation(rewards=(SudokuSolved(), SudokuCells()), num_examples=100, drift=None)
PROCESS = Masking(LinearSchedule(), 4)


def is_valid(grid: tuple[str, ...]) -> bool:
    cells = "".join(grid)
    columns = [cells[i::4] for i in range(4)]
    boxes = [cells[i : i + 2] + cells[i + 4 : i + 6] for i in (0, 2, 8, 10)]
    return all(len(set(unit)) == 4 for unit in columns + boxes)


@pytest.fixture(scope="module")
def grids() -> Tensor:
    """(288, 16) every grid of 4 x 4 cells, found by trying all rows."""
    rows = ["".join(row) for row in permutations("0123")]
    first = [pair for pair in product(rows, repeat=2) if len(set(pair[0][:2] + pair[1][:2])) == 4]
    found = [(*above, *below) for above in first for below in product(rows, repeat=2) if is_valid((*above, *below))]
    assert len(found) == 288
    return torch.tensor([[int(cell) for cell in "".join(grid)] for grid in found])


class Solver:
    """Every digit as likely as in the grids that agree with what is to be seen."""

    def __init__(self, grids: Tensor) -> None:
        self.grids = grids

    def encode(self, **cond: Tensor) -> None:
        return None

    def chances(self, x: Tensor) -> Tensor:
        agrees = ((x[:, None] == self.grids) | (x[:, None] == 4)).all(-1).double()
        counts = torch.einsum("bg,glv->blv", agrees, torch.nn.functional.one_hot(self.grids, 4).double())
        return (counts + 1e-12) / (counts + 1e-12).sum(-1, keepdim=True)

    def __call__(self, x: Tensor, t: Tensor, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        return read(self.chances(x).log().float(), rows, readout)


def subject(source: Source, denoiser: Any, steps: int = 4, **sampler: Any) -> Subject:
    return Subject(denoiser, PROCESS, Unmasking(**sampler), EvenGrid(steps), source, source.spec())


def values(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {row["metric"]: row for row in rows}


SAMPLERS: dict[str, dict[str, Any]] = {
    "random order": {},
    "greedy": {"tokens": Categorical(temperature=0.0)},
    "surest first": {"order": "confidence", "tokens": Categorical(temperature=0.0)},
    "guided": {"guidance": 0.5},
    "ancestral": {"count": AncestralCount()},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_solver_solves_everything_with_any_sampler(grids: Tensor, name: str) -> None:
    found = JUDGED.measure(subject(Sudoku(blanks=6), Solver(grids), 6, **SAMPLERS[name]))
    rows = values(found)
    assert {(row["set"], row["mode"]) for row in found} == {("test", "samples@6")}
    assert rows["rewards/sudoku_solved"]["value"] == rows["rewards/sudoku_cells"]["value"] == 1.0
    assert rows["rewards/sudoku_solved"]["ci95"] == list(wilson(100, 100))
    assert rows["rewards/sudoku_solved"]["n"] == 100
    if name != "ancestral":  # whose steps may reveal nothing
        assert rows["forwards"]["value"] == (12 if name == "guided" else 6)
    assert rows["seconds_per_completion"]["value"] > 0


def test_guesses_are_right_as_often_as_enumeration_says(grids: Tensor) -> None:
    """All blanks of a puzzle with many solutions at once: each from its own marginal, so solutions get mixed up."""
    source, solver, num = Sudoku(blanks=9, unique=False), Solver(grids), 1000
    rows = values(replace(JUDGED, num_examples=num).measure(subject(source, solver, 1)))
    batch = source.at_split("test").prompts(torch.arange(num))
    shown = torch.where(batch.free(), 4, batch.x)
    chances = solver.chances(shown)
    agrees = ((shown[:, None] == grids) | (shown[:, None] == 4)).all(-1)
    each = torch.stack([chances[:, torch.arange(16), grid].log().sum(1) for grid in grids], 1).exp()
    solved = (each * agrees).sum(1)
    right = (chances.gather(2, batch.x[..., None])[..., 0] * batch.free()).sum(1) / 9
    assert 0.3 < float(solved.mean()) < 0.7  # many are mixed up, many are not
    for metric, expected in (("sudoku_solved", solved), ("sudoku_cells", right)):
        found = rows[f"rewards/{metric}"]
        error = (found["ci95"][1] - found["ci95"][0]) / 3.92
        assert abs(found["value"] - float(expected.mean())) < 3.5 * error, metric
        assert found["ci95"][0] < found["value"] < found["ci95"][1]


def test_the_same_answers_in_any_batch(grids: Tensor) -> None:
    one = subject(Sudoku(blanks=9, unique=False), Solver(grids), 2)
    alone, together = (replace(JUDGED, batch_size=size).measure(one) for size in (7, 256))
    assert [row for row in alone if row["metric"] != "seconds_per_completion"] == [
        row for row in together if row["metric"] != "seconds_per_completion"
    ]


def test_fewer_examples_are_the_first_of_more(grids: Tensor) -> None:
    one = subject(Sudoku(blanks=9, unique=False), Solver(grids), 2)
    texts = [replace(JUDGED, num_examples=num)._answers(one, "test", one.grid).completions for num in (10, 30)]
    assert texts[0] == texts[1][:10] and len(set(texts[1])) > 5


def test_traces_are_those_of_the_answers(grids: Tensor) -> None:
    one = subject(Sudoku(blanks=9, unique=False), Solver(grids), 3)
    answers = JUDGED._answers(one, "test", one.grid)
    for trace in JUDGED.traces(one, 3):
        told = dict.fromkeys(range(16), "")
        for _, place, word, _ in trace.generations[0]["events"]:
            told[place] = word
        assert "".join(told.values()) == answers.columns["canvas"][trace.task]
        assert (trace.kind, trace.set, trace.mode) == ("text", "test", "samples@3")


def test_sets_and_steps(grids: Tensor) -> None:
    told = replace(JUDGED, sets=("validation", "train"), steps=(1, 5), num_examples=20)
    rows = told.measure(subject(Sudoku(blanks=5), Solver(grids)))
    assert {(row["set"], row["mode"]) for row in rows} == {
        (name, mode) for name in ("validation", "train") for mode in ("samples@1", "samples@5")
    }
    assert {row["value"] for row in rows if row["metric"] == "forwards"} == {1.0, 5.0}


def test_countdown_by_a_network_that_knows_nothing() -> None:
    source = CountdownPuzzles()
    spec = source.spec()
    made = replace(subject(source, HashDenoiser(spec.num_words)), process=Masking(LinearSchedule(), spec.mask_id))
    rows = values(RewardEvaluation(rewards=(Countdown(),), num_examples=40).measure(made))
    assert rows["rewards/countdown"]["value"] < 0.1  # no answer is right; a few are of the right form
    assert ("completions/mean_length" in rows) == (source.end_id is not None)


def test_scores_have_the_interval_that_fits_them() -> None:
    binary, graded = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 0.1, 0.0, 0.1])
    assert score_interval(binary) == wilson(3, 4)
    low, high = wilson(3, 4)
    assert score_interval(2.0 * binary) == pytest.approx((2 * low, 2 * high))
    assert score_interval(torch.zeros(4)) == wilson(0, 4)
    for scores in (graded, -binary):
        assert score_interval(scores) == mean_interval(scores)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_examples": 0}, "num_examples is 0"),
        ({"sets": ()}, "sets is ()"),
        ({"steps": (0,)}, "steps is (0,)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"time_limit_s": 0.0}, "time_limit_s is 0.0"),
    ],
)
def test_settings_that_measure_nothing(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        RewardEvaluation(**given)


def test_what_cannot_be_judged(grids: Tensor) -> None:
    one = subject(Sudoku(), Solver(grids))
    for told, said in (
        (RewardEvaluation(), "rewards is empty"),
        (RewardEvaluation(rewards=(Countdown(),)), "countdown needs the column"),
    ):
        with pytest.raises(ValueError, match=said):
            told.require(one)
    with pytest.raises(ValueError, match="trained on Digits"):
        JUDGED.require(replace(one, source=Digits()))


MODEL = {"kind": "token_transformer", "width": 16, "num_heads": 2, "depth": 1}
WHOLE: dict[str, Any] = {"model": MODEL, "objective": "nelbo", "training": {"steps": 3, "batch_size": 8}}
RL: dict[str, Any] = {
    "model": MODEL,
    "objective": "policy_gradient",
    "training": {"steps": 3, "batch_size": 8},
    "experience": {"rewards": [{"kind": "function", "function": "judges:shortness"}]},
}


@pytest.mark.parametrize(
    ("config", "rewards"),
    [
        ({**WHOLE, "data": "sudoku"}, ["sudoku_solved", "sudoku_cells"]),
        ({**WHOLE, "data": {"kind": "countdown"}}, ["countdown"]),
        ({**WHOLE, "data": "sudoku", "evaluation": {"num_examples": 7}}, ["sudoku_solved", "sudoku_cells"]),
        ({**WHOLE, "data": "sudoku", "evaluation": "rewards"}, ["sudoku_solved", "sudoku_cells"]),
        (
            {**WHOLE, "data": "sudoku", "evaluation": {"kind": "rewards", "rewards": ["sudoku_cells"]}},
            ["sudoku_cells"],
        ),
        ({**WHOLE, "data": "sudoku", "evaluation": "text"}, None),
        ({**RL, "data": {"kind": "prompts", "path": "p.jsonl"}}, ["function"]),
        ({**WHOLE, "data": {"kind": "text", "path": "t.txt"}}, None),
    ],
)
def test_the_kind_follows_the_data(config: dict[str, Any], rewards: list[str] | None) -> None:
    told = RunConfig.parse(config).as_dict()["evaluation"]
    assert (told["kind"] == "rewards") == (rewards is not None)
    if rewards is not None:
        assert [reward["kind"] for reward in told["rewards"]] == rewards
    again = RunConfig.parse(RunConfig.parse(config).as_dict())
    assert again.as_dict()["evaluation"] == told


def test_a_policy_is_measured_by_samplers_that_it_could_not_be_trained_with() -> None:
    config = RunConfig.parse(
        {**RL, "data": "sudoku", "experience": {"rewards": ["sudoku_cells"]}, "seed": 3, "device": "cpu"}
    )
    changed = RunConfig.parse({**config.as_dict(), "sampler": {"kind": "unmasking", "tokens": {"temperature": 0.0}}})
    with pytest.raises(ValueError, match="temperature is 0"):
        build(changed)
    parts = build(changed, Sudoku().spec(), config)
    assert parts.rounds is None
    told = replace(JUDGED, num_examples=5).measure(parts.subject(parts.model))  # pyright: ignore
    assert values(told)["forwards"]["value"] > 0
