"""The layers of diffusers' HunyuanVideo-1.5 VAE decoder, computed frame after frame.

Each takes its parameters from the module of plain diffusers and keeps what the next frames need: a
causal convolution the last two frames of its padded input, the attention its keys and values.
Activations are [T, H, W, C], channels last, so cuDNN takes them without a copy. Inference only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hv15_batch.engine.decode.ops import normalize
from hv15_batch.model.tiles import frames_per_piece

Decoder = Any
"""diffusers' HunyuanVideo15Decoder3D or a part of it; its sub-modules carry no types."""
SCORE_BYTES = 64 << 20
"""Size of the attention scores that are computed at a time."""


@dataclass(frozen=True)
class Site:
    """Where a layer runs: its input's size, kind and the operations for its device."""

    height: int
    width: int
    dtype: torch.dtype
    device: torch.device
    ops: ModuleType

    def doubled(self) -> Site:
        """Return the site behind an upsampler."""
        return replace(self, height=2 * self.height, width=2 * self.width)

    def empty(self, frames: int, channels: int, padding: int = 0) -> torch.Tensor:
        """Return uninitialised frames [frames, H + 2 padding, W + 2 padding, channels]."""
        size = (frames, self.height + 2 * padding, self.width + 2 * padding, channels)
        return torch.empty(size, dtype=self.dtype, device=self.device)


class CausalConv:
    """A 3x3x3 causal convolution that remembers its last two input frames.

    With a norm, the input is normalised and goes through SiLU first: bias of the layer before,
    norm, activation and padding are one pass over memory. The own bias is left to whoever reads
    the output, since cuDNN's result would be read and written once more to add it.
    """

    def __init__(self, module: Decoder, norm: Decoder | None, site: Site) -> None:
        self.conv: nn.Conv3d = module.conv
        self.gamma = None if norm is None else norm.gamma.reshape(-1).float()
        self.site = site
        # Taken before any activation, so that what lives long does not lie among what does not.
        self.context = site.empty(2, self.conv.in_channels, padding=1)
        self.is_first = True
        _use_channels_last(self.conv)

    @property
    def bias(self) -> torch.Tensor:
        """The bias that the output still lacks: [C]."""
        assert self.conv.bias is not None
        return self.conv.bias

    def pad(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return [T + 2, H + 2, W + 2, C]: the frames before, then x + bias, ready to convolve."""
        frames = x.shape[0]
        padded = self.site.empty(frames + 2, x.shape[-1], padding=1)
        self.site.ops.pad_into(padded[2:], x, self.gamma, bias)
        padded[:2] = padded[2] if self.is_first else self.context
        self.context.copy_(padded[frames:])
        self.is_first = False
        return padded

    def convolve(self, padded: torch.Tensor) -> torch.Tensor:
        """Return the convolution as contiguous [T, H, W, C'], without its bias."""
        out = F.conv3d(padded.permute(3, 0, 1, 2)[None], self.conv.weight)
        return out[0].permute(1, 2, 3, 0).contiguous()


class ResnetBlock:
    """Two convolutions and a shortcut."""

    def __init__(self, module: Decoder, site: Site) -> None:
        self.conv1 = CausalConv(module.conv1, module.norm1, site)
        self.conv2 = CausalConv(module.conv2, module.norm2, site)
        self.conv_shortcut: nn.Conv3d | None = module.conv_shortcut
        self.ops = site.ops

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for the next frames. x: [T, H, W, C]."""
        # Three activations are alive at most: each name is taken over as soon as it can be.
        h = self.conv1.convolve(self.conv1.pad(x))
        h = self.conv2.pad(h, self.conv1.bias)
        h = self.conv2.convolve(h)
        if self.conv_shortcut is not None:
            x = _pointwise(x, self.conv_shortcut)
        self.ops.add_into(h, x, self.conv2.bias)
        return h


class CausalAttention:
    """Attention of each frame over itself and all frames before it, without a mask.

    The block of plain diffusers builds a dense mask over all pairs of latent pixels; here each
    frame's queries meet only the keys that its mask would let through.
    """

    def __init__(self, module: Decoder) -> None:
        self.module = module
        self.gamma = module.norm.gamma.reshape(-1)
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for the next frames. x: [T, H, W, C]."""
        frames, height, width, channels = x.shape
        tokens = height * width
        normed = normalize(x, self.gamma).reshape(frames * tokens, channels)
        query = _pointwise(normed, self.module.to_q)
        keys, values = (_pointwise(normed, m) for m in (self.module.to_k, self.module.to_v))
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys])
        self.values = values if self.values is None else torch.cat([self.values, values])
        before = self.keys.shape[0] - frames * tokens
        out = torch.empty_like(query)
        for start in range(0, frames * tokens, tokens):
            seen = before + start + tokens
            now = slice(start, start + tokens)
            out[now] = _attend(query[now], self.keys[:seen], self.values[:seen])
        return _pointwise(out, self.module.proj_out).reshape(x.shape).add_(x)


class Upsampler:
    """Doubles height and width, and frames where it is temporal (the clip's first one excepted)."""

    def __init__(self, module: Decoder, site: Site) -> None:
        self.conv = CausalConv(module.conv, None, site)
        self.ratio = 2 if module.add_temporal_upsample else 1
        self.channels = self.conv.conv.out_channels // (4 * self.ratio)
        self.out_site = site.doubled()
        self.is_first = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the upsampled next frames. x: [T, H, W, C]."""
        packed = self.conv.convolve(self.conv.pad(x))
        single = 1 if self.is_first and self.ratio == 2 else 0
        frames = single + (x.shape[0] - single) * self.ratio
        out = self.out_site.empty(frames, self.channels)
        unpack, bias = self.out_site.ops.unpack_into, self.conv.bias
        if single:
            unpack(out[:1], packed[:1], x[:1], bias)
        if x.shape[0] > single:
            unpack(out[single:], packed[single:], x[single:], bias)
        self.is_first = False
        return out


class Stage:
    """All layers of one resolution, and the upsampler that leads to it."""

    def __init__(self, decoder: Decoder, index: int, site: Site) -> None:
        self.head: _Head | None = _Head(decoder, site) if index == 0 else None
        self.upsampler: Upsampler | None = None
        if index > 0:
            (upsampler,) = decoder.up_blocks[index - 1].upsamplers
            self.upsampler = Upsampler(upsampler, site)
            site = site.doubled()
        self.site = site
        self.resnets = [ResnetBlock(m, site) for m in decoder.up_blocks[index].resnets]
        self.conv_out: CausalConv | None = None
        if index == len(decoder.up_blocks) - 1:
            self.conv_out = CausalConv(decoder.conv_out, decoder.norm_out, site)

    def frames_at_once(self, chunk_bytes: int) -> int:
        """Return how many frames one call may take."""
        channels = self.resnets[0].conv1.conv.in_channels
        plane = self.site.height * self.site.width * channels * self.site.dtype.itemsize
        ratio = self.upsampler.ratio if self.upsampler else 1
        return frames_per_piece(chunk_bytes, plane, ratio)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stage's output for the next frames. x: [T, H, W, C]."""
        if self.head is not None:
            x = self.head(x)
        if self.upsampler is not None:
            x = self.upsampler(x)
        for resnet in self.resnets:
            x = resnet(x)
        if self.conv_out is not None:
            x = self.conv_out.convolve(self.conv_out.pad(x)).add_(self.conv_out.bias)
        return x


class _Head:
    """First convolution and mid block."""

    def __init__(self, decoder: Decoder, site: Site) -> None:
        self.conv_in = CausalConv(decoder.conv_in, None, site)
        self.repeat: int = decoder.repeat
        mid = decoder.mid_block
        self.layers: list[ResnetBlock | CausalAttention] = [ResnetBlock(mid.resnets[0], site)]
        for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            if attention is not None:
                self.layers.append(CausalAttention(attention))
            self.layers.append(ResnetBlock(resnet, site))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv_in.convolve(self.conv_in.pad(x)).add_(self.conv_in.bias)
        x = h.add_(x.repeat_interleave(self.repeat, dim=-1))
        for layer in self.layers:
            x = layer(x)
        return x


def _use_channels_last(conv: nn.Conv3d) -> None:
    """Lay a CUDA weight out as cuDNN wants it beside channels-last activations, once."""
    weight = conv.weight
    if weight.is_cuda and not weight.is_contiguous(memory_format=torch.channels_last_3d):
        weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def _attend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return softmax(query keys' / sqrt(C)) values. query: [N, C], keys, values: [M, C].

    In half precision on CUDA by plain matrix products with scores in float32, a block of queries
    at a time: with one head of 1024 channels the fused kernel that torch has is 4.5 times slower
    (9.1 ms against 2.0 ms for 1590 queries and 49,290 keys, H200, 2026-11-22).
    """
    if not query.is_cuda or query.dtype == torch.float32:
        return F.scaled_dot_product_attention(query[None], keys[None], values[None])[0]
    result = out = torch.empty_like(query)
    for rows in torch.split(query, max(128, SCORE_BYTES // (4 * keys.shape[0]))):
        scores = torch.mm(rows, keys.t(), out_dtype=torch.float32).mul_(query.shape[1] ** -0.5)
        weights = torch.softmax(scores, dim=-1).to(query.dtype)
        torch.mm(weights, values, out=out[: rows.shape[0]])
        out = out[rows.shape[0] :]
    return result


def _pointwise(x: torch.Tensor, conv: nn.Conv3d) -> torch.Tensor:
    """Return a 1x1x1 convolution of [..., C]."""
    return F.linear(x, conv.weight.reshape(conv.out_channels, conv.in_channels), conv.bias)
