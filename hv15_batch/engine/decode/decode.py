"""Latents to frames: the VAE decode, streamed in time, converted to uint8 on the device.

The picture does not depend on the plan: every plan gives the frames of an untiled decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from hv15_batch.engine.decode.layers import Decoder, Site, Stage
from hv15_batch.engine.decode.ops import ops_for
from hv15_batch.model.tiles import (
    DEFAULT_CHUNK_BYTES,
    SPATIAL_RATIO,
    TILED_FROM_STAGE,
    TilePlan,
    spans,
)

Vae = Any
"""diffusers' AutoencoderKLHunyuanVideo15; its sub-modules carry no types."""


@torch.no_grad()
def decode_frames(
    vae: Vae,
    latents: torch.Tensor,
    plan: TilePlan,
    on_frames: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Return the clip's frames as uint8 [F, H, W, 3] on the CPU, pinned where the VAE is on CUDA.

    Args:
        vae: The VAE; its decoder's convolution weights are laid out channels last on CUDA.
        latents: [1, 32, T, h, w], scaled as the pipeline returns them.
        plan: How to cut the work.
        on_frames: Is given the frames piece by piece, in order, while they are on the VAE's device.

    Raises:
        ValueError: if there is more than one clip in the batch.
        FloatingPointError: if a decoded value is not finite.
    """
    if latents.ndim != 5 or latents.shape[0] != 1:
        raise ValueError(f"latents of shape {tuple(latents.shape)}: must be [1, C, T, h, w].")
    _run_offload_hook(vae)
    z = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
    x = z[0].permute(1, 2, 3, 0).contiguous()
    frames = num_output_frames(vae.decoder, x.shape[0])
    height, width = x.shape[1] * SPATIAL_RATIO, x.shape[2] * SPATIAL_RATIO
    on_cuda = x.is_cuda
    out = torch.empty((frames, height, width, 3), dtype=torch.uint8, pin_memory=on_cuda)
    finite = torch.ones((), dtype=torch.bool, device=x.device)
    if plan.is_tiled:
        canvas = torch.empty(out.shape, dtype=torch.uint8, device=x.device)
        _decode_tiles(vae.decoder, x, plan, canvas, finite)
        if on_frames is not None:
            on_frames(canvas)
        out.copy_(canvas, non_blocking=True)
    else:
        start = 0
        for piece in stream(vae.decoder, x, plan.chunk_bytes):
            stop = start + piece.shape[0]
            pixels = _to_uint8(piece, finite)
            if on_frames is not None:
                on_frames(pixels)
            out[start:stop].copy_(pixels, non_blocking=True)
            start = stop
    # Waits for the copies too, which run on the same stream.
    if not finite.item():
        raise FloatingPointError("the VAE gave values that are not finite; the clip is unusable.")
    return out


def apply_fast_vae(vae: Vae) -> None:
    """Make this instance's own `decode` fast as well, and its causal masks cheap.

    `vae.decode` keeps diffusers' tiling; each tile is decoded by streaming. The class is left as
    it is. The mask of the encoder's attention is filled in one go instead of row by row.
    """
    decoder = vae.decoder
    decoder.forward = lambda hidden_states: decode_untiled(decoder, hidden_states)
    for module in vae.encoder.modules():
        if hasattr(module, "prepare_causal_attention_mask"):
            module.prepare_causal_attention_mask = _causal_mask


def _decode_tiles(
    decoder: Any, x: torch.Tensor, plan: TilePlan, canvas: torch.Tensor, finite: torch.Tensor
) -> None:
    """Decode tile by tile onto the canvas; the first stages run on the whole frame, once."""
    base = _whole_frame_stages(decoder, x, plan.chunk_bytes)
    scale = base.shape[1] // x.shape[1]
    for rows in spans(x.shape[1], plan.tile_height, plan.overlap):
        for columns in spans(x.shape[2], plan.tile_width, plan.overlap):
            tile = base[:, rows.with_margin(scale), columns.with_margin(scale)]
            core = rows.core_within(SPATIAL_RATIO), columns.core_within(SPATIAL_RATIO)
            target = canvas[:, rows.core(SPATIAL_RATIO), columns.core(SPATIAL_RATIO)]
            start = 0
            for piece in stream(decoder, tile, plan.chunk_bytes, first_stage=TILED_FROM_STAGE):
                stop = start + piece.shape[0]
                target[start:stop] = _to_uint8(piece[:, core[0], core[1]], finite)
                start = stop


def _whole_frame_stages(decoder: Any, x: torch.Tensor, chunk_bytes: int) -> torch.Tensor:
    """Return the input of the first tiled stage for all frames: [T', h', w', C]."""
    frames = num_output_frames(decoder, x.shape[0], TILED_FROM_STAGE)
    base, start = torch.empty(0), 0
    for piece in stream(decoder, x, chunk_bytes, end_stage=TILED_FROM_STAGE):
        if start == 0:
            base = piece.new_empty((frames, *piece.shape[1:]))
        base[start : start + piece.shape[0]] = piece
        start += piece.shape[0]
    return base


def _to_uint8(frames: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
    """Return [-1, 1] as 0..255, rounded; clears `finite` where a value is not."""
    values = frames.float()
    finite.logical_and_(values.isfinite().all())
    return values.mul(0.5).add_(0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _causal_mask(
    n_frame: int,
    n_hw: int,
    dtype: torch.dtype,
    device: torch.device,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Return diffusers' mask, bit for bit: 0 where a key's frame is not after the query's."""
    frame = torch.arange(n_frame, device=device).repeat_interleave(n_hw)
    mask = torch.zeros(len(frame), len(frame), dtype=dtype, device=device)
    mask.masked_fill_(frame[None, :] > frame[:, None], float("-inf"))
    return mask if batch_size is None else mask.unsqueeze(0).expand(batch_size, -1, -1)


def _run_offload_hook(vae: Vae) -> None:
    """Move the VAE in where model offloading manages it, as `vae.decode` itself would."""
    hook = getattr(vae, "_hf_hook", None)
    if hook is not None and hasattr(hook, "pre_forward"):
        hook.pre_forward(vae)


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
    site = Site(x.shape[1], x.shape[2], x.dtype, x.device, ops_for(x.device))
    end = len(decoder.up_blocks) if end_stage is None else end_stage
    stages = []
    for index in range(first_stage, end):
        stages.append(Stage(decoder, index, site))
        site = stages[-1].site
    yield from _descend(stages, x, chunk_bytes)


def _descend(stages: list[Stage], x: torch.Tensor, chunk_bytes: int) -> Iterator[torch.Tensor]:
    """Run x through the stages depth first, each stage cutting what it gets into pieces."""
    if not stages:
        yield x
        return
    pieces = -(-x.shape[0] // stages[0].frames_at_once(chunk_bytes))
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
