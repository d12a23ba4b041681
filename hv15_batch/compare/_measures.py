"""How far two clips are apart: the frames of their files, and their saved latents. No torch.

Sources: SSIM with the constants of Wang et al. 2004, "Image quality assessment: from error
visibility to structural similarity"; the temporal measure compares changes between neighbouring
frames, as tLP of Chu et al. 2020 (TecoGAN) does, in pixels instead of LPIPS.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import deserialize as _untyped
from skimage.metrics import structural_similarity

from hv15_batch.compare._pairs import Pair, Record
from hv15_batch.files import read_bytes
from hv15_batch.media.video import Frames
from hv15_batch.rundir.paths import MAX_LATENTS_BYTES, RunDir
from hv15_batch.rundir.store import fetched

Luma = np.ndarray[Any, np.dtype[np.float32]]

BT709 = np.array([0.2126, 0.7152, 0.0722], np.float32)
PEAK = 255.0
SSIM_WINDOW = 11
"""Pixels, which 3.5 standard deviations of its Gaussian of 1.5 come to."""
TENSOR = "latents"
_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = _untyped
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


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

    @property
    def is_identical(self) -> bool:
        """Whether the frames are the same in all channels."""
        return math.isinf(self.rgb_psnr_db)


@dataclass(frozen=True)
class LatentMeasures:
    """How far the latents of two clips are apart."""

    is_identical: bool
    """The same raw bytes."""
    psnr_db: float | None
    """Infinite where they are the same; None where they differ and not both were kept."""
    data_range: float | None
    """Greatest less least latent of A, which `psnr_db` is relative to; None where not kept."""


def measure_frames(a: Iterable[Frames], b: Iterable[Frames]) -> FrameMeasures:
    """Compare two videos frame by frame; frames are uint8 [H, W, 3].

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


def measure_latents(run_a: RunDir, run_b: RunDir, pair: Pair) -> LatentMeasures | None:
    """Return how far two clips' latents are apart; None where nothing is known of them.

    The hashes in the log tell whether they are the same, even if they were not kept: a hash is over
    the raw bytes, and the clips have one size. For different latents that were not kept, the
    distance is unknown.
    """
    hashes = (pair.a["latents_sha256"], pair.b["latents_sha256"])
    are_known = None not in hashes
    is_identical = are_known and hashes[0] == hashes[1]
    a, b = read_saved_latents(run_a, pair.a), read_saved_latents(run_b, pair.b)
    if is_identical:
        return LatentMeasures(True, math.inf, None if a is None else float(np.ptp(a)))
    if a is None or b is None or a.shape != b.shape:
        return LatentMeasures(False, None, None) if are_known else None
    data_range = float(np.ptp(a))
    error = float(np.mean(np.square(a - b)))
    psnr = psnr_db(error, data_range) if data_range else None
    return LatentMeasures(False, psnr, data_range)


def read_saved_latents(run_dir: RunDir, record: Record) -> np.ndarray[Any, Any] | None:
    """Return a clip's latents as float64; None where they were not kept or are not those logged."""
    if not record["latents_file"]:
        return None
    try:
        content = read_bytes(fetched(run_dir, record["latents_file"]), MAX_LATENTS_BYTES)
        stored = dict(_deserialize(content))[TENSOR]
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    data = bytes(stored["data"])
    if hashlib.sha256(data).hexdigest() != record["latents_sha256"]:
        return None  # of another attempt: the log is about those that made the clip
    return _numbers(data, stored["dtype"], stored["shape"])


def psnr_db(mean_square_error: float, data_range: float) -> float:
    """Return the peak signal-to-noise ratio; infinite where there is no error."""
    if mean_square_error == 0:
        return math.inf
    return 10 * math.log10(data_range**2 / mean_square_error)


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


def _numbers(data: bytes, dtype: str, shape: list[int]) -> np.ndarray[Any, Any] | None:
    if dtype == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64).reshape(shape)
    if dtype in _TYPES:
        return np.frombuffer(data, _TYPES[dtype]).astype(np.float64).reshape(shape)
    return None
