"""Rounds: groups and their advantages over any processes, rewards that fail, rollouts that are used again."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

import texts
from onpath import rng
from onpath.build import build
from onpath.experience.rounds import Round
from onpath.experience.settings import GroupRollouts
from onpath.kinds import FAMILIES
from onpath.objectives.estimators import Estimator
from onpath.records import RunFolder
from onpath.rewards.base import FunctionReward
from onpath.runs import load
from onpath.training import checkpoint
from onpath.types import Nets
from policies import CPU, collected, policy_config, policy_parts, rounds_of, train

T = TypeVar("T")
ONES = (FunctionReward("judges:ones"),)


@dataclass(frozen=True)
class Thread:
    """One of several threads that make a round together."""

    rank: int
    count: int
    table: dict[int, Any]
    meeting: threading.Barrier

    def each(self, action: Callable[[], T]) -> list[T]:
        self.table[self.rank] = action()
        self.meeting.wait(60)
        return [self.table[rank] for rank in range(self.count)]


def together(count: int, *overrides: str) -> list[Round]:
    """Round 1 as each of `count` threads holds it."""
    parts = policy_parts(*overrides)
    rounds, held = rounds_of(parts), {}
    meeting, table = threading.Barrier(count), {}

    def work(rank: int) -> None:
        nets = Nets(deepcopy(parts.model))
        held[rank] = rounds.collect(nets, 1, parts.trainer.batch_size, CPU, Thread(rank, count, table, meeting))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [held[rank] for rank in range(count)]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_may_be_larger_than_the_share_of_a_process(scale: str) -> None:
    settings = [
        "training.batch_size=48",
        "experience.num_generations=24",
        "experience.steps_per_round=2",
        f"experience.scale_rewards={scale}",
        "experience.baseline=leave_one_out",
        "sampler.count=ancestral",
        "objective.estimator={kind: traj}",
    ]
    (whole,), parts = together(1, *settings), together(4, *settings)
    one = whole.experience
    for name in ("advantage", "reward", "tokens", "revealed_at"):
        # batch after batch, of each of which a process holds its part
        split = [getattr(part.experience, name).unflatten(0, (2, -1)) for part in parts]
        assert torch.equal(torch.cat(split, dim=1).flatten(0, 1), getattr(one, name)), name
    for name in ("reward_std", "frac_reward_zero_std"):
        assert all(part.sums[name] == whole.sums[name] for part in parts)
    total, count = (sum(part.sums["reward"][place] for part in parts) for place in (0, 1))
    assert (total, count) == (pytest.approx(whole.sums["reward"][0], abs=1e-5), 96)
    for name in ("logp/nelbo", "logp/gap"):  # of the first 32
        total, count = (sum(part.sums.get(name, (0.0, 0.0))[place] for part in parts) for place in (0, 1))
        assert (total, count) == (pytest.approx(whole.sums[name][0], abs=1e-3), 32)
    assert one.batch.ids.tolist() == list(range(96, 192))  # of round 1
    # the same prompt in each group, and the advantage by hand
    groups = one.reward.view(-1, 24).double()
    by_hand = groups - torch.stack([groups[:, [j for j in range(24) if j != i]].mean(1) for i in range(24)], 1)
    spread = {"group": groups.std(1, keepdim=True) + 1e-4, "batch": groups.std() + 1e-4, "none": 1.0}[scale]
    torch.testing.assert_close(one.advantage.view(-1, 24).double(), by_hand / spread, rtol=1e-4, atol=1e-6)
    given = one.tokens.masked_fill(one.free, -1).view(4, 24, -1)
    assert (given == given[:, :1]).all() and len({tuple(row) for row in given[:, 0].tolist()}) > 1


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("number", [3, 8, 12])
def test_equal_rewards_are_worth_exactly_nothing(reward: float, number: int) -> None:
    for baseline in ("mean", "leave_one_out"):
        for scale in ("group", "none"):
            settings = GroupRollouts(ONES, num_generations=number, baseline=baseline, scale_rewards=scale)
            assert not settings.advantages(torch.full((2 * number,), reward)).any()


def test_groups_of_equal_rewards_change_no_weight(tmp_path: Path) -> None:
    parts = policy_parts(
        "experience.rewards=[{kind: function, function: 'judges:alike'}]",
        "training.optimizer.weight_decay=0",
        "training.steps=2",
        "experience.num_iterations=2",
    )
    before = {name: value.clone() for name, value in parts.model.state_dict().items()}
    job, state = parts.job(), parts.trainer.start(parts.job())
    for _ in range(2):
        assert float(parts.trainer.step(state, job, 2)) == 0.0
        state.step += 1
    assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())
    row = state.meter.means()
    assert row["loss"] == 0 and row["frac_reward_zero_std"] == 1 and row["reward_std"] == pytest.approx(0)
    assert row["reward"] == 0.5 and row["entropy"] > 0.1


FAILING = {
    "raising": "raised KeyError",
    "nan": "returned nan",
    "silent": "returned None for completion 0",
    "silent_once": "returned None for completion 15",
    "too_few": "returned a list of 15 values",
    "hanging": "returned nothing within 0.2 s",
}


LASTING = ["training.decay=constant", "training.save_every=1", "experience.time_limit_s=0.2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, and one of four."""
    path = tmp_path_factory.mktemp("runs")
    train(path / "half", *LASTING, "training.steps=2")
    train(path / "whole", *LASTING)
    return path


@pytest.mark.parametrize("name", FAILING)
def test_a_reward_that_fails_ends_the_run_and_harms_nothing(name: str, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "half", tmp_path / "run")
    run, whole = RunFolder.open(tmp_path / "run"), RunFolder.open(runs / "whole")
    bad = f"experience.rewards=[{{kind: function, function: 'judges:{name}'}}]"
    written = {file: file.read_bytes() for file in run.path.glob("*.jsonl")}
    with pytest.raises(ValueError, match=f"{name}.*{FAILING[name]}"):
        train(run.path, *LASTING, bad, resume=True)
    assert {file: file.read_bytes() for file in run.path.glob("*.jsonl")} == written
    assert checkpoint.load(run.checkpoints / "step-2").step == 2
    if name != "raising":  # one is enough
        return
    train(run.path, *LASTING, resume=True)  # with the reward mended
    own, other = (checkpoint.load(one.checkpoints / "step-4").model for one in (run, whole))
    assert all(torch.equal(own[weight], other[weight]) for weight in own)
    steps = [[row["step"] for row in one.metrics() if row["set"] == "train"] for one in (run, whole)]
    assert steps[0] == steps[1] == [1, 2, 3, 4]
    assert run.completions() == whole.completions()


def test_a_reward_without_an_opinion_is_left_out_where_another_has_one() -> None:
    parts = policy_parts(
        "experience.rewards="
        "[{kind: function, function: 'judges:silent_once'}, {kind: function, function: 'judges:ones'}]",
        "experience.reward_weights=[2.0, 1.0]",
    )
    held = collected(parts)
    own = [row["rewards"] for row in held.completions]
    assert held.sums["rewards/silent_once/mean"] == (7.5, 15)
    assert all(
        row["reward"] == pytest.approx(2 * (each["silent_once"] or 0.0) + each["ones"])
        for row, each in zip(held.completions, own, strict=True)
    )
    last = held.experience.reward[15]
    assert float(last) <= 1.0  # by the other alone


@pytest.mark.parametrize("kl", ["path", "k1", "k2", "k3"])
def test_one_pass_with_a_kl_to_the_reference(kl: str) -> None:
    parts = policy_parts("objective.beta=0.1", f"objective.kl={kl}")
    job, state = parts.job(), parts.trainer.start(parts.job())
    found = []
    for _ in range(3):
        assert float(parts.trainer.step(state, job, 4)) > 0
        state.step += 1
        found.append(state.meter.means())
    assert found[0]["kl"] == 0.0 and found[-1]["kl"] != 0.0
    assert state.round is not None and state.round.experience.old is None
    assert found[-1]["sampling/importance_sampling_ratio/mean"] == 1.0


@pytest.mark.parametrize("estimator", ["traj", "traj_nelbo", "diffu", "uni", "coupled", "espo", "trace"])
def test_rollouts_used_again_have_other_ratios_and_are_clipped(estimator: str) -> None:
    parts = policy_parts(
        f"objective.estimator.kind={estimator}", "experience.num_iterations=2", "training.optimizer.learning_rate=0.05"
    )
    job, state, ratio = parts.job(), parts.trainer.start(parts.job()), "sampling/importance_sampling_ratio/mean"
    seen = []
    for _ in range(2):
        parts.trainer.step(state, job, 4)
        state.step += 1
        seen.append({name: pair for name, pair in state.meter.sums().items() if name == ratio or "clip_ratio" in name})
    first, both = seen
    assert first[ratio][0] == first[ratio][1] > 0  # bit for bit 1
    assert not any(first[name][0] for name in first if name != ratio)
    again = (both[ratio][0] - first[ratio][0]) / (both[ratio][1] - first[ratio][1])
    assert abs(again - 1) > 1e-3
    assert any(both[name][0] > 0 for name in both if name != ratio)


def test_masks_are_of_the_pass_and_of_the_round() -> None:
    """No noise is frozen: every pass over every round has masks of its own, and the same ones whenever it is read."""
    parts = policy_parts("objective.estimator={kind: uni}", "experience.num_iterations=3")
    policy, held = rounds_of(parts).policy, [collected(parts, number).experience for number in (0, 1)]
    held[1] = replace(held[0], round=1)  # the same rollouts under the key of another round
    passes = [(one, i) for one in held for i in range(3)]
    masks = [policy.views(replace(one, iteration=i), rng.Key(parts.seed).at(i)).masked for one, i in passes]
    again = policy.views(replace(held[1], iteration=2), rng.Key(parts.seed).at(77)).masked
    assert torch.equal(again, masks[-1])  # whatever step reads it
    assert all(not torch.equal(a, b) for n, a in enumerate(masks) for b in masks[:n])


@pytest.mark.parametrize(
    "estimator", [pytest.param(kind, marks=[] if kind == "diffu" else pytest.mark.slow) for kind in FAMILIES[Estimator]]
)
def test_a_simple_reward_rises(estimator: str) -> None:
    parts = policy_parts(
        f"objective.estimator.kind={estimator}",
        "training.steps=20",
        "training.batch_size=64",
        "experience.num_generations=8",
        "grid.steps=2",
    )
    job, state, rewards = parts.job(), parts.trainer.start(parts.job()), []
    for _ in range(20):
        parts.trainer.step(state, job, 20)
        state.step += 1
        assert state.round is not None
        rewards.append(float(state.round.experience.reward.mean()))
    assert rewards[0] < 0.25 and sum(rewards[-3:]) / 3 > 0.75, rewards  # the share of one digit in four


def test_a_policy_begins_with_the_average_weights_of_another_run(tmp_path: Path) -> None:
    first = train(tmp_path / "first", "training.steps=2")
    parts = build(policy_config(f"start={first.path}", "objective.beta=0.1"))
    state, saved = parts.trainer.start(parts.job()), checkpoint.load(first.checkpoints / "step-2").average
    assert state.reference is not None
    for network in (parts.model, state.reference, state.average):
        held = network.state_dict()
        assert all(torch.equal(held[name], weight) for name, weight in saved.items())


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_reference(tmp_path: Path) -> None:
    first = train(tmp_path / "first", "training.steps=2")
    run = train(tmp_path / "second", f"start={first.path}", "objective.beta=0.1", "training.save_every=2")
    shutil.rmtree(run.checkpoints / "step-4")
    train(run.path, f"start={first.path}", "objective.beta=0.1", "training.save_every=2", resume=True)
    whole = train(tmp_path / "whole", f"start={first.path}", "objective.beta=0.1", "training.save_every=2")
    own, other = ([row["kl"] for row in one.metrics() if row["set"] == "train"] for one in (run, whole))
    assert own == other and own[0] == 0 and own[-1] > 0


def test_a_trained_policy_answers_when_its_prompts_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts.write_all(tmp_path)
    data = "data={kind: prompts, path: prompts.jsonl, length: 24, max_completion_length: 8}"
    judged = "evaluation={rewards: [{kind: function, function: 'judges:ones'}]}"
    run = train(tmp_path / "run", data, judged, "training.steps=1")
    (tmp_path / "prompts.jsonl").unlink()
    state = load(run.path).sample(prompts=["a b 1 + 1?"])
    assert not state.masked.any() and state.revealed_at.max() == 2
