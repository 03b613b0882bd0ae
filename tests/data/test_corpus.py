"""The cache of tokenised text: the same tokens as in memory, written once, whole or not there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import texts
from onpath.data import corpus as corpora
from onpath.data import text_files
from onpath.data.cache import cache_folder
from onpath.data.corpus import Corpus, Documents, cached, collected, tokenised
from onpath.data.text_files import place_of
from onpath.data.tokenizers import Bytes, Characters

CODEC = Bytes(end=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts.write_all(tmp_path)
    return tmp_path


def laid_down(folder: Path, path: str = "texts.jsonl", seed: str = "a") -> Corpus:
    place = place_of(str(folder / path))
    return cached(folder / "cache", {"of": seed}, lambda: tokenised(place.passages(), CODEC), CODEC.num_words)


def same(one: Corpus, other: Corpus) -> bool:
    return np.array_equal(one.tokens, other.tokens) and np.array_equal(one.offsets, other.offsets)


def test_documents_stand_one_after_the_other_each_with_its_end(folder: Path) -> None:
    whole = collected(tokenised(place_of(str(folder / "texts.jsonl")).passages(), CODEC), CODEC.num_words)
    expected = [[*text.encode(), CODEC.end_id] for text in texts.documents()]
    assert whole.num_documents == len(expected)
    for number, ids in enumerate(expected):
        assert whole.tokens[whole.offsets[number] : whole.offsets[number + 1]].tolist() == ids


def test_the_cache_holds_what_memory_holds(folder: Path) -> None:
    for path in ("texts.jsonl", "text.txt"):
        place = place_of(str(folder / path))
        memory, disk = collected(tokenised(place.passages(), CODEC), CODEC.num_words), laid_down(folder, path, path)
        assert same(memory, disk) and isinstance(disk.tokens, np.memmap) and disk.tokens.dtype == np.uint16
        places = torch.tensor([[0, 5], [3, len(memory.tokens) - 1]])
        assert torch.equal(memory.take(places), disk.take(places))


def test_numbers_are_as_wide_as_the_vocabulary_needs() -> None:
    ids: Documents = [([2**16 - 1, 3], True)]
    assert collected(ids, 2**16).tokens.dtype == np.uint16
    wide = collected([([2**17, 3], True)], 2**17 + 1)
    assert wide.tokens.dtype == np.uint32 and wide.tokens.tolist() == [2**17, 3]


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_pieces_do_not_show(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text read and tokenised in pieces is the text read at once."""
    monkeypatch.setattr(text_files, "_PIECE", size)
    monkeypatch.setattr(corpora, "_TOGETHER", size)
    whole = (folder / "text.txt").read_text(encoding="utf-8")
    alphabet = Characters("".join(sorted(set(whole))))
    for codec in (alphabet, Bytes()):
        found = collected(tokenised(place_of(str(folder / "text.txt")).passages(), codec), codec.num_words)
        assert found.tokens.tolist() == codec.encode(whole) and found.num_documents == 1
    apart = collected(tokenised(place_of(str(folder / "text.txt"), separator="\n").passages(), CODEC), 257)
    assert same(apart, collected(tokenised(place_of(str(folder / "texts.jsonl")).passages(), CODEC), 257))


def test_a_cache_is_used_again_and_one_of_something_else_is_not(folder: Path) -> None:
    first = laid_down(folder)
    (manifest,) = (folder / "cache").glob("*/manifest.json")
    written = manifest.stat().st_mtime_ns
    assert same(laid_down(folder), first) and manifest.stat().st_mtime_ns == written
    assert len(laid_down(folder, "text.txt", "b").offsets) == 2  # another source, another place
    told = json.loads(manifest.read_text())
    assert told["made_from"] == {"of": "a"} and told["num_tokens"] == len(first.tokens)
    manifest.write_text(json.dumps({**told, "made_from": {"of": "c"}}))
    assert same(laid_down(folder), first)
    assert json.loads(manifest.read_text())["made_from"] == {"of": "a"}


@pytest.mark.parametrize("file", ["tokens.bin", "offsets.npy", "manifest.json"])
@pytest.mark.parametrize("harm", ["gone", "half", "empty"])
def test_a_torn_cache_is_written_anew(folder: Path, file: str, harm: str) -> None:
    first = laid_down(folder)
    expected = Corpus(np.array(first.tokens), np.array(first.offsets))
    (place,) = (folder / "cache").glob(f"*/{file}")
    data = place.read_bytes()
    place.unlink() if harm == "gone" else place.write_bytes(data[: len(data) // 2] if harm == "half" else b"")
    assert same(laid_down(folder), expected)


def test_what_fails_half_way_leaves_nothing(folder: Path) -> None:
    def failing() -> Iterator[tuple[list[int], bool]]:
        yield [1, 2], True
        raise ValueError("line 2 is bad")

    with pytest.raises(ValueError, match="line 2 is bad"):
        cached(folder / "cache", {}, failing, 300)
    assert not [path for path in (folder / "cache").iterdir() if path.is_dir()]


def test_of_several_at_once_one_writes_and_the_others_wait(folder: Path) -> None:
    written: list[int] = []

    def slow() -> Iterator[tuple[list[int], bool]]:
        written.append(threading.get_ident())
        for _ in range(3):
            time.sleep(0.02)
            yield [1, 2, 3], True

    found: list[Corpus] = []
    workers = [threading.Thread(target=lambda: found.append(cached(folder / "cache", {}, slow, 300))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(written) == 1 and [corpus.tokens.tolist() for corpus in found] == [[1, 2, 3] * 3] * 4


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONPATH_CACHE", raising=False)
    assert cache_folder() == Path("~/.cache/onpath").expanduser()
    monkeypatch.setenv("ONPATH_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere") and cache_folder("here") == Path("here")
