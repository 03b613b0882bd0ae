"""Pairs: the prompt given, the response and its end scored, the rest as the policy says; nothing is lost or moved."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import texts
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.data.pairs import TextPairs
from onpath.data.tokenizers import Bytes
from onpath.models.transformer import TokenTransformer
from onpath.objectives.nelbo import ContinuousNELBO
from onpath.processes.masking import Masking
from onpath.rng import Key
from onpath.schedules import LinearSchedule
from onpath.types import Batch, Nets

CODEC = Bytes(end=True)
END = 256
PAIRS = [(f"a b {n} + {n}?", f"It is {2 * n}.") for n in range(60)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts.write_all(tmp_path)
    return tmp_path


def pairs(folder: Path, **fields: Any) -> TextPairs:
    return TextPairs(str(folder / "pairs.jsonl"), CODEC, **{"length": 32, "validation_share": 0, **fields})


def everything(source: TextPairs) -> Batch:
    return source.examples(torch.arange(source.num_examples))


def as_text(ids: torch.Tensor) -> str:
    return bytes(ids.tolist()).decode()


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_supervised_end(folder: Path, side: str) -> None:
    batch = everything(pairs(folder, padding_side=side))
    assert batch.given is not None and batch.padding is not None
    found = set()
    for x, given, padding, free in zip(batch.x, batch.given, batch.padding, batch.free(), strict=True):
        row, scored = x[~padding], x[free]
        assert int(row[-1]) == int(scored[-1]) == END
        found.add((as_text(x[given]), as_text(scored[:-1])))
        assert as_text(row[:-1]) == as_text(x[given]) + as_text(scored[:-1])
        assert bool(padding[len(row) :].all() if side == "right" else padding[: 32 - len(row)].all())
        assert bool((x[padding] == CODEC.pad_id).all())
    assert found == set(PAIRS)
    assert batch.free_counts().tolist() == batch.free().sum(1).tolist()


def test_a_row_filled_with_ends(folder: Path) -> None:
    batch = everything(pairs(folder, end="fill"))
    assert batch.padding is None and batch.given is not None
    for x, given in zip(batch.x, batch.given, strict=True):
        prompt, rest = as_text(x[given]), x[~given].tolist()
        response = bytes(rest[: rest.index(END)]).decode()
        assert (prompt, response) in PAIRS and set(rest[rest.index(END) :]) == {END}


def test_both_policies_agree_on_what_is_given(folder: Path) -> None:
    one, other = everything(pairs(folder)), everything(pairs(folder, end="fill"))
    assert one.given is not None and other.given is not None and one.padding is not None
    assert torch.equal(one.given, other.given) and torch.equal(one.x, other.x)
    assert torch.equal(other.free() & ~one.free(), one.padding)


def test_what_is_too_long_is_refused_dropped_or_cut(folder: Path) -> None:
    whole = [(len(prompt), len(prompt + response)) for prompt, response in PAIRS]
    length = 21
    longer = sum(size + 1 > length for _, size in whole)
    assert 0 < longer < 60
    with pytest.raises(
        ValueError, match=rf"and {longer} of 60 do not fit into rows of length 21; allowed are 21 tokens"
    ):
        everything(pairs(folder, length=length))
    dropped = pairs(folder, length=length, overflow="drop")
    assert dropped.counts == {"examples": 60 - longer, "cut": 0, "dropped": longer}
    (remark,) = dropped.remarks
    assert remark.startswith(f"{60 - longer:,} examples, 0 of them cut, {longer} more left out")
    assert pairs(folder, length=60).remarks == ()
    assert int(everything(dropped).free_counts().min()) >= 2
    cut = pairs(folder, length=length, overflow="cut")
    assert cut.counts == {"examples": 60, "cut": longer, "dropped": 0} and cut.num_examples == 60
    batch = everything(cut)
    assert int((~(batch.x == END).any(1)).sum()) == longer  # no end is taught where there was none
    narrow = pairs(folder, length=11, overflow="cut")
    assert narrow.counts["dropped"] == sum(prompt >= 11 for prompt, _ in whole) > 0
    assert int(everything(narrow).free_counts().min()) >= 1


def test_an_epoch_visits_every_pair_once_and_validation_is_the_rest(folder: Path) -> None:
    source = pairs(folder, validation_share=0.25)
    held_out = source.at_split("validation")
    assert (source.num_examples, held_out.num_examples) == (45, 15)
    for epoch in (0, 1):
        rows = source.examples(torch.arange(45) + 45 * epoch).x.tolist()
        seen = {source.words(row) for row in rows}
        assert seen == {prompt + response for prompt, response in PAIRS[:45]}
    assert [held_out.words(row) for row in held_out.examples(torch.arange(15)).x.tolist()] == [
        prompt + response for prompt, response in PAIRS[45:]
    ]
    apart = pairs(folder, validation_path=str(folder / "pairs.jsonl"))
    assert apart.num_examples == apart.at_split("test").num_examples == 60


def test_a_format_frames_prompts_in_training_and_in_requests(folder: Path) -> None:
    source = pairs(folder, prompt_format="Q: {prompt}\nA: ", length=40, begin=True)
    x, given = source.examples(torch.arange(1)).x[0], source.examples(torch.arange(1)).given
    assert given is not None and int(x[0]) == END and as_text(x[given[0]][1:]).startswith("Q: a b ")
    request = source.request(["a b 7 + 7?"], torch.arange(1), num_new_tokens=3)
    assert request.x[0].tolist() == [END, *b"Q: a b 7 + 7?\nA: ", 257, 257, 257]


def test_the_same_rows_from_the_cache(folder: Path) -> None:
    source = pairs(folder)
    other = dataclasses.replace(source, cache=str(folder / "cache"))
    assert torch.equal(everything(source).x, everything(other).x)
    assert len(list((folder / "cache").glob("*/tokens.bin"))) == 1


# --- chats --------------------------------------------------------------------------------------------------------


def chats(folder: Path) -> TextPairs:
    rows = [
        [{"role": "system", "content": "Short."}, {"role": "user", "content": p}, {"role": "assistant", "content": r}]
        for p, r in PAIRS[:9]
    ]
    texts.write_lines(folder / "chats.jsonl", [{"messages": row, "source": 1} for row in rows])
    tokenizer = HuggingFaceTokenizer(str(texts.write_byte_pairs(folder / "chat", chat=True)))
    return TextPairs(str(folder / "chats.jsonl"), tokenizer, 120, messages="messages", validation_share=0)


def test_the_last_turn_of_a_chat_is_the_response(folder: Path) -> None:
    from transformers import AutoTokenizer

    source = chats(folder)
    theirs = AutoTokenizer.from_pretrained(folder / "chat")
    batch = everything(source)
    assert batch.given is not None and batch.padding is not None
    for x, given, padding in zip(batch.x, batch.given, batch.padding, strict=True):
        row = theirs.decode(x[~padding])
        prompt, response = next((p, r) for p, r in PAIRS if f"user\n{p}<|im_end|>" in row)
        turns = [{"role": "system", "content": "Short."}, {"role": "user", "content": prompt}]
        assert x[given].tolist() == theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        whole = theirs.apply_chat_template([*turns, {"role": "assistant", "content": response}], tokenize=False)
        assert row == whole.removesuffix("\n")  # what the template writes, up to the end that is scored


def test_a_mask_never_stands_in_an_example(folder: Path) -> None:
    source = chats(folder)
    tokenizer = HuggingFaceTokenizer(source.codec.name, mask_token="<|im_start|>")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"chats.jsonl, line 1: the text holds the tokenizer's \[MASK\]"):
        everything(dataclasses.replace(source, tokenizer=tokenizer))


def test_a_request_is_a_chat_too(folder: Path) -> None:
    source = chats(folder)
    batch = source.request(["2 + 2?"], torch.arange(1), num_new_tokens=2)
    assert batch.given is not None
    assert batch.x[batch.given].tolist() == source.codec.chat([{"role": "user", "content": "2 + 2?"}])
    with pytest.raises(ValueError, match="holds free positions, which a chat template cannot"):
        source.request(["2 [MASK] 2?"], torch.arange(1))
    fields = {"messages": "", "chat": True, "tokenizer": source.codec}
    asked = dataclasses.replace(source, path=str(folder / "pairs.jsonl"), **fields).examples(torch.arange(1))
    assert asked.given is not None and source.codec.decode(asked.x[asked.given].tolist()).startswith("<|im_start|>user")


# --- a real file --------------------------------------------------------------------------------------------------


def test_gsm8k() -> None:
    file = Path(os.environ.get("ONPATH_DATA", "")) / "gsm8k_test.jsonl"
    if "ONPATH_DATA" not in os.environ or not file.is_file():
        pytest.skip("ONPATH_DATA names no folder with gsm8k_test.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    source = TextPairs(str(file), CODEC, 2048, "question", "answer", prompt_format="{prompt}\n", validation_share=0)
    assert source.num_examples == len(rows) == 1319
    batch = source.examples(torch.arange(200))
    known = {(row["question"] + "\n", row["answer"]) for row in rows}
    for x, given, free in zip(batch.x, batch.given, batch.free(), strict=True):  # type: ignore[arg-type]
        assert (as_text(x[given]), as_text(x[free][:-1])) in known


# --- what a network makes of it -----------------------------------------------------------------------------------


def test_padding_has_no_say_in_the_loss(folder: Path) -> None:
    """Not which tokens it holds, nor on which side it stands."""
    source = pairs(folder, length=40)
    torch.manual_seed(0)
    network = TokenTransformer(source.spec(), width=16, num_heads=2, depth=2)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    objective = ContinuousNELBO(Masking(LinearSchedule(), source.spec().mask_id))

    def loss(batch: Batch) -> float:
        with torch.no_grad():
            return float(objective(Nets(network), batch, Key(1), 0).mean)

    ids = torch.arange(12)
    right, left = source.examples(ids), dataclasses.replace(source, padding_side="left").examples(ids)
    assert right.padding is not None
    other = dataclasses.replace(right, x=right.x.masked_fill(right.padding, 7))
    assert loss(left) == pytest.approx(loss(right), rel=1e-6)
    assert loss(other) == loss(right)


# --- as prompts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"padding_side": "left"}, {"end": "fill"}, {"overflow": "cut", "length": 21}])
def test_a_prompt_tells_nothing_of_its_response(folder: Path, fields: dict[str, Any]) -> None:
    source, ids = pairs(folder, **fields), torch.arange(60)
    batch, told = source.prompts(ids), source.examples(ids)
    assert batch.padding is None and batch.given is not None and told.given is not None
    length, responses = batch.x.shape[1], source.columns(ids)["response"]
    for row, response in enumerate(responses):
        prompt, size = as_text(batch.x[row][batch.given[row]]), int(batch.given[row].sum())
        assert prompt == as_text(told.x[row][told.given[row]])
        assert batch.given[row].tolist() == [True] * size + [False] * (length - size)
        assert dict(PAIRS)[prompt][: length - size] == response
    assert bool((batch.x[~batch.given] == source.codec.mask_id).all())
    assert batch.free_counts().tolist() == (~batch.given).sum(1).tolist()
