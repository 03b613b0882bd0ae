"""Datasets: the same rows from every format, from memory and from the stream, laid down once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import texts
from onpath.data.hub_text import HubText
from onpath.data.pairs import TextPairs
from onpath.data.text import TextFile
from onpath.data.tokenizers import Bytes

CODEC = Bytes(end=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts as JSONL, parquet, and as `save_to_disk` writes one split and several."""
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    folder = tmp_path_factory.mktemp("datasets")
    texts.write_all(folder)
    whole = Dataset.from_list([{"text": text, "n": n} for n, text in enumerate(texts.documents())])
    whole.to_parquet(folder / "texts.parquet")
    (folder / "many").mkdir()
    whole.select(range(25)).to_parquet(folder / "many" / "0.parquet")
    whole.select(range(25, 40)).to_parquet(folder / "many" / "1.parquet")
    whole.save_to_disk(folder / "one")
    DatasetDict(train=whole.select(range(30)), held=whole.select(range(30, 40))).save_to_disk(folder / "several")
    return folder


def source(folder: Path, name: str, **fields: Any) -> HubText:
    settings = {"length": 24, "documents": True, "cache": str(folder / "cache"), "validation_share": 0, **fields}
    return HubText(str(folder / name), tokenizer=CODEC, **settings)


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.parquet", "many", "one"])
def test_every_format_gives_the_rows_of_the_text_file(folder: Path, name: str) -> None:
    plain = TextFile(str(folder / "texts.jsonl"), CODEC, length=24, documents=True, validation_share=0)
    found = source(folder, name)
    ids = torch.arange(80)
    one, other = plain.examples(ids), found.examples(ids)
    assert found.num_examples == plain.num_examples and torch.equal(one.x, other.x)
    assert one.documents is not None and other.documents is not None and torch.equal(one.documents, other.documents)


def test_splits_by_name_and_by_share(folder: Path) -> None:
    named = source(folder, "several", validation_split="held").at_split("validation")
    shared = source(folder, "one", validation_share=0.25).at_split("validation")
    assert named.words(named.tokens.tolist()) == "".join(texts.documents()[30:])
    assert "".join(texts.documents()).endswith(shared.words(shared.tokens.tolist()))


@pytest.mark.parametrize("limit", [{"max_documents": 10}, {"max_tokens": 700}])
def test_a_stream_is_laid_down_up_to_its_limit(folder: Path, limit: dict[str, int]) -> None:
    streamed, kept = source(folder, "texts.jsonl", streaming=True, **limit), source(folder, "texts.jsonl", **limit)
    ids = torch.arange(60)
    assert torch.equal(streamed.examples(ids).x, kept.examples(ids).x)
    total, documents = len(streamed.tokens), [len(text.encode()) + 1 for text in texts.documents()]
    sums = [sum(documents[:n]) for n in range(len(documents) + 1)]
    wanted = sums[10] if "max_documents" in limit else next(size for size in sums if size >= 700)
    assert total == wanted
    again = dataclasses.replace(streamed, length=24)  # another object, as after a resume
    assert torch.equal(again.examples(ids + 60).x, streamed.examples(ids + 60).x)


def test_the_cache_is_made_once_for_all_that_share_its_text(folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    for fields in ({}, {"length": 7}, {"seed": 5}, {"documents": False}, {"begin": True}):
        assert source(folder, "one", cache=cache, **fields).num_examples
    assert len(list(Path(cache).glob("*/manifest.json"))) == 1


def test_pairs_of_a_dataset(folder: Path) -> None:
    plain = TextPairs(str(folder / "pairs.jsonl"), CODEC, 32)
    found = TextPairs(f"hub:{folder / 'pairs.jsonl'}#train", CODEC, 32, cache=str(folder / "cache"))
    assert torch.equal(plain.examples(torch.arange(60)).x, found.examples(torch.arange(60)).x)
