"""Prompts as tokens, and the two text encoders' forward passes for training.

The passes give the numbers of transformers' modules, but never look at a tensor's values, so that
a CUDA graph can record them. Text is padded on the right; the prompt encoder is causal, so its
padding needs no mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

from hv15_batch.engine.load.random_weights import PROMPT_START, tokenizers

MAX_TOKENS, MAX_GLYPHS = 104, 24
"""Of a prompt in training with the end of the chat template, and of the text on a sign."""

Module = Any
"""A part of transformers' encoders; its sub-modules carry no types."""

QWEN_LAYERS = 4
"""Layers that are read: the pipeline takes the output before the last two."""


def build_text_encoder(layers: int = QWEN_LAYERS) -> Qwen2_5_VLTextModel:
    """Return an untrained prompt encoder; a checkpoint holds two layers more."""
    return Qwen2_5_VLTextModel(
        Qwen2_5_VLTextConfig(
            vocab_size=264,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=128,
            intermediate_size=192,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=2048,
            max_window_layers=layers,
            use_sliding_window=False,
            tie_word_embeddings=False,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 6, 6],
            },
        )
    )


def build_glyph_encoder() -> T5EncoderModel:
    """Return an untrained encoder of the text on signs."""
    return T5EncoderModel(
        T5Config(
            vocab_size=384,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            relative_attention_num_buckets=32,
            relative_attention_max_distance=128,
        )
    )


class Tokens:
    """The project's byte-level tokenizers, quickly, for ASCII."""

    def __init__(self) -> None:
        tokenizer, glyph_tokenizer = tokenizers()
        chat = [{"role": "system", "content": "x"}, {"role": "user", "content": "A"}]
        ids = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        ids = ids[0] if isinstance(ids[0], list) else ids
        self.prefix, self.suffix = ids[:PROMPT_START], ids[PROMPT_START + 1 :]
        self.ids = [tokenizer(chr(c))["input_ids"] for c in range(32, 127)]
        self.glyph_ids = [glyph_tokenizer(chr(c))["input_ids"][:1] for c in range(32, 127)]
        self.glyph_end = glyph_tokenizer("")["input_ids"]

    def prompt(self, text: str) -> list[int] | None:
        """Return the tokens after the prefix, or None for a prompt that is too long."""
        ids = [i for c in text or " " for i in self.ids[ord(c) - 32]] + self.suffix
        return ids if len(ids) <= MAX_TOKENS else None

    def glyphs(self, word: str) -> list[int]:
        """Return the tokens of the text on a sign, none where there is none."""
        if not word:
            return []
        text = f'Text "{word}". '
        return [i for c in text for i in self.glyph_ids[ord(c) - 32]] + self.glyph_end


def run_layer(layer: Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Run one layer; a function of its own, so that it can be compiled once for all layers."""
    x = x + _causal_attention(layer.self_attn, _rms(x, layer.input_layernorm), cos, sin)
    h = _rms(x, layer.post_attention_layernorm)
    out: torch.Tensor = layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
    return x + out


def encode_prompts(
    model: Module,
    prefix: torch.Tensor,
    ids: torch.Tensor,
    run: Callable[..., torch.Tensor] = run_layer,
) -> torch.Tensor:
    """Return the hidden states of prompts, [B, S, 128].

    Args:
        model: of as many layers as are read.
        prefix: int64 [P], tokens before every prompt.
        ids: int64 [B, S], padded on the right.
        run: `run_layer`, or the same compiled.
    """
    x = model.embed_tokens(torch.cat([prefix.expand(len(ids), -1), ids], dim=1))
    positions = torch.arange(x.shape[1], device=x.device)
    angles = positions[:, None].float() * model.rotary_emb.inv_freq[None].float()
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))
    for layer in model.layers:
        x = run(layer, x, cos, sin)
    return x[:, prefix.shape[0] :]


def _rms(x: torch.Tensor, norm: Module) -> torch.Tensor:
    v = x.float()
    v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * v.to(x.dtype)


def _causal_attention(
    module: Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (-1, cos.shape[-1])).transpose(1, 2)

    def turn(v: torch.Tensor) -> torch.Tensor:
        first, second = v.chunk(2, dim=-1)
        return (v * cos + torch.cat([-second, first], dim=-1) * sin).to(v.dtype)

    query, key = turn(heads(module.q_proj(x))), turn(heads(module.k_proj(x)))
    value = heads(module.v_proj(x))
    repeats = query.shape[1] // key.shape[1]
    key, value = (v.repeat_interleave(repeats, dim=1) for v in (key, value))
    out = F.scaled_dot_product_attention(query, key, value.to(query.dtype), is_causal=True)
    return module.o_proj(out.transpose(1, 2).flatten(2))


def encode_glyphs(model: Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the hidden states of the texts on signs, [B, S, 64].

    Args:
        model: the glyph encoder.
        ids: int64 [B, S], padded on the right.
        mask: bool [B, S], which tokens count.
    """
    stack = model.encoder
    x = model.shared(ids)
    first = stack.block[0].layer[0].SelfAttention
    length = ids.shape[1]
    positions = torch.arange(length, device=ids.device)
    buckets = first._relative_position_bucket(
        positions[None, :] - positions[:, None],
        bidirectional=True,
        num_buckets=first.relative_attention_num_buckets,
        max_distance=first.relative_attention_max_distance,
    )
    bias = first.relative_attention_bias(buckets).permute(2, 0, 1)[None]
    hidden = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e4)
    bias = bias + hidden[:, None, None, :]
    for block in stack.block:
        attention, feed = block.layer[0], block.layer[1]
        x = x + _glyph_attention(attention.SelfAttention, _rms(x, attention.layer_norm), bias)
        h, dense = _rms(x, feed.layer_norm), feed.DenseReluDense
        gate = F.gelu(dense.wi_0(h), approximate="tanh")
        x = x + dense.wo(gate * dense.wi_1(h))
    return _rms(x, stack.final_layer_norm)


def _glyph_attention(module: Module, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (module.n_heads, -1)).transpose(1, 2)

    query, key, value = (heads(m(x)) for m in (module.q, module.k, module.v))
    scores = query @ key.mT + bias.to(query.dtype)
    out = torch.softmax(scores.float(), dim=-1).to(value.dtype) @ value
    return module.o(out.transpose(1, 2).flatten(2))


def count_weights(*modules: torch.nn.Module) -> float:
    """Return the size of weights as bfloat16, in millions of bytes."""
    return math.fsum(2e-6 * p.numel() for m in modules for p in m.parameters())
