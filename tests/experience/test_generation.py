"""Rollouts: what is recorded of a walk is what a loss reads again, and no rollout knows of its company."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import texts
from onpath import rng
from onpath.build import Parts
from onpath.experience.generation import Rollouts
from onpath.types import Experience, Nets
from policies import CPU, collected, policy_parts, rounds_of

ROOT = Path(__file__).parents[1]
PROMPTS = [
    "data={kind: prompts, path: prompts.jsonl, length: 36, max_completion_length: 9}",
    "experience.rewards=[{kind: function, function: 'judges:shortness'}]",
]
PAIRS = [
    "data={kind: pairs, path: pairs.jsonl, length: 30}",
    "experience.rewards=[{kind: function, function: 'judges:shortness'}]",
]
DATA = {"sudoku": [], "prompts": PROMPTS, "pairs": PAIRS}
COUNTS = {"fixed": [], "ancestral": ["sampler.count=ancestral"]}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts.write_all(tmp_path)
    ragged = [{"prompt": "what is " + "so " * (n % 5) + "far?", "answer": n} for n in range(60)]
    texts.write_lines(tmp_path / "prompts.jsonl", ragged)


def made(parts: Parts, ids: torch.Tensor, batch_size: int = 0) -> Rollouts:
    generator = replace(rounds_of(parts).generator, batch_size=batch_size)
    return generator.rollouts(parts.model, ids, ids // 4, rng.Key(3), CPU)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("data", DATA)
def test_the_loss_reads_what_the_rollout_recorded(data: str, count: str, temperature: float) -> None:
    parts = policy_parts(
        *DATA[data],
        *COUNTS[count],
        "objective.estimator={kind: traj}",
        f"sampler.tokens.temperature={temperature}",
    )
    experience, policy = collected(parts).experience, rounds_of(parts).policy
    views = policy.views(experience, rng.Key(0))
    read = policy.scores(parts.model, experience, views)
    assert torch.equal(views.by_copy(views.scored).sum(0), experience.free.long())  # every token once
    gap = read.log_prob.detach().sum(0) - experience.log_prob
    assert float(gap.abs().max()) <= 1e-5
    assert float(experience.log_prob[experience.free].std()) > 0.05
    if data == "prompts":
        assert experience.batch.padding is not None
        left = experience.batch.padding[:, 0]
        assert left.any() and experience.batch.padding.sum(1).unique().numel() > 1  # ragged, on the left


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("data", DATA)
def test_a_rollout_is_the_same_alone_and_in_company(data: str, count: str) -> None:
    parts = policy_parts(*DATA[data], *COUNTS[count])
    ids = torch.arange(40, 56)
    whole = made(parts, ids)
    cut, alone = made(parts, ids, 5), [made(parts, ids[row : row + 1]) for row in (0, 7, 15)]
    assert_same(whole.experience, cut.experience)
    assert (whole.prompts, whole.completion_ids) == (cut.prompts, cut.completion_ids)
    assert torch.equal(whole.forwards, cut.forwards)
    for row, own in zip((0, 7, 15), alone, strict=True):
        assert_same(whole.experience.rows(slice(row, row + 1)), own.experience)
        assert [whole.completions[row]] == own.completions and [whole.prompts[row]] == own.prompts
        assert {name: [values[row]] for name, values in whole.columns.items()} == dict(own.columns)
    assert len({tuple(row) for row in whole.experience.tokens.tolist()}) == 16  # no two are the same


def assert_same(one: Experience, other: Experience) -> None:
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.revealed_at, other.revealed_at)
    torch.testing.assert_close(one.log_prob, other.log_prob, rtol=0, atol=1e-5)


def test_what_is_kept_says_how_a_rollout_came_about() -> None:
    parts = policy_parts("objective.estimator={kind: trace, score_candidates: true}", "sampler.order=confidence")
    experience = collected(parts).experience
    free, proposed = experience.free, experience.proposed
    assert experience.num_steps == 3 and proposed is not None and proposed.shape == (16, 3, 16)
    # each step proposed the token that it revealed
    step = experience.revealed_at.clamp_min(0)
    shown = proposed.gather(1, step[:, None])[:, 0]
    assert torch.equal(shown[free], experience.tokens[free])
    assert (free.sum(1) == 8).all() and not experience.log_prob[~free].any()
    assert experience.batch.given is not None and torch.equal(experience.batch.given, ~free)


def test_nothing_that_is_drawn_comes_from_or_goes_into_the_global_state() -> None:
    parts = policy_parts("training.steps=3", "experience.num_iterations=2")
    job = parts.job()
    state, tokens = parts.trainer.start(job), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tokens.append(collected(parts).experience.tokens)
        if seed == 2:
            parts.trainer.step(state, job, 3)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*tokens)
    assert state.round is not None and isinstance(Nets(parts.model).current, torch.nn.Module)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("data", DATA)
def test_rollouts_of_a_prompt_that_share_an_order_are_rollouts_as_any_and_cost_less(data: str, count: str) -> None:
    parts = policy_parts(*DATA[data], *COUNTS[count], "experience.shared_orders=true")
    ids = torch.arange(40, 72)
    generator = rounds_of(parts).generator
    shared = made(parts, ids)
    orders = shared.experience.revealed_at.view(8, 4, -1)
    assert (orders == orders[:, :1]).all()
    assert len({tuple(row.flatten().tolist()) for row in orders[:, 0]}) > 1
    assert len({tuple(row) for row in shared.experience.tokens.tolist()}) > 24
    own = replace(generator, shares_orders=False).rollouts(parts.model, ids, ids // 4, rng.Key(3), CPU)
    assert float(shared.forwards.sum()) < 0.9 * float(own.forwards.sum())
    assert_same(made(parts, ids, 8).experience, shared.experience)
    assert torch.equal(own.experience.group, ids // 4)


def test_a_shared_order_draws_the_tokens_that_the_network_says() -> None:
    """The recorded log-probabilities are those of each rollout's own states, read one by one."""
    parts = policy_parts("experience.shared_orders=true", "objective.estimator={kind: traj}")
    experience, policy = collected(parts).experience, rounds_of(parts).policy
    alone = replace(experience, group=torch.arange(len(experience.tokens)))
    views = policy.views(experience, rng.Key(0))
    together, apart = (policy.scores(parts.model, one, views) for one in (experience, alone))
    assert together.num_forwards < apart.num_forwards == len(views.x)
    torch.testing.assert_close(together.log_prob, apart.log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.entropy, apart.entropy, rtol=0, atol=1e-5)
    assert float((together.log_prob.detach().sum(0) - experience.log_prob).abs().max()) <= 1e-5
