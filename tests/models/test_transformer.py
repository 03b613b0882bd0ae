"""The token transformer against transformers' own rotary attention, and against what padding must not change."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from onpath.models.transformer import Rotary, TokenTransformer, _attend, _turned
from onpath.types import Spec

SPEC = Spec(length=12, num_words=11, mask_id=11, line_length=4)
OPTIONS = {
    "plain": {},
    "gated, tied": {"mlp": "gated", "tied": True},
    "time": {"reads": ("time",)},
    "time and place": {"reads": ("time", "place")},
    "row and column": {"reads": ("row_column",)},
    "recompute": {"recompute": True},
}


def network(spec: Spec = SPEC, **options: object) -> TokenTransformer:
    """Random weights everywhere, where a fresh network has zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TokenTransformer(spec, width=32, num_heads=4, depth=2, **options)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def tokens(size: int, length: int, high: int = 12) -> torch.Tensor:
    return torch.randint(0, high, (size, length), generator=torch.Generator().manual_seed(1))


def logits(model: TokenTransformer, x: torch.Tensor, **structure: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x, torch.full((len(x),), 0.5), model.encode(**structure))


def test_rotary_turns_pairs_as_complex_numbers() -> None:
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(2))
    turned = _turned(x, Rotary(8)(7, torch.device("cpu")))
    angle = torch.arange(7)[:, None] * 10_000.0 ** (-torch.arange(4) / 4)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(7, 4), angle)[:, None]
    torch.testing.assert_close(turned, torch.cat([pairs.real, pairs.imag], -1))


def test_rotary_equals_that_of_transformers() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    x = torch.randn(2, 7, 3, 8, generator=torch.Generator().manual_seed(2))
    cos, sin = Rotary(8)(7, torch.device("cpu"))
    both = [torch.cat([part, part], -1)[None] for part in (cos, sin)]
    theirs, _ = llama.apply_rotary_pos_emb(x, x, *both, unsqueeze_dim=2)
    torch.testing.assert_close(_turned(x, (cos, sin)), theirs)


@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_equals_torch(masked: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(3)).unbind(0)
    allowed = (torch.arange(9) < torch.tensor([9, 5])[:, None])[:, None, None] if masked else None
    torch.testing.assert_close(_attend(q, k, v, allowed), F.scaled_dot_product_attention(q, k, v, attn_mask=allowed))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_rows_and_readout_are_the_full_logits(options: dict[str, object]) -> None:
    model, x = network(**options), tokens(3, 12)
    whole = logits(model, x)
    assert whole.shape == (3, 12, 11)
    rows = torch.tensor([0, 5, 13, 35])
    with torch.no_grad():
        some = model(x, torch.full((3,), 0.5), model.encode(), rows=rows)
        read = model(x, torch.full((3,), 0.5), model.encode(), rows=rows, readout=lambda part, _: part.argmax(-1))
    torch.testing.assert_close(some, whole.flatten(0, 1)[rows])
    assert torch.equal(read, whole.flatten(0, 1)[rows].argmax(-1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    model, x = network(), tokens(2, 8)
    alone = logits(model, x)
    pad = tokens(2, 4, 3)
    padded = torch.cat([x, pad] if side == "right" else [pad, x], 1)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[:, 8:] = side == "right"
    padding[:, :4] |= side == "left"
    found = logits(model, padded, padding=padding)
    torch.testing.assert_close(found[:, 4:] if side == "left" else found[:, :8], alone, atol=2e-5, rtol=1e-4)


def test_documents_do_not_see_each_other() -> None:
    model, x = network(), tokens(1, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7])
    found = logits(model, x, documents=documents)
    torch.testing.assert_close(found[:, :5], logits(model, x[:, :5]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 5:], logits(model, x[:, 5:]), atol=2e-5, rtol=1e-4)
    padding = torch.arange(12)[None] >= 10
    both = logits(model, x, documents=documents, padding=padding)
    torch.testing.assert_close(both[:, 5:10], logits(model, x[:, 5:10]), atol=2e-5, rtol=1e-4)
    assert both.isfinite().all()


def test_one_encoding_serves_several_states() -> None:
    model, x = network(), tokens(4, 12)
    padding = torch.arange(12) >= torch.tensor([12, 9])[:, None]
    with torch.no_grad():
        both = model(x, torch.full((4,), 0.5), model.encode(padding=padding))
    torch.testing.assert_close(both, logits(model, x, padding=padding.repeat(2, 1)))


def test_time_matters_only_where_it_is_asked_for() -> None:
    x = tokens(2, 12)
    for asked in (False, True):
        model = network(reads=("time",) if asked else ())
        with torch.no_grad():
            early, late = (model(x, torch.full((2,), t), model.encode()) for t in (0.1, 0.9))
        assert torch.equal(early, late) is not asked


def test_squared_relu_and_adaln_start_as_the_plain_block() -> None:
    model = TokenTransformer(SPEC, width=32, num_heads=4, depth=1, reads=("time",))
    plain = TokenTransformer(SPEC, width=32, num_heads=4, depth=1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "modulate" not in k and "read_time" not in k})
    for one in (model, plain):
        assert one.head is not None
        torch.nn.init.eye_(one.head.weight)
    x = tokens(2, 12)
    torch.testing.assert_close(logits(model, x), logits(plain, x))  # adaLN begins at zero, gates at one
    mlp = network().blocks[0].mlp
    h = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(mlp(h), (h @ mlp.inner.weight.T).clamp_min(0) ** 2 @ mlp.outer.weight.T)


def test_mask_logit_and_padded_heads() -> None:
    model = network(Spec(length=12, num_words=11, mask_id=11, mask_logit=True))
    assert logits(model, tokens(1, 12)).shape[-1] == 12
    large = TokenTransformer(Spec(length=4, num_words=5000, mask_id=5000), width=8, num_heads=1, depth=1)
    assert large.head is not None and large.head.out_features == 5120
    assert logits(large, tokens(1, 4)).shape[-1] == 5000


def test_refusals() -> None:
    with pytest.raises(ValueError, match="even multiple of num_heads"):
        TokenTransformer(SPEC, width=30, num_heads=4)
    with pytest.raises(ValueError, match="tokens alone"):
        TokenTransformer(Spec(4, 3, 3, cond={"image": (1, 1, 3)}))


def test_places_tell_equal_tokens_apart() -> None:
    spec = Spec(length=6, num_words=4, mask_id=4)
    x = torch.full((1, 6), 2)
    logits = {}
    for reads in ((), ("place",)):
        torch.manual_seed(0)
        network = TokenTransformer(spec, width=32, num_heads=2, depth=1, reads=reads)
        assert network.head is not None
        torch.nn.init.normal_(network.head.weight)
        logits[bool(reads)] = network(x, torch.zeros(1), network.encode())[0]
    # equal tokens attend to equal values, so without places nothing tells one row of logits from another
    assert (logits[False] - logits[False][0]).abs().max() < 1e-5
    assert (logits[True] - logits[True][0]).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"a row has 7 tokens.*rows of up to 6"):
        network(torch.full((1, 7), 2), torch.zeros(1), network.encode())


def test_a_cell_of_a_grid_has_the_vectors_of_its_row_and_its_column() -> None:
    places = network(reads=("row_column",)).place
    assert places is not None
    rows, columns = (part.weight for part in places.parts)
    assert (rows.shape, columns.shape) == ((3, 32), (4, 32))
    torch.testing.assert_close(places(torch.arange(12)).view(3, 4, 32), rows[:, None] + columns)


@pytest.mark.parametrize(
    ("line_length", "reads", "said"),
    [(0, ("row_column",), "are no grid.*leave row_column out"), (4, ("row_column", "place"), "leave place out")],
)
def test_rows_and_columns_where_they_mean_nothing_are_refused(
    line_length: int, reads: tuple[str, ...], said: str
) -> None:
    spec = Spec(length=12, num_words=11, mask_id=11, line_length=line_length)
    with pytest.raises(ValueError, match=said):
        TokenTransformer(spec, width=32, num_heads=4, depth=1, reads=reads)
