"""Prompts: given as they stand in the file, free positions behind them, their columns beside them, in any batch."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import texts
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.data.prompt_sets import Prompts
from onpath.data.tokenizers import Bytes, Characters
from onpath.types import Batch

CODEC = Bytes(end=True)
END, MASK = 256, 257
ROWS: list[dict[str, Any]] = [
    {
        "question": f"Ada buys {n} pens{' and then some' * (n % 3)}. How many?",
        "answer": f"She buys {n}.\n#### {n}",
        "number": n,
        "share": n / 4,
        "steps": [n, n + 1],
        **({"source": "books"} if n % 2 else {}),
    }
    for n in range(40)
]
ROOM = 80 - 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return texts.write_lines(tmp_path / "asked.jsonl", ROWS)


def prompts(file: Path | str, **fields: Any) -> Prompts:
    given = {"length": 80, "max_completion_length": 16, "prompt": "question", "validation_share": 0.0}
    return Prompts(str(file), CODEC, **{**given, **fields})


def as_text(ids: torch.Tensor) -> str:
    return bytes(ids.tolist()).decode()


def asked(batch: Batch) -> list[str]:
    assert batch.given is not None
    return [as_text(x[given]) for x, given in zip(batch.x, batch.given, strict=True)]


# --- rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_free_positions_and_padding(file: Path, side: str) -> None:
    source = prompts(file, padding_side=side)
    batch = source.prompts(torch.arange(40))
    assert batch.given is not None and batch.padding is not None and batch.x.shape == (40, 80)
    assert batch.free_counts().tolist() == batch.free().sum(1).tolist() == [16] * 40
    assert bool((batch.x[batch.free()] == MASK).all()) and bool((batch.x[batch.padding] == CODEC.pad_id).all())
    assert sorted(asked(batch)) == sorted(row["question"] for row in ROWS)
    for x, padding in zip(batch.x, batch.padding, strict=True):
        row = x[~padding]
        assert bool((row[:-16] < 256).all()) and bool((row[-16:] == MASK).all())  # the prompt first, in one piece
        assert bool((padding[: 80 - len(row)] if side == "left" else padding[len(row) :]).all())
    assert source.spec().mask_id == MASK and source.end_id == END and not source.has_answers


def test_a_row_is_what_it_is_alone(file: Path) -> None:
    source, ids = prompts(file), torch.tensor([3, 90, 0, 3])
    whole, beside = source.prompts(ids), source.columns(ids)
    for place, example in enumerate(ids):
        alone = source.prompts(example[None])
        for name in ("x", "given", "padding", "num_free"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[place])
        assert all(values[0] == beside[name][place] for name, values in source.columns(example[None]).items())


def test_columns_stand_beside_their_prompt(file: Path) -> None:
    source = prompts(file, validation_share=0.25)
    for part, ids in ((source, torch.arange(60)), (source.at_split("validation"), torch.arange(10))):
        found = part.columns(ids)
        assert list(found) == ["answer", "number", "share", "steps", "source"]
        for place, text in enumerate(asked(part.prompts(ids))):
            (row,) = (row for row in ROWS if row["question"] == text)
            assert {name: values[place] for name, values in found.items()} == {
                "source": None,
                **{name: value for name, value in row.items() if name != "question"},
            }


def test_an_epoch_asks_every_prompt_once_in_an_order_of_its_own(file: Path) -> None:
    source = prompts(file, validation_share=0.25)
    held_out = source.at_split("test")
    assert (source.num_examples, held_out.num_examples) == (30, 10)
    epochs = [source.columns(torch.arange(30) + 30 * epoch)["number"] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(30)) and epochs[0] != epochs[1] != list(range(30))
    assert held_out.columns(torch.arange(10))["number"] == list(range(30, 40))
    assert dataclasses.replace(source, seed=1).columns(torch.arange(30))["number"] != epochs[0]
    apart = prompts(file, validation_path=str(file))
    assert apart.num_examples == apart.at_split("validation").num_examples == 40


def test_what_is_too_long_is_refused_or_dropped(file: Path) -> None:
    sizes = [len(row["question"]) for row in ROWS]
    longer = sum(size > 40 for size in sizes)
    assert 0 < longer < 40
    with pytest.raises(ValueError, match=rf"asked.jsonl: prompt \d+ has {max(sizes)} tokens, and {longer} of 40"):
        prompts(file, length=56).prompts(torch.arange(1))
    source = prompts(file, length=56, overflow="drop")
    assert source.num_examples == 40 - longer
    assert source.remarks == (f"{40 - longer} prompts, {longer} more left out: longer than 40 tokens",)
    assert prompts(file).remarks == () and max(map(len, asked(source.prompts(torch.arange(40))))) <= 40
    ids = torch.arange(40)
    for text, number in zip(asked(source.prompts(ids)), source.columns(ids)["number"], strict=True):
        assert f"buys {number} pens" in text
    with pytest.raises(ValueError, match="40 prompts, of which none is left with 4 tokens"):
        prompts(file, length=20, overflow="drop").prompts(torch.arange(1))


# --- where rows come from -----------------------------------------------------------------------------------------


def test_the_same_from_a_file_a_packed_one_and_a_dataset(file: Path, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    with gzip.open(tmp_path / "asked.jsonl.gz", "wt", encoding="utf-8") as packed:
        packed.write(file.read_text(encoding="utf-8"))
    rows = [{"source": None, **row} for row in ROWS]  # datasets takes the columns of the first row
    made = DatasetDict([("train", Dataset.from_list(rows)), ("test", Dataset.from_list(rows[:7]))])
    made.save_to_disk(str(tmp_path / "saved"))
    ids = torch.arange(50)
    one = prompts(file)
    for path in (f"{file}.gz", f"hub:{tmp_path / 'saved'}#train"):
        other = prompts(path)
        assert torch.equal(other.prompts(ids).x, one.prompts(ids).x) and other.columns(ids) == one.columns(ids)
    apart = prompts(f"hub:{tmp_path / 'saved'}#train", validation_path=f"hub:{tmp_path / 'saved'}#test")
    assert apart.at_split("validation").columns(torch.arange(7))["number"] == list(range(7))


def test_gsm8k() -> None:
    place = Path(os.environ.get("ONPATH_DATA", "")) / "gsm8k_test.jsonl"
    if "ONPATH_DATA" not in os.environ or not place.is_file():
        pytest.skip("ONPATH_DATA names no folder with gsm8k_test.jsonl")
    rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    source = prompts(place, length=1100)
    assert source.num_examples == len(rows) == 1319
    ids = torch.arange(200)
    known = {(row["question"], row["answer"]) for row in rows}
    assert set(zip(asked(source.prompts(ids)), source.columns(ids)["answer"], strict=True)) < known


# --- how they are asked -------------------------------------------------------------------------------------------


def test_a_format_and_a_begin_token_stand_in_training_and_in_requests(file: Path) -> None:
    source = prompts(file, prompt_format="Q: {prompt}\nA: ", begin=True, length=100)
    batch = source.prompts(torch.arange(1))
    assert batch.given is not None
    x = batch.x[0][batch.given[0]]
    assert int(x[0]) == END and as_text(x[1:]).startswith("Q: Ada") and as_text(x[1:]).endswith("How many?\nA: ")
    request = source.request(["2?"], torch.arange(1))
    assert request.x[0].tolist() == [END, *b"Q: 2?\nA: ", *[MASK] * 16]
    assert source.request(["2?", "22?"], torch.arange(2), 30).free_counts().tolist() == [30 - 10, 30 - 11]
    assert source.request(["2 [MASK:3]?"], torch.arange(1)).free_counts().tolist() == [3]


def test_an_alphabet_holds_what_is_asked_and_what_may_be_answered(file: Path) -> None:
    source = Prompts(str(file), length=80, max_completion_length=16, prompt="question")
    assert isinstance(source.codec, Characters) and {*"Ada#\n.", *"books"} <= {*source.codec.alphabet}
    assert source.settled() == {"tokenizer": {"alphabet": source.codec.alphabet}}
    (text,) = (source.words(row[row != source.end_id].tolist()) for row in source.prompts(torch.arange(1)).x)
    assert text.startswith("Ada buys") and text.endswith("How many?" + "▒" * 16)


def chats(folder: Path, **fields: Any) -> Prompts:
    turns = [[{"role": "user", "content": row["question"]}] for row in ROWS]
    texts.write_lines(folder / "chats.jsonl", [{"prompt": t, "number": n} for n, t in enumerate(turns)])
    tokenizer = HuggingFaceTokenizer(str(texts.write_byte_pairs(folder / "chat", chat=True)))
    given = {"length": 200, "max_completion_length": 16, "chat": True, "validation_share": 0.0}
    return Prompts(str(folder / "chats.jsonl"), tokenizer, **{**given, **fields})


def test_a_conversation_is_written_as_its_model_reads_it(file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = chats(tmp_path, system="Short.")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "chat")
    batch, numbers = source.prompts(torch.arange(40)), source.columns(torch.arange(40))["number"]
    assert batch.given is not None
    for x, given, number in zip(batch.x, batch.given, numbers, strict=True):
        turns = [{"role": "system", "content": "Short."}, {"role": "user", "content": ROWS[number]["question"]}]
        expected = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert x[given].tolist() == expected
    # the same from a column of text, of which a format may make the turn of the user
    plain = dataclasses.replace(source, path=str(file), prompt="question")
    assert torch.equal(plain.prompts(torch.arange(40)).x, batch.x)
    told = dataclasses.replace(plain, prompt_format="{prompt} Box it.")
    request = told.request(["2?"], torch.arange(1))
    assert "user\n2? Box it.<|im_end|>" in theirs.decode(request.x[0])
    assert "How many? Box it.<|im_end|>" in theirs.decode(told.prompts(torch.arange(1)).x[0])


# --- what is refused ----------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "2?"}


@pytest.mark.parametrize(
    ("rows", "fields", "said"),
    [
        ([{"question": "a"}, {"quest": "b"}], {}, r"line 2: the column 'question' is missing; .*did you mean 'quest'"),
        ([{"question": 3}], {}, r"line 1: 'question' is 3, int; text is needed"),
        ([{"question": " "}], {}, r"line 1: the prompt is empty"),
        ([{"question": "a", "canvas": 1}], {}, r"line 1: there is a column 'canvas'.*rename it, .*'canvas_given'"),
        ([{"question": "é"}], {"tokenizer": Characters("a", end=True)}, r"line 1: characters: the text holds 'é'"),
        ([{"question": [USER]}], {}, r"line 1: 'question' is a conversation, but chat is false; set data.chat=true"),
        ([{"question": []}], {"chat": True}, r"line 1: 'question' is \[\]; a list of one or more"),
        ([{"question": [{"role": "user"}]}], {"chat": True}, r"line 1: the column 'content' is missing"),
        ([{"question": [USER, {"role": "assistant", "content": "4"}]}], {"chat": True}, r"ends with a turn by 'assist"),
        ([{"question": [{**USER, "role": "system"}]}], {"chat": True, "system": "s"}, r"leave data.system out"),
        ([{"question": [USER]}], {"chat": True, "prompt_format": "{prompt}!"}, r"leave prompt_format out"),
        ([{"question": "a"}], {"chat": True}, r"line 1: data.tokenizer: Bytes has no chat template"),
        ([], {}, r"asked.jsonl: holds no prompt"),
        ([{"question": "a"}], {"tokenizer": Bytes()}, r"prompts need an end token"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: list[Any], fields: dict[str, Any], said: str) -> None:
    source = dataclasses.replace(prompts(texts.write_lines(tmp_path / "asked.jsonl", rows)), **fields)
    with pytest.raises(ValueError, match=said):
        source.prompts(torch.arange(1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_completion_length": 0}, "max_completion_length is 0"),
        ({"length": 16}, r"length is 16, but 16 positions of it are free .*allowed are 17 or more"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"prompt_format": "Q"}, r"\{prompt\} must stand in it"),
        ({"system": "Short."}, r"system is 'Short.', but chat is false.*set chat: true"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prompts("asked.jsonl", **fields)


def test_a_place_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        prompts(tmp_path / "nothing.jsonl").prompts(torch.arange(1))
    with pytest.raises(ValueError, match="only a dataset"):
        prompts(texts.write_lines(tmp_path / "asked.jsonl", ROWS), subset="main").prompts(torch.arange(1))
