"""What a clip costs: FLOP, and what must fit where. Plain arithmetic, no torch."""

from __future__ import annotations

GIB = 2**30

# Components in bf16, from the classes' default configurations.
TRANSFORMER_BYTES = int(15.52 * GIB)
VAE_BYTES = int(2.35 * GIB)


def num_video_tokens(height: int, width: int, num_frames: int) -> int:
    """Return the number of latent tokens: 16x spatial and 4x temporal compression, patch 1."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def forward_flop(video_tokens: int, text_tokens: int) -> float:
    """Return the FLOP of one transformer forward at full size.

    Linear layers of the video stream: 2 FLOP per parameter and token over the 2.72e9 parameters
    that each video token meets. Attention: 4·S²·2048 in each of the 54 blocks, S counting the
    text tokens too. Source: the shapes in HunyuanVideo15Transformer3DModel's defaults.
    """
    sequence = video_tokens + text_tokens
    return 2 * 2.72e9 * video_tokens + 4.0 * 54 * 2048 * sequence**2


def clip_flop(
    height: int,
    width: int,
    num_frames: int,
    num_inference_steps: int,
    has_guidance: bool,
    text_tokens: int,
) -> float:
    """Return the FLOP of denoising a clip at full size: two forwards a step with guidance."""
    forwards = num_inference_steps * (2 if has_guidance else 1)
    return forwards * forward_flop(num_video_tokens(height, width, num_frames), text_tokens)


def latents_bytes(height: int, width: int, num_frames: int, bytes_per_value: int) -> int:
    """Return the size of a clip's saved latents: 32 channels."""
    return 32 * num_video_tokens(height, width, num_frames) * bytes_per_value


def video_bytes_estimate(height: int, width: int, num_frames: int, lossless: bool) -> int:
    """Return a cautious size of the file: 0.5 bit per pixel for CRF 17, 12 for lossless RGB."""
    return int(height * width * num_frames * (12 if lossless else 0.5) / 8)
