"""The operations of `ops` as fused Triton kernels: each reads and writes memory once.

Imported only where there is a CUDA device. In plain torch, norm, SiLU and padding are about ten
passes over tensors of up to a gigabyte, most of them in float32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

# Values that one program of 4 warps handles: the fastest of 1024 to 8192 on an H200 (2026-11-22):
# 3.4 of 4.3 TB/s for the padding with norm, 3.4 for the unpacking, which fell to 1.2 with 4096.
PAD_ELEMENTS = 4096
UNPACK_ELEMENTS = 1024
ADD_ELEMENTS = 2048


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _pad_kernel(  # type: ignore[no-untyped-def]
    x_ptr, gamma_ptr, bias_ptr, out_ptr, total, height, width, stride_t, stride_y, stride_x, root,
    NORM: tl.constexpr, BIAS: tl.constexpr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    padded_width = width + 2
    plane = (height + 2) * padded_width
    rest = position % plane
    y = tl.minimum(tl.maximum(rest // padded_width - 1, 0), height - 1)
    x = tl.minimum(tl.maximum(rest % padded_width - 1, 0), width - 1)
    t = (position // plane).to(tl.int64)
    source = t * stride_t + y.to(tl.int64) * stride_y + x * stride_x
    inside = (position < total)[:, None] & (channel < C)[None, :]
    value = tl.load(x_ptr + source[:, None] + channel[None, :], mask=inside, other=0.0)
    if BIAS:
        bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + bias[None, :]).to(value.dtype)
    if NORM:
        v = value.to(tl.float32)
        length = tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
        gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0)
        v = v * (root / length)[:, None] * gamma[None, :]
        value = (v / (1.0 + tl.exp(-v))).to(value.dtype)
    target = position.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out_ptr + target, value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _unpack_kernel(  # type: ignore[no-untyped-def]
    h_ptr, x_ptr, bias_ptr, out_ptr, total, height, width, packed, stride_t, stride_y, stride_x,
    RATIO: tl.constexpr, GROUP: tl.constexpr, X_GROUP: tl.constexpr, REPEAT: tl.constexpr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    out_plane = 4 * height * width
    frame = position // out_plane
    rest = position % out_plane
    row = rest // (2 * width)
    column = rest % (2 * width)
    block = ((frame % RATIO) * 2 + row % 2) * 2 + column % 2
    t = (frame // RATIO).to(tl.int64)
    y = (row // 2).to(tl.int64)
    x = column // 2
    inside = (position < total)[:, None] & (channel < C)[None, :]
    h_at = ((t * height + y) * width + x) * packed + block * GROUP
    x_at = t * stride_t + y * stride_y + x * stride_x + block * X_GROUP
    h = tl.load(h_ptr + h_at[:, None] + channel[None, :], mask=inside, other=0.0)
    shortcut = tl.load(x_ptr + x_at[:, None] + (channel // REPEAT)[None, :], mask=inside, other=0.0)
    bias_at = (block * GROUP)[:, None] + channel[None, :]
    bias = tl.load(bias_ptr + bias_at, mask=inside, other=0.0)
    value = h.to(tl.float32) + bias.to(tl.float32) + shortcut.to(tl.float32)
    target = position.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out_ptr + target, value, mask=inside)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _add_kernel(  # type: ignore[no-untyped-def]
    h_ptr, x_ptr, bias_ptr, total, C: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    h = tl.load(h_ptr + at, mask=inside, other=0.0)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + at % C, mask=inside, other=0.0).to(tl.float32)
    tl.store(h_ptr + at, h.to(tl.float32) + bias + x, mask=inside)


def pad_into(
    out: torch.Tensor, x: torch.Tensor, gamma: torch.Tensor | None, bias: torch.Tensor | None
) -> None:
    """Do what `engine.decode.ops.pad_into` does. out is contiguous; x's last dimension is."""
    frames, height, width, channels = x.shape
    total = frames * (height + 2) * (width + 2)
    block_c, block_p = _blocks(channels, PAD_ELEMENTS)
    _pad_kernel[(triton.cdiv(total, block_p),)](
        x, x if gamma is None else gamma, x if bias is None else bias, out,
        total, height, width, *x.stride()[:3], math.sqrt(channels),
        NORM=gamma is not None, BIAS=bias is not None,
        C=channels, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip


def add_into(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> None:
    """Do what `engine.decode.ops.add_into` does. h and x are contiguous."""
    grid = (triton.cdiv(h.numel(), ADD_ELEMENTS),)
    _add_kernel[grid](h, x, bias, h.numel(), C=h.shape[-1], BLOCK=ADD_ELEMENTS, num_warps=4)


def unpack_into(
    out: torch.Tensor, packed: torch.Tensor, x: torch.Tensor, bias: torch.Tensor
) -> None:
    """Do what `engine.decode.ops.unpack_into` does.

    out and packed are contiguous; x's last dimension is.
    """
    frames, height, width, all_channels = packed.shape
    channels, ratio = out.shape[-1], out.shape[0] // frames
    repeats = all_channels // x.shape[-1]
    group = all_channels // (4 * ratio)
    total = out.numel() // channels
    block_c, block_p = _blocks(channels, UNPACK_ELEMENTS)
    _unpack_kernel[(triton.cdiv(total, block_p),)](
        packed, x, bias, out, total, height, width, all_channels, *x.stride()[:3],
        RATIO=ratio, GROUP=group, X_GROUP=x.shape[-1] // (4 * ratio),
        REPEAT=repeats * channels // group,
        C=channels, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
    )  # fmt: skip


def _blocks(channels: int, elements: int) -> tuple[int, int]:
    """Return how many channels and positions one program handles."""
    block_c = triton.next_power_of_2(channels)
    return block_c, max(1, elements // block_c)
