"""Trained models of Hugging Face's transformers: found, loaded without a sound, and written in their own format."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")
_MISTAKES = (OSError, ValueError, KeyError, ImportError)  # what transformers raises where it finds or knows no model


def extra(module: str, group: str = "text") -> Any:
    """An optional package of a group that the installer knows; ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ValueError(f'{name} is needed here ({error}): pip install "onpath[{group}]"') from error


def read_config(name: str) -> dict[str, Any]:
    """config.json of a folder or of a model on the hub, without running anything of it."""
    transformers = extra("transformers")
    place = _place(name)
    try:
        found = transformers.PretrainedConfig.get_config_dict(place)[0]
    except _MISTAKES as error:
        raise ValueError(_not_found(name, error)) from error
    if not found:
        raise ValueError(f"name is {name!r}, where there is no config.json; give a folder or a hub name that has one")
    return found


def load(auto: str, name: str, *, dtype: torch.dtype, random: bool = False) -> Any:
    """The model at `name` through transformers' class `auto`, in evaluation mode, its attention through torch's SDPA.

    random: fresh weights by its config. Every drop-out is off: it would be drawn from torch's global state.
    ValueError where nothing is found, or where weights are missing.
    """
    transformers = extra("transformers")
    made, path = getattr(transformers, auto), _place(name)
    try:
        with quiet():
            config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
            for key in dropouts(config):
                setattr(config, key, 0.0)
            if random:
                return made.from_config(config, dtype=dtype).eval()
            network, found = made.from_pretrained(
                path, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
    except _MISTAKES as error:
        raise ValueError(_not_found(name, error)) from error
    missing = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if missing:
        raise ValueError(
            f"{name} has no weights for {missing[0]} (and {len(missing) - 1} more), which would be random; take a "
            "model that was saved with its head"
        )
    return network.eval()


def tokenizer_of(name: str, trust: bool = False) -> Any | None:
    """The tokenizer beside a model, None where there is none."""
    place = _place(name)
    if Path(place).is_dir() and not any((Path(place) / file).is_file() for file in _TOKENIZER_FILES):
        return None  # transformers would make one up
    try:
        with quiet():
            return extra("transformers").AutoTokenizer.from_pretrained(place, trust_remote_code=trust)
    except _MISTAKES:
        return None


def save(network: Any, name: str, folder: Path, *, mask_id: int) -> None:
    """Writes `network`, which came from `name`, with its tokenizer, so that transformers loads both from `folder`.

    Its config is that of `name` again, but for `mask_token_id`, which is `mask_id`.
    """
    with quiet():
        begun = extra("transformers").AutoConfig.from_pretrained(_place(name)).to_dict()
        for key in [*dropouts(network.config), "is_causal"]:
            if key in begun:
                setattr(network.config, key, begun[key])
            elif key in vars(network.config):
                delattr(network.config, key)
        network.config.mask_token_id = mask_id
        network.save_pretrained(folder)
        tokenizer = tokenizer_of(name)
        if tokenizer is not None:
            if tokenizer.mask_token_id is None and len(tokenizer) == mask_id:
                tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
            tokenizer.save_pretrained(folder)


def _place(name: str) -> str:
    """The path of a folder, else the name on the hub as it is; ValueError where it can be neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise ValueError(f"name is {name!r}, and there is no such folder in {Path.cwd()}; give one with a config.json")
    return name


def dropouts(config: Any) -> list[str]:
    """The settings of a config that make its network draw."""
    return [key for key, value in config.to_dict().items() if "drop" in key and isinstance(value, float)]


def _not_found(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"{name} needs code of its own, which is run by kind remote_lm with trust: true only"
    reason = str(error).strip().partition("\n")[0]
    return f"name is {name!r}, which cannot be loaded ({reason}); give a local folder or a hub name of a model"


@contextmanager
def quiet(package: str = "transformers", group: str = "text") -> Iterator[None]:
    """Within it, a package of Hugging Face draws no bars and writes no advice."""
    logging = extra(f"{package}.utils.logging", group)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
