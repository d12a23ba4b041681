"""What a clip costs on a card: FLOP and seconds per stage. Arithmetic, no torch.

The model has one term per kind of work: attention, matrix products, and the element-wise kernels
between them, which memory bandwidth bounds; a streamed profile takes at least as long as its
weights' way to the card. Its constants were fitted on one H200 (torch 2.11, 480x848; facts in
BENCHMARKS.md) and carry over to other cards by their vendor figures, which makes those predictions
estimates. A log of the same card corrects them (`calibration`). Memory: `peaks`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from hv15_batch.cards import Card
from hv15_batch.execution import Execution, attention_share

GIB = 2**30

# Parameters in bf16, from the classes' default configurations.
TRANSFORMER_BYTES = int(15.52 * GIB)
TRANSFORMER_REST_BYTES = int(0.35 * GIB)
"""Transformer less its 54 blocks: what a streamed profile keeps on the card."""
BLOCK_BYTES = 302_129_152
VAE_BYTES = int(2.35 * GIB)
TEXT_ENCODER_BYTES = int(13.17 * GIB)
SMALL_ENCODERS_BYTES = int(0.42 * GIB)
IMAGE_ENCODER_BYTES = int(0.80 * GIB)
CONTEXT_BYTES = int(1.4 * GIB)
"""CUDA context, driver, cuDNN's and Triton's kernels: in no counter of torch. NVML less reserved
was 1.28 to 1.39 GiB while rendering (H200, driver 580, measured 2026-11-22)."""
ALLOCATOR_BYTES = int(0.3 * GIB)
"""What torch's allocator may hold beyond what is in use, with expandable segments."""

NEAR_SIZE = 2.0
"""Clips up to so many times larger or smaller say how long one takes: small ones are dominated by
what each kernel costs, not by its arithmetic."""
MATMUL_SHARE = 0.70
"""Of the dense bf16 rate in matrix products (H200); of the fp32 rate assumed."""
ELEMENTWISE_BYTES_PER_TOKEN = 58e6
ELEMENTWISE_COMPILED_SHARE = 0.4
BANDWIDTH_SHARE = 0.8
DECODE_FLOP_PER_PIXEL = 1240e12 / (121 * 480 * 848)
DECODE_SHARE = 0.53
DISK_BYTES_PER_SECOND = 3e9
"""Of an NVMe disk that is read in sequence; assumed, since no vendor figure says it."""
TEXT_TOKENS = 100
"""Assumed where a prompt was not yet tokenised: 0.2 % of the video's tokens."""
IMAGE_TOKENS = 729
"""SigLIP's of a first frame, which join the text's."""
PADDED_TOKENS = 1000 + 256 + 729
"""Text, glyphs and image as the stock pipeline pads them, for text to video too."""


class ClipShape(Protocol):
    """What decides a clip's cost; `clip.ClipSettings` has all of it."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def num_frames(self) -> int:
        """Frames."""

    @property
    def num_inference_steps(self) -> int:
        """Denoising steps."""

    @property
    def has_guidance(self) -> bool:
        """Whether each step runs two forwards."""

    @property
    def has_image(self) -> bool:
        """Whether it begins with a given frame."""


class Shape(NamedTuple):
    """A `ClipShape` by itself."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    has_guidance: bool
    has_image: bool = False

    @classmethod
    def of(cls, settings: ClipShape) -> Shape:
        """Return what decides a clip's cost, without the rest of its settings."""
        return cls(*(getattr(settings, name) for name in cls._fields))


@dataclass(frozen=True)
class Scales:
    """Measured over predicted seconds on the same card, by kind of work."""

    denoise: tuple[tuple[int, float], ...] = ()
    """Video tokens and factor, of clips that waited for arithmetic."""
    copy: float | None = None
    """Of the weights' way to the card, where that is what a forward takes."""
    decode: float | None = None
    source: str | None = None
    """The other way of running whose log `denoise` is from; None: the same one's."""

    def nearest(self, tokens: int) -> tuple[int, float] | None:
        """Return tokens and factor of the measured clips that are nearest in size."""
        return min(self.denoise, key=lambda it: abs(math.log(it[0] / tokens)), default=None)


class CostBasis(IntEnum):
    """What a clip's predicted seconds rest on."""

    estimated = 0
    """Vendor figures of the card."""
    scaled = 1
    """The same, corrected by far larger or smaller clips of this card."""
    calibrated = 2
    """The same, corrected by clips of about this size."""


@dataclass(frozen=True)
class ClipCost:
    """Predicted cost of one warm clip."""

    denoise_seconds: float
    decode_seconds: float
    basis: CostBasis
    """Of denoising."""
    is_copy_bound: bool = False
    """Whether a forward waits for the weights rather than for the card's arithmetic."""
    denoise_flop: float = 0.0
    decode_flop: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds between two finished clips: writing runs beside the next clip."""
        return self.denoise_seconds + self.decode_seconds


def shape_of(row: Mapping[str, Any]) -> Shape:
    """Return what decides the cost of a log's clip."""
    return Shape(
        row["height"],
        row["width"],
        row["num_frames"],
        row["num_inference_steps"],
        row["guidance_scale"] != 1.0,
        row["task"] == "i2v",
    )


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


def predict_clip(
    settings: ClipShape, card: Card, execution: Execution, scales: Scales | None
) -> ClipCost:
    """Return the predicted seconds of a warm clip.

    Args:
        settings: The clip's settings.
        card: Vendor figures.
        execution: How the maths is carried out there.
        scales: What logs of this very card say (`calibration`), or None.
    """
    factors = scales or Scales()
    tokens = num_video_tokens(settings.height, settings.width, settings.num_frames)
    nearest = factors.nearest(tokens)
    arithmetic = 1.0 if nearest is None else nearest[1]
    compute = _compute_seconds(settings, card, execution) * arithmetic
    copy = copy_seconds(card, execution) * (factors.copy or 1.0)
    if copy > compute:
        basis = CostBasis.estimated if factors.copy is None else CostBasis.calibrated
    else:
        basis = _basis(tokens, nearest)
    forwards = settings.num_inference_steps * (2 if settings.has_guidance else 1)
    pixels = settings.height * settings.width * settings.num_frames
    decode_flop = DECODE_FLOP_PER_PIXEL * pixels
    # Convolutions in float32 run in TF32, at half of the bf16 rate.
    decode = decode_flop * execution.bytes_factor / (card.dense_bf16_tflops * 1e12 * DECODE_SHARE)
    return ClipCost(
        denoise_seconds=forwards * max(compute, copy) + move_seconds(card, execution) * arithmetic,
        decode_seconds=decode * (factors.decode or 1.0),
        basis=basis,
        is_copy_bound=copy > compute,
        denoise_flop=forwards * forward_flop(tokens, _text_tokens(settings, execution)),
        decode_flop=decode_flop,
    )


def copy_seconds(card: Card, execution: Execution) -> float:
    """Return what the weights' way to the card takes in each forward; 0 where they stay there."""
    if not execution.is_streamed:
        return 0.0
    bytes_per_second = card.host_gb_per_second * 1e9
    if execution.offload == "stream_disk":
        bytes_per_second = min(bytes_per_second, DISK_BYTES_PER_SECOND)
    return TRANSFORMER_BYTES * execution.bytes_factor / bytes_per_second


def move_seconds(card: Card, execution: Execution) -> float:
    """Return what moving transformer and VAE to the card and back takes for each clip.

    0 where they stay there or are streamed. At the card's full rate; never measured.
    """
    if execution.offload != "model":
        return 0.0
    moved = 2 * (TRANSFORMER_BYTES + VAE_BYTES) * execution.bytes_factor
    return moved / (card.host_gb_per_second * 1e9)


def latents_bytes(height: int, width: int, num_frames: int, bytes_per_value: int) -> int:
    """Return the size of a clip's saved latents: 32 channels."""
    return 32 * num_video_tokens(height, width, num_frames) * bytes_per_value


def video_bytes_estimate(height: int, width: int, num_frames: int, lossless: bool) -> int:
    """Return a cautious size of the file: 0.5 bit per pixel for CRF 17, 12 for lossless RGB."""
    return int(height * width * num_frames * (12 if lossless else 0.5) / 8)


def _basis(tokens: int, nearest: tuple[int, float] | None) -> CostBasis:
    if nearest is None:
        return CostBasis.estimated
    is_near = 1 / NEAR_SIZE <= tokens / nearest[0] <= NEAR_SIZE
    return CostBasis.calibrated if is_near else CostBasis.scaled


def _compute_seconds(settings: ClipShape, card: Card, execution: Execution) -> float:
    """Return what a forward takes where the weights are on the card already."""
    tokens = num_video_tokens(settings.height, settings.width, settings.num_frames)
    text = _text_tokens(settings, execution)
    factor = execution.bytes_factor
    rate = (card.fp32_tflops if factor == 2 else card.dense_bf16_tflops) * 1e12
    bytes_ = ELEMENTWISE_BYTES_PER_TOKEN * tokens * factor
    bytes_ *= ELEMENTWISE_COMPILED_SHARE if execution.compiled else 1.0
    return (
        attention_flop(tokens, text) / (rate * attention_share(card, execution))
        + linear_flop(tokens) / (rate * MATMUL_SHARE)
        + bytes_ / (card.bandwidth_gb_per_second * 1e9 * BANDWIDTH_SHARE)
    )


def _text_tokens(settings: ClipShape, execution: Execution) -> int:
    if not execution.mask_free:
        return PADDED_TOKENS
    return TEXT_TOKENS + (IMAGE_TOKENS if settings.has_image else 0)
