"""The VAE's forward pass for training: the same numbers as diffusers' modules, faster.

Takes parameters from a stock `AutoencoderKLHunyuanVideo15` and computes on channels-last frames
[B, T, H, W, C] with `fused.pad`, for batches of clips. Weights are cast to the activations' type.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from training.fused import normalize, pad

Module = Any
"""A part of diffusers' VAE; its sub-modules carry no types."""


def encode(vae: Module, video: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the mean latents, float32 [B, 32, t, h, w].

    Args:
        vae: the stock VAE.
        video: [B, 3, T, H, W] in -1..1.
        dtype: of the activations.
    """
    encoder = vae.encoder
    x = _conv(video.permute(0, 2, 3, 4, 1).to(dtype), encoder.conv_in)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(x, resnet)
        for down in block.downsamplers or ():
            x = _down(x, down)
    x = _middle(x, encoder.mid_block)
    shortcut = x.unflatten(-1, (-1, encoder.group_size)).mean(-1)
    x = _conv(x, encoder.conv_out, encoder.norm_out) + shortcut
    return x[..., : x.shape[-1] // 2].permute(0, 4, 1, 2, 3).float()


def decode(vae: Module, latents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the clips of latents, float32 [B, 3, T, H, W]. latents: [B, 32, t, h, w]."""
    decoder = vae.decoder
    x = latents.permute(0, 2, 3, 4, 1).to(dtype)
    x = _conv(x, decoder.conv_in) + x.repeat_interleave(decoder.repeat, dim=-1)
    x = _middle(x, decoder.mid_block)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(x, resnet)
        for up in block.upsamplers or ():
            x = _up(x, up)
    x = _conv(x, decoder.conv_out, decoder.norm_out)
    return x.permute(0, 4, 1, 2, 3).float()


@cache
def causal_mask(frames: int, pixels: int, device: torch.device) -> torch.Tensor:
    """Return which latent pixels see which: bool [S, S], S = frames * pixels."""
    frame = torch.arange(frames, device=device).repeat_interleave(pixels)
    return frame[:, None] >= frame[None, :]


def _conv(x: torch.Tensor, module: Module, norm: Module | None = None) -> torch.Tensor:
    gamma = None if norm is None else norm.gamma.flatten()
    padded = pad(x, gamma)
    bias = module.conv.bias.to(x.dtype)
    weight = module.conv.weight.to(x.dtype, memory_format=torch.channels_last_3d)
    out = F.conv3d(padded.permute(0, 4, 1, 2, 3), weight, bias)
    return out.permute(0, 2, 3, 4, 1).contiguous()


def _pointwise(x: torch.Tensor, conv: Module) -> torch.Tensor:
    return F.linear(x, conv.weight.flatten(1).to(x.dtype), conv.bias.to(x.dtype))


def _resnet(x: torch.Tensor, module: Module) -> torch.Tensor:
    h = _conv(x, module.conv1, module.norm1)
    h = _conv(h, module.conv2, module.norm2)
    return h + (x if module.conv_shortcut is None else _pointwise(x, module.conv_shortcut))


def _middle(x: torch.Tensor, module: Module) -> torch.Tensor:
    x = _resnet(x, module.resnets[0])
    for attention, resnet in zip(module.attentions, module.resnets[1:], strict=True):
        x = _resnet(_attention(x, attention), resnet)
    return x


def _attention(x: torch.Tensor, module: Module) -> torch.Tensor:
    b, t, h, w, c = x.shape
    normed = normalize(x, module.norm.gamma.flatten()).reshape(b, 1, t * h * w, c)
    query, key, value = (_pointwise(normed, m) for m in (module.to_q, module.to_k, module.to_v))
    mask = causal_mask(t, h * w, x.device) if t > 1 else None
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return x + _pointwise(out.reshape(x.shape), module.proj_out)


def _pack(x: torch.Tensor, ratio: int) -> torch.Tensor:
    """Move blocks of ratio x 2 x 2 pixels into channels."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // ratio, ratio, h // 2, 2, w // 2, 2, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t // ratio, h // 2, w // 2, ratio * 4 * c)


def _unpack(x: torch.Tensor, ratio: int) -> torch.Tensor:
    """Move channels into blocks of ratio x 2 x 2 pixels."""
    b, t, h, w, packed = x.shape
    c = packed // (4 * ratio)
    x = x.reshape(b, t, h, w, ratio, 2, 2, c)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, t * ratio, 2 * h, 2 * w, c)


def _down(x: torch.Tensor, module: Module) -> torch.Tensor:
    h = _conv(x, module.conv)
    if not module.add_temporal_downsample:
        h = _pack(h, 1)
        return h + _pack(x, 1).unflatten(-1, (h.shape[-1], module.group_size)).mean(-1)
    first = _pack(h[:, :1], 1)
    first = torch.cat([first, first], dim=-1)
    size = (first.shape[-1], module.group_size // 2)
    first = first + _pack(x[:, :1], 1).unflatten(-1, size).mean(-1)
    if x.shape[1] == 1:
        return first
    size = (first.shape[-1], module.group_size)
    later = _pack(h[:, 1:], 2) + _pack(x[:, 1:], 2).unflatten(-1, size).mean(-1)
    return torch.cat([first, later], dim=1)


def _up(x: torch.Tensor, module: Module) -> torch.Tensor:
    h = _conv(x, module.conv)
    if not module.add_temporal_upsample:
        return _unpack(h, 1) + _unpack(x.repeat_interleave(module.repeats, dim=-1), 1)
    first = _unpack(h[:, :1], 1)
    first = first[..., : first.shape[-1] // 2]
    first = first + _unpack(x[:, :1], 1).repeat_interleave(module.repeats // 2, dim=-1)
    if x.shape[1] == 1:
        return first
    later = _unpack(x[:, 1:], 2).repeat_interleave(module.repeats, dim=-1)
    return torch.cat([first, _unpack(h[:, 1:], 2) + later], dim=1)
