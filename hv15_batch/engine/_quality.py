"""Measures black, flat, frozen or clipped frames on the device that decoded them."""

from __future__ import annotations

import math

import torch

from hv15_batch.config.settings import QualityConfig
from hv15_batch.errors import Secondary
from hv15_batch.media.quality import LUMA_WEIGHTS, Quality, flag_of

_CHUNK_PIXELS = 1024 * 1024
"""Pixels that are held as floating point at a time: about 40 MiB."""


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
            quality_flag=flag_of(mean, deviation, moved, share, bounds),
        )
