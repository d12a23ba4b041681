"""What can be seen of a clip without looking at it: black, flat, frozen or clipped frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hv15_batch.config import QualityConfig

# Source: ITU-R BT.709-6, item 3.2 (luma of non-linear R'G'B').
LUMA_WEIGHTS = (0.2126, 0.7152, 0.0722)
_CHUNK_PIXELS = 4 * 1024 * 1024
"""Pixels that are held as floating point at a time: about 100 MiB."""

BLACK = "black"
FLAT = "flat"
FROZEN = "frozen"
CLIPPED = "clipped"


@dataclass(frozen=True)
class Quality:
    """Measures of a clip's frames; the fields have the names of the log's columns."""

    luma_mean: float
    """0..255."""
    luma_std: float
    """Over all pixels of all frames."""
    frame_difference_mean: float | None
    """Mean absolute luma difference of neighbouring frames; None for a single frame."""
    clipped_pixel_share: float
    """Share of channel values that are 0 or 255."""
    quality_flag: str | None
    """`black`, `flat`, `frozen`, `clipped` or None."""


def measure_quality(frames: torch.Tensor, bounds: QualityConfig) -> Quality:
    """Measure decoded frames, a few at a time.

    Args:
        frames: uint8 [F, H, W, 3], on any device; F at least 1.
        bounds: where black, flat, frozen and clipped begin.
    """
    count, height, width = frames.shape[:3]
    pixels = count * height * width
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    weights = torch.tensor(LUMA_WEIGHTS, device=frames.device)
    total = squares = difference = clipped = 0.0
    last: torch.Tensor | None = None
    for start in range(0, count, chunk):
        part = frames[start : start + chunk]
        # In float64, for the deviation is a small difference of large sums.
        luma = (part.float() @ weights).double()
        total += luma.sum().item()
        squares += luma.square().sum().item()
        clipped += ((part == 0) | (part == 255)).sum().item()
        joined = luma if last is None else torch.cat([last, luma])
        difference += joined.diff(dim=0).abs_().sum().item()
        last = luma[-1:]
    mean = total / pixels
    deviation = math.sqrt(max(squares / pixels - mean * mean, 0.0))
    moved = difference / (pixels - height * width) if count > 1 else None
    share = clipped / (pixels * 3)
    return Quality(
        luma_mean=mean,
        luma_std=deviation,
        frame_difference_mean=moved,
        clipped_pixel_share=share,
        quality_flag=_flag(mean, deviation, moved, share, bounds),
    )


def _flag(
    mean: float, deviation: float, moved: float | None, clipped: float, bounds: QualityConfig
) -> str | None:
    if mean < bounds.black_luma:
        return BLACK
    if deviation < bounds.flat_std:
        return FLAT
    if moved is not None and moved < bounds.frozen_difference:
        return FROZEN
    if clipped > bounds.clipped_share:
        return CLIPPED
    return None
