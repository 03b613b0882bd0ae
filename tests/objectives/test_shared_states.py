"""Rollouts of a prompt share states: what is read of them once is what is read of each by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from onpath.models import blocks
from onpath.models.transformer import TokenTransformer
from onpath.objectives.estimators import Estimator
from onpath.objectives.mask_estimators import OneStep
from onpath.objectives.policy_gradient import PolicyGradient
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.sampling.counts import AncestralCount
from onpath.sampling.unmasking import Unmasking
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Denoiser, Experience, Nets, Spec
from tables import ESTIMATORS

NUM_WORDS, PROMPT, LENGTH, STEPS = 24, 4, 12, 3
GROUP = torch.tensor([5, 5, 5, 5, 8, 8])
SAMPLER = Unmasking(count=AncestralCount(), end_id=0)


def network(seed: int) -> TokenTransformer:
    torch.manual_seed(seed)
    made = TokenTransformer(Spec(LENGTH, NUM_WORDS, NUM_WORDS), width=16, num_heads=2, depth=1)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return made


def rollouts() -> Experience:
    """Four answers to one prompt and two to another, revealed in one order, some ended."""
    generator = torch.Generator().manual_seed(0)
    number = len(GROUP)
    tokens = torch.randint(1, NUM_WORDS, (number, LENGTH), generator=generator)
    _, prompt = torch.unique(GROUP, return_inverse=True)
    tokens[:, :PROMPT] = tokens[prompt, :PROMPT]
    tokens[torch.tensor([0, 3, 4]), torch.tensor([7, 10, 9])] = 0
    revealed_at = torch.where(torch.arange(LENGTH) < PROMPT, -1, torch.arange(LENGTH) % STEPS).expand(number, -1)
    advantage = torch.linspace(-1, 1.4, number)
    return Experience(
        batch=Batch.of_tokens(tokens, torch.arange(number), given=revealed_at < 0),
        tokens=tokens,
        revealed_at=revealed_at,
        num_steps=STEPS,
        log_prob=torch.zeros(number, LENGTH),
        advantage=advantage,
        peers=advantage.expand(number, -1),
        reward=advantage,
        group=GROUP,
        chance=torch.tensor([0.3, 0.5, 1.0]),
        proposed=tokens[:, None].expand(-1, STEPS, -1),
    )


def without_prompt_masks(estimator: Estimator) -> Estimator:
    """Its draws are then the same whatever the groups are."""
    return replace(estimator, p_mask_prompt=0.0) if hasattr(estimator, "p_mask_prompt") else estimator


def read(policy: PolicyGradient, experience: Experience, moved: bool) -> tuple[list[Tensor], dict[str, Any]]:
    """Loss and gradients, and the metrics; moved: under other weights than those of the rollouts."""
    model: Denoiser = network(1)
    if moved and policy.estimator.has_ratio:
        experience = replace(experience, old=policy.old_scores(network(3), experience, Key(4))[:, None])
    loss = policy(Nets(model, reference=network(2)), experience, Key(4), 0)
    return [loss.mean, *torch.autograd.grad(loss.mean, list(model.parameters()))], dict(loss.metrics)


@pytest.mark.parametrize(("kl", "chunk"), [(None, 5), ("path", 5), ("k3", 5), ("path", 1000)])
@pytest.mark.parametrize("moved", [False, True], ids=["weights of the rollouts", "older weights"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_loss_and_gradient_are_those_of_rollouts_apart(
    name: str, kl: Any, moved: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_CHUNK_LOGITS", chunk * NUM_WORDS)
    estimator, penalty = without_prompt_masks(ESTIMATORS[name]), {} if kl is None else {"beta": 0.3, "kl": kl}
    policy = PolicyGradient(Masking(LinearSchedule(), NUM_WORDS), estimator, sampler=SAMPLER, **penalty)
    together = rollouts()
    apart = replace(together, group=together.batch.ids)
    (one, one_metrics), (other, other_metrics) = (read(policy, part, moved) for part in (together, apart))
    for here, there in zip(one, other, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in other[1:])
    for metric in set(one_metrics) - {"loss_forwards"}:
        assert float(one_metrics[metric][0]) == pytest.approx(float(other_metrics[metric][0]), abs=1e-4), metric
    assert float(one_metrics["loss_forwards"][0]) <= float(other_metrics["loss_forwards"][0])


def test_a_group_is_read_once_under_one_masked_prompt() -> None:
    policy = PolicyGradient(Masking(LinearSchedule(), NUM_WORDS), OneStep(p_mask_prompt=0.5), sampler=SAMPLER)
    experience = rollouts()
    views = policy.views(experience, Key(4))
    assert policy.scores(network(1), experience, views).num_forwards == 2
    first, second = views.x[0], views.x[4]
    assert (views.x[:4] == first).all() and (views.x[4:] == second).all()
    hidden = [part[:PROMPT] == NUM_WORDS for part in (first, second)]
    assert not torch.equal(*hidden) and any(part.any() for part in hidden)
    # the same in whatever micro-batch or process a rollout is; others in another pass and in another round
    parts = [policy.views(experience.rows(slice(n, n + 1)), Key(4)).x for n in range(6)]
    assert torch.equal(torch.cat(parts), views.x)
    for other in (replace(experience, iteration=1, num_iterations=2), replace(experience, round=1)):
        assert not torch.equal(policy.views(other, Key(4)).x, views.x)


@pytest.mark.parametrize("kl", ["path", "k3"])
def test_a_softmax_is_taken_for_a_place_not_for_each_rollout(kl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what exists at once does not grow with the group."""
    monkeypatch.setattr(blocks, "_CHUNK_LOGITS", 5 * NUM_WORDS)
    policy = PolicyGradient(
        Masking(LinearSchedule(), NUM_WORDS), OneStep(p_mask_prompt=0.5), beta=0.3, kl=kl, sampler=SAMPLER
    )
    sizes: list[int] = []
    tempered = PolicyGradient._tempered

    def counted(self: PolicyGradient, logits: Tensor) -> Tensor:
        sizes.append(len(logits))
        return tempered(self, logits)

    monkeypatch.setattr(PolicyGradient, "_tempered", counted)
    loss = policy(Nets(network(1), reference=network(2)), rollouts(), Key(4), 0)
    loss.mean.backward()
    assert max(sizes) == 2 and sum(sizes) == 2 * 2 * (LENGTH - PROMPT)  # of two prompts by two networks, once each
