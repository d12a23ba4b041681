"""Norm, SiLU and replicated padding in one pass over memory, with its gradient.

In plain torch these are about ten passes over the largest tensors of the VAE, and the gradient of
replicated padding is slow on CUDA. Frames are [B, T, H, W, C], channels last.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # a CPU build of torch
    triton = None

ELEMENTS = 4096
"""Values that one program handles."""


def pad(x: torch.Tensor, gamma: torch.Tensor | None, fused: bool | None = None) -> torch.Tensor:
    """Return x padded for a causal 3x3x3 convolution, edges replicated.

    Args:
        x: [B, T, H, W, C].
        gamma: [C], to normalise the channels and send them through SiLU first; or None.
        fused: whether to use the kernels; None uses them on CUDA.

    Returns:
        [B, T + 2, H + 2, W + 2, C], two frames before the first one.
    """
    if fused is None:
        fused = x.is_cuda
    if fused:
        return _Pad.apply(x.contiguous(), gamma)
    if gamma is not None:
        x = F.silu(normalize(x, gamma))
    x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=3)
    x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    return torch.cat([x[:, :1], x[:, :1], x], dim=1)


def normalize(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """Return RMS-normalised channels: x / |x| * sqrt(C) * gamma. x: [..., C], gamma: [C]."""
    return (F.normalize(x.float(), dim=-1) * (gamma * math.sqrt(x.shape[-1]))).to(x.dtype)


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: torch.Tensor | None) -> torch.Tensor:
        b, t, h, w, c = x.shape
        out = torch.empty(b, t + 2, h + 2, w + 2, c, dtype=x.dtype, device=x.device)
        block_c = triton.next_power_of_2(c)
        block_p = max(1, ELEMENTS // block_c)
        total = out.numel() // c
        _forward_kernel[(triton.cdiv(total, block_p),)](
            x, x if gamma is None else gamma, out, total, t, h, w, math.sqrt(c),
            NORM=gamma is not None, C=c, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(x, gamma)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, gamma = ctx.saved_tensors
        grad = grad.contiguous()
        _, t, h, w, c = x.shape
        block_c = triton.next_power_of_2(c)
        block_p = max(1, ELEMENTS // block_c)
        total = x.numel() // c
        programs = triton.cdiv(total, block_p)
        grad_x = torch.empty_like(x)
        has_norm = gamma is not None
        parts = torch.empty(programs, block_c, device=x.device) if has_norm else x
        _backward_kernel[(programs,)](
            x, gamma if has_norm else x, grad, grad_x, parts, total, t, h, w, math.sqrt(c),
            NORM=has_norm, C=c, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=4,
        )  # fmt: skip
        return grad_x, parts.sum(0)[:c] if has_norm else None


if triton is not None:

    @triton.jit
    def _forward_kernel(
        x_ptr, gamma_ptr, out_ptr, total, frames, height, width, root,
        NORM: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    ):  # fmt: skip
        at = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        channel = tl.arange(0, BLOCK_C)
        rest = at
        x = tl.minimum(tl.maximum(rest % (width + 2) - 1, 0), width - 1)
        rest = rest // (width + 2)
        y = tl.minimum(tl.maximum(rest % (height + 2) - 1, 0), height - 1)
        rest = rest // (height + 2)
        t = tl.maximum(rest % (frames + 2) - 2, 0)
        b = rest // (frames + 2)
        source = ((b * frames + t) * height + y) * width + x
        inside = (at < total)[:, None] & (channel < C)[None, :]
        value = tl.load(x_ptr + source[:, None] * C + channel[None, :], mask=inside, other=0.0)
        if NORM:
            v = value.to(tl.float32)
            length = tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
            gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
            v = v * (root / length)[:, None] * gamma[None, :]
            value = (v / (1.0 + tl.exp(-v))).to(value.dtype)
        tl.store(out_ptr + at[:, None] * C + channel[None, :], value, mask=inside)

    @triton.jit
    def _backward_kernel(
        x_ptr, gamma_ptr, grad_ptr, out_ptr, parts_ptr, total, frames, height, width, root,
        NORM: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    ):  # fmt: skip
        program = tl.program_id(0)
        at = program.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        channel = tl.arange(0, BLOCK_C)
        valid = at < total
        rest = at
        x = rest % width
        rest = rest // width
        y = rest % height
        rest = rest // height
        t = rest % frames
        b = rest // frames
        inside = valid[:, None] & (channel < C)[None, :]
        # A value at an edge was copied to several places: all their gradients count.
        grad = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        first = tl.max(((t == 0) & valid).to(tl.int32))
        edge = tl.max((((y == 0) | (y == height - 1)) & valid).to(tl.int32))
        for dt in tl.static_range(3):
            if (dt == 0) | (first > 0):
                if dt == 0:
                    t_ok = valid
                    t_at = t + 2
                else:
                    t_ok = valid & (t == 0)
                    t_at = t * 0 + (dt - 1)
                for dy in tl.static_range(3):
                    if (dy == 0) | (edge > 0):
                        if dy == 0:
                            y_ok = t_ok
                            y_at = y + 1
                        elif dy == 1:
                            y_ok = t_ok & (y == 0)
                            y_at = y * 0
                        else:
                            y_ok = t_ok & (y == height - 1)
                            y_at = y + 2
                        for dx in tl.static_range(3):
                            if dx == 0:
                                x_ok = y_ok
                                x_at = x + 1
                            elif dx == 1:
                                x_ok = y_ok & (x == 0)
                                x_at = x * 0
                            else:
                                x_ok = y_ok & (x == width - 1)
                                x_at = x + 2
                            place = (b * (frames + 2) + t_at) * (height + 2) + y_at
                            place = place * (width + 2) + x_at
                            grad += tl.load(
                                grad_ptr + place[:, None] * C + channel[None, :],
                                mask=x_ok[:, None] & (channel < C)[None, :],
                                other=0.0,
                            ).to(tl.float32)
        where = at[:, None] * C + channel[None, :]
        if NORM:
            v = tl.load(x_ptr + where, mask=inside, other=0.0).to(tl.float32)
            inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(v * v, axis=1)), 1e-12)
            unit = v * inverse[:, None]
            gamma = tl.load(gamma_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
            scaled = unit * root * gamma[None, :]
            gate = 1.0 / (1.0 + tl.exp(-scaled))
            grad = grad * (gate + scaled * gate * (1.0 - gate))
            tl.store(parts_ptr + program * BLOCK_C + channel, tl.sum(grad * unit * root, axis=0))
            grad = grad * root * gamma[None, :]
            grad = (grad - unit * tl.sum(unit * grad, axis=1)[:, None]) * inverse[:, None]
        tl.store(out_ptr + where, grad.to(out_ptr.dtype.element_ty), mask=inside)
