"""Models whose code lies beside their weights: loaded and written without what releases of transformers change.

Such code was written for one release of transformers and calls its loader in the way of that release. Here the class is
made by its constructor and filled from the files of weights, so that only its own code has to run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from onpath.models.pretrained import dropouts, extra, quiet, read_config, tokenizer_of

_AUTO = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModel")


def require_trust(name: str, trust: bool) -> None:
    """ValueError unless `trust` is set and the model at `name` brings code, which is named."""
    code = read_config(name).get("auto_map") or {}
    if not any(auto in code for auto in _AUTO):
        raise ValueError(
            f"remote_lm: {name} brings no code of its own (its config.json has no auto_map); take kind masked_lm or "
            "causal_lm"
        )
    if not trust:
        raise ValueError(
            f"remote_lm: trust is false, and loading {name} would run the code that lies beside its weights "
            f"({', '.join(sorted(set(code.values())))}) with all your rights. Read it, then set trust: true"
        )


def load(name: str, dtype: torch.dtype) -> Any:
    """The model at `name`, its own code run, in evaluation mode, with every drop-out of its config at 0."""
    folder, code = _folder(name), read_config(name)["auto_map"]
    try:
        with quiet():
            config = extra("transformers").AutoConfig.from_pretrained(folder, trust_remote_code=True)
            for key in dropouts(config):
                setattr(config, key, 0.0)
            made = extra("transformers.dynamic_module_utils").get_class_from_dynamic_module(
                next(code[auto] for auto in _AUTO if auto in code), str(folder)
            )
            network = _made(made, config, dtype)
        missing = _fill(network, folder)
    except Exception as error:  # it is their code
        raise ValueError(
            f"remote_lm: the code of {name} fails with transformers {extra('transformers').__version__} "
            f"({type(error).__name__}: {error}); ask its authors for the release that it needs"
        ) from error
    if missing:
        raise ValueError(f"remote_lm: {name} has no weights for {missing[0]} (and {len(missing) - 1} more)")
    return network.eval()


def save(network: Any, name: str, folder: Path, *, mask_id: int) -> None:
    """Writes `network`, which came from `name`, with its code, config and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: value.contiguous() for key, value in network.state_dict().items()}
    extra("huggingface_hub").save_torch_state_dict(weights, folder)
    for file in _folder(name).glob("*.py"):
        shutil.copy(file, folder)
    config = {**read_config(name), "mask_token_id": mask_id}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer = tokenizer_of(name, trust=True)
    if tokenizer is not None:
        with quiet():
            tokenizer.save_pretrained(folder)


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path.absolute()
    wanted = ["*.json", "*.py", "*.safetensors", "*.txt", "*.model"]
    return Path(extra("huggingface_hub").snapshot_download(name, allow_patterns=wanted))


def _made(made: Any, config: Any, dtype: torch.dtype) -> Any:
    """The model in `dtype` from the start, since twice its size may not fit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return made(config)
    finally:
        torch.set_default_dtype(before)


def _fill(network: Any, folder: Path) -> list[str]:
    """Puts the weights of every file in `folder` into `network`; returns the names of those that are in none."""
    held, found = network.state_dict(), set()
    for file in sorted(folder.glob("*.safetensors")):
        weights: dict[str, Tensor] = load_file(file)
        found |= weights.keys()
        unknown = network.load_state_dict(weights, strict=False).unexpected_keys
        if unknown:
            raise KeyError(f"{file.name} holds {unknown[0]}, which the code has not")
    filled = {tensor.data_ptr() for key, tensor in held.items() if key in found}  # tied weights are written once
    return [key for key, tensor in held.items() if key not in found and tensor.data_ptr() not in filled]
