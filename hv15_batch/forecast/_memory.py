"""Predicts the memory of a clip: peak bytes by stage, profile and card. Arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hv15_batch.forecast.seconds import Execution
from hv15_batch.machine.cards import ALLOCATOR_BYTES, CONTEXT_BYTES
from hv15_batch.model.linears import block_bytes, transformer_bytes
from hv15_batch.model.shapes import (
    IMAGE_ENCODER_BYTES,
    PADDED_TOKENS,
    SMALL_ENCODERS_BYTES,
    TEXT_ENCODER_BYTES,
    TRANSFORMER_REST_BYTES,
    VAE_BYTES,
    WIDTH,
    Shape,
)
from hv15_batch.model.tiles import NoPlanError, most_frugal_plan, plan_tiles, predict_peak_bytes
from hv15_batch.model.variant import Linear
from hv15_batch.units import GIB

STREAMED_ENCODER_BYTES = int(1.6 * GIB)
"""One layer of the text encoder, the states of a group of prompts, and ByT5."""
ACTIVATION_BYTES_PER_TOKEN = 51_500
COMPILED_ACTIVATION_BYTES_PER_TOKEN = 35_000
"""Peak of a mask-free forward without its weights: 2.36 GiB at 49,290 tokens, 1.6 GiB compiled."""
INT8_COMPILED_BYTES_PER_TOKEN = 32_700
"""More than that, compiled with `linear=int8`: products in 32 bits, 3.1 GiB in all on one H200.
`fp8`, and `int8` without compilation, have the peak of 16 bits."""
MASK_BYTES_PER_PAIR = 3.6
"""The mask of plain diffusers and its copies, for each pair of tokens. Activations measured on an
H200: 11.1 GiB at 49,290 tokens, 3.5 GiB at 25,440."""
HOST_BASE_BYTES = int(3.5 * GIB)
"""Python, torch and CUDA's host side in the executor, frames and the parent included."""
PACKING_BYTES = 3 * GIB
"""In addition to all weights, while blocks are packed for `stream`: the total was 22.9 to 23.9
GiB."""
EIGHT_BIT_RESERVED_BYTES = int(0.8 * GIB)
"""Held by torch's allocator beyond what is in use, with linear modules in 8 bits. NVML's peak with
fp8 was 0.8 GiB over the largest stage and `CONTEXT_BYTES` with `stream`, and 1.1 with `resident`
(one H200; `BENCHMARKS.md`, "What do 8-bit weights cost and save?"). What is short of memory gets it
back, so it does not decide what fits."""


@dataclass(frozen=True)
class Peaks:
    """Predicted peak bytes per stage, by torch's allocator."""

    encode_bytes: int
    denoise_bytes: int
    decode_bytes: int
    host_bytes: int
    """Resident host memory of the run."""
    reserved_bytes: int = 0
    """Held by torch's allocator beyond what is in use."""

    @property
    def allocated_bytes(self) -> int:
        """Peak of all stages."""
        return max(self.encode_bytes, self.denoise_bytes, self.decode_bytes)

    @property
    def device_bytes(self) -> int:
        """Peak on the card, CUDA's own part included: what NVML shows."""
        return self.allocated_bytes + self.reserved_bytes + CONTEXT_BYTES


def predict_peaks(
    shape: Shape, execution: Execution, budget_bytes: int, *, reads_weights: bool = True
) -> Peaks:
    """Return the predicted peaks of a clip; decoding takes the fastest plan within the budget.

    Where no plan fits, the peak is that of the most frugal one, and larger than the budget.

    Args:
        shape: The clip's.
        execution: Profile, type, mask and compilation.
        budget_bytes: Bytes of the card that torch may use.
        reads_weights: Whether weights are mapped from files, whose pages Linux may drop from RAM.
            Random weights are built in memory.
    """
    factor, offload = execution.bytes_factor, execution.offload
    linear = execution.linears
    transformer, vae = transformer_bytes(linear, factor), VAE_BYTES * factor
    rest, block = TRANSFORMER_REST_BYTES * factor, block_bytes(linear, factor)
    if offload == "resident":
        denoise, beside_decode = transformer + vae, transformer
    elif offload == "model":
        denoise, beside_decode = transformer, 0
    else:
        denoise, beside_decode = rest + 2 * block, rest
    # A set of LoRAs stays on the card while it is in effect, whatever moves.
    loras = execution.lora_bytes * factor
    denoise, beside_decode = denoise + loras, beside_decode + loras
    decode = beside_decode + _decode_bytes(shape, budget_bytes - beside_decode, factor)
    encode = STREAMED_ENCODER_BYTES * factor
    is_encoder_whole = fits_text_encoder(execution, budget_bytes)
    if is_encoder_whole:
        encode = (TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES) * factor + GIB // 4
    if shape.has_image:
        encode = max(encode, (IMAGE_ENCODER_BYTES + VAE_BYTES + GIB) * factor)
    host = 0
    # Quantised weights are no longer the file's pages.
    is_held = not reads_weights or linear is not Linear.bf16
    if offload in ("stream", "model") or (offload == "stream_disk" and is_held):
        host = transformer + vae
    elif offload == "stream_disk":
        host = vae + 3 * block
    if offload == "stream":
        # Freed 8-bit tensors stay in the process beside the packed blocks: 20.6 GiB were measured.
        # Source: BENCHMARKS.md, "What do 8-bit weights cost and save?"
        host += PACKING_BYTES if linear is Linear.bf16 else transformer
    if not is_encoder_whole and (offload != "stream_disk" or not reads_weights):
        host = max(host, TEXT_ENCODER_BYTES * factor)
    activations = _activation_bytes(shape, execution) + _cache_bytes(shape, factor)
    found = Peaks(encode, denoise + activations, decode, HOST_BASE_BYTES + host)
    if linear is Linear.bf16:
        return found
    left = max(budget_bytes + ALLOCATOR_BYTES - found.allocated_bytes, 0)
    return replace(found, reserved_bytes=min(EIGHT_BIT_RESERVED_BYTES, left))


def fits_text_encoder(execution: Execution, budget_bytes: int) -> bool:
    """Whether the text encoder goes to the card whole; otherwise layer by layer."""
    if execution.is_streamed:
        return False
    whole = (TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES) * execution.bytes_factor
    return budget_bytes >= whole + GIB // 2


def _activation_bytes(shape: Shape, execution: Execution) -> int:
    tokens = shape.num_video_tokens
    compiled = execution.compiled
    per_token = COMPILED_ACTIVATION_BYTES_PER_TOKEN if compiled else ACTIVATION_BYTES_PER_TOKEN
    activations = float(per_token * tokens)
    if execution.linears is Linear.int8 and compiled:
        activations += INT8_COMPILED_BYTES_PER_TOKEN * tokens
    if not execution.mask_free:
        activations += MASK_BYTES_PER_PAIR * (tokens + PADDED_TOKENS) ** 2
    return int(activations * execution.bytes_factor)


def _cache_bytes(shape: Shape, factor: int) -> int:
    """Return what a static step cache keeps: the video tokens' residual for each forward."""
    if shape.num_computed is None:
        return 0
    forwards = 2 if shape.has_guidance else 1
    return forwards * shape.num_video_tokens * WIDTH * 2 * factor


def _decode_bytes(shape: Shape, budget_bytes: int, factor: int) -> int:
    size = shape.height // 16, shape.width // 16, (shape.num_frames - 1) // 4 + 1
    try:
        plan = plan_tiles(*size, budget_bytes // factor, "cuda")
    except NoPlanError:
        plan = most_frugal_plan(*size)
    return predict_peak_bytes(plan, *size) * factor
