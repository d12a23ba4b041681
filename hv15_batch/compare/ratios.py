"""Ratios of time and memory with their uncertainty, over warm clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median
from typing import Any

import numpy as np

from hv15_batch.compare.pairs import Record, Timed
from hv15_batch.compare.repetitions import LeftOut
from hv15_batch.timings import clip_seconds

RESAMPLES = 2_000
LEAST_FOR_INTERVAL = 5
"""Clips below which a 95 % interval would not be one: resampling three holds the true ratio three
times in four only."""
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
    """95 % bootstrap interval; None for fewer than 5 clips."""
    span: tuple[float, float] | None
    """Least and greatest ratio of a pair; None for a single one."""
    n: int
    """Pairs of timings."""
    num_clips: int
    """Clips that were timed, fewer than `n` where a benchmark repeated them."""

    def spread_text(self, form: str = ".3g") -> str:
        """Return the interval, or where there is none the range, with numbers as in `form`."""
        found, name = self.interval, "95 %"
        if found is None:
            found, name = self.span, "range of pairs"
        if found is None:
            return "no range of one pair"
        return f"{name} {found[0]:{form}} to {found[1]:{form}}"

    @property
    def n_text(self) -> str:
        """What the ratio rests on, e.g. `n=4 pairs of warm clips`."""
        if self.n == self.num_clips:
            return f"n={self.n} pairs of warm clips"
        return f"n = {self.n} timings of {self.num_clips} clip{'s' * (self.num_clips != 1)}"


@dataclass(frozen=True)
class Ratios:
    """All ratios and what was left out of them."""

    ratios: list[Ratio]
    cold: int
    """Pairs left out because one of the two was cold: it paid for loading or compiling."""
    reused: int
    """Pairs left out because one of the two was decoded from saved latents."""


@dataclass(frozen=True)
class ClipTimings:
    """What the ratios have of one pair of clips."""

    n: int = 0
    """Pairs of timings: 1, or how often a benchmark repeated both clips."""
    seconds_a: float | None = None
    """Median of A's."""
    seconds_b: float | None = None
    left_out: tuple[str, ...] = ()
    """Of each repetition made otherwise than the clips: in what."""


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


def compare_costs(timed: Sequence[Timed]) -> Ratios:
    """Return the ratios of time and memory over the pairs that are fit for it."""
    warm = [pair for pair in timed if not any(record["is_cold"] for record in pair)]
    fit = [pair for pair in warm if _is_fit(pair)]
    ratios = []
    for name, value_of, kind in QUANTITIES:
        values: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for a, b in fit:
            value_a, value_b = value_of(a), value_of(b)
            if value_a and value_b:
                values.setdefault((a["row_id"], a["seed"]), []).append((value_a, value_b))
        if values:
            ratios.append(_ratio(name, kind, list(values.values())))
    return Ratios(ratios, len(timed) - len(warm), len(warm) - len(fit))


def clip_timings(timed: Sequence[Timed], left_out: Sequence[LeftOut]) -> ClipTimings:
    """Return what the ratios have of one pair of clips."""
    fit = [pair for pair in timed if _is_fit(pair)]
    return ClipTimings(
        n=len(fit),
        seconds_a=_median_seconds([a for a, _ in fit]),
        seconds_b=_median_seconds([b for _, b in fit]),
        left_out=tuple(each.reason for each in left_out),
    )


def _median_seconds(records: Sequence[Record]) -> float | None:
    seconds = [clip_seconds(record) for record in records]
    known = [value for value in seconds if value is not None]
    return median(known) if known else None


def _is_fit(pair: Timed) -> bool:
    return not any(record["is_cold"] or _is_from_saved_latents(record) for record in pair)


def _is_from_saved_latents(record: Record) -> bool:
    return record["denoise_attempt"] is not None and record["denoise_attempt"] != record["attempt"]


def _ratio(name: str, kind: str, clips: Sequence[Sequence[tuple[float, float]]]) -> Ratio:
    """Return one ratio, from the timings of each clip in both runs."""
    table = np.concatenate([np.array(timings, np.float64) for timings in clips])
    over, under = (0, 1) if kind == FASTER else (1, 0)
    medians = [median(table[:, 0]), median(table[:, 1])]
    each = table[:, over] / table[:, under]
    return Ratio(
        name=name,
        kind=kind,
        median_a=float(medians[0]),
        median_b=float(medians[1]),
        ratio=float(medians[over] / medians[under]),
        interval=_interval(table, [len(timings) for timings in clips], over, under),
        span=(float(each.min()), float(each.max())) if len(table) > 1 else None,
        n=len(table),
        num_clips=len(clips),
    )


def _interval(
    table: np.ndarray[Any, np.dtype[np.float64]], sizes: Sequence[int], over: int, under: int
) -> tuple[float, float] | None:
    """Return the interval of a ratio of medians; None for too few clips.

    Pairs are drawn, because a long clip is long in both runs, and a clip with all its repetitions:
    they repeat one another, so as pairs of their own they would make the interval too narrow.

    Source: percentile bootstrap, Efron & Tibshirani 1993, "An Introduction to the Bootstrap",
    chapter 13; of clusters, Davison & Hinkley 1997, "Bootstrap Methods and their Application", 3.8.
    """
    if len(sizes) < LEAST_FOR_INTERVAL:
        return None
    generator = np.random.default_rng(SEED)
    clip_of_row = np.repeat(np.arange(len(sizes)), sizes)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(sizes), size=len(sizes))
        times = np.bincount(drawn, minlength=len(sizes))[clip_of_row]
        resampled = np.median(np.repeat(table, times, axis=0), axis=0)
        ratios.append(resampled[over] / resampled[under])
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)
