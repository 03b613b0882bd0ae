"""Learning rates over steps, the plateau rule, and which parameters get which update."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn

from onpath.training.optimizers import AdamW, Muon, Plateau, rate_factor


def test_warm_up() -> None:
    assert [rate_factor(step, 100, 4, "constant", 0.0) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rate_factor(0, 100, 0, "constant", 0.0) == 1.0


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_decays(final: float) -> None:
    for step in range(10, 110):
        share = (step - 10) / 100
        cosine = final + (1 - final) * (1 + math.cos(math.pi * share)) / 2
        assert rate_factor(step, 110, 10, "cosine", final) == pytest.approx(cosine, abs=1e-15)
        assert rate_factor(step, 110, 10, "linear", final) == pytest.approx(1 - (1 - final) * share, abs=1e-15)
        assert rate_factor(step, 110, 10, "plateau", final) == 1.0
    assert rate_factor(500, 110, 10, "cosine", final) == final  # beyond the end, as in a longer resumed run


def test_cosine_is_that_of_torch() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2)
    for step in range(50):
        assert rate_factor(step, 50, 0, "cosine", 0.2) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("patience", [0, 2, 3])
def test_plateau_is_that_of_torch(patience: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=0.0, eps=0.0
    )
    rule, state = Plateau(factor=0.5, patience=patience), (math.inf, 0, 1.0)
    losses = [3.0, 2.0, 2.0, 2.5, 1.9, 1.9, 1.9, 1.9, 1.9, 1.8, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    for loss in losses:
        scheduler.step(loss)
        state = rule.update(state, loss)
        assert state[2] == optimizer.param_groups[0]["lr"]
    assert state[2] < 1.0


def test_weight_decay_acts_on_matrices_only() -> None:
    model = nn.Linear(3, 2)
    (optimizer,) = AdamW(learning_rate=0.1, weight_decay=0.5).build(model)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    torch.testing.assert_close(model.bias.detach(), before[1])


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_twice() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model.head = nn.Linear(4, 2)
    muon, rest = Muon().build(model)
    of_muon = [p for group in muon.param_groups for p in group["params"]]
    of_rest = [p for group in rest.param_groups for p in group["params"]]
    assert {id(p) for p in of_muon} == {id(block.weight) for block in model.blocks}
    assert sorted(map(id, of_muon + of_rest)) == sorted(map(id, model.parameters()))
    with pytest.raises(ValueError, match="no matrices under `blocks`"):
        Muon().build(nn.Linear(2, 2))


@pytest.mark.parametrize("fields", [{"learning_rate": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -1}])
def test_adamw_refuses(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="adamw: learning_rate"):
        AdamW(**fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("fields", [{"learning_rate": -1.0}, {"momentum": 1.0}, {"weight_decay": -1.0}])
def test_muon_refuses(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="muon: learning_rate"):
        Muon(**fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("fields", [{"factor": 1.0}, {"factor": 0.0}, {"patience": -1}])
def test_plateau_refuses(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="plateau: factor"):
        Plateau(**fields)  # pyright: ignore[reportArgumentType]
