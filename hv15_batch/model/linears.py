"""Linear modules in 8 bits: which ones, on which cards, and how many bytes that leaves. No torch.

The image stream's compute in 8 bits: they do nearly all of the matrix products' work. Those of the
text stream and of the modulation do little of it and hold two thirds of the weights. They are kept
in 8 bits and compute in 16. All other modules (embedders, norms, refiner, last layer) stay as they
are.
"""

from __future__ import annotations

from hv15_batch.model.shapes import BLOCK_BYTES, NUM_BLOCKS, TRANSFORMER_BYTES, WIDTH
from hv15_batch.model.variant import Dtype, Linear
from hv15_batch.units import format_gib

COMPUTED = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("ff.net.0.proj", "ff.net.2"),
)
"""Linear modules of a block that compute in 8 bits."""
TEXT_STREAM = (
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff_context.net.0.proj", "ff_context.net.2"),
)
MODULATION = ("norm1.linear", "norm1_context.linear")
STORED = (*TEXT_STREAM, *MODULATION)
"""Linear modules of a block that are only kept in 8 bits."""

_LEAST_CAPABILITY = {Linear.fp8: (8, 9), Linear.int8: (8, 0)}
"""Compute capability from which tensor cores multiply numbers of this type."""
_CARDS = {Linear.fp8: "Ada, Hopper and Blackwell", Linear.int8: "Ampere and later ones"}

_PART_WEIGHTS = 12 * WIDTH**2
"""Of a block's image stream, text stream or modulation: each has as many."""
_BLOCK_WEIGHTS = 3 * _PART_WEIGHTS
_BLOCK_ROWS = 2 * (4 + 4 + 1) * WIDTH + 2 * 6 * WIDTH
"""Output rows of these modules, each with a scale: two streams (attention, MLP), modulation."""
_SCALE_BYTES = 4


def linear_name(linear: Linear) -> str | None:
    """Return how a clip's settings and the log have it: None for the default."""
    return None if linear is Linear.bf16 else linear.name


def saved_block_bytes(linear: Linear, factor: int = 1) -> int:
    """Return how many bytes smaller a block of the full-size transformer is than in `dtype`.

    Args:
        linear: How its linear modules compute.
        factor: Bytes of a number in `dtype` over those of a 16-bit one.
    """
    if linear is Linear.bf16:
        return 0
    return _BLOCK_WEIGHTS * (2 * factor - 1) - _BLOCK_ROWS * _SCALE_BYTES


def block_bytes(linear: Linear, factor: int = 1) -> int:
    """Return the bytes of a block of the full-size transformer; see `saved_block_bytes`."""
    return BLOCK_BYTES * factor - saved_block_bytes(linear, factor)


def transformer_bytes(linear: Linear, factor: int = 1) -> int:
    """Return the bytes of the full-size transformer; see `saved_block_bytes`."""
    return TRANSFORMER_BYTES * factor - NUM_BLOCKS * saved_block_bytes(linear, factor)


def weights_text(linear: Linear, factor: int = 1) -> str:
    """Return in words what the weights of the full-size transformer take, by part."""
    whole, plain = transformer_bytes(linear, factor), TRANSFORMER_BYTES * factor
    part = NUM_BLOCKS * _PART_WEIGHTS
    return (
        f"transformer {format_gib(whole)} GiB instead of {format_gib(plain)}: image stream "
        f"{format_gib(part)} computed in {linear.name}, text stream {format_gib(part)} and "
        f"modulation {format_gib(part)} kept in it, other modules {format_gib(whole - 3 * part)}"
    )


def linear_fault(
    linear: Linear, dtype: Dtype, *, runs_on_cpu: bool, capability: tuple[int, int] | None, on: str
) -> str | None:
    """Return why the linear modules cannot compute so, and what to do; None where they can.

    Args:
        linear: What was asked for.
        dtype: Of the transformer.
        runs_on_cpu: The maths runs on the CPU, which takes all of them.
        capability: Compute capability of the card; None where it is not known yet.
        on: Name of the card.
    """
    if linear is Linear.bf16 or runs_on_cpu:
        return None
    where, least = f"runtime.linear={linear.name}", _LEAST_CAPABILITY[linear]
    if linear is Linear.fp8 and dtype is not Dtype.bfloat16:
        return (
            f"{where} with runtime.dtype={dtype.name}: on a card fp8 products come in bfloat16 "
            "only; use runtime.dtype=bfloat16, or runtime.linear=int8."
        )
    if capability is None or capability >= least:
        return None
    others = [k.name for k, c in _LEAST_CAPABILITY.items() if capability >= c] + [Linear.bf16.name]
    use = " or ".join(f"runtime.linear={name}" for name in others)
    return (
        f"{where}: needs compute capability {_dotted(least)} or more ({_CARDS[linear]}), and {on} "
        f"has {_dotted(capability)}; use {use}."
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
