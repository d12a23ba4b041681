"""Saved latents as numbers, without torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import deserialize as _untyped

from hv15_batch.compare.frames import psnr_db
from hv15_batch.compare.pairs import Pair, Record
from hv15_batch.rundir import RunDir

TENSOR = "latents"
_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = _untyped
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class LatentMeasures:
    """How far the latents of two clips are apart."""

    is_identical: bool
    """The same raw bytes."""
    psnr_db: float | None
    """Infinite where they are the same; None where they differ and not both were kept."""
    data_range: float | None
    """Greatest less least latent of A, which `psnr_db` is relative to; None where not kept."""


def measure_latents(run_a: RunDir, run_b: RunDir, pair: Pair) -> LatentMeasures | None:
    """Return how far two clips' latents are apart; None where nothing is known of them.

    The hashes in the log are enough to know whether they are the same, also where they were not
    kept: a hash is over the raw bytes, and the clips are of one size. How far apart those are that
    differ is then not known.
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
        content = (run_dir.path / record["latents_file"]).read_bytes()
        stored = dict(_deserialize(content))[TENSOR]
    except (OSError, KeyError, SafetensorError):
        return None
    data = bytes(stored["data"])
    if hashlib.sha256(data).hexdigest() != record["latents_sha256"]:
        return None  # of another attempt: the log is about those that made the clip
    return _numbers(data, stored["dtype"], stored["shape"])


def _numbers(data: bytes, dtype: str, shape: list[int]) -> np.ndarray[Any, Any] | None:
    if dtype == "BF16":  # the upper half of a float32
        wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return wide.view(np.float32).astype(np.float64).reshape(shape)
    if dtype in _TYPES:
        return np.frombuffer(data, _TYPES[dtype]).astype(np.float64).reshape(shape)
    return None
