"""Trained language models of Hugging Face's transformers as denoisers: masked, causal, and with code of their own."""

from __future__ import annotations

from typing import Any

import torch

from onpath.models import pretrained, remote
from onpath.models.language_model import Dtype, LanguageModel
from onpath.models.lora import LoRA
from onpath.types import Spec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class MaskedLM(LanguageModel):
    """A masked language model (BERT, RoBERTa, ModernBERT, …) as it is, with its own [MASK].

    spec: of the data, read by the model's own tokenizer. name: a folder, or a name on the hub. lora: what to train in
    place of all weights. dtype: of the frozen weights. gradient_checkpointing: make activations anew in the backward.
    random: fresh weights by the model's config.
    """

    kind = "masked_lm"

    def __init__(
        self,
        spec: Spec,
        *,
        name: str,
        lora: LoRA | None = None,
        dtype: Dtype = "fp32",
        gradient_checkpointing: bool = False,
        random: bool = False,
    ) -> None:
        super().__init__()
        _require_trained(self.kind, random, lora)
        network = pretrained.load("AutoModelForMaskedLM", name, dtype=_DTYPES[dtype], random=random)
        _require_own_mask(self.kind, spec, name, network)
        self._take(spec, name, network, lora=lora, dtype=dtype, gradient_checkpointing=gradient_checkpointing)

    def attention_advice(self) -> str:
        return "It attends to both sides, as it always did."


class CausalLM(LanguageModel):
    """A causal language model (Llama, Qwen, …) made bidirectional: every position attends to every other.

    shift: row i reads the hidden state of position i - 1, as the model was trained; position 0 must then be given.
    Where the tokenizer has no [MASK], its embedding is one row more, at first the mean of the others.
    The other fields are those of ``MaskedLM``. Source: DiffuLLaMA, arXiv:2410.17891.
    """

    kind = "causal_lm"
    adds_mask = True

    def __init__(
        self,
        spec: Spec,
        *,
        name: str,
        shift: bool = True,
        lora: LoRA | None = None,
        dtype: Dtype = "fp32",
        gradient_checkpointing: bool = False,
        random: bool = False,
    ) -> None:
        super().__init__()
        _require_trained(self.kind, random, lora)
        network = pretrained.load("AutoModelForCausalLM", name, dtype=_DTYPES[dtype], random=random)
        _look_both_ways(network)
        self.shift = shift
        self._take(spec, name, network, lora=lora, dtype=dtype, gradient_checkpointing=gradient_checkpointing)

    def attention_advice(self) -> str:
        return (
            "It was a causal model and attends to both sides now, so hand it a mask that allows everything:\n"
            "`model(input_ids, attention_mask=torch.ones(1, 1, L, L, dtype=torch.bool))`, False at padded columns."
        )


class RemoteLM(LanguageModel):
    """A diffusion language model whose code lies beside its weights (LLaDA, …), bidirectional already.

    trust: must be set to true, since that code is run with all your rights. shift: for models that predict row i from
    position i - 1 (Dream). The other fields are those of ``MaskedLM``. Source: LLaDA, arXiv:2502.09992.
    """

    kind = "remote_lm"

    def __init__(
        self,
        spec: Spec,
        *,
        name: str,
        trust: bool = False,
        shift: bool = False,
        lora: LoRA | None = None,
        dtype: Dtype = "fp32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        remote.require_trust(name, trust)
        network = remote.load(name, _DTYPES[dtype])
        _require_own_mask(self.kind, spec, name, network, trust)
        self.shift = shift
        self._take(spec, name, network, lora=lora, dtype=dtype, gradient_checkpointing=gradient_checkpointing)

    def attention_advice(self) -> str:
        return "It attends to both sides, as it always did."


def _require_trained(kind: str, random: bool, lora: LoRA | None) -> None:
    if random and lora is not None:
        raise ValueError(f"{kind}: random weights would stay random beside lora; leave out random or lora")


def _look_both_ways(network: Any) -> None:
    """Takes the causal mask out of a causal model."""
    network.config.is_causal = False  # no mask is made
    for module in network.modules():
        if isinstance(vars(module).get("is_causal"), bool):
            module.is_causal = False  # and attention without a mask is not causal by itself


def _require_own_mask(kind: str, spec: Spec, name: str, network: Any, trust: bool = False) -> None:
    """ValueError where the data's [MASK] is not the model's, as far as its config or its tokenizer say which it is."""
    known = getattr(network.config, "mask_token_id", None)
    if known is None:
        tokenizer = pretrained.tokenizer_of(name, trust)
        known = None if tokenizer is None else tokenizer.mask_token_id
    if known is not None and known != spec.mask_id:
        raise ValueError(
            f"{kind}: the data have the id {spec.mask_id} for [MASK], and {name} has {known}; read them by the model's "
            f"own tokenizer, data.tokenizer={{kind: huggingface, name: {name}}}"
        )
