"""The image encoder of image-to-video: small, with random weights that are never trained.

The first frame's latents carry the picture. The encoder's tokens tell the transformer's class that
there is one, and say coarsely what is where.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from training.transformer_forward import IMAGE_WIDTH

IMAGE_SIZE, PATCH = 64, 16
IMAGE_TOKENS = (IMAGE_SIZE // PATCH) ** 2


def build_image_encoder() -> SiglipVisionModel:
    """Return the encoder with seeded weights."""
    torch.manual_seed(1)
    config = SiglipVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=2 * IMAGE_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return SiglipVisionModel(config).eval().requires_grad_(False)


def encode_images(encoder: Any, frames: torch.Tensor) -> torch.Tensor:
    """Return the encoder's tokens, [B, 16, 16].

    Args:
        encoder: the image encoder.
        frames: [B, 3, H, W] in -1..1; the pipeline's processor resizes them in the same way.
    """
    size = (IMAGE_SIZE, IMAGE_SIZE)
    small = F.interpolate(frames, size, mode="bilinear", antialias=True).clamp(-1, 1)
    tokens: torch.Tensor = encoder(pixel_values=small).last_hidden_state
    return tokens
