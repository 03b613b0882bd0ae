"""What the language models of transformers have in common as denoisers.

They read tokens only (time never reaches them), run their head at the rows that are asked for, keep attention within
documents and away from padding, and count positions from the first token of a document.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from onpath.models import pretrained, remote
from onpath.models.blocks import read_rows
from onpath.models.lora import LoRA, merge
from onpath.models.surgery import add_row, fingerprint, first_position, head_of, put, sample, scale_of
from onpath.types import Readout, Spec

Dtype = Literal["fp32", "bf16"]
_SETTINGS = {"use_cache": False, "return_dict": True}  # of every forward, where the network has them


class LanguageModel(nn.Module, ABC):
    """What the three have in common: a network whose last linear layer is taken out and run on chosen rows.

    shift: row i is predicted from the hidden state of position i - 1. `mask_embedding` is there where [MASK] is a row
    that the model has not: it is trained, whatever else is frozen.
    """

    kind: ClassVar[str]
    adds_mask: ClassVar[bool] = False
    shift: bool = False

    @abstractmethod
    def attention_advice(self) -> str:
        """A line on the attention of the exported model for those who run it elsewhere."""

    def _take(
        self, spec: Spec, name: str, network: Any, *, lora: LoRA | None, dtype: Dtype, gradient_checkpointing: bool
    ) -> None:
        self.spec, self.name, self.lora = spec, name, lora
        if dtype == "bf16" and lora is None:
            raise ValueError(
                f"{self.kind}: dtype is bf16 without lora; trained weights need fp32, or small steps are lost. "
                "Set lora, or dtype: fp32 (training.precision: bf16 computes in bf16 all the same)"
            )
        self.head_path, self.head = head_of(self.kind, network)
        accepted = inspect.signature(network.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.settings = {key: value for key, value in _SETTINGS.items() if key in accepted}
        self.first_position = first_position(network)
        self._require_fit(network)
        with torch.no_grad():
            own = network(input_ids=sample(network.config), **self.settings).logits
        put(network, self.head_path, nn.Identity())
        self.network = network.requires_grad_(True)
        self._add_mask()
        self._probe(own)
        self.base = torch.empty(0, dtype=torch.int64)
        if lora is not None:
            self.base = fingerprint(network, self.head)
            self.head.requires_grad_(False)
            lora.put_into(network)
        if gradient_checkpointing:
            self._save_memory()

    def _require_fit(self, network: Any) -> None:
        spec, vocab = self.spec, self.head.out_features
        if spec.num_words > vocab:
            raise ValueError(
                f"{self.kind}: the data have {spec.num_words} words and {self.name} has {vocab}; read them by the "
                f"model's own tokenizer, data.tokenizer={{kind: huggingface, name: {self.name}}}"
            )
        longest = getattr(network.config, "max_position_embeddings", None)
        if isinstance(longest, int) and spec.length > longest - self.first_position:
            raise ValueError(
                f"{self.kind}: the data are {spec.length} tokens long and {self.name} reads "
                f"{longest - self.first_position}; shorten data.length"
            )

    def _add_mask(self) -> None:
        """Makes the embedding of a [MASK] that the model has not, and its row of the head where that is predicted."""
        spec, table = self.spec, self.network.get_input_embeddings()
        known = getattr(self.network.config, "mask_token_id", None)
        is_new = self.adds_mask and spec.mask_id >= spec.num_words and spec.mask_id != known
        self.mask_embedding: nn.Parameter | None = None
        self.mask_head: nn.Parameter | None = None
        most = table.num_embeddings if is_new else table.num_embeddings - 1
        if spec.mask_id > most:
            raise ValueError(
                f"{self.kind}: the id of [MASK] is {spec.mask_id}, and {self.name} has {table.num_embeddings} "
                f"embeddings; read the data by the model's own tokenizer"
            )
        if not is_new:
            return
        self.embedding_scale = scale_of(table, self.kind)
        self.mask_embedding = nn.Parameter(table.weight[: spec.num_words].detach().float().mean(0))
        if spec.mask_logit and self.head.weight is not table.weight:
            self.mask_head = nn.Parameter(self.head.weight[: spec.num_words].detach().float().mean(0))

    @torch.no_grad()
    def _probe(self, own: Float[Tensor, "1 L V"]) -> None:
        """Whether the network does what is taken for granted here, on a few tokens; ValueError where it does not."""
        x, error = sample(self.network.config), torch.inf
        with suppress(AttributeError, TypeError, RuntimeError):  # where the head is more than called, or not at all
            hidden = self._hidden(x, None, None)
            error = float((self.head(hidden) - own).abs().max())
        if not error <= 0.01 * float(own.abs().max()):
            raise ValueError(
                f"{self.kind}: {type(self.network).__name__} does more to its logits than its head, and is not known "
                "here; take another model, or write a denoiser of your own around it (docs/extend.md)"
            )
        other = torch.cat([x[:, :-1], x[:, :1]], dim=1)
        effect = float((self._hidden(other, None, None) - hidden)[:, 0].abs().max())
        if effect == 0.0:
            raise ValueError(
                f"{self.kind}: in {type(self.network).__name__} a later token does not change what is said of an "
                "earlier one, so it cannot fill in masks; take a model with attention to both sides"
            )
        padding = torch.zeros(1, x.shape[1] + 2, dtype=torch.bool)
        padding[:, [0, -1]] = True
        padded = torch.cat([x[:, :1], x, x[:, :1]], dim=1)
        self.padding_leaks = False
        memo = self.encode(padding)
        assert memo is not None
        leak = float((self._hidden(padded, *memo)[:, 1:-1] - hidden).abs().max())
        self.padding_leaks = leak > 0.1 * effect

    @property
    def blocks(self) -> nn.ModuleList | None:
        """The layers, each a unit of its own where several processes hold shards; None where they are no list."""
        return next((module for module in self.network.modules() if isinstance(module, nn.ModuleList)), None)

    def _save_memory(self) -> None:
        """Lets the backward make what is inside each layer anew, whatever the code of the model offers for that."""
        if self.blocks is None:
            raise ValueError(
                f"{self.kind}: gradient_checkpointing is true, and {type(self.network).__name__} has no list of "
                "layers; set it to false"
            )
        for layer in self.blocks:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    def get_extra_state(self) -> Int64[Tensor, "P"]:
        """What tells the frozen weights of a checkpoint, which it does not hold, from others."""
        return self.base

    def set_extra_state(self, state: Int64[Tensor, "P"]) -> None:
        if not torch.equal(state.cpu(), self.base):
            raise ValueError(
                f"{self.kind}: the checkpoint was trained beside other frozen weights than those of {self.name} now; "
                "put back the model that it was trained with (on the hub: its revision)"
            )

    def encode(
        self,
        padding: Bool[Tensor, "B L"] | None = None,
        documents: Int64[Tensor, "B L"] | None = None,
        drop: Bool[Tensor, "B"] | None = None,
    ) -> tuple[Tensor, Int64[Tensor, "B L"]] | None:
        """Who attends to whom, and the position of each token in its document; None where a row is one document."""
        if padding is None and documents is None:
            return None
        if padding is not None and self.padding_leaks:
            raise ValueError(
                f"{self.kind}: {self.name} attends to padding, whatever it is told; give it examples of one length, "
                "such as those that data.end: fill makes, or take a model whose code heeds its attention_mask"
            )
        if documents is None:
            assert padding is not None
            return ~padding, _positions(~padding)
        self._require_documents()
        present = torch.ones_like(documents, dtype=torch.bool) if padding is None else ~padding
        same = documents[:, :, None] == documents[:, None, :]
        own = torch.eye(documents.shape[1], dtype=torch.bool, device=documents.device)
        return ((same & present[:, None, :]) | own)[:, None], _positions(present, documents)

    def _require_documents(self) -> None:
        layers = getattr(self.network.config, "layer_types", None) or ()
        if self.kind == "remote_lm" or "sliding_attention" in layers:
            raise ValueError(
                f"{self.kind}: {self.name} cannot keep packed documents apart ("
                + ("its code takes no such mask" if self.kind == "remote_lm" else "its attention slides")
                + "); give it one document in each example"
            )

    def forward(
        self,
        x: Int[Tensor, "M L"],
        t: Float[Tensor, "M"],
        memo: Any,
        *,
        rows: Int64[Tensor, "N"] | None = None,
        readout: Readout | None = None,
    ) -> Any:
        """Logits (M, L, V), or (N, V) at `rows`, or what `readout` makes of them."""
        attention, positions = (None, None) if memo is None else memo
        if attention is not None and positions is not None and len(positions) < len(x):
            copies = len(x) // len(positions)
            attention = attention.repeat(copies, *[1] * (attention.dim() - 1))
            positions = positions.repeat(copies, 1)
        hidden = self._hidden(x, attention, positions)
        if self.shift:
            hidden = self._shifted(x, hidden, positions, rows)
        return read_rows(self._logits, hidden, rows, readout, self.spec.num_logits)

    def _hidden(self, x: Tensor, attention: Tensor | None, positions: Tensor | None) -> Float[Tensor, "M L D"]:
        inputs: dict[str, Any] = dict(self.settings)
        if attention is not None:
            inputs["attention_mask"] = attention if attention.dim() == 4 else attention.long()
        if positions is not None and self.takes_positions:
            inputs["position_ids"] = positions + self.first_position
        if self.mask_embedding is None:
            return self.network(input_ids=x, **inputs).logits
        is_mask = (x == self.spec.mask_id)[..., None]
        words = self.network.get_input_embeddings()(x.masked_fill(is_mask[..., 0], 0))
        mask = self.mask_embedding * self.embedding_scale
        embedded = torch.where(is_mask, mask.to(words.dtype), words)
        return self.network(inputs_embeds=embedded, **inputs).logits

    def _shifted(
        self, x: Tensor, hidden: Float[Tensor, "M L D"], positions: Tensor | None, rows: Tensor | None
    ) -> Float[Tensor, "M L D"]:
        """The hidden states one position to the right; the first of a document keeps its own, which nothing reads."""
        first = torch.zeros_like(x, dtype=torch.bool)
        if positions is None:
            first[:, 0] = True
        else:
            first = positions == 0
        # asking a GPU would make the host wait, at every forward
        if rows is not None and rows.device.type == "cpu" and bool(first.flatten()[rows].any()):
            raise ValueError(
                f"{self.kind}: the first position of a sequence is free, and with shift: true position i is predicted "
                "from position i - 1, so the first must be given. Begin every example with a given token (a prompt, a "
                "begin sign), or set model.shift: false"
            )
        moved = torch.cat([hidden[:, :1], hidden[:, :-1]], dim=1)
        return torch.where(first[..., None], hidden, moved)

    def _logits(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """The head at the words, and at [MASK] where it is predicted."""
        bias = self.head.bias
        if self.mask_embedding is None or not self.spec.mask_logit:
            count = self.spec.num_logits
            return F.linear(hidden, self.head.weight[:count], None if bias is None else bias[:count])
        count = self.spec.mask_id
        words = F.linear(hidden, self.head.weight[:count], None if bias is None else bias[:count])
        row = self.mask_embedding if self.mask_head is None else self.mask_head
        return torch.cat([words, hidden @ row.to(hidden.dtype)[:, None]], dim=-1)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Writes the model with what was trained merged into it, so that transformers loads it from `folder`.

        ValueError where `folder` holds something already.
        """
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"export: {folder} is not empty; give a new folder")
        network, head = copy.deepcopy((self.network, self.head))
        if self.lora is not None:
            merge(network)
        put(network, self.head_path, head)
        if self.mask_embedding is not None:
            add_row(network, self.spec, self.mask_embedding, self.mask_head)
        save = remote.save if self.kind == "remote_lm" else pretrained.save
        save(network, self.name, folder, mask_id=self.spec.mask_id)
        (folder / "README.md").write_text(self._readme(), encoding="utf-8")

    def _readme(self) -> str:
        spec = self.spec
        read = "the logits of position i - 1" if self.shift else "the logits of position i"
        return (
            f"# A masked diffusion language model from {Path(self.name).name}\n\n"
            f"`[MASK]` is the id {spec.mask_id}; ids 0 to {spec.num_words - 1} are words, and others are never drawn.\n"
            f"The word at a masked position i is predicted by {read}.\n"
            f"{self.attention_advice()}\n"
            "It fills in masks, step by step; `generate` does not know how.\n"
        )


def _positions(present: Bool[Tensor, "B L"], documents: Int64[Tensor, "B L"] | None = None) -> Int64[Tensor, "B L"]:
    """The place of each token in its document, from 0; padding before it has 0."""
    order = present.cumsum(1) - 1
    begins = torch.zeros_like(present)
    if documents is not None:
        begins[:, 1:] = present[:, 1:] & (documents[:, 1:] != documents[:, :-1])
    return (order - torch.where(begins, order, 0).cummax(1).values).clamp_min(0)
