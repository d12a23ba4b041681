"""When frames are black, flat, frozen or clipped, and the measures of a clip without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hv15_batch.config.settings import QualityConfig

# Source: ITU-R BT.709-6, item 3.2 (luma of non-linear R'G'B').
LUMA_WEIGHTS = (0.2126, 0.7152, 0.0722)
BLACK = "black"
FLAT = "flat"
FROZEN = "frozen"
CLIPPED = "clipped"


@dataclass(frozen=True)
class Quality:
    """Measures of a clip's frames; the fields have the names of the log's columns."""

    luma_mean: float | None = None
    """0..255; this and all others None where it was not measured."""
    luma_std: float | None = None
    """Over all pixels of all frames."""
    frame_difference_mean: float | None = None
    """Mean absolute luma difference of neighbouring frames; None for a single frame."""
    clipped_pixel_share: float | None = None
    """Share of channel values that are 0 or 255."""
    quality_flag: str | None = None
    """`black`, `flat`, `frozen`, `clipped` or None."""


def flag_of(
    mean: float, deviation: float, moved: float | None, clipped: float, bounds: QualityConfig
) -> str | None:
    """Return `black`, `flat`, `frozen`, `clipped` or None, of the measures in `Quality`."""
    if mean < bounds.black_luma:
        return BLACK
    if deviation < bounds.flat_std:
        return FLAT
    if moved is not None and moved < bounds.frozen_difference:
        return FROZEN
    if clipped > bounds.clipped_share:
        return CLIPPED
    return None


class FrameMeter:
    """Measures a clip frame by frame, with the same result as `engine._quality` within rounding."""

    def __init__(self) -> None:
        """Begin without a frame."""
        self._total = self._squares = self._difference = 0.0
        self._clipped = self._num_frames = self._pixels = 0
        self._last: np.ndarray[Any, Any] | None = None

    def add(self, frame: np.ndarray[Any, Any]) -> None:
        """Take in the next frame: uint8 [H, W, 3]; all have one size."""
        luma = frame.astype(np.float64) @ np.array(LUMA_WEIGHTS)
        self._total += float(luma.sum())
        self._squares += float(np.square(luma).sum())
        self._clipped += int(((frame == 0) | (frame == 255)).sum())
        if self._last is not None:
            self._difference += float(np.abs(luma - self._last).sum())
        self._last, self._pixels = luma, luma.size
        self._num_frames += 1

    def quality(self, bounds: QualityConfig) -> Quality:
        """Return the measures of all frames so far, at least one.

        Args:
            bounds: Limits of black, flat, frozen and clipped.
        """
        pixels = self._num_frames * self._pixels
        mean = self._total / pixels
        deviation = math.sqrt(max(self._squares / pixels - mean * mean, 0.0))
        is_moving = self._num_frames > 1
        moved = self._difference / (pixels - self._pixels) if is_moving else None
        share = self._clipped / (pixels * 3)
        return Quality(
            mean, deviation, moved, share, flag_of(mean, deviation, moved, share, bounds)
        )
