"""HunyuanVideo-1.5 in numbers: the shape of a clip, its tokens, FLOP and bytes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from hv15_batch.clip import ClipSettings
from hv15_batch.model.step_cache import parse_step_cache
from hv15_batch.units import GIB

# Parameters in bf16, from the classes' default configurations.
TRANSFORMER_BYTES = int(15.52 * GIB)
TRANSFORMER_REST_BYTES = int(0.35 * GIB)
"""Transformer less its 54 blocks: what a streamed profile keeps on the card."""
NUM_BLOCKS = 54
BLOCK_BYTES = 302_129_152
WIDTH = 2048
"""Channels of a token."""
VAE_BYTES = int(2.35 * GIB)
TEXT_ENCODER_BYTES = int(13.17 * GIB)
SMALL_ENCODERS_BYTES = int(0.42 * GIB)
IMAGE_ENCODER_BYTES = int(0.80 * GIB)
TEXT_TOKENS = 100
"""Assumed where a prompt was not yet tokenised: 0.2 % of the video's tokens."""
IMAGE_TOKENS = 729
"""SigLIP's of a first frame, which join the text's."""
PADDED_TOKENS = 1000 + 256 + 729
"""Text, glyphs and image as plain diffusers pads them, for text to video too."""


class Shape(NamedTuple):
    """What decides a clip's cost."""

    height: int
    """Pixels."""
    width: int
    """Pixels."""
    num_frames: int
    num_inference_steps: int
    has_guidance: bool
    """Each step runs two forwards."""
    has_image: bool = False
    """The clip begins with a given frame."""
    num_computed: int | None = None
    """Steps that a static cache computes; None without one."""

    @classmethod
    def of(cls, settings: ClipSettings | Shape) -> Shape:
        """Return what decides a clip's cost, without the rest of its settings."""
        if isinstance(settings, Shape):
            return settings
        steps, computed = settings.num_inference_steps, None
        if settings.cache is not None:
            computed = parse_step_cache(settings.cache).num_computed(steps)
        size = settings.height, settings.width, settings.num_frames
        return cls(*size, steps, settings.has_guidance, settings.has_image, computed)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Shape:
        """Return what decides the cost of a log's clip."""
        size = row["height"], row["width"], row["num_frames"]
        guided, has_image = row["guidance_scale"] != 1.0, row["task"] == "i2v"
        computed = row["num_computed_steps"] if row["cache"] else None
        return cls(*size, row["num_inference_steps"], guided, has_image, computed)

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and number of frames."""
        return self.height, self.width, self.num_frames

    @property
    def num_pixels(self) -> int:
        """Pixels of all frames."""
        return self.height * self.width * self.num_frames

    @property
    def num_video_tokens(self) -> int:
        """Latent tokens, see `num_video_tokens`."""
        return num_video_tokens(*self.size)

    @property
    def num_forwards(self) -> int:
        """Forwards of the transformer's blocks in all steps."""
        return self.num_computed_steps * (2 if self.has_guidance else 1)

    @property
    def num_computed_steps(self) -> int:
        """Steps that run the transformer's blocks: all of them without a cache."""
        return self.num_inference_steps if self.num_computed is None else self.num_computed

    def of_one_step(self) -> Shape:
        """Return the shape of one step: kernels are chosen and compiled by it."""
        return self._replace(num_inference_steps=1, num_computed=None)


def num_video_tokens(height: int, width: int, num_frames: int) -> int:
    """Return the number of latent tokens: 16x spatial and 4x temporal compression, patch 1."""
    return ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def linear_flop(video_tokens: int) -> float:
    """Return the FLOP of a forward's matrix products: 2 per token and parameter it meets.

    Each video token meets 2.72e9 parameters: 54 blocks of 12 x 2048² in attention and MLP.
    """
    return 2 * 2.72e9 * video_tokens


def attention_flop(video_tokens: int, text_tokens: int) -> float:
    """Return the FLOP of a forward's attention: 4·S²·2048 in each of 54 blocks."""
    return 4.0 * 54 * 2048 * (video_tokens + text_tokens) ** 2


def forward_flop(video_tokens: int, text_tokens: int) -> float:
    """Return the FLOP of one transformer forward at full size."""
    return linear_flop(video_tokens) + attention_flop(video_tokens, text_tokens)


def latents_bytes(height: int, width: int, num_frames: int, bytes_per_value: int) -> int:
    """Return the size of a clip's saved latents: 32 channels."""
    return 32 * num_video_tokens(height, width, num_frames) * bytes_per_value


@lru_cache(maxsize=4096)
def bucket_size(height: int, width: int, target_size: int) -> tuple[int, int]:
    """Return the (height, width) that the image-to-video pipeline gives an image of this size.

    Buckets are the 16-pixel sizes of about `target_size`² area with an aspect of up to 4:1; the
    chosen one is the nearest in aspect that is not more elongated than the image.

    Source: diffusers 0.42.1 HunyuanVideo15ImageProcessor.calculate_default_height_width.
    """
    patches = round((target_size / 16) ** 2)
    aspect = height / width
    best: tuple[float, int, int] | None = None
    rows, columns = patches, 1
    while rows > 0:
        if max(rows, columns) / min(rows, columns) <= 4.0:
            distance = round(rows / columns, 5) - aspect
            reachable = distance <= 0 if aspect >= 1 else distance >= 0
            if reachable and (best is None or abs(distance) < best[0]):
                best = (abs(distance), rows * 16, columns * 16)
        if (columns + 1) * rows <= patches:
            columns += 1
        else:
            rows -= 1
    if best is None:
        raise ValueError(f"no bucket for an image of {height}x{width}: the aspect is over 4:1")
    return best[1], best[2]
