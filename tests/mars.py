"""A tiny language model of no known type, whose code lies beside its weights, as that of LLaDA does."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = """
from transformers import PretrainedConfig


class MarsConfig(PretrainedConfig):
    model_type = "mars"

    def __init__(self, d_model=16, n_heads=2, n_layers=2, vocab_size=24, max_sequence_length=32, **kwargs):
        self.d_model, self.n_heads, self.n_layers, self.vocab_size = d_model, n_heads, n_layers, vocab_size
        self.max_sequence_length = max_sequence_length
        super().__init__(**kwargs)
"""

MODEL = """
import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_mars import MarsConfig


def turned(x):
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 10.0 ** -torch.arange(half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        d = config.d_model
        self.heads = config.n_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.attn_out, self.ff_proj, self.ff_out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.attn_norm, self.ff_norm = nn.RMSNorm(d), nn.RMSNorm(d)

    def forward(self, x, bias):
        h = self.attn_norm(x)
        parts = [p(h).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (part.transpose(1, 2) for part in parts)
        h = F.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=bias)
        x = x + self.attn_out(h.transpose(1, 2).flatten(2))
        return x + self.ff_out(F.silu(self.ff_proj(self.ff_norm(x))))


class MarsModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.d_model),
            "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
            "ln_f": nn.RMSNorm(config.d_model),
            "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
        })

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None):
        x = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        bias = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        for block in self.transformer.blocks:
            x = block(x, bias)
        return self.transformer.ff_out(self.transformer.ln_f(x))


class MarsModelLM(PreTrainedModel):
    config_class = MarsConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = MarsModel(config)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.5)

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, use_cache=None, return_dict=None):
        return CausalLMOutputWithPast(logits=self.model(input_ids, inputs_embeds, attention_mask))

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def set_input_embeddings(self, value):
        self.model.transformer.wte = value

    def get_output_embeddings(self):
        return self.model.transformer.ff_out
"""


def write_mars(folder: Path, num_words: int, mask_id: int, **sizes: int) -> None:
    """Writes code, config and random weights into `folder`."""
    import transformers as hf

    folder.mkdir(exist_ok=True)
    (folder / "configuration_mars.py").write_text(CONFIG)
    (folder / "modeling_mars.py").write_text(MODEL)
    auto = {"AutoConfig": "configuration_mars.MarsConfig", "AutoModel": "modeling_mars.MarsModelLM"}
    about = {"model_type": "mars", "vocab_size": num_words, "mask_token_id": mask_id, "auto_map": auto, **sizes}
    (folder / "config.json").write_text(json.dumps(about))
    config = hf.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    hf.AutoModel.from_config(config, trust_remote_code=True).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(about))
