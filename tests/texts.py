"""Texts, pairs and a tokenizer, made where a test needs files of them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

WORDS = ("alpha", "beta", "gamma", "delta", "été", "漢字", "naïve", "zeta", "…")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

HEADERS = (
    "{% for message in messages %}{{ bos_token if loop.first else '' }}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def documents(count: int = 40) -> list[str]:
    """Different texts of 1 to 30 words in several scripts."""
    return [" ".join(WORDS[(n * n + 3 * i + n // 7) % len(WORDS)] for i in range(1 + n * 7 % 30)) for n in range(count)]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_all(folder: Path) -> None:
    """text.txt, texts.jsonl, pairs.jsonl and prompts.jsonl."""
    texts = documents()
    (folder / "text.txt").write_text("\n".join(texts), encoding="utf-8")
    write_lines(folder / "texts.jsonl", [{"text": text} for text in texts])
    pairs = [{"prompt": f"a b {n} + {n}?", "response": f"It is {2 * n}."} for n in range(60)]
    write_lines(folder / "pairs.jsonl", pairs)
    prompts = [{"prompt": f"a b {n} + {n}?", "answer": 2 * n, "kind": "sum"} for n in range(60)]
    write_lines(folder / "prompts.jsonl", prompts)


@lru_cache(maxsize=1)
def _byte_pairs() -> str:
    """A byte-level BPE tokenizer.json, trained by the tokenizers library on the texts above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(documents(), trainer)
    return made.to_str()


@lru_cache(maxsize=1)
def _word_pieces() -> str:
    """A BERT-like tokenizer.json: word pieces, [CLS], [SEP], [MASK]."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        documents(), trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    )
    return made.to_str()


def write_byte_pairs(folder: Path, chat: bool = False) -> Path:
    """A folder as transformers saves a GPT- or Qwen-like tokenizer."""
    config = {"eos_token": "<|im_end|>" if chat else "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    return _saved(folder, _byte_pairs(), {**config, **({"chat_template": CHATML} if chat else {})})


def write_llada(folder: Path) -> Path:
    """A folder as transformers saves the tokenizer of LLaDA: [MASK] amid the words, not named as such, two ends."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(_byte_pairs())
    signs = ["startoftext", "mdm_mask", "start_header_id", "end_header_id", "eot_id"]
    made.add_special_tokens([f"<|{sign}|>" for sign in signs])
    roles = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    config = {**roles, "chat_template": HEADERS, "tokenizer_class": "PreTrainedTokenizerFast"}
    return _saved(folder, made.to_str(), config)


def write_word_pieces(folder: Path) -> Path:
    """A folder as transformers saves a BERT-like tokenizer."""
    roles = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return _saved(folder, _word_pieces(), {**roles, "tokenizer_class": "PreTrainedTokenizerFast"})


def _saved(folder: Path, tokenizer: str, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
