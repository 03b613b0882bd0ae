"""Reading logits chunk by chunk gives what reading them at once gives, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from onpath.models.blocks import LinearHead, apply_readout

ROWS, WIDTH, WORDS, CHUNK = 23, 8, 11, 6
GENERATOR = torch.Generator().manual_seed(0)
TARGETS = torch.randint(0, WORDS, (ROWS,), generator=GENERATOR)
SHARES = torch.rand(ROWS, generator=GENERATOR)


def nats_and_hit(logits: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    nats = F.cross_entropy(logits.float(), TARGETS[rows], reduction="none") * SHARES[rows]
    return nats, logits.detach().argmax(-1) == TARGETS[rows]


def nats_alone(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return nats_and_hit(logits, rows)[0]


def run(chunk: int, named: bool, readout: Any, upstream: torch.Tensor | None, frozen: bool) -> list[torch.Tensor]:
    """Loss, hits and every gradient."""
    torch.manual_seed(1)
    head = nn.Linear(WIDTH, WORDS).requires_grad_(not frozen)
    hidden = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
    weights = tuple(head.parameters()) if named else ()
    found = apply_readout(head, hidden * 1.0, torch.arange(ROWS), readout, chunk, weights)
    nats, *rest = found if isinstance(found, tuple) else (found,)
    (nats.sum() * 0.5 if upstream is None else (nats * upstream).sum()).backward()
    assert hidden.grad is not None
    gradients = [hidden.grad, *(p.grad for p in head.parameters() if p.grad is not None)]
    return [nats.detach(), *rest, *gradients]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("readout", [nats_and_hit, nats_alone])
@pytest.mark.parametrize("upstream", [None, SHARES + 0.3], ids=["summed", "weighed afterwards"])
@pytest.mark.parametrize("named", [False, True], ids=["made anew", "formed in the forward"])
def test_chunks_are_the_whole(named: bool, upstream: torch.Tensor | None, readout: Any, frozen: bool) -> None:
    for one, whole in zip(
        run(CHUNK, named, readout, upstream, frozen), run(ROWS, named, readout, upstream, frozen), strict=True
    ):
        torch.testing.assert_close(one, whole)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained head", "frozen head"])
@pytest.mark.parametrize("upstream", [None, SHARES + 0.3], ids=["summed", "weighed afterwards"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_linear_head_shares_its_products(precision: torch.dtype, upstream: torch.Tensor | None, frozen: bool) -> None:
    """Pieces of chunks, a padded weight, and products in bf16 whose sum is kept in fp32."""

    def found(chunk: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(WORDS + 2, WIDTH, generator=generator).requires_grad_(not frozen)
        hidden = torch.randn(ROWS, WIDTH, generator=generator).requires_grad_()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            head = LinearHead(weight, WORDS)
            nats, hits = apply_readout(head, hidden * 1.0, torch.arange(ROWS), nats_and_hit, chunk, (weight,))
            (nats.sum() if upstream is None else (nats * upstream).sum()).backward()
        assert hidden.grad is not None and (weight.grad is None) == frozen
        return [nats.detach(), hits, hidden.grad, *([] if weight.grad is None else [weight.grad])]

    close = {} if precision == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    for one, whole in zip(found(8), found(ROWS), strict=True):
        torch.testing.assert_close(one, whole, **close)


def test_a_product_in_blocks_of_words_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 a product is rounded before it is summed, so blocks change no bit; a second backward is as the first."""

    def found(block: int) -> list[torch.Tensor]:
        monkeypatch.setattr("onpath.models.chunks._PRODUCT", block)
        weight = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(3)).requires_grad_()
        hidden = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(4)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            nats, _ = apply_readout(
                LinearHead(weight, WORDS), hidden, torch.arange(ROWS), nats_and_hit, CHUNK, (weight,)
            )
        loss = nats.sum() * 0.5
        return [
            torch.cat([one.flatten() for one in torch.autograd.grad(loss, (hidden, weight), retain_graph=True)])
            for _ in range(2)
        ]

    first, second = found(4 * WIDTH)
    torch.testing.assert_close(second, first, rtol=0.01, atol=1e-3)  # by the other way, weighed before it is rounded
    assert torch.equal(first, found(1 << 19)[0])


def test_what_a_readout_hands_out_is_not_written_over() -> None:
    weight, hidden = torch.randn(WORDS, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH)
    head = LinearHead(weight, WORDS)
    found = apply_readout(head, hidden, torch.arange(ROWS), lambda logits, _: logits, CHUNK, (weight,))
    torch.testing.assert_close(found, head(hidden))
    with torch.no_grad():
        assert torch.equal(apply_readout(head, hidden, torch.arange(ROWS), lambda z, _: z, CHUNK), head(hidden))


def test_no_logits_of_all_rows_exist_and_none_are_made_twice() -> None:
    calls: list[int] = []

    class Head(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            calls.append(len(input))
            return super().forward(input)

    head = Head(WIDTH, WORDS)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    for weights, number in ((tuple(head.parameters()), 4), ((), 8)):
        calls.clear()
        apply_readout(head, hidden * 1.0, torch.arange(ROWS), nats_and_hit, CHUNK, weights)[0].sum().backward()
        assert len(calls) == number and max(calls) == CHUNK


def test_without_a_gradient_nothing_is_formed() -> None:
    head = nn.Linear(WIDTH, WORDS)
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    tokens = apply_readout(head, hidden, torch.arange(ROWS), lambda z, _: z.argmax(-1), CHUNK, tuple(head.parameters()))
    assert torch.equal(tokens, head(hidden).argmax(-1)) and not tokens.requires_grad
