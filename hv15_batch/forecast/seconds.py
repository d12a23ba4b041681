"""Predicts what a clip costs on a card: FLOP and seconds by stage. Arithmetic, no torch.

The model has one term for each kind of work: attention, matrix products, and the element-wise
kernels between them, which memory bandwidth limits. A streamed profile takes at least as long as
copying its weights to the card. The constants were fitted on one H200 (torch 2.11, 480x848; see
BENCHMARKS.md). For other cards they are scaled by vendor figures, so those predictions are
estimates. A log of the same card corrects them (`calibrate`). Memory is in `_memory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from hv15_batch.clip import ClipSettings
from hv15_batch.machine.cards import Card
from hv15_batch.model.attention import KERNELS, NATIVE, auto_kernel
from hv15_batch.model.linears import transformer_bytes
from hv15_batch.model.shapes import (
    IMAGE_ENCODER_BYTES,
    IMAGE_TOKENS,
    PADDED_TOKENS,
    SMALL_ENCODERS_BYTES,
    TEXT_ENCODER_BYTES,
    TEXT_TOKENS,
    TRANSFORMER_BYTES,
    VAE_BYTES,
    Shape,
    attention_flop,
    forward_flop,
    linear_flop,
)
from hv15_batch.model.variant import Linear

NEAR_SIZE = 2.0
"""Only clips at most this many times larger or smaller calibrate a clip. In much smaller ones the
start of each kernel takes most of the time, and not its arithmetic."""
MATMUL_SHARE = 0.70
"""Share of the dense bf16 rate that matrix products reach on an H200. For fp32 it is assumed."""
EIGHT_BIT_SHARE = 0.475
"""Share of the dense 8-bit rate that matrix products reach. With fp8 the three shapes of the image
stream took 1 / 1.36 of their bf16 time on an H200. For int8 it is assumed."""
EIGHT_BIT_BYTES_PER_TOKEN = {
    (Linear.fp8, False): 40e6,
    (Linear.fp8, True): 0.0,
    (Linear.int8, False): 114e6,
    (Linear.int8, True): 17e6,
}
"""Bytes that 8 bits add for each video token and forward, by type and whether it is compiled:
inputs are quantised, and integer products scaled. Fitted to forwards of 49,290 tokens on one H200
(`BENCHMARKS.md`, "What do 8-bit weights cost and save?")."""
ELEMENTWISE_BYTES_PER_TOKEN = 58e6
"""Bytes that element-wise kernels read and write per video token and forward, in 16 bits."""
ELEMENTWISE_COMPILED_SHARE = 0.4
"""Share of these bytes that remains in a compiled forward."""
BANDWIDTH_SHARE = 0.8
"""Share of the card's memory bandwidth that these kernels reach."""
DECODE_FLOP_PER_PIXEL = 1240e12 / (121 * 480 * 848)
DECODE_SHARE = 0.53
"""Share of the dense bf16 rate that decoding reaches."""
DISK_BYTES_PER_SECOND = 3e9
"""Assumed of an NVMe disk that is read in sequence, because no vendor figure says it."""
WRITE_PIXELS_PER_SECOND = 15e6
"""Assumed of x264's `medium` on a desktop CPU, until the first clip is written."""


@dataclass(frozen=True)
class Scales:
    """Measured over predicted seconds on the same card, by kind of work."""

    denoise: tuple[tuple[int, float], ...] = ()
    """Video tokens and factor, of clips that waited for arithmetic."""
    copy: float | None = None
    """Factor of copying weights to the card, from clips that waited for it."""
    decode: float | None = None
    source: str | None = None
    """The other way of running whose log gave `denoise`; None where it was the same one."""

    def nearest(self, tokens: int) -> tuple[int, float] | None:
        """Return tokens and factor of the measured size that is nearest; None without any."""
        return min(self.denoise, key=lambda it: abs(math.log(it[0] / tokens)), default=None)


class CostBasis(IntEnum):
    """The basis of a clip's predicted seconds."""

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


def predict_clip(shape: Shape, card: Card, execution: Execution, scales: Scales | None) -> ClipCost:
    """Return the predicted seconds of a warm clip.

    Args:
        shape: The clip's.
        card: Vendor figures.
        execution: How the maths is carried out there.
        scales: Correction by logs of this card (`calibrate`), or None.
    """
    factors = scales or Scales()
    tokens = shape.num_video_tokens
    nearest = factors.nearest(tokens)
    arithmetic = 1.0 if nearest is None else nearest[1]
    compute = _compute_seconds(shape, card, execution) * arithmetic
    copy = copy_seconds(card, execution) * (factors.copy or 1.0)
    if copy > compute:
        basis = CostBasis.estimated if factors.copy is None else CostBasis.calibrated
    else:
        basis = _basis(tokens, nearest)
    forwards = shape.num_forwards
    decode_flop = DECODE_FLOP_PER_PIXEL * shape.num_pixels
    # Convolutions in float32 run in TF32, at half of the bf16 rate.
    decode = decode_flop * execution.bytes_factor / (card.dense_bf16_tflops * 1e12 * DECODE_SHARE)
    return ClipCost(
        denoise_seconds=forwards * max(compute, copy) + move_seconds(card, execution) * arithmetic,
        decode_seconds=decode * (factors.decode or 1.0),
        basis=basis,
        is_copy_bound=copy > compute,
        denoise_flop=forwards * forward_flop(tokens, _text_tokens(shape, execution)),
        decode_flop=decode_flop,
    )


def write_seconds(settings: ClipSettings | Shape) -> float:
    """Return the predicted seconds of writing a clip, which runs beside the next one."""
    return Shape.of(settings).num_pixels / WRITE_PIXELS_PER_SECOND


def copy_seconds(card: Card, execution: Execution) -> float:
    """Return the seconds of copying weights in each forward; 0 where they stay on the card."""
    if not execution.is_streamed:
        return 0.0
    bytes_per_second = card.host_gb_per_second * 1e9
    if execution.offload == "stream_disk":
        bytes_per_second = min(bytes_per_second, DISK_BYTES_PER_SECOND)
    return transformer_bytes(execution.linears, execution.bytes_factor) / bytes_per_second


def move_seconds(card: Card, execution: Execution) -> float:
    """Return the seconds of moving transformer and VAE to the card and back, for each clip.

    It is 0 where they stay there or are streamed. The rate is the vendor's; it was never measured.
    """
    if execution.offload != "model":
        return 0.0
    factor = execution.bytes_factor
    moved = 2 * (transformer_bytes(execution.linears, factor) + VAE_BYTES * factor)
    return moved / (card.host_gb_per_second * 1e9)


def _basis(tokens: int, nearest: tuple[int, float] | None) -> CostBasis:
    if nearest is None:
        return CostBasis.estimated
    is_near = 1 / NEAR_SIZE <= tokens / nearest[0] <= NEAR_SIZE
    return CostBasis.calibrated if is_near else CostBasis.scaled


def _compute_seconds(shape: Shape, card: Card, execution: Execution) -> float:
    """Return the seconds of a forward whose weights are on the card already."""
    tokens = shape.num_video_tokens
    text = _text_tokens(shape, execution)
    factor = execution.bytes_factor
    rate = (card.fp32_tflops if factor == 2 else card.dense_bf16_tflops) * 1e12
    bytes_ = ELEMENTWISE_BYTES_PER_TOKEN * tokens * factor
    bytes_ *= ELEMENTWISE_COMPILED_SHARE if execution.compiled else 1.0
    bytes_ += tokens * EIGHT_BIT_BYTES_PER_TOKEN.get((execution.linears, execution.compiled), 0.0)
    return (
        attention_flop(tokens, text) / (rate * attention_share(card, execution))
        + linear_flop(tokens) / linear_rate(card, execution)
        + bytes_ / (card.bandwidth_gb_per_second * 1e9 * BANDWIDTH_SHARE)
    )


def linear_rate(card: Card, execution: Execution) -> float:
    """Return the FLOP a second that the linear modules of the image stream reach."""
    eight_bits = {Linear.fp8: card.fp8_tflops, Linear.int8: card.int8_tops}
    if (rate := eight_bits.get(execution.linears)) is not None:
        return rate * 1e12 * EIGHT_BIT_SHARE
    rate = card.fp32_tflops if execution.dtype == "float32" else card.dense_bf16_tflops
    return rate * 1e12 * MATMUL_SHARE


def _text_tokens(shape: Shape, execution: Execution) -> int:
    if not execution.mask_free:
        return PADDED_TOKENS
    return TEXT_TOKENS + (IMAGE_TOKENS if shape.has_image else 0)


MASKED_SHARES = (0.156, 0.28)
"""`Kernel.rate_shares` with the mask of plain diffusers, which only torch's memory-efficient kernel
takes; making the mask is included. On Hopper: 8.71 s a forward of 480x848x121 on one H200.
Elsewhere: the RTX 5090 D that took 509 s with the mask and 272 s without
(conf/reference/profile_rtx5090d.yaml)."""
FLOAT32_ATTENTION_SHARE = 0.4
"""Share of the fp32 rate that attention reaches; assumed."""


@dataclass(frozen=True)
class Execution:
    """How the maths is carried out: the settings that change the time and memory of a clip."""

    attention_backend: str
    """In effect: never `auto`."""
    offload: str = "resident"
    compiled: bool = False
    mask_free: bool = True
    dtype: str = "bfloat16"
    linear: str | None = None
    """As in the log: None where nothing is in 8 bits."""
    lora_bytes: int = field(default=0, compare=False)
    """Bytes of the largest set of LoRAs, in 16 bits."""

    @property
    def bytes_factor(self) -> int:
        """Bytes of a number, divided by those of a 16-bit one."""
        return 2 if self.dtype == "float32" else 1

    @property
    def linears(self) -> Linear:
        """`linear` as a setting."""
        return Linear[self.linear or Linear.bf16.name]

    @property
    def is_streamed(self) -> bool:
        """Whether the weights pass through the card in each forward."""
        return self.offload in ("stream", "stream_disk")


def auto_backend(card: Card, mask_free: bool, dtype: str) -> str:
    """Return the attention that `auto` means on a card."""
    is_fused = mask_free and dtype != "float32"
    return auto_kernel(card.capability) if is_fused else NATIVE


def default_execution(card: Card) -> Execution:
    """Return how a card runs by default: resident, mask-free bf16, not compiled."""
    return Execution(auto_backend(card, True, "bfloat16"))


def not_modelled(card: Card, execution: Execution) -> str | None:
    """Return the settings whose speed is unknown, and what is assumed instead; None without any."""
    name = auto_backend(card, execution.mask_free, execution.dtype)
    parts = []
    if execution.attention_backend not in (name, *_known_kernels(card, execution)):
        parts.append(f"attention_backend={execution.attention_backend}, taken as {name}")
    if execution.dtype == "float32":
        parts.append("dtype=float32, never measured")
    if execution.linear is not None and card.name != _MEASURED:
        name = f"linear={execution.linear}"
        parts.append(f"{name}, taken at the share of the 8-bit rate that an H200 reached")
    if execution.lora_bytes:
        parts.append("LoRA, which takes some more time")
    return "; ".join(parts) or None


_MEASURED = "h200"
"""The card on which products of 8-bit numbers were timed."""


def attention_share(card: Card, execution: Execution) -> float:
    """Return the share of the card's rate (fp32 or bf16) that attention reaches."""
    if execution.dtype == "float32":
        return FLOAT32_ATTENTION_SHARE
    if not execution.mask_free:
        return MASKED_SHARES[0 if card.is_hopper else 1]
    asked, auto = execution.attention_backend, auto_backend(card, True, execution.dtype)
    found = (_rate_share(name, card) for name in (asked, auto))
    return next(share for share in found if share is not None)


def _rate_share(name: str, card: Card) -> float | None:
    """Return the share of the card's bf16 rate that a kernel reaches; None where unknown."""
    kernel = KERNELS.get(name)
    return kernel.rate_shares[0 if card.is_hopper else 1] if kernel else None


def _known_kernels(card: Card, execution: Execution) -> tuple[str, ...]:
    """Return the attention kernels that have figures for this type, with or without a mask."""
    if not execution.mask_free or execution.dtype == "float32":
        return (NATIVE,)
    return tuple(name for name in KERNELS if _rate_share(name, card) is not None)


# One H100, 2026-11-25.
START_SECONDS = 25.0
"""Imports of two processes, CUDA's context, the encoders, and the first use of each kernel."""
ENCODE_SECONDS = 0.4
"""For each text or image."""
COMPILE_SECONDS = (22.0, 14.0)
"""The first size of clip, and a second one, whose code takes every size (`compilation`)."""


@dataclass(frozen=True)
class StartCost:
    """Predicted seconds of what happens once in a run."""

    load_seconds: float
    """Start of the processes included."""
    encode_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.load_seconds + self.encode_seconds + self.compile_seconds

    def __add__(self, other: StartCost) -> StartCost:
        """Return the sum of both, part by part."""
        return StartCost(
            self.load_seconds + other.load_seconds,
            self.encode_seconds + other.encode_seconds,
            self.compile_seconds + other.compile_seconds,
        )


def predict_start(
    shapes: Iterable[Shape],
    num_encoded: int,
    execution: Execution,
    *,
    reads_weights: bool,
    num_rounds: int = 0,
    num_returns: int = 0,
) -> StartCost:
    """Return the predicted seconds of what happens once in a run.

    Args:
        shapes: Of the clips to be denoised; where there are none, only the VAE is loaded.
        num_encoded: Distinct texts and images.
        execution: How the maths is carried out.
        reads_weights: Whether weights come from a disk; random ones are built on the card.
        num_rounds: Further rounds of a chain with first frames, for which the image encoder comes
            back.
        num_returns: How often the transformer is loaded again, after clips of another model.
    """
    clips = list(shapes)
    sizes = {shape.size for shape in clips}
    weights = VAE_BYTES
    if clips:
        weights += TRANSFORMER_BYTES
    if num_encoded:
        weights += TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES
    if any(s.has_image for s in clips):
        weights += IMAGE_ENCODER_BYTES * (1 + num_rounds)
    weights += TRANSFORMER_BYTES * num_returns
    reading = weights / DISK_BYTES_PER_SECOND if reads_weights else 0.0
    first, further = COMPILE_SECONDS
    compiling = first + further * (len(sizes) > 1) if execution.compiled and sizes else 0.0
    return StartCost(START_SECONDS + reading, ENCODE_SECONDS * num_encoded, compiling)
