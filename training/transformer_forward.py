"""The transformer's forward pass for training text-to-video: diffusers' numbers, batched.

The stock pass reorders the text tokens of each clip in a Python loop and builds a dense mask. The
order of text tokens does not matter, since they carry no position, and a mask over keys is enough.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideo15Transformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15ByT5TextProjection,
)

from training.text import MAX_GLYPHS, MAX_TOKENS

Module = Any
"""A part of diffusers' transformer; its sub-modules carry no types."""

WIDTH, HEADS, LAYERS, GLYPH_HIDDEN = 160, 5, 5, 128


def build_transformer(
    width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS
) -> HunyuanVideo15Transformer3DModel:
    """Return an untrained transformer of the real class.

    Its glyph projection is 128 wide instead of the class's fixed 2048; a checkpoint pads it with
    zeros. Every block begins as the identity.
    """
    head = width // heads
    model = HunyuanVideo15Transformer3DModel(
        in_channels=65,
        out_channels=32,
        num_attention_heads=heads,
        attention_head_dim=head,
        num_layers=layers,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=128,
        text_embed_2_dim=64,
        image_embed_dim=48,
        rope_axes_dim=(head // 4, head * 3 // 8, head * 3 // 8),
        target_size=160,
        task_type="t2v",
    )
    model.context_embedder_2 = HunyuanVideo15ByT5TextProjection(64, GLYPH_HIDDEN, width)
    for block in model.transformer_blocks:
        block.attn.processor = KeyMaskedAttention()
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    for linear in (model.norm_out.linear, model.proj_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return model


class KeyMaskedAttention:
    """Joint attention of latents and text with a mask over keys, [B, 1, 1, S]."""

    _attention_backend = _parallel_config = None

    def __call__(
        self,
        attn: Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what latents and text take from each other."""
        number = hidden_states.shape[1]

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(2, (attn.heads, -1))

        x, c = hidden_states, encoder_hidden_states
        query, key = attn.norm_q(heads(attn.to_q(x))), attn.norm_k(heads(attn.to_k(x)))
        query, key = (apply_rotary_emb(v, image_rotary_emb, sequence_dim=1) for v in (query, key))
        text_query = attn.norm_added_q(heads(attn.add_q_proj(c)))
        text_key = attn.norm_added_k(heads(attn.add_k_proj(c)))
        value = torch.cat([heads(attn.to_v(x)), heads(attn.add_v_proj(c))], dim=1)
        query = torch.cat([query, text_query.to(query.dtype)], dim=1)
        key = torch.cat([key, text_key.to(key.dtype)], dim=1)
        query, key, value = (v.transpose(1, 2).to(value.dtype) for v in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        out = out.transpose(1, 2).flatten(2)
        return attn.to_out[0](out[:, :number]), attn.to_add_out(out[:, number:])


@cache
def _rope(
    model: Module, size: tuple[int, int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = model.rope(torch.empty(1, 1, *size, device=device))
    return cos, sin


def velocity(
    model: Module,
    latents: torch.Tensor,
    sigma: torch.Tensor,
    text: torch.Tensor,
    text_mask: torch.Tensor,
    glyphs: torch.Tensor,
    glyph_mask: torch.Tensor,
) -> torch.Tensor:
    """Return the predicted noise minus latents, [B, 32, t, h, w].

    Args:
        model: the transformer.
        latents: [B, 32, t, h, w], noisy.
        sigma: [B], their share of noise.
        text: [B, 144, 128], of the prompts.
        text_mask: bool [B, 144].
        glyphs: [B, 24, 64], of the words.
        glyph_mask: bool [B, 24].
    """
    b, _, *size = latents.shape
    condition = latents.new_zeros(b, 33, *size)  # text-to-video knows no first frame
    timestep = sigma * 1000
    embedded = model.time_embed(timestep)
    rope = _rope(model, (size[0], size[1], size[2]), latents.device)
    x = model.x_embedder(torch.cat([latents, condition], dim=1))
    context = torch.cat(
        [
            model.context_embedder_2(glyphs) + model.cond_type_embed.weight[1],
            _refine(model.context_embedder, text, timestep, text_mask)
            + model.cond_type_embed.weight[0],
        ],
        dim=1,
    )
    everything = torch.ones(b, x.shape[1], dtype=torch.bool, device=x.device)
    keys = torch.cat([everything, glyph_mask, text_mask], dim=1)[:, None, None]
    for block in model.transformer_blocks:
        x, context = block(x, context, embedded, keys, rope)
    x = model.proj_out(model.norm_out(x, embedded))
    return x.view(b, *size, -1).permute(0, 4, 1, 2, 3)


def _refine(
    module: Module, text: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    weight = mask.to(text.dtype)[..., None]
    pooled = (text * weight).sum(1) / weight.sum(1)
    embedded = module.time_text_embed(timestep, pooled)
    x = module.proj_in(text)
    for block in module.token_refiner.refiner_blocks:
        x = block(x, embedded, mask[:, None, None, :])
    return x


assert (7 * 96 + MAX_TOKENS + MAX_GLYPHS) % 8 == 0  # aligned rows of the mask
