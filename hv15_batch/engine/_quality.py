"""Finds black, flat, frozen or clipped frames by measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hv15_batch.config.settings import QualityConfig
from hv15_batch.errors import Secondary

# Source: ITU-R BT.709-6, item 3.2 (luma of non-linear R'G'B').
LUMA_WEIGHTS = (0.2126, 0.7152, 0.0722)
_CHUNK_PIXELS = 1024 * 1024
"""Pixels that are held as floating point at a time: about 40 MiB."""

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


class QualityMeter:
    """Measures frames piece by piece, on their own device, without waiting for it.

    There it runs beside the decode; on the CPU it would use the cores that hand over the next
    clip's kernels and write the last one's file. A measure that fails costs no clip.
    """

    def __init__(self) -> None:
        """Begin without a frame."""
        self._sums: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self._num_frames = 0
        self._pixels_per_frame = 0
        self._measuring = Secondary("the quality of a clip was not measured")
        self._is_whole = True

    def add(self, frames: torch.Tensor) -> None:
        """Take in the clip's next frames: uint8 [F, H, W, 3], all on one device."""
        with self._measuring:
            self._add(frames)
        self._is_whole = self._is_whole and self._measuring.error is None

    def _add(self, frames: torch.Tensor) -> None:
        height, width = frames.shape[1:3]
        self._pixels_per_frame = height * width
        self._num_frames += frames.shape[0]
        chunk = max(1, _CHUNK_PIXELS // self._pixels_per_frame)
        for part in frames.split(chunk):
            # In float64, because the deviation is a small difference of large sums.
            red, green, blue = (part[..., i].double() * LUMA_WEIGHTS[i] for i in range(3))
            luma = red + green + blue
            joined = luma if self._last is None else torch.cat([self._last, luma])
            sums = torch.stack(
                [
                    luma.sum(),
                    luma.square().sum(),
                    joined.diff(dim=0).abs_().sum(),
                    ((part == 0) | (part == 255)).sum().double(),
                ]
            )
            self._sums = sums if self._sums is None else self._sums + sums
            self._last = luma[-1:].clone()

    def quality(self, bounds: QualityConfig) -> Quality:
        """Return the measures of all frames so far, at least one; waits for the device.

        Args:
            bounds: limits of black, flat, frozen and clipped.
        """
        if self._is_whole:
            with self._measuring:
                return self._quality(bounds)
        return Quality()

    def _quality(self, bounds: QualityConfig) -> Quality:
        assert self._sums is not None
        total, squares, difference, clipped = self._sums.tolist()
        pixels = self._num_frames * self._pixels_per_frame
        mean = total / pixels
        deviation = math.sqrt(max(squares / pixels - mean * mean, 0.0))
        is_moving = self._num_frames > 1
        moved = difference / (pixels - self._pixels_per_frame) if is_moving else None
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
