"""Text files as rows: every token once per epoch, documents apart, the same rows from file, cache and resume."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import texts
from onpath.data.source import step_ids
from onpath.data.text import TextFile
from onpath.data.tokenizers import Bytes, Characters
from onpath.models.transformer import TokenTransformer
from onpath.types import Batch
from statistical import uniform_p

ENDED = Bytes(end=True)
END = 256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts.write_all(tmp_path)
    return tmp_path


def packed(folder: Path, **fields: Any) -> TextFile:
    return TextFile(
        str(folder / "texts.jsonl"), ENDED, documents=True, **{"length": 32, "validation_share": 0, **fields}
    )


def real(batch: Batch) -> list[list[int]]:
    """Tokens of each row without its padding."""
    assert batch.padding is not None
    return [row[~hidden].tolist() for row, hidden in zip(batch.x, batch.padding, strict=True)]


def test_windows_are_pieces_of_the_text(folder: Path) -> None:
    text = (folder / "text.txt").read_bytes()
    source = TextFile(str(folder / "text.txt"), Bytes(), length=20, validation_share=0.25)
    cut = round(len(text) * 0.75)
    for row in source.examples(torch.arange(200)).x.tolist():
        assert bytes(row) in text[:cut]
    held_out = source.at_split("validation")
    size = held_out.num_examples
    rows = held_out.examples(torch.arange(size)).x
    assert bytes(rows.flatten().tolist()) == text[cut : cut + 20 * size] and len(text) - cut < 20 * (size + 1)
    assert torch.equal(held_out.at_split("test").examples(torch.arange(size)).x, rows)
    assert torch.equal(held_out.examples(torch.arange(size) + size).x, rows)
    assert bytes(source.tokens.tolist()) == text[:cut] and bytes(held_out.tokens.tolist()) == text[cut:]


def test_windows_begin_everywhere_equally_often(tmp_path: Path) -> None:
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    (tmp_path / "a.txt").write_text(letters, encoding="utf-8")
    source = TextFile(str(tmp_path / "a.txt"), length=11, validation_share=0)  # ids are places, for letters rise
    assert uniform_p(source.examples(torch.arange(5000)).x[:, 0], 50) > 0.001


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("length", [5, 32, 4000])
def test_an_epoch_of_packed_rows_holds_every_token_of_every_document_once(
    folder: Path, length: int, begin: bool
) -> None:
    source = packed(folder, length=length, begin=begin)
    expected = [i for text in texts.documents() for i in [*text.encode(), END]]
    size = source.num_examples
    assert size == -(-len(expected) // (length - begin))
    for epoch in (0, 3):
        rows = real(source.examples(torch.arange(size) + epoch * size))
        assert Counter(i for row in rows for i in row[begin:]) == Counter(expected)
    in_order = packed(folder, length=length, begin=begin, validation_path=source.path).at_split("validation")
    assert [i for row in real(in_order.examples(torch.arange(size))) for i in row[begin:]] == expected


def test_documents_change_exactly_behind_their_ends(folder: Path) -> None:
    source = packed(folder)
    batch = source.examples(torch.arange(source.num_examples))
    assert batch.documents is not None and batch.padding is not None
    ends = (batch.x == END) & ~batch.padding
    expected = torch.cat([torch.zeros(len(ends), 1, dtype=torch.int64), ends[:, :-1].long().cumsum(1)], 1)
    assert torch.equal(batch.documents[~batch.padding], expected[~batch.padding])
    assert int(batch.padding.sum()) == source.num_examples * 32 - sum(len(t.encode()) + 1 for t in texts.documents())
    assert bool((batch.x[batch.padding] == ENDED.pad_id).all())
    assert torch.equal(batch.free(), ~batch.padding)


def test_a_document_in_a_row_is_read_as_it_is_alone(folder: Path) -> None:
    source = packed(folder, length=80)
    torch.manual_seed(0)
    network = TokenTransformer(source.spec(), width=16, num_heads=2, depth=2)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    batch, t = source.examples(torch.arange(source.num_examples)), torch.zeros(1)
    assert batch.documents is not None and int(batch.documents.max()) >= 2
    row = int(batch.documents[:, -1].argmax())
    with torch.no_grad():
        whole = network(batch.x[[row]], t, network.encode(**batch.rows(torch.tensor([row])).conditions()))[0]
        for number in batch.documents[row].unique():
            inside = batch.documents[row] == number
            alone = network(batch.x[row][inside][None], t, network.encode())[0]
            torch.testing.assert_close(whole[inside], alone, rtol=1e-4, atol=1e-4)


def test_a_begin_token_is_given_and_never_scored(folder: Path) -> None:
    for source in (packed(folder, begin=True), TextFile(str(folder / "text.txt"), ENDED, length=20, begin=True)):
        batch, plain = source.examples(torch.arange(30)), dataclasses.replace(source, begin=False)
        assert batch.given is not None and batch.x.shape == (30, source.length)
        assert bool((batch.x[:, 0] == ENDED.begin_id).all()) and batch.given.nonzero()[:, 1].unique().tolist() == [0]
        assert source.framed("ab") == [END, 97, 98] and plain.framed("ab") == [97, 98]


def test_documents_are_held_out_whole(folder: Path) -> None:
    whole = packed(folder, validation_share=0.2, length=8)
    parts = {split: bytes(i % 256 for i in whole.at_split(split).tokens.tolist()) for split in ("train", "validation")}
    joined = "".join(text + "\0" for text in texts.documents()).encode()
    assert parts["train"] + parts["validation"] == joined and parts["train"].endswith(b"\0")
    assert abs(len(parts["validation"]) / len(joined) - 0.2) < 0.05


def test_files_of_a_folder_packed_and_plain(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "many"
    (there / "deep").mkdir(parents=True)
    (there / "a.txt").write_text("first", encoding="utf-8")
    (there / "b.txt.gz").write_bytes(gzip.compress(b"zweite"))
    (there / "deep" / "c.jsonl").write_text('{"body": "third"}\n{"body": ""}\n{"body": "fourth"}', encoding="utf-8")
    (there / "readme.pdf").write_bytes(b"%PDF")
    source = TextFile(str(there), ENDED, length=4, column="body", validation_share=0)
    assert bytes(i % 256 for i in source.tokens.tolist()) == b"first\0zweite\0third\0fourth\0"


def test_a_byte_order_mark_and_line_ends_of_windows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo".encode())
    source = TextFile(str(tmp_path / "a.txt"), Bytes(), length=2, validation_share=0)
    assert bytes(source.tokens.tolist()) == b"one\r\ntwo"


def test_the_same_rows_from_memory_and_from_the_cache(folder: Path) -> None:
    for source in (packed(folder), TextFile(str(folder / "text.txt"), length=20)):
        for split in ("train", "validation") if source.validation_share else ("train",):
            one = source.at_split(split)
            other = dataclasses.replace(one, cache=str(folder / "cache"))
            for name in ("x", "padding", "documents"):
                left, right = (getattr(part.examples(torch.arange(50)), name) for part in (one, other))
                assert (left is None and right is None) or torch.equal(left, right)
    assert len(list((folder / "cache").glob("*/manifest.json"))) == 2


def test_a_resumed_run_reads_what_it_would_have_read(folder: Path) -> None:
    for make in (packed, lambda folder: TextFile(str(folder / "text.txt"), length=20)):
        first, again = make(folder), make(folder)
        whole = torch.cat([first.examples(step_ids(step, 8)).x for step in range(6)])
        parts = [again.examples(step_ids(step, 8, part, 2)).x for step in range(3, 6) for part in range(2)]
        assert torch.equal(torch.cat(parts), whole[24:])


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("aaaa", encoding="utf-8")
    for content in ("aaaa", "abab", "bbbbb"):
        file.write_text(content, encoding="utf-8")
        os.utime(file, ns=(0, len(content) * 10**9 + ord(content[1])))
        source = TextFile(str(file), length=2, validation_share=0)
        assert source.words(source.tokens.tolist()) == content and source.codec.num_words == len(set(content))


def test_the_alphabet_is_settled_by_the_text_once(folder: Path) -> None:
    source = TextFile(
        str(folder / "text.txt"), Characters(end=True), validation_path=str(folder / "pairs.jsonl"), column="prompt"
    )
    letters = set((folder / "text.txt").read_text(encoding="utf-8")) | set("ab 0123456789+?")
    assert source.settled() == {"tokenizer": {"alphabet": "".join(sorted(letters))}}
    settled = dataclasses.replace(source, tokenizer=source.codec, path="gone.txt", validation_path=None)
    assert settled.spec() == source.spec() and settled.codec == source.codec
    assert settled.words(settled.request(["ab"], torch.arange(1), 4).x[0].tolist()) == "ab▒▒"
    assert TextFile(str(folder / "text.txt"), Bytes()).settled() == {}


def test_tiny_shakespeare_is_the_usual_one() -> None:
    source = TextFile("onpath:tinyshakespeare.txt.gz")
    assert (len(source.tokens), len(source.at_split("validation").tokens)) == (1_003_855, 111_539)
    assert source.codec.num_words == 65 and source.words(source.tokens[:14].tolist()) == "First Citizen:"
    folder = os.environ.get("ONPATH_DATA")
    if folder and (Path(folder) / "tinyshakespeare.txt").is_file():
        other = TextFile(str(Path(folder) / "tinyshakespeare.txt"))
        assert torch.equal(other.tokens, source.tokens)
