"""What is particular to each plan network; what they share is in test_contracts.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn as nn

from networks import SPEC, close, noisy, planner, plans
from onpath.models.blocks import Attention, KeysValues, ResidualMLP, RMSNorm, Standardize, apply_readout
from onpath.models.policy import PlanMLP, PlanTransformer
from onpath.types import Spec


def test_mlp_refuses_another_image_size() -> None:
    network, other = planner("plan_mlp"), torch.zeros(2, 9, 9, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(7, 6\).*\(9, 9\).*plan_transformer"):
        network.encode(other, torch.zeros(2, dtype=torch.int64))


@torch.no_grad()
def test_mlp_ignores_time_and_the_transformer_may() -> None:
    batch = plans(3)
    x, t = noisy(batch)
    torch.manual_seed(0)
    timeless = PlanTransformer(SPEC, width=32, num_heads=2, depth=1, convs=1, time=False)
    nn.init.normal_(timeless.head.weight)
    for network, matters in ((planner("plan_mlp"), False), (timeless, False), (planner("plan_transformer"), True)):
        memo = network.encode(**batch.cond)
        assert torch.equal(network(x, t, memo), network(x, 1 - t / 2, memo)) != matters


@torch.no_grad()
def test_transformer_reads_any_size() -> None:
    network = planner("plan_transformer")
    for width, height in ((5, 5), (7, 6), (19, 19), (4, 13)):
        image = torch.ones(2, width, height, 3, dtype=torch.uint8)
        image[:, 1, 1, 0], image[:, width - 1, height - 1, 0] = 10, 8
        out = network(torch.zeros(2, 10, dtype=torch.int64), torch.ones(2), network.encode(image, torch.tensor([0, 1])))
        assert out.shape == (2, 10, 4) and out.isfinite().all()


@torch.no_grad()
def test_transformer_does_not_attend_padding() -> None:
    network, batch = planner("plan_transformer"), plans(6, padding=True)
    x, t = noisy(batch)
    memo = network.encode(**batch.conditions())
    nonsense = torch.where(batch.padding, 3 - x.clamp_max(3), x)
    assert not torch.equal(x, nonsense)
    free = batch.free()
    close(network(nonsense, t, memo)[free], network(x, t, memo)[free])


def test_features_say_what_is_in_the_image() -> None:
    network = PlanMLP(SPEC, width=8, hidden=8, depth=1)
    batch = plans(5)
    features = network.features(**batch.cond)
    walls, goal_x, goal_y, agent_x, agent_y, direction = features.split([42, 7, 6, 7, 6, 4], dim=1)
    kind = batch.cond["image"][..., 0]
    assert torch.equal(walls.view(5, 7, 6).bool(), kind == 2)
    for row in range(5):
        (x, y), (ax, ay) = (kind[row] == 8).nonzero()[0].tolist(), (kind[row] == 10).nonzero()[0].tolist()
        assert (int(goal_x[row].argmax()), int(goal_y[row].argmax())) == (x, y)
        assert (int(agent_x[row].argmax()), int(agent_y[row].argmax())) == (ax, ay)
        assert goal_x[row].sum() == goal_y[row].sum() == agent_x[row].sum() == agent_y[row].sum() == 1
    assert torch.equal(direction.argmax(1), batch.cond["direction"])


def test_calibration_standardises_what_varies_and_drops_what_does_not() -> None:
    network, batch = PlanMLP(SPEC, width=8, hidden=8, depth=1), plans(500)
    batch.cond["image"][:, 3, 3, 0] = 2  # one cell is always a wall
    network.calibrate(**batch.cond)
    z = network.standardize(network.features(**batch.cond))
    constant = network.features(**batch.cond).std(0) == 0
    assert constant[3 * 6 + 3] and (z[:, constant] == 0).all()
    torch.testing.assert_close(z[:, ~constant].mean(0), torch.zeros(int((~constant).sum())), atol=1e-5, rtol=0)
    torch.testing.assert_close(z[:, ~constant].std(0), torch.ones(int((~constant).sum())), atol=1e-5, rtol=0)
    assert {"standardize.mean", "standardize.scale"} <= set(network.state_dict())


def test_standardize_is_the_identity_before_it_is_fitted() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Standardize(3)(x), x)


def test_norm_has_unit_mean_square() -> None:
    x = 7 * torch.randn(4, 33, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(RMSNorm()(x).square().mean(-1), torch.ones(4))
    torch.testing.assert_close(RMSNorm()(x), x / x.square().mean(-1, keepdim=True).sqrt())
    assert RMSNorm()(x.bfloat16()).dtype == torch.bfloat16


def test_a_fresh_residual_block_is_the_identity_and_norms_what_it_adds() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    block = ResidualMLP(6, 12)
    assert torch.equal(block(x), x)
    nn.init.normal_(block.outer.weight)
    hidden = (x / x.square().mean(-1, keepdim=True).sqrt()) @ block.inner.weight.T
    active = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    active = active / active.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(block(x), x + active @ block.outer.weight.T, rtol=1e-4, atol=1e-4)


def test_attention_is_a_softmax_of_normalised_products() -> None:
    torch.manual_seed(0)
    attention, keys_values, x, memory = Attention(8, 2), KeysValues(8, 2), torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    nn.init.normal_(attention.outer.weight)
    blocked = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    key, value = keys_values(memory)

    def unit(v: torch.Tensor) -> torch.Tensor:
        return v / v.square().mean(-1, keepdim=True).sqrt()

    query = attention.query(unit(x)).view(3, 4, 2, 4)
    keys, values = keys_values.key_value(unit(memory)).split(8, dim=-1)
    scores = torch.einsum("blhe,bshe->bhls", unit(query), unit(keys.view(3, 5, 2, 4))) / 4**0.5
    scores = scores.masked_fill(blocked[:, None, None], -torch.inf)
    read = torch.einsum("bhls,bshe->blhe", scores.softmax(-1), values.reshape(3, 5, 2, 4)).flatten(2)
    torch.testing.assert_close(attention(x, (key, value), blocked), x + read @ attention.outer.weight.T)


def test_attention_refuses_a_width_that_its_heads_do_not_divide() -> None:
    for kind in (Attention, KeysValues):
        with pytest.raises(ValueError, match="num_heads"):
            kind(10, 3)


@pytest.mark.parametrize("chunk", [1, 3, 10, 11])
def test_readout_in_chunks(chunk: int) -> None:
    hidden, rows = torch.randn(10, 4), torch.randperm(10)
    head = nn.Linear(4, 3)
    seen: list[int] = []

    def readout(logits: torch.Tensor, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(at))
        return at, logits.sum(-1)

    at, total = apply_readout(head, hidden, rows, readout, chunk)
    assert torch.equal(at, rows) and max(seen) <= chunk and sum(seen) == 10
    torch.testing.assert_close(total, head(hidden).sum(-1))
    torch.testing.assert_close(apply_readout(head, hidden, rows, lambda x, _: x, chunk), head(hidden))
    # made anew in the backward, the logits of a chunk give the same gradient
    hidden.requires_grad_()
    apply_readout(head, hidden, rows, lambda x, _: x.logsumexp(-1), chunk).square().sum().backward()
    by_chunk, whole = hidden.grad, hidden.detach().clone().requires_grad_()
    head(whole).logsumexp(-1).square().sum().backward()
    torch.testing.assert_close(by_chunk, whole.grad)


def test_sizes_come_from_the_spec() -> None:
    spec = dataclasses.replace(SPEC, length=5, num_words=7, mask_id=7)
    for network in (PlanMLP(spec, width=8, hidden=8, depth=1), PlanTransformer(spec, width=16, num_heads=2, depth=1)):
        assert isinstance(spec, Spec)
        batch = plans(2)
        x = torch.tensor([[0, 6, 7, 7, 1]] * 2)
        assert network(x, torch.full((2,), 0.4), network.encode(**batch.cond)).shape == (2, 5, 7)


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (PlanMLP, {"width": 0}),
        (PlanMLP, {"depth": -1}),
        (PlanTransformer, {"patch": 0}),
        (PlanTransformer, {"width": 20, "num_heads": 2}),
        (PlanTransformer, {"convs": -1}),
    ],
)
def test_sizes_that_make_no_network_are_refused(network: type[nn.Module], sizes: dict[str, int]) -> None:
    name, size = next(iter(sizes.items()))
    with pytest.raises(ValueError, match=f"{name} is {size}"):
        network(SPEC, **sizes)


def test_the_mlp_needs_an_image() -> None:
    with pytest.raises(ValueError, match="reads images"):
        PlanMLP(Spec(length=5, num_words=3, mask_id=3))
