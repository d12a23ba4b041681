"""Ratios of time and memory with their uncertainty, over warm clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median

import numpy as np

from hv15_batch.compare.pairs import Record
from hv15_batch.timings import clip_seconds

RESAMPLES = 2_000
LEAST_FOR_INTERVAL = 3
"""Pairs below which resampling says nothing."""
SEED = 0
"""Of the resampling, so that a comparison made again says the same."""
FASTER = "faster"
MEMORY = "memory"


@dataclass(frozen=True)
class Ratio:
    """How one quantity of two runs compares: a ratio of medians over pairs of warm clips."""

    name: str
    kind: str
    """`faster`: A over B, so over 1 means that B is faster; `memory`: B over A."""
    median_a: float
    median_b: float
    ratio: float
    interval: tuple[float, float] | None
    """95 % bootstrap interval; None for fewer than 3 pairs."""
    n: int
    """Pairs."""


@dataclass(frozen=True)
class Ratios:
    """All ratios and what was left out of them."""

    ratios: list[Ratio]
    cold: int
    """Pairs left out because one of the two was cold: it paid for loading or compiling."""
    reused: int
    """Pairs left out because one of the two was decoded from saved latents."""


QUANTITIES: tuple[tuple[str, Callable[[Record], float | None], str], ...] = (
    ("seconds per clip", clip_seconds, FASTER),
    ("seconds of denoising", itemgetter("denoise_seconds"), FASTER),
    ("seconds of decoding", itemgetter("decode_seconds"), FASTER),
    ("peak VRAM reserved", itemgetter("peak_vram_reserved_bytes"), MEMORY),
    ("peak VRAM of the card", itemgetter("peak_vram_device_bytes"), MEMORY),
    ("peak RAM", itemgetter("peak_ram_bytes"), MEMORY),
)
"""What is compared: its name, its value in the log, and which way. A clip's seconds are without the
encoding, as everywhere: a run that found its embeddings on disk is not faster for it."""


def compare_costs(timed: Sequence[tuple[Record, Record]]) -> Ratios:
    """Return the ratios of time and memory over the pairs that are fit for it."""
    warm = [pair for pair in timed if not any(record["is_cold"] for record in pair)]
    fit = [pair for pair in warm if not any(map(_is_from_saved_latents, pair))]
    ratios = []
    for name, value_of, kind in QUANTITIES:
        pairs = ((value_of(a), value_of(b)) for a, b in fit)
        values = [(a, b) for a, b in pairs if a and b]
        if values:
            ratios.append(_ratio(name, kind, values))
    return Ratios(ratios, len(timed) - len(warm), len(warm) - len(fit))


def _is_from_saved_latents(record: Record) -> bool:
    return record["denoise_attempt"] is not None and record["denoise_attempt"] != record["attempt"]


def _ratio(name: str, kind: str, values: Sequence[tuple[float, float]]) -> Ratio:
    table = np.array(values, np.float64)
    over, under = (0, 1) if kind == FASTER else (1, 0)
    medians = [median(table[:, 0]), median(table[:, 1])]
    interval = None
    if len(values) >= LEAST_FOR_INTERVAL:
        # Source: percentile bootstrap, Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
        # chapter 13; pairs are drawn, because a long clip is long in both runs.
        generator = np.random.default_rng(SEED)
        ratios = []
        for _ in range(RESAMPLES):
            resampled = np.median(table[generator.integers(len(table), size=len(table))], axis=0)
            ratios.append(resampled[over] / resampled[under])
        low, high = np.percentile(ratios, [2.5, 97.5])
        interval = (float(low), float(high))
    return Ratio(
        name=name,
        kind=kind,
        median_a=float(medians[0]),
        median_b=float(medians[1]),
        ratio=float(medians[over] / medians[under]),
        interval=interval,
        n=len(values),
    )
