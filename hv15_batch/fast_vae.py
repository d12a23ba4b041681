"""A streaming forward pass over the modules of diffusers' HunyuanVideo-1.5 VAE decoder.

Gives the frames of one untiled `decoder(z)`, piece by piece in time: every causal convolution
keeps the last two frames of its padded input, the attention keeps its keys and values. Activations
are [T, H, W, C], channels last, so cuDNN takes them without a copy. Inference only.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hv15_batch.tile_plan import DEFAULT_CHUNK_BYTES, frames_per_piece
from hv15_batch.vae_ops import normalize, ops_for

Decoder = Any
"""diffusers' HunyuanVideo15Decoder3D; its sub-modules carry no types."""


class CausalConv:
    """A 3x3x3 causal convolution that remembers its last two input frames.

    With a norm, the input is normalised and goes through SiLU first: the three memory-bound steps
    (norm, activation, padding) are one pass over memory.
    """

    def __init__(self, module: Decoder, norm: Decoder | None, ops: ModuleType) -> None:
        self.conv: nn.Conv3d = module.conv
        self.gamma = None if norm is None else norm.gamma.reshape(-1).float()
        self.ops = ops
        self.context: torch.Tensor | None = None
        _use_channels_last(self.conv)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolution of the next frames. x: [T, H, W, C]."""
        frames, height, width, channels = x.shape
        padded = x.new_empty((frames + 2, height + 2, width + 2, channels))
        self.ops.pad_into(padded[2:], x, self.gamma)
        if self.context is None:
            padded[:2] = padded[2]
            self.context = padded[frames:].clone()
        else:
            padded[:2] = self.context
            self.context.copy_(padded[frames:])
        return _conv3d(padded, self.conv)


class ResnetBlock:
    """Two convolutions and a shortcut."""

    def __init__(self, module: Decoder, ops: ModuleType) -> None:
        self.conv1 = CausalConv(module.conv1, module.norm1, ops)
        self.conv2 = CausalConv(module.conv2, module.norm2, ops)
        self.conv_shortcut: nn.Conv3d | None = module.conv_shortcut

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for the next frames. x: [T, H, W, C]."""
        h = self.conv2(self.conv1(x))
        return h.add_(x if self.conv_shortcut is None else _pointwise(x, self.conv_shortcut))


class CausalAttention:
    """Attention of each frame over itself and all frames before it, without a mask.

    The stock block builds a dense mask over all pairs of latent pixels; here each frame's queries
    meet only the keys that its mask would let through.
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
            out[start : start + tokens] = F.scaled_dot_product_attention(
                query[None, None, start : start + tokens],
                self.keys[None, None, :seen],
                self.values[None, None, :seen],
            )[0, 0]
        return _pointwise(out, self.module.proj_out).reshape(x.shape).add_(x)


class Upsampler:
    """Doubles height and width, and frames where it is temporal (the clip's first one excepted)."""

    def __init__(self, module: Decoder, ops: ModuleType) -> None:
        self.conv = CausalConv(module.conv, None, ops)
        self.ratio = 2 if module.add_temporal_upsample else 1
        self.channels = self.conv.conv.out_channels // (4 * self.ratio)
        self.ops = ops
        self.is_first = True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the upsampled next frames. x: [T, H, W, C]."""
        packed = self.conv(x)
        if self.ratio == 1 or not self.is_first:
            out: torch.Tensor = self.ops.unpack_add(packed, x, self.channels, False)
            return out
        self.is_first = False
        first: torch.Tensor = self.ops.unpack_add(packed[:1], x[:1], self.channels, True)
        if x.shape[0] == 1:
            return first
        rest = self.ops.unpack_add(packed[1:], x[1:], self.channels, False)
        return torch.cat([first, rest])


class Stage:
    """All layers of one resolution, and the upsampler that leads to it."""

    def __init__(self, decoder: Decoder, index: int, ops: ModuleType) -> None:
        self.head: _Head | None = _Head(decoder, ops) if index == 0 else None
        self.upsampler: Upsampler | None = None
        if index > 0:
            (upsampler,) = decoder.up_blocks[index - 1].upsamplers
            self.upsampler = Upsampler(upsampler, ops)
        self.resnets = [ResnetBlock(m, ops) for m in decoder.up_blocks[index].resnets]
        self.channels = self.resnets[0].conv1.conv.in_channels
        self.conv_out: CausalConv | None = None
        if index == len(decoder.up_blocks) - 1:
            self.conv_out = CausalConv(decoder.conv_out, decoder.norm_out, ops)

    def frames_at_once(self, x: torch.Tensor, chunk_bytes: int) -> int:
        """Return how many frames of x one call may take."""
        pixels = x.shape[1] * x.shape[2] * (4 if self.upsampler else 1)
        ratio = self.upsampler.ratio if self.upsampler else 1
        return frames_per_piece(chunk_bytes, pixels * self.channels * x.element_size(), ratio)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stage's output for the next frames. x: [T, H, W, C]."""
        if self.head is not None:
            x = self.head(x)
        if self.upsampler is not None:
            x = self.upsampler(x)
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.conv_out is None else self.conv_out(x)


class _Head:
    """First convolution and mid block."""

    def __init__(self, decoder: Decoder, ops: ModuleType) -> None:
        self.conv_in = CausalConv(decoder.conv_in, None, ops)
        self.repeat: int = decoder.repeat
        mid = decoder.mid_block
        self.layers: list[ResnetBlock | CausalAttention] = [ResnetBlock(mid.resnets[0], ops)]
        for attention, resnet in zip(mid.attentions, mid.resnets[1:], strict=True):
            if attention is not None:
                self.layers.append(CausalAttention(attention))
            self.layers.append(ResnetBlock(resnet, ops))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x).add_(x.repeat_interleave(self.repeat, dim=-1))
        for layer in self.layers:
            x = layer(x)
        return x


def stream(
    decoder: Decoder,
    x: torch.Tensor,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    first_stage: int = 0,
    end_stage: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the output of the decoder, or of some of its stages, piece by piece in time.

    Args:
        decoder: The VAE's decoder.
        x: [T, h, w, C], input of `first_stage` for all frames of the clip; stage 0 takes latents.
        chunk_bytes: Size that no activation exceeds, unless one frame alone does.
        first_stage: Stage to begin with.
        end_stage: Stage to stop before; None runs to the end.
    """
    ops = ops_for(x.device)
    end = len(decoder.up_blocks) if end_stage is None else end_stage
    stages = [Stage(decoder, index, ops) for index in range(first_stage, end)]
    yield from _descend(stages, x, chunk_bytes)


def _descend(stages: list[Stage], x: torch.Tensor, chunk_bytes: int) -> Iterator[torch.Tensor]:
    """Run x through the stages depth first, each stage cutting what it gets into pieces."""
    if not stages:
        yield x
        return
    pieces = -(-x.shape[0] // stages[0].frames_at_once(x, chunk_bytes))
    for piece in x.tensor_split(pieces):
        yield from _descend(stages[1:], stages[0](piece), chunk_bytes)


def num_output_frames(decoder: Decoder, latent_frames: int, end_stage: int | None = None) -> int:
    """Return how many frames come out of the stages before `end_stage`."""
    frames = latent_frames
    for block in list(decoder.up_blocks)[: None if end_stage is None else max(0, end_stage - 1)]:
        if block.upsamplers is not None and block.upsamplers[0].add_temporal_upsample:
            frames = 2 * frames - 1
    return frames


@torch.no_grad()
def decode_untiled(decoder: Decoder, z: torch.Tensor) -> torch.Tensor:
    """Return `decoder(z)` computed by streaming. z: [B, C, T, h, w]."""
    clips = []
    for latents in z:
        frames = torch.cat(list(stream(decoder, latents.permute(1, 2, 3, 0).contiguous())))
        clips.append(frames.permute(3, 0, 1, 2))
    return torch.stack(clips)


def _use_channels_last(conv: nn.Conv3d) -> None:
    """Lay a CUDA weight out as cuDNN wants it beside channels-last activations, once."""
    weight = conv.weight
    if weight.is_cuda and not weight.is_contiguous(memory_format=torch.channels_last_3d):
        weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def _conv3d(padded: torch.Tensor, conv: nn.Conv3d) -> torch.Tensor:
    """Return the convolution of [T + 2, H + 2, W + 2, C] as contiguous [T, H, W, C']."""
    out = F.conv3d(padded.permute(3, 0, 1, 2)[None], conv.weight, conv.bias)
    return out[0].permute(1, 2, 3, 0).contiguous()


def _pointwise(x: torch.Tensor, conv: nn.Conv3d) -> torch.Tensor:
    """Return a 1x1x1 convolution of [..., C]."""
    return F.linear(x, conv.weight.reshape(conv.out_channels, conv.in_channels), conv.bias)
