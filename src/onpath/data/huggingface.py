"""The tokenizers of trained models, read by Hugging Face's transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onpath.data.tokenizers import MASK_SIGN, Tokenizer
from onpath.models.pretrained import extra, quiet


@dataclass(frozen=True)
class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer of a trained model.

    name: a folder with one, a tokenizer.json, or a name on the Hugging Face hub. mask_token, end_token: the text of
    tokens of the vocabulary to take in place of the tokenizer's own, such as LLaDA's `<|mdm_mask|>`.
    [MASK] is the tokenizer's own mask token, or the id behind its vocabulary; the end token is its `eos`, or `sep`.
    Text is text: what looks like a special token in it is written in ordinary ones (a chat template excepted).
    ValueError where there is none of that name, and without transformers: pip install "onpath[text]".
    """

    name: str
    mask_token: str = ""
    end_token: str = ""

    @cached_property
    def _hf(self) -> Any:
        return _loaded(self.name)

    @cached_property
    def num_words(self) -> int:
        # ids may have holes, so that the last of them lies behind the number of tokens
        return 1 + max(len(self._hf) - 1, *self._hf.get_vocab().values())

    @cached_property
    def mask_id(self) -> int:
        own = self._named("mask_token") if self.mask_token else self._hf.mask_token_id
        return self.num_words if own is None else own

    @cached_property
    def end_id(self) -> int | None:
        if self.end_token:
            return self._named("end_token")
        return _first(self._hf.eos_token_id, self._hf.sep_token_id)

    @cached_property
    def begin_id(self) -> int | None:
        return _first(self._hf.bos_token_id, self._hf.cls_token_id, self.end_id)

    @cached_property
    def pad_id(self) -> int:
        return _first(self._hf.pad_token_id, self.end_id) or 0

    @cached_property
    def identity(self) -> str:
        whole = self._hf.backend_tokenizer.to_str() if self._hf.is_fast else repr(sorted(self._hf.get_vocab().items()))
        digest = hashlib.blake2b(f"{whole}{self._hf.chat_template}".encode(), digest_size=16).hexdigest()
        return f"huggingface {digest} mask {self.mask_id} end {self.end_id}"

    def encode(self, text: str) -> list[int]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self._hf(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return [list(ids) for ids in found["input_ids"]]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        found: list[str] = []
        known: list[int] = []  # the tokens before, whose company decides on blanks
        open_from = 0  # where in `known` a character began that has not ended
        for i in ids:
            if i == self.mask_id or i >= self.num_words:
                found.append(MASK_SIGN)
                continue
            known.append(i)
            start = max(0, open_from - 1)
            text = self._text(known[start:])[len(self._text(known[start:open_from])) :]
            if text.endswith("�") and len(known) - open_from < 4:  # part of a character
                found.append("")
                continue
            found.append(text)
            open_from = len(known)
        if open_from < len(known):
            start = max(0, open_from - 1)
            found[-1] += self._text(known[start:])[len(self._text(known[start:open_from])) :]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        frame = {self.begin_id, self.end_id, self._hf.pad_token_id}
        kept = [i for i in ids if i not in frame]
        masked = any(i == self.mask_id or i >= self.num_words for i in kept)
        return "".join(self.pieces(kept)) if masked else self._text(kept)

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        if not self._hf.chat_template:
            raise ValueError(
                f"data.tokenizer: {self.name} has no chat template, which `messages` need; take the tokenizer of a "
                "chat model (often the one whose name ends in Instruct), or columns of prompts and responses"
            )
        try:
            return list(
                self._hf.apply_chat_template(
                    [dict(message) for message in messages],
                    add_generation_prompt=add_generation_prompt,
                    tokenize=True,
                    return_dict=False,
                )
            )
        except Exception as error:  # a template is a program, and says no in its own ways
            raise ValueError(
                f"data.tokenizer: the chat template of {self.name} refuses the conversation ({error}); mostly the "
                "roles must be user and assistant in turn, a system message first"
            ) from error

    def _text(self, ids: Sequence[int]) -> str:
        return self._hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _named(self, field: str) -> int:
        token = getattr(self, field)
        found = self._hf.get_vocab().get(token)
        if found is None:
            special = ", ".join(sorted(map(str, self._hf.all_special_tokens)))
            raise ValueError(
                f"data.tokenizer.{field} is {token!r}, which is not in the vocabulary of {self.name}; allowed is any "
                f"of its tokens, special ones are {special or 'none'}; correct it, or leave it out"
            )
        return found


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _loaded(name: str) -> Any:
    """The tokenizer of that name, without asking for, or running, code beside it; ValueError where there is none."""
    path = Path(name).expanduser()
    try:
        transformers = extra("transformers")
        if path.is_file():
            return _from_file(path, transformers)
        if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "~")) or name.endswith(".json")):
            raise FileNotFoundError(f"there is no such file or folder in {Path.cwd()}")
        if path.is_dir() and not [*path.glob("tokenizer*"), *path.glob("vocab*")]:  # transformers would make one up
            raise FileNotFoundError("the folder holds none")
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(path if path.is_dir() else name, trust_remote_code=False)
    except Exception as error:  # the hub, the network and each format have exceptions of their own
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"data.tokenizer: name is {name!r}, and no tokenizer can be read there ({reason}); allowed are a folder "
            "with a tokenizer.json, that file itself, or a name on the Hugging Face hub, which the network or its "
            "cache must hold; check the spelling, or download it first (hf download NAME)"
        ) from error


def _from_file(path: Path, transformers: Any) -> Any:
    """A tokenizer.json alone, with the roles of its special tokens by their usual names."""
    beside = path.parent / "tokenizer_config.json"
    if beside.is_file() and path.name == "tokenizer.json":
        return transformers.AutoTokenizer.from_pretrained(str(path.parent), trust_remote_code=False)
    made = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    vocab = made.get_vocab()
    roles = {role: next((t for t in tokens if t in vocab), None) for role, tokens in _USUAL.items()}
    made.add_special_tokens({role: token for role, token in roles.items() if token is not None})
    return made


_USUAL: Mapping[str, Iterable[str]] = {
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
    "eos_token": ("<|endoftext|>", "</s>", "<|im_end|>", "<eos>"),
    "bos_token": ("<s>", "<bos>"),
    "sep_token": ("[SEP]",),
    "cls_token": ("[CLS]",),
    "pad_token": ("[PAD]", "<pad>"),
}
