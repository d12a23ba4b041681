"""The decoder's memory-bound operations in plain torch, for any device and dtype.

Frames are [T, H, W, C] with channels last throughout. `vae_triton` holds the same functions as
fused kernels; `ops_for` picks.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch
import torch.nn.functional as F


def ops_for(device: torch.device) -> ModuleType:
    """Return the module whose operations suit this device: Triton kernels on CUDA."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from hv15_batch import vae_triton

        return vae_triton
    import hv15_batch.vae_ops as plain

    return plain


def normalize(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return RMS-normalised channels: x / |x| * sqrt(C) * gamma, computed in float32."""
    normalized: torch.Tensor = F.normalize(x.float(), dim=-1)
    return (normalized * x.shape[-1] ** 0.5 * gamma.float()).to(x.dtype)


def pad_into(out: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor | None) -> None:
    """Write x with replicated edges into out, normalised and through SiLU where gamma is given.

    Args:
        out: [T, H + 2, W + 2, C], overwritten.
        x: [T, H, W, C].
        gamma: float [C], or None to pad only.
    """
    if gamma is not None:
        x = F.silu(normalize(x, gamma))
    out[:, 1:-1, 1:-1] = x
    out[:, 0, 1:-1] = x[:, 0]
    out[:, -1, 1:-1] = x[:, -1]
    out[:, :, 0] = out[:, :, 1]
    out[:, :, -1] = out[:, :, -2]


def unpack_add(packed: torch.Tensor, x: torch.Tensor, channels: int, first: bool) -> torch.Tensor:
    """Return the upsampler's output: packed channels spread over space and time, plus a shortcut.

    The packed channel index is ((a * 2 + b) * 2 + d) * channels + c for frame a, row b and column
    d of the 2x2 or 2x2x2 block; the shortcut spreads x the same way, its channels repeated.

    Args:
        packed: [T, H, W, factor * channels], factor 4 (space) or 8 (time and space).
        x: [T, H, W, Cin], the upsampler's input.
        channels: Channels of the output.
        first: Whether this is the clip's first frame (T is 1), which is not doubled in time: it
            takes the first half of each group of channels.

    Returns:
        [T or 2T, 2H, 2W, channels].

    Source: diffusers 0.42.1 autoencoder_kl_hunyuanvideo15.py, HunyuanVideo15Upsample.
    """
    factor = packed.shape[-1] // channels
    repeats = packed.shape[-1] // x.shape[-1]
    if first and factor == 8:
        h = _unpack(packed, 1)[..., :channels]
        shortcut = _unpack(x, 1).repeat_interleave(repeats // 2, dim=-1)
    else:
        h = _unpack(packed, factor // 4)
        shortcut = _unpack(x.repeat_interleave(repeats, dim=-1), factor // 4)
    return h + shortcut


def _unpack(packed: torch.Tensor, ratio: int) -> torch.Tensor:
    frames, height, width, all_channels = packed.shape
    channels = all_channels // (4 * ratio)
    blocks = packed.reshape(frames, height, width, ratio, 2, 2, channels)
    return blocks.permute(0, 3, 1, 4, 2, 5, 6).reshape(
        frames * ratio, 2 * height, 2 * width, channels
    )
