"""What a clip costs on a card: FLOP, seconds and peak bytes per stage. Arithmetic, no torch.

The model has one term per kind of work: attention, matrix products, and the element-wise kernels
between them, which memory bandwidth bounds. Its constants were fitted on one H200 (torch 2.11,
bf16, 480x848, mask-free, cuDNN attention; facts in BENCHMARKS.md) and carry over to other cards by
their vendor figures, which makes those predictions estimates. A log of the same card corrects them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from hv15_batch.cards import Card
from hv15_batch.tile_plan import NoPlanError, plan_tiles, predict_peak_bytes

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
STREAMED_ENCODER_BYTES = int(1.6 * GIB)
"""One layer of the text encoder, the states of a group of prompts, and ByT5."""
CONTEXT_BYTES = int(1.4 * GIB)
"""CUDA context, driver, cuDNN's and Triton's kernels: in no counter of torch. NVML less reserved
was 1.28 to 1.39 GiB while rendering (H200, driver 580, measured 2026-11-22)."""
ALLOCATOR_BYTES = int(0.3 * GIB)
"""What torch's allocator may hold beyond what is in use, with expandable segments."""
HOST_BASE_BYTES = int(3.5 * GIB)
"""Python, torch and CUDA's host side in the executor, frames and the parent included."""
ACTIVATION_BYTES_PER_TOKEN = 51_500
COMPILED_ACTIVATION_BYTES_PER_TOKEN = 35_000
"""Peak of a mask-free forward less weights: 2.36 GiB at 49,290 tokens, 1.6 GiB compiled."""

ATTENTION_EFFICIENCY = 0.62
MATMUL_EFFICIENCY = 0.70
"""Shares of the dense bf16 rate that attention and matrix products reach (H200)."""
ELEMENTWISE_BYTES_PER_TOKEN = 58e6
ELEMENTWISE_COMPILED_SHARE = 0.4
BANDWIDTH_EFFICIENCY = 0.8
DECODE_FLOP_PER_PIXEL = 1240e12 / (121 * 480 * 848)
DECODE_EFFICIENCY = 0.53
DISK_BYTES_PER_SECOND = 3e9
"""Of an NVMe disk that is read in sequence; assumed, since no vendor figure says it."""
TEXT_TOKENS = 100
"""Assumed where a prompt was not yet tokenised: 0.2 % of the video's tokens."""


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


class Shape(NamedTuple):
    """A `ClipShape` by itself."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    has_guidance: bool


@dataclass(frozen=True)
class ClipCost:
    """Predicted seconds of one warm clip."""

    denoise_seconds: float
    decode_seconds: float
    is_calibrated: bool
    """From logs of the same card; otherwise from vendor figures."""

    @property
    def seconds(self) -> float:
        """Seconds between two finished clips: writing runs beside the next clip."""
        return self.denoise_seconds + self.decode_seconds


@dataclass(frozen=True)
class Peaks:
    """Predicted peak bytes per stage, by torch's allocator."""

    encode_bytes: int
    denoise_bytes: int
    decode_bytes: int
    host_bytes: int
    """Resident host memory of the run."""

    @property
    def device_bytes(self) -> int:
        """Peak on the card, CUDA's own part included: what NVML shows."""
        return max(self.encode_bytes, self.denoise_bytes, self.decode_bytes) + CONTEXT_BYTES


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
    settings: ClipShape, card: Card, *, compiled: bool, offload: str, scale: float | None
) -> ClipCost:
    """Return the predicted seconds of a warm clip.

    Args:
        settings: The clip's settings.
        card: Vendor figures.
        compiled: Whether the transformer blocks are compiled.
        offload: Profile; a streamed one copies the weights to the card in each forward.
        scale: Measured over predicted seconds on this very card (`calibration`), or None.
    """
    tokens = num_video_tokens(settings.height, settings.width, settings.num_frames)
    rate = card.dense_bf16_tflops * 1e12
    bytes_ = ELEMENTWISE_BYTES_PER_TOKEN * tokens
    bytes_ *= ELEMENTWISE_COMPILED_SHARE if compiled else 1.0
    forward = (
        attention_flop(tokens, TEXT_TOKENS) / (rate * ATTENTION_EFFICIENCY)
        + linear_flop(tokens) / (rate * MATMUL_EFFICIENCY)
        + bytes_ / (card.bandwidth_gb_per_second * 1e9 * BANDWIDTH_EFFICIENCY)
    )
    if offload in ("stream", "stream_disk"):
        bytes_per_second = card.host_gb_per_second * 1e9
        if offload == "stream_disk":
            bytes_per_second = min(bytes_per_second, DISK_BYTES_PER_SECOND)
        forward = max(forward, TRANSFORMER_BYTES / bytes_per_second)
    forwards = settings.num_inference_steps * (2 if settings.has_guidance else 1)
    pixels = settings.height * settings.width * settings.num_frames
    decode = DECODE_FLOP_PER_PIXEL * pixels / (rate * DECODE_EFFICIENCY)
    factor = 1.0 if scale is None else scale
    return ClipCost(forwards * forward * factor, decode * factor, scale is not None)


def calibration(
    records: Sequence[dict[str, Any]], card: Card, gpu_name: str
) -> dict[tuple[bool, str], float]:
    """Return measured over predicted seconds by (compiled, offload), from warm clips of this card.

    Args:
        records: Log rows with the columns of `CALIBRATION_COLUMNS`.
        card: Vendor figures that the prediction starts from.
        gpu_name: Product name of the card; rows of other cards don't count.
    """
    ratios: dict[tuple[bool, str], list[float]] = {}
    for row in records:
        if row["gpu_name"] != gpu_name or row["is_cold"] or row["denoise_seconds"] is None:
            continue
        if row["decode_seconds"] is None or row["weights"] == "tiny":
            continue
        key = (bool(row["compiled"]), str(row["offload"]))
        predicted = predict_clip(_shape_of(row), card, compiled=key[0], offload=key[1], scale=None)
        measured = row["denoise_seconds"] + row["decode_seconds"]
        ratios.setdefault(key, []).append(measured / predicted.seconds)
    return {key: statistics.median(values) for key, values in ratios.items()}


CALIBRATION_COLUMNS = (
    "gpu_name",
    "is_cold",
    "weights",
    "compiled",
    "offload",
    "denoise_seconds",
    "decode_seconds",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
)


def predict_peaks(
    settings: ClipShape,
    offload: str,
    budget_bytes: int,
    *,
    is_i2v: bool,
    compiled: bool = False,
) -> Peaks | None:
    """Return the predicted peaks of a clip under a profile, or None where decoding can't fit.

    Args:
        settings: The clip's settings.
        offload: `resident`, `model`, `stream` or `stream_disk`.
        budget_bytes: What torch may take of the card.
        is_i2v: Whether first frames are encoded too.
        compiled: Whether the transformer blocks are compiled.
    """
    tokens = num_video_tokens(settings.height, settings.width, settings.num_frames)
    per_token = COMPILED_ACTIVATION_BYTES_PER_TOKEN if compiled else ACTIVATION_BYTES_PER_TOKEN
    activations = per_token * tokens
    is_streamed = offload.startswith("stream")
    transformer = TRANSFORMER_REST_BYTES + 2 * BLOCK_BYTES if is_streamed else TRANSFORMER_BYTES
    beside_decode = {"resident": TRANSFORMER_BYTES, "model": 0}.get(offload, TRANSFORMER_REST_BYTES)
    latent = (settings.height // 16, settings.width // 16, (settings.num_frames - 1) // 4 + 1)
    try:
        plan = plan_tiles(*latent, budget_bytes - beside_decode, "cuda")
    except NoPlanError:
        return None
    denoise = transformer + activations + (VAE_BYTES if offload == "resident" else 0)
    if fits_text_encoder(offload, budget_bytes):
        encode = TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES + GIB // 4
    else:
        encode = STREAMED_ENCODER_BYTES
    if is_i2v:
        encode = max(encode, IMAGE_ENCODER_BYTES + VAE_BYTES + GIB)
    host = HOST_BASE_BYTES
    if offload in ("stream", "model"):
        host += TRANSFORMER_BYTES + VAE_BYTES
    elif offload == "stream_disk":
        host += VAE_BYTES + 3 * BLOCK_BYTES
    if not fits_text_encoder(offload, budget_bytes) and offload != "stream_disk":
        host = max(host, HOST_BASE_BYTES + TEXT_ENCODER_BYTES)
    decode = beside_decode + predict_peak_bytes(plan, *latent)
    return Peaks(encode, denoise, decode, host)


def fits_text_encoder(offload: str, budget_bytes: int) -> bool:
    """Whether the text encoder goes to the card whole; otherwise layer by layer."""
    if offload.startswith("stream"):
        return False
    return budget_bytes >= TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES + GIB // 2


def latents_bytes(height: int, width: int, num_frames: int, bytes_per_value: int) -> int:
    """Return the size of a clip's saved latents: 32 channels."""
    return 32 * num_video_tokens(height, width, num_frames) * bytes_per_value


def video_bytes_estimate(height: int, width: int, num_frames: int, lossless: bool) -> int:
    """Return a cautious size of the file: 0.5 bit per pixel for CRF 17, 12 for lossless RGB."""
    return int(height * width * num_frames * (12 if lossless else 0.5) / 8)


def _shape_of(row: dict[str, Any]) -> ClipShape:
    return Shape(
        row["height"],
        row["width"],
        row["num_frames"],
        row["num_inference_steps"],
        row["guidance_scale"] != 1.0,
    )
