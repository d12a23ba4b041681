"""A streaming forward pass over the modules of diffusers' HunyuanVideo-1.5 VAE decoder.

Gives the frames of one untiled `decoder(z)` piece by piece in time. Inference only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hv15_batch.tile_plan import DEFAULT_CHUNK_BYTES
from hv15_batch.vae_layers import Decoder, Site, Stage
from hv15_batch.vae_ops import ops_for


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
