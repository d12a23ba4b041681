"""8-bit linear modules in numbers: which there are, what they take, and on which cards they run."""

from __future__ import annotations

import math

import pytest

from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.linears import (
    COMPUTED,
    MODULATION,
    STORED,
    TEXT_STREAM,
    block_bytes,
    linear_fault,
    saved_block_bytes,
    transformer_bytes,
    weights_text,
)
from hv15_batch.model.shapes import BLOCK_BYTES, NUM_BLOCKS, TRANSFORMER_BYTES
from hv15_batch.model.variant import Dtype, Linear
from hv15_batch.units import GIB
from hv15_batch.weights.layouts import shapes

FULL = shapes(read_architecture("full")["transformer"])


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("linear", [Linear.fp8, Linear.int8])
def test_bytes_are_those_of_the_full_size_transformer(linear: Linear, factor: int) -> None:
    plain = kept = 0
    eight_bits = {f"transformer_blocks.0.{name}.weight" for name in COMPUTED + STORED}
    for name, shape in FULL.items():
        if name.startswith("transformer_blocks.0."):
            values, scales = math.prod(shape), 4 * shape[0]
            plain += 2 * factor * values
            kept += values + scales if name in eight_bits else 2 * factor * values

    assert eight_bits <= FULL.keys()
    assert saved_block_bytes(linear, factor) == plain - kept
    assert BLOCK_BYTES * factor - block_bytes(linear, factor) == plain - kept
    saved = TRANSFORMER_BYTES * factor - transformer_bytes(linear, factor)
    assert saved == NUM_BLOCKS * (plain - kept)
    assert block_bytes(Linear.bf16, factor) == BLOCK_BYTES * factor
    assert transformer_bytes(Linear.bf16, factor) == TRANSFORMER_BYTES * factor


def test_every_matrix_of_a_block_is_computed_or_kept_in_8_bits_once() -> None:
    names = [*COMPUTED, *TEXT_STREAM, *MODULATION]
    matrices = {
        name.removeprefix("transformer_blocks.0.").removesuffix(".weight")
        for name, shape in FULL.items()
        if name.startswith("transformer_blocks.0.") and len(shape) == 2
    }

    assert sorted(names) == sorted(matrices)
    assert transformer_bytes(Linear.fp8) < 8.6 * GIB


def test_the_parts_are_named_with_their_size() -> None:
    assert weights_text(Linear.int8) == (
        "transformer 7.9 GiB instead of 15.5: image stream 2.5 computed in int8, text stream 2.5 "
        "and modulation 2.5 kept in it, other modules 0.3"
    )


FP8_FAULT = (
    "runtime.linear=fp8: needs compute capability 8.9 or more (Ada, Hopper and Blackwell), and "
    "{} has {}; use {}runtime.linear=bf16."
)


@pytest.mark.parametrize(
    ("linear", "capability", "fault"),
    [
        (Linear.bf16, (7, 5), None),
        (Linear.fp8, (8, 9), None),
        (Linear.fp8, (9, 0), None),
        (Linear.fp8, (12, 0), None),
        (Linear.int8, (8, 0), None),
        (Linear.int8, (12, 0), None),
        (Linear.fp8, (8, 6), FP8_FAULT.format("a card", "8.6", "runtime.linear=int8 or ")),
        (Linear.fp8, (7, 5), FP8_FAULT.format("a card", "7.5", "")),
        (
            Linear.int8,
            (7, 5),
            "runtime.linear=int8: needs compute capability 8.0 or more (Ampere and later ones), "
            "and a card has 7.5; use runtime.linear=bf16.",
        ),
        (Linear.fp8, None, None),  # not known yet
    ],
)
def test_a_card_below_the_needed_capability_is_refused_with_what_is_allowed(
    linear: Linear, capability: tuple[int, int] | None, fault: str | None
) -> None:
    asked = {"capability": capability, "on": "a card"}

    assert linear_fault(linear, Dtype.bfloat16, runs_on_cpu=False, **asked) == fault
    assert linear_fault(linear, Dtype.float32, runs_on_cpu=True, **asked) is None


@pytest.mark.parametrize("dtype", [Dtype.float16, Dtype.float32])
def test_on_a_card_fp8_needs_bfloat16(dtype: Dtype) -> None:
    card = {"runs_on_cpu": False, "capability": (9, 0), "on": "h200"}

    assert linear_fault(Linear.fp8, dtype, **card) == (
        f"runtime.linear=fp8 with runtime.dtype={dtype.name}: on a card fp8 products come in "
        "bfloat16 only; use runtime.dtype=bfloat16, or runtime.linear=int8."
    )
    assert linear_fault(Linear.int8, dtype, **card) is None
