"""The operations of `vae_ops` as fused Triton kernels: each reads and writes memory once.

Imported only where there is a CUDA device. In plain torch, norm, SiLU and padding are about ten
passes over tensors of up to a gigabyte, most of them in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

ELEMENTS = 4096
"""Values that one program holds: 32 per thread with 4 warps, 64 bytes of bf16."""


@triton.jit
def _pad_kernel(  # type: ignore[no-untyped-def]
    x_ptr, gamma_ptr, out_ptr, total, height, width, stride_t, stride_y, stride_x, root,
    NORM: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    padded_width = width + 2
    plane = (height + 2) * padded_width
    rest = position % plane
    y = tl.minimum(tl.maximum(rest // padded_width - 1, 0), height - 1)
    x = tl.minimum(tl.maximum(rest % padded_width - 1, 0), width - 1)
    source = (position // plane) * stride_t + y * stride_y + x * stride_x
    inside = (position < total)[:, None] & (channel < C)[None, :]
    value = tl.load(x_ptr + source[:, None] + channel[None, :], mask=inside, other=0.0)
    if NORM:
        v = value.to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
        gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0)
        v = v * (root / length)[:, None] * gamma[None, :]
        value = (v / (1.0 + tl.exp(-v))).to(value.dtype)
    tl.store(out_ptr + position[:, None] * C + channel[None, :], value, mask=inside)


@triton.jit
def _unpack_add_kernel(  # type: ignore[no-untyped-def]
    h_ptr, x_ptr, out_ptr, total, height, width, packed, stride_t, stride_y, stride_x,
    RATIO: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, REPEAT: tl.constexpr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    out_plane = 4 * height * width
    frame = position // out_plane
    rest = position % out_plane
    row = rest // (2 * width)
    column = rest % (2 * width)
    block = ((frame % RATIO) * 2 + row % 2) * 2 + column % 2
    t = frame // RATIO
    y = row // 2
    x = column // 2
    inside = (position < total)[:, None] & (channel < C)[None, :]
    h_at = ((t * height + y) * width + x) * packed + block * GROUP
    x_at = t * stride_t + y * stride_y + x * stride_x + block * X_GROUP
    h = tl.load(h_ptr + h_at[:, None] + channel[None, :], mask=inside, other=0.0)
    shortcut = tl.load(x_ptr + x_at[:, None] + (channel // REPEAT)[None, :], mask=inside, other=0.0)
    value = (h.to(tl.float32) + shortcut.to(tl.float32)).to(h.dtype)
    tl.store(out_ptr + position[:, None] * C + channel[None, :], value, mask=inside)


def pad_into(out: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor | None) -> None:
    """Do what `vae_ops.pad_into` does. out is contiguous; x's last dimension is."""
    frames, height, width, channels = x.shape
    total = frames * (height + 2) * (width + 2)
    block_c, block_p = _blocks(channels)
    _pad_kernel[(triton.cdiv(total, block_p),)](
        x, x if gamma is None else gamma, out, total, height, width, *x.stride()[:3],
        float(channels) ** 0.5,
        NORM=gamma is not None, C=channels, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip


def unpack_add(packed: torch.Tensor, x: torch.Tensor, channels: int, first: bool) -> torch.Tensor:
    """Do what `vae_ops.unpack_add` does. packed is contiguous; x's last dimension is."""
    frames, height, width, all_channels = packed.shape
    repeats = all_channels // x.shape[-1]
    is_first = first and all_channels == 8 * channels
    if is_first:
        ratio, group, x_group, repeat = 1, 2 * channels, x.shape[-1] // 4, repeats // 2
    else:
        ratio, group, x_group = all_channels // (4 * channels), channels, channels // repeats
        repeat = repeats
    out = packed.new_empty((frames * ratio, 2 * height, 2 * width, channels))
    total = out.numel() // channels
    block_c, block_p = _blocks(channels)
    _unpack_add_kernel[(triton.cdiv(total, block_p),)](
        packed, x, out, total, height, width, all_channels, *x.stride()[:3],
        RATIO=ratio, GROUP=group, X_GROUP=x_group, REPEAT=repeat,
        C=channels, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip
    return out


def _blocks(channels: int) -> tuple[int, int]:
    """Return how many channels and positions one program handles."""
    block_c = triton.next_power_of_2(channels)
    return block_c, max(1, ELEMENTS // block_c)
