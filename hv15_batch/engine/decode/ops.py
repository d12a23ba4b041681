"""The decoder's memory-bound operations in plain torch, for any device and dtype.

Frames are [T, H, W, C] with channels last throughout. `ops_triton` holds the same functions as
fused kernels; `ops_for` picks.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import subprocess
import sys
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)


def ops_for(device: torch.device) -> ModuleType:
    """Return the module whose operations suit this device: Triton kernels on CUDA."""
    return _cuda_ops() if device.type == "cuda" else sys.modules[__name__]


@cache
def _cuda_ops() -> ModuleType:
    """Return the Triton kernels, or plain torch where Triton is missing or cannot build them.

    Triton compiles its launcher with the machine's C compiler, which slim images lack.
    """
    plain = sys.modules[__name__]
    if importlib.util.find_spec("triton") is None:
        logger.warning("triton is not installed: the VAE decode takes longer and more memory.")
        return plain
    from hv15_batch.engine.decode import ops_triton as vae_triton

    value = torch.zeros(1, device="cuda")
    try:
        vae_triton.add_into(value, value.clone(), value.clone())
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        logger.warning(
            "triton cannot build its kernels (%s): the VAE decode takes longer and more memory; "
            "install a C compiler and the Python headers.",
            error,
        )
        return plain
    return vae_triton


def normalize(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return RMS-normalised channels: x / |x| * sqrt(C) * gamma, computed in float32."""
    scale = gamma.float() * math.sqrt(x.shape[-1])
    normalized: torch.Tensor = F.normalize(x.float(), dim=-1)
    return (normalized * scale).to(x.dtype)


def pad_into(
    out: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor | None, bias: torch.Tensor | None
) -> None:
    """Write x + bias with replicated edges into out, normalised and through SiLU if gamma is given.

    Args:
        out: [T, H + 2, W + 2, C], overwritten.
        x: [T, H, W, C].
        gamma: float32 [C], or None to leave norm and SiLU out.
        bias: [C] of the convolution that made x, or None.
    """
    if bias is not None:
        x = x + bias
    if gamma is not None:
        x = F.silu(normalize(x, gamma))
    out[:, 1:-1, 1:-1] = x
    out[:, 0, 1:-1] = x[:, 0]
    out[:, -1, 1:-1] = x[:, -1]
    out[:, :, 0] = out[:, :, 1]
    out[:, :, -1] = out[:, :, -2]


def add_into(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> None:
    """Add x and bias [C] to h in place. h, x: [T, H, W, C]."""
    h.add_(bias).add_(x)


def unpack_into(
    out: torch.Tensor, packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor
) -> None:
    """Write the upsampler's output: packed channels spread over space and time, plus a shortcut.

    The packed channel index is ((a * 2 + b) * 2 + d) * C + c for frame a, row b and column d of the
    2x2x2 block (2x2 without a); the shortcut spreads x the same way, its channels repeated. The
    first frame of a clip is not doubled in time: each group holds 2 C channels, of which the
    first C count.

    Args:
        out: [T, 2H, 2W, C] or, doubled in time, [2T, 2H, 2W, C], overwritten.
        packed: [T, H, W, factor * C], factor 4 (space) or 8 (time and space).
        x: [T, H, W, Cin], the upsampler's input.
        bias: [factor * C] of the convolution that made `packed`.

    Source: diffusers 0.42.1 autoencoder_kl_hunyuanvideo15.py, HunyuanVideo15Upsample.
    """
    ratio = out.shape[0] // packed.shape[0]
    halves = packed.shape[-1] // (4 * ratio * out.shape[-1])
    repeats = packed.shape[-1] // x.shape[-1]
    h = _unpack(packed + bias, ratio)[..., : out.shape[-1]]
    if halves == 2:
        shortcut = _unpack(x, 1).repeat_interleave(repeats // 2, dim=-1)
    else:
        shortcut = _unpack(x.repeat_interleave(repeats, dim=-1), ratio)
    torch.add(h, shortcut, out=out)


def _unpack(packed: torch.Tensor, ratio: int) -> torch.Tensor:
    frames, height, width, all_channels = packed.shape
    channels = all_channels // (4 * ratio)
    blocks = packed.reshape(frames, height, width, ratio, 2, 2, channels)
    return blocks.permute(0, 3, 1, 4, 2, 5, 6).reshape(
        frames * ratio, 2 * height, 2 * width, channels
    )
