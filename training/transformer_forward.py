"""The transformer's forward pass for training: diffusers' numbers, batched.

The stock pass reorders the text tokens of each clip in a Python loop and builds a dense mask. The
order of text tokens does not matter, since they carry no position, and a mask over keys is enough.
It is written into eight more channels of the heads, so that attention needs no mask at all and a
flash kernel takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideo15Transformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15ByT5TextProjection,
)

Module = Any
"""A part of diffusers' transformer; its sub-modules carry no types."""

WIDTH, HEADS, LAYERS, GLYPH_HIDDEN, IMAGE_WIDTH = 160, 5, 5, 128, 16
SPARE, HIDDEN_LOGIT = 8, -2e3
"""Channels added to heads, and what each of them adds to the logit of a padded text token."""
FIRST_GAIN = 1.5
"""Of queries and keys at the beginning: with 1, no token could win over 800 others."""


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
        image_embed_dim=IMAGE_WIDTH,
        rope_axes_dim=(head // 4, head * 3 // 8, head * 3 // 8),
        target_size=160,
        task_type="t2v",
    )
    model.context_embedder_2 = HunyuanVideo15ByT5TextProjection(64, GLYPH_HIDDEN, width)
    attention = KeyMaskedAttention()
    for block in model.transformer_blocks:
        block.attn.processor = attention
        for norm in (block.attn.norm_q, block.attn.norm_k, block.attn.norm_added_k):
            torch.nn.init.constant_(norm.weight, FIRST_GAIN)
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    for linear in (model.norm_out.linear, model.proj_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return model


class KeyMaskedAttention:
    """Joint attention of latents and text; what hides text tokens is added to keys, [B, S]."""

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
        query = torch.cat([query, text_query.to(query.dtype)], dim=1).to(value.dtype)
        key = torch.cat([key, text_key.to(key.dtype)], dim=1).to(value.dtype)
        assert attention_mask is not None
        hidden = attention_mask.to(key.dtype)[:, :, None, None].expand(-1, -1, attn.heads, SPARE)
        width = query.shape[-1]
        out = F.scaled_dot_product_attention(
            F.pad(query, (0, SPARE), value=1.0).transpose(1, 2),
            torch.cat([key, hidden], dim=-1).transpose(1, 2),
            F.pad(value, (0, SPARE)).transpose(1, 2),
            scale=width**-0.5,
        )
        out = out[..., :width].transpose(1, 2).flatten(2)
        return attn.to_out[0](out[:, :number]), attn.to_add_out(out[:, number:])


@dataclass
class Text:
    """What the encoders say of prompts.

    Attributes:
        states: [B, S, 128], of the prompts.
        mask: bool [B, S].
        glyphs: [B, G, 64], of the words on signs.
        glyph_mask: bool [B, G].
    """

    states: torch.Tensor
    mask: torch.Tensor
    glyphs: torch.Tensor
    glyph_mask: torch.Tensor


@dataclass
class Image:
    """The first frames of clips.

    Attributes:
        latents: [B, 32, 1, h, w].
        embeds: [B, N, 16], of the image encoder.
    """

    latents: torch.Tensor
    embeds: torch.Tensor


def rope_of(model: Module, size: tuple[int, ...], device: torch.device) -> Any:
    """Return the rotary embedding of latents of t, h, w."""
    return model.rope(torch.empty(1, 1, *size, device=device))


def run_block(
    block: Module,
    x: torch.Tensor,
    context: torch.Tensor,
    embedded: torch.Tensor,
    hidden: torch.Tensor,
    rope: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one block; a function of its own, so that it can be compiled once for all blocks."""
    latents, text = block(x, context, embedded, hidden, rope)
    return latents, text


def velocity(
    model: Module,
    latents: torch.Tensor,
    sigma: torch.Tensor,
    text: Text,
    image: Image | None,
    rope: Any,
    run: Callable[..., tuple[torch.Tensor, torch.Tensor]] = run_block,
) -> torch.Tensor:
    """Return the predicted noise minus latents, [B, 32, t, h, w].

    Args:
        model: the transformer.
        latents: [B, 32, t, h, w], noisy.
        sigma: [B], their share of noise.
        text: of the prompts.
        image: first frames, None for text-to-video.
        rope: of `rope_of`.
        run: `run_block`, or the same compiled.
    """
    b, _, *size = latents.shape
    condition = latents.new_zeros(b, 33, *size)
    if image is not None:
        condition[:, :32, :1] = image.latents
        condition[:, 32, 0] = 1.0
    timestep = sigma * 1000
    embedded = model.time_embed(timestep)
    x = model.x_embedder(torch.cat([latents, condition], dim=1))
    kinds = model.cond_type_embed.weight
    context = [
        model.context_embedder_2(text.glyphs) + kinds[1],
        _refine(model.context_embedder, text.states, timestep, text.mask) + kinds[0],
    ]
    masks = [text.glyph_mask, text.mask]
    if image is not None:
        context.append(model.image_embedder(image.embeds) + kinds[2])
        masks.append(torch.ones(image.embeds.shape[:2], dtype=torch.bool, device=x.device))
    hidden = F.pad(~torch.cat(masks, dim=1), (x.shape[1], 0)) * HIDDEN_LOGIT
    joined = torch.cat(context, dim=1)
    for block in model.transformer_blocks:
        x, joined = run(block, x, joined, embedded, hidden, rope)
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
