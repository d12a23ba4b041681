"""What comes once in a run: start, reading weights, encoding, compilation. Arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hv15_batch.costs import (
    DISK_BYTES_PER_SECOND,
    IMAGE_ENCODER_BYTES,
    SMALL_ENCODERS_BYTES,
    TEXT_ENCODER_BYTES,
    TRANSFORMER_BYTES,
    VAE_BYTES,
    ClipShape,
)
from hv15_batch.execution import Execution

# One H100, 2026-11-25.
START_SECONDS = 25.0
"""Two processes' imports, CUDA's context, encoders and the first use of each kernel."""
ENCODE_SECONDS = 0.4
"""A text or an image."""
COMPILE_SECONDS = (22.0, 14.0)
"""The first size of clip, and a second one, whose code takes every size (`compilation`)."""


@dataclass(frozen=True)
class StartCost:
    """Predicted seconds of what comes once in a run."""

    load_seconds: float
    """Start of the processes included."""
    encode_seconds: float
    compile_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.load_seconds + self.encode_seconds + self.compile_seconds


def predict_start(
    settings: Iterable[ClipShape], num_encoded: int, execution: Execution, *, reads_weights: bool
) -> StartCost:
    """Return the predicted seconds of what comes once in a run.

    Args:
        settings: The clips to be denoised; where there are none, only the VAE is loaded.
        num_encoded: Distinct texts and images.
        execution: How the maths is carried out.
        reads_weights: Whether weights come from a disk; random ones are built on the card.
    """
    clips = list(settings)
    sizes = {(s.height, s.width, s.num_frames) for s in clips}
    weights = VAE_BYTES
    if clips:
        weights += TRANSFORMER_BYTES
    if num_encoded:
        weights += TEXT_ENCODER_BYTES + SMALL_ENCODERS_BYTES
    if any(s.has_image for s in clips):
        weights += IMAGE_ENCODER_BYTES
    reading = weights / DISK_BYTES_PER_SECOND if reads_weights else 0.0
    first, further = COMPILE_SECONDS
    compiling = first + further * (len(sizes) > 1) if execution.compiled and sizes else 0.0
    return StartCost(START_SECONDS + reading, ENCODE_SECONDS * num_encoded, compiling)
