"""Tokenizers against Python's own UTF-8, the tokenizers library and transformers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import texts
from onpath.data.huggingface import HuggingFaceTokenizer
from onpath.data.tokenizers import END_SIGN, MASK_SIGN, Bytes, Characters, Tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
IDS = st.lists(st.integers(0, 257), max_size=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    texts.write_byte_pairs(folder / "bpe")
    texts.write_byte_pairs(folder / "chat", chat=True)
    texts.write_word_pieces(folder / "wordpiece")
    return folder


@given(TEXT)
def test_characters_and_bytes_read_what_they_wrote(text: str) -> None:
    for tokenizer in (Characters("".join(sorted(set(text))), end=True), Bytes()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == "".join(tokenizer.pieces(ids)) == text
        assert len(tokenizer.pieces(ids)) == len(ids)


@given(TEXT)
def test_bytes_are_those_of_utf8(text: str) -> None:
    assert Bytes().encode(text) == list(text.encode("utf-8"))


@given(st.binary(max_size=40))
def test_broken_bytes_are_shown_as_python_replaces_them(data: bytes) -> None:
    assert Bytes().decode(list(data)) == data.decode("utf-8", errors="replace")


@given(IDS)
def test_every_id_of_bytes_has_a_piece_and_signs_interrupt_characters(ids: list[int]) -> None:
    tokenizer = Bytes(end=True)
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    parts = "".join(map(chr, ids)).replace(chr(256), " Ā ").replace(chr(257), " ā ").split(" ")
    signs = {"Ā": END_SIGN, "ā": MASK_SIGN}
    expected = [signs.get(part) or bytes(map(ord, part)).decode("utf-8", errors="replace") for part in parts]
    if 32 not in ids:  # the blank by which this test takes them apart
        assert "".join(pieces) == "".join(expected)


def test_the_piece_of_a_character_of_several_bytes_stands_at_its_last() -> None:
    assert Bytes().pieces(Bytes().encode("a漢b")) == ["a", "", "", "漢", "b"]


def test_ends_are_words_and_masks_are_not() -> None:
    for tokenizer in (Characters("abc", end=True), Bytes(end=True)):
        assert tokenizer.end_id == tokenizer.num_words - 1 == tokenizer.mask_id - 1
        assert tokenizer.begin_id == tokenizer.pad_id == tokenizer.end_id
        assert tokenizer.decode([1, 2, tokenizer.end_id]) == tokenizer.decode([1, 2])
    assert Characters("abc").end_id is None and Bytes().begin_id is None and Bytes().pad_id == 0


def test_a_character_that_is_unknown_or_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"holds 'x', which is not among the 2 of the alphabet \('ab'\); leave it out"):
        Characters("ab").encode("abx")
    with pytest.raises(ValueError, match=r"holds \['a'\] twice"):
        Characters("aba")


# --- Hugging Face -------------------------------------------------------------------------------------------------


def test_ids_are_those_of_transformers_and_of_the_tokenizers_library(folder: Path) -> None:
    from tokenizers import Tokenizer as Library
    from transformers import AutoTokenizer

    for name in ("bpe", "wordpiece"):
        ours = HuggingFaceTokenizer(str(folder / name))
        theirs = AutoTokenizer.from_pretrained(folder / name)
        library = Library.from_file(str(folder / name / "tokenizer.json"))
        for text in texts.documents(20):
            ids = ours.encode(text)
            assert ids == theirs(text, add_special_tokens=False)["input_ids"]
            assert ids == library.encode(text, add_special_tokens=False).ids
            assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
        assert ours.num_words == len(theirs) == library.get_vocab_size()
        assert ours.encode_many(texts.documents(9)) == [ours.encode(text) for text in texts.documents(9)]
        assert ours.encode_many([]) == []


@settings(max_examples=60, deadline=None)
@given(text=TEXT)
def test_byte_pairs_write_and_read_any_text(folder: Path, text: str) -> None:
    tokenizer = HuggingFaceTokenizer(str(folder / "bpe"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == "".join(tokenizer.pieces(ids)) == text
    assert tokenizer.mask_id not in ids and tokenizer.end_id not in ids


@pytest.mark.parametrize("name", ["bpe", "wordpiece"])
def test_masks_stand_where_tokens_are_hidden(folder: Path, name: str) -> None:
    tokenizer = HuggingFaceTokenizer(str(folder / name))
    text = "alpha beta gamma"
    ids = tokenizer.encode(text)
    for place in range(len(ids)):
        shown = tokenizer.pieces([tokenizer.mask_id if n == place else i for n, i in enumerate(ids)])
        assert shown[place] == MASK_SIGN and len(shown) == len(ids)
        assert shown[:place] == tokenizer.pieces(ids)[:place]
        if place:  # a first word has no blank before it
            assert shown[place + 1 :] == tokenizer.pieces(ids)[place + 1 :]


def test_special_tokens_by_their_roles(folder: Path) -> None:
    from transformers import AutoTokenizer

    bpe, chat, pieces = (HuggingFaceTokenizer(str(folder / name)) for name in ("bpe", "chat", "wordpiece"))
    ids = AutoTokenizer.from_pretrained(folder / "chat").convert_tokens_to_ids
    assert (bpe.end_id, bpe.begin_id, bpe.pad_id, bpe.mask_id) == (*[ids("<|endoftext|>")] * 3, bpe.num_words)
    assert chat.end_id == ids("<|im_end|>")
    chosen = dataclasses.replace(chat, mask_token="<|im_start|>", end_token="<|endoftext|>")
    assert (chosen.mask_id, chosen.end_id) == (ids("<|im_start|>"), ids("<|endoftext|>"))
    ids = AutoTokenizer.from_pretrained(folder / "wordpiece").convert_tokens_to_ids
    roles = pieces.mask_id, pieces.end_id, pieces.begin_id, pieces.pad_id
    assert roles == tuple(map(ids, ("[MASK]", "[SEP]", "[CLS]", "[PAD]"))) and pieces.mask_id < pieces.num_words


def test_a_tokenizer_json_alone_is_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    for name in ("bpe", "wordpiece"):
        whole, alone = HuggingFaceTokenizer(str(folder / name)), tmp_path / "tokenizer.json"
        alone.write_bytes((folder / name / "tokenizer.json").read_bytes())
        found = HuggingFaceTokenizer(str(alone))
        assert found.encode("zeta 漢字") == whole.encode("zeta 漢字")
        assert (found.mask_id, found.end_id, found.num_words) == (whole.mask_id, whole.end_id, whole.num_words)


def test_what_looks_like_a_special_token_in_a_text_is_text(folder: Path) -> None:
    for name, text in (("bpe", "a<|endoftext|>b"), ("chat", "<|im_end|>"), ("wordpiece", "[MASK]")):
        tokenizer = HuggingFaceTokenizer(str(folder / name))
        assert not {tokenizer.mask_id, tokenizer.end_id} & set(tokenizer.encode(text))


def test_a_chat_is_framed_by_the_template(folder: Path) -> None:
    tokenizer = HuggingFaceTokenizer(str(folder / "chat"))
    turns = [{"role": "user", "content": "2 + 2?"}]
    shown = tokenizer._text(tokenizer.chat(turns))
    assert shown == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer._text(tokenizer.chat(turns, add_generation_prompt=False)) == shown[: shown.rindex("<|im_start|>")]
    for without in (HuggingFaceTokenizer(str(folder / "bpe")), Bytes()):
        with pytest.raises(ValueError, match="has no chat template"):
            without.chat(turns)


def test_an_identity_is_of_the_content_not_of_the_name(folder: Path, tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return HuggingFaceTokenizer(str(path)).identity

    copy = texts.write_byte_pairs(tmp_path / "copy")
    assert of(copy) == of(folder / "bpe") != of(folder / "wordpiece")
    assert dataclasses.replace(HuggingFaceTokenizer(str(copy)), end_token="<|im_end|>").identity != of(copy)
    plain: list[Tokenizer] = [Characters("ab"), Characters("ab", end=True), Characters("ba"), Bytes(), Bytes(end=True)]
    assert len({tokenizer.identity for tokenizer in plain}) == 5
