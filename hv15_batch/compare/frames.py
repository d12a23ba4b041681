"""How far the frames of two files are apart, and how far a codec alone puts them.

Sources: SSIM with the constants of Wang et al. 2004, "Image quality assessment: from error
visibility to structural similarity"; the temporal measure compares changes between neighbouring
frames, as tLP of Chu et al. 2020 (TecoGAN) does, in pixels instead of LPIPS.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

from hv15_batch.config import VideoConfig
from hv15_batch.video import Frames, read_frames, write_video

Luma = np.ndarray[Any, np.dtype[np.float32]]

BT709 = np.array([0.2126, 0.7152, 0.0722], np.float32)
PEAK = 255.0
SSIM_WINDOW = 11
"""Pixels, which 3.5 standard deviations of its Gaussian of 1.5 come to."""
CROP = (slice(3, -1), slice(5, -1))
"""Rows and columns that a frame keeps when a codec's error is measured: an odd offset, so that
neither its blocks nor its chroma samples lie where they lay before."""
LEAST_SIDE = SSIM_WINDOW + 6
FLOOR_RATE = 24.0
"""Frames per second while the floor is measured. Constant quality does not depend on it."""


@dataclass(frozen=True)
class FrameMeasures:
    """How far two videos of one size are apart."""

    psnr_db: float
    """Of BT.709 luma; infinite where it is the same."""
    rgb_psnr_db: float
    """Of red, green and blue, where a change of colour counts too."""
    ssim: float | None
    """Mean SSIM of the frames' luma; None where a frame is smaller than its window."""
    temporal_psnr_db: float | None
    """PSNR of luma's change from frame to frame; None for a single frame."""


def measure_frames(a: Iterable[Frames], b: Iterable[Frames]) -> FrameMeasures:
    """Hold two videos against each other, frame by frame.

    Raises:
        ValueError: they have different sizes or numbers of frames, or none at all.
    """
    luma_errors: list[float] = []
    rgb_errors: list[float] = []
    temporal_errors: list[float] = []
    ssims: list[float] = []
    before: Luma | None = None
    for number, (one, other) in enumerate(itertools.zip_longest(a, b)):
        if one is None or other is None or one.shape != other.shape:
            raise ValueError(f"the files differ in size or length at frame {number}")
        luma_a, luma_b = one @ BT709, other @ BT709
        difference = luma_a - luma_b
        luma_errors.append(_mean_square(difference))
        rgb_errors.append(_mean_square(np.subtract(one, other, dtype=np.float32)))
        if before is not None:
            temporal_errors.append(_mean_square(difference - before))
        before = difference
        if min(luma_a.shape) >= SSIM_WINDOW:
            ssims.append(_ssim(luma_a, luma_b))
    if not luma_errors:
        raise ValueError("the files have no frames")
    return FrameMeasures(
        psnr_db=psnr_db(_mean(luma_errors), PEAK),
        rgb_psnr_db=psnr_db(_mean(rgb_errors), PEAK),
        ssim=_mean(ssims) if ssims else None,
        temporal_psnr_db=psnr_db(_mean(temporal_errors), PEAK) if temporal_errors else None,
    )


def measure_codec_floor(path: Path, video: VideoConfig) -> FrameMeasures | None:
    """Return how far its codec puts a file from the frames that went into it: an estimate.

    Those frames are gone. The decoded ones are cropped at an odd place, so that the codec meets
    them as it would meet new ones, and encoded again with the same settings. Where the true error
    is known (photographs panned at CRF 17 and 23), the PSNR of luma comes out within 0.4 dB of it;
    film grain, which the first encoding smooths away, makes it 2 to 3 dB too high. Without the crop
    it is up to 9 dB too high: the second encoding then repeats the first one's rounding.

    Returns:
        None where a frame is too small to be cropped.
    """
    whole = np.stack(list(read_frames(path)))
    if min(whole.shape[1:3]) < LEAST_SIDE:
        return None
    frames = np.ascontiguousarray(whole[:, CROP[0], CROP[1]])
    with tempfile.TemporaryDirectory(prefix="hv15_batch-") as folder:
        again = Path(folder) / "again"
        write_video(frames, again, fps=FLOOR_RATE, video=video, comment=None)
        return measure_frames(_each(frames), read_frames(again))


def psnr_db(mean_square_error: float, data_range: float) -> float:
    """Return the peak signal-to-noise ratio; infinite where there is no error."""
    if mean_square_error == 0:
        return math.inf
    return 10 * math.log10(data_range**2 / mean_square_error)


def _each(frames: Frames) -> Iterator[Frames]:
    yield from frames


def _mean_square(difference: np.ndarray[Any, Any]) -> float:
    return float(np.mean(np.square(difference, dtype=np.float64)))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _ssim(a: Luma, b: Luma) -> float:
    if np.array_equal(a, b):
        return 1.0
    return float(
        structural_similarity(
            a, b, data_range=PEAK, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )
