from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from onpath.data.source import Source
from onpath.data.trajectories import FourRoomsExpert
from onpath.evaluation import check
from onpath.evaluation.check import Check, check_all, order_matters
from onpath.evaluation.schedule_table import schedule_table
from onpath.models.policy import PlanMLP
from onpath.objectives.nelbo import ContinuousNELBO
from onpath.processes.masking import Masking
from onpath.rng import Key, integers
from onpath.schedules import CosineSchedule, LinearSchedule
from onpath.training.optimizers import AdamW
from onpath.types import Batch, Noisy, Spec

WORDS, LENGTH, STATES = 5, 6, 32
PROCESS = Masking(LinearSchedule(), WORDS)
FAST = AdamW(learning_rate=1e-2)


class Rows(Source):
    """Each of 32 states has its own sequence of 6 words."""

    def spec(self) -> Spec:
        return Spec(LENGTH, WORDS, WORDS, {"state": ()})

    def examples(self, ids: Tensor, device: torch.device | str = "cpu") -> Batch:
        x = integers(Key(purpose="rows"), ids % STATES, (LENGTH,), WORDS)
        return Batch.of_tokens(x, ids, cond={"state": ids % STATES}).to(device)

    def at_split(self, split: str) -> Rows:
        return self


class Small(nn.Module):
    """A network of embeddings whose parts can be left out."""

    def __init__(
        self,
        *,
        mask_row: bool = True,
        positions: bool = True,
        state: bool = True,
        dropout: float = 0.0,
        words: int = WORDS,
    ) -> None:
        super().__init__()
        width = 64
        self.words = nn.Embedding(words + 1, width, padding_idx=None if mask_row else words)
        self.places = nn.Parameter(0.5 * torch.randn(LENGTH, width) * positions, requires_grad=positions)
        self.states = nn.Embedding(STATES, width)
        self.uses_state = state
        self.body = nn.Sequential(nn.Linear(2 * width, 256), nn.GELU(), nn.Dropout(dropout), nn.Linear(256, words))

    def encode(self, state: Tensor) -> Tensor:
        return self.states(state) * self.uses_state

    def forward(self, x: Tensor, t: Tensor, memo: Tensor, *, rows: Any = None, readout: Any = None) -> Any:
        hidden = self.words(x) + self.places
        memo = memo.repeat(len(x) // len(memo), 1)[:, None].expand_as(hidden)
        logits = self.body(torch.cat([hidden, memo * (1 + self.places)], dim=-1))
        return logits if rows is None else readout(logits.flatten(0, 1)[rows], rows)


def found(model: nn.Module, **settings: Any) -> dict[str, Check]:
    objective = ContinuousNELBO(settings.pop("process", PROCESS))
    return {one.name: one for one in check_all(model, objective, Rows(), FAST, batch_size=STATES, **settings)}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, one in checks.items() if not one.passed}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_a_sound_network_passes_everything() -> None:
    checks = found(Small(), schedules=(LinearSchedule(),))
    assert not failed(checks)
    assert checks["[MASK] is learnt"].measured["parameters"] == 64
    assert checks["overfits one batch"].measured["steps"] < 1000
    assert checks["ratio 1 at equal weights"].measured["error"] == 0.0


def test_the_plan_mlp_passes_and_its_mask_columns_are_found() -> None:
    source = FourRoomsExpert()
    spec = source.spec()
    network = PlanMLP(spec, width=128, hidden=256, depth=2)
    network.calibrate(**source.examples(torch.arange(512)).cond)
    objective = ContinuousNELBO(Masking(LinearSchedule(), spec.mask_id))
    checks = check_all(network, objective, source, AdamW(3e-3), batch_size=16)
    assert not [one.name for one in checks if not one.passed]
    assert checks[1].measured["parameters"] == spec.length * 128


def test_a_mask_that_is_a_fixed_vector_is_noticed() -> None:
    assert "[MASK] is learnt" in failed(found(Small(mask_row=False)))


def test_a_mask_row_that_never_moves_is_noticed() -> None:
    network = Small()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    batch = Rows().examples(torch.arange(STATES))
    assert not check.mask_is_learnt(network, before, PROCESS, batch).passed
    with torch.no_grad():
        network.words.weight[WORDS] += 0.1
    assert check.mask_is_learnt(network, before, PROCESS, batch).passed


def test_a_mask_inside_the_vocabulary_is_found_too() -> None:
    network = Small(words=WORDS + 1)  # as in a language model: logits for [MASK] as well, and a spare row
    checks = found(network)
    assert "schedule used = schedule saved" not in checks  # nothing is saved yet
    assert checks["[MASK] is learnt"].passed
    assert checks["[MASK] is learnt"].measured["parameters"] == 64


def test_missing_positions_are_noticed() -> None:
    batch = Rows().examples(torch.arange(STATES))
    finding = check.positions_differ(Small(positions=False), PROCESS, batch)
    assert not finding.passed
    assert finding.measured["variance"] == pytest.approx(0.0, abs=1e-10)
    assert not check.overfits(Small(positions=False), ContinuousNELBO(PROCESS), batch, FAST, max_steps=100).passed


def test_a_state_that_is_not_read_is_noticed() -> None:
    network = Small(state=False)
    batch = Rows().examples(torch.arange(STATES))
    assert not check.overfits(network, ContinuousNELBO(PROCESS), batch, FAST, max_steps=100).passed
    for finding in (check.states_differ(network, PROCESS, batch), check.condition_matters(network, PROCESS, batch)):
        assert not finding.passed
        assert set(finding.measured.values()) & {0.0}


def test_answers_that_differ_but_belong_to_other_states_are_noticed() -> None:
    network, batch = Small(), Rows().examples(torch.arange(STATES))
    assert check.overfits(network, ContinuousNELBO(PROCESS), batch, FAST).passed
    assert check.condition_matters(network, PROCESS, batch).passed
    shifted = replace(batch, x=batch.x.roll(1, 0))
    assert check.states_differ(network, PROCESS, shifted).passed
    assert check.condition_matters(network, PROCESS, shifted).measured["gain"] < 0


def test_dropout_breaks_the_ratio_and_the_mode_is_given_back() -> None:
    network = Small(dropout=0.3).eval()
    finding = check.ratio_is_one(network, PROCESS, Rows().examples(torch.arange(STATES)))
    assert not finding.passed
    assert finding.measured["error"] > 0.01
    assert not network.training


def test_a_process_that_ignores_its_schedule_is_noticed() -> None:
    class Half(Masking):
        def corrupt(self, batch: Batch, t: Tensor, key: Key) -> Noisy:
            return self.corrupt_ratio(batch, torch.full((batch.size,), 0.5), key)

    batch = Rows().examples(torch.arange(STATES))
    assert check.corruption_follows(PROCESS, batch).passed
    assert not check.corruption_follows(Half(LinearSchedule(), WORDS), batch).passed


def test_another_schedule_is_noticed() -> None:
    assert check.schedules_agree(LinearSchedule(), [LinearSchedule()]).passed
    finding = check.schedules_agree(LinearSchedule(), [LinearSchedule(), CosineSchedule()])
    assert not finding.passed
    assert finding.measured["difference"] == pytest.approx(0.105, abs=1e-2)


def test_the_schedule_table_has_the_values_of_the_formula() -> None:
    rows = schedule_table(CosineSchedule(alpha_min=0.01, alpha_max=0.99))
    assert [row.t for row in rows] == [k / 8 for k in range(9)]
    assert [round(row.alpha, 4) for row in rows][::4] == [0.99, 0.5, 0.01]
    assert rows[2].alpha == pytest.approx(0.8465, abs=5e-5)
    assert all(row.alpha + row.mask_share == pytest.approx(1.0) for row in rows)


def test_questions_on_outputs_go_to_the_trained_network() -> None:
    missing = failed(found(Small(), trained=Small(state=False)))
    assert {"outputs for two states differ", "the condition matters"} <= missing
    assert not {"overfits one batch", "[MASK] is learnt"} & missing


class Bag(nn.Module):
    """Reads the words that are there, and not where they stand, unless it is told to."""

    def __init__(self, places: bool) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS + 1, 16)
        self.place = nn.Parameter(torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) * float(places))
        self.head = nn.Linear(16, WORDS)

    def encode(self, **cond: Any) -> None:
        return None

    def forward(self, x: Any, t: Any, memo: Any, *, rows: Any = None, readout: Any = None) -> Any:
        bag = (self.word(x) * (1.0 + self.place[: x.shape[1]])).mean(1, keepdim=True)
        return self.head(4.0 * bag).expand(-1, x.shape[1], -1)


@pytest.mark.parametrize("places", [False, True])
def test_the_order_of_words_matters_where_a_network_knows_it(places: bool) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, WORDS, (4, 12), generator=torch.Generator().manual_seed(1))
    found = order_matters(Bag(places), Masking(LinearSchedule(), WORDS), Batch.of_tokens(x, torch.arange(4)))
    assert found.passed is places
