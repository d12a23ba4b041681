"""Statistics of timed clips, and when not to trust them. Never a mean alone.

A clip counts as timed when it ran warm and from noise to file: cold ones load and compile, and
those from saved latents lack the denoising.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.records import DONE_STATUSES
from hv15_batch.report.facts import FACTS, KEY_FACTS

MIN_TIMED_CLIPS = 3
MAX_SPREAD = 0.1
MAX_UNUSED_SHARE = 0.2
"""Reserved but never allocated memory beyond which the peak says more of the allocator."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """A sample in four figures."""

    n: int
    median: float | None
    """None where n is 0."""
    p90: float | None
    spread: float | None
    """Interquartile range over the median; None below two values."""


def summarise(values: Iterable[float | None]) -> Summary:
    """Return the summary of the values that were measured."""
    sample = sorted(v for v in values if v is not None)
    if not sample:
        return Summary(0, None, None, None)
    median = statistics.median(sample)
    middle = percentile(sample, 0.75) - percentile(sample, 0.25)
    spread = middle / median if len(sample) > 1 and median else None
    return Summary(len(sample), median, percentile(sample, 0.9), spread)


def percentile(sample: Sequence[float], share: float) -> float:
    """Return a percentile of a sorted sample, linear between its values (Hyndman-Fan type 7)."""
    place = share * (len(sample) - 1)
    below = int(place)
    above = min(below + 1, len(sample) - 1)
    return sample[below] + (place - below) * (sample[above] - sample[below])


def timed(records: Iterable[Record]) -> list[Record]:
    """Return the attempts that count as timed."""
    return [
        r
        for r in records
        if r["status"] in DONE_STATUSES
        and r["total_seconds"] is not None
        and not r["is_cold"]
        and r["denoise_attempt"] in (None, r["attempt"])
    ]


def clip_seconds(record: Record) -> float | None:
    """Return what a clip took, without the encoding that only the first clip of a text pays."""
    if record["total_seconds"] is None:
        return None
    return float(record["total_seconds"] - (record["encode_seconds"] or 0.0))


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Return the attempts by what must be alike for their times to be one sample."""
    found: dict[tuple[str | None, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(FACTS[name](record) for name in KEY_FACTS), []).append(record)
    return list(found.values())


def warnings_of(records: Sequence[Record]) -> list[str]:
    """Return what makes the figures of these attempts unfit to quote, each with its remedy."""
    return [text for check in _CHECKS if (text := check(records))]


def _too_few(records: Sequence[Record]) -> str | None:
    n = max((len(group) for group in groups(timed(records))), default=0)
    if n >= MIN_TIMED_CLIPS:
        return None
    return (
        f"Only {n} timed clip{'' if n == 1 else 's'}: a median of fewer than {MIN_TIMED_CLIPS} is "
        "chance. Render more clips, or each several times: benchmark.repeat=5."
    )


def _wide_spread(records: Sequence[Record]) -> str | None:
    samples = [summarise(map(clip_seconds, group)).spread for group in groups(timed(records))]
    spread = max((s for s in samples if s is not None), default=0.0)
    if spread < MAX_SPREAD:
        return None
    return (
        f"The middle half of equal clips spans {spread:.0%} of their median: the card was shared, "
        "hot or throttled. Keep other work off it, see clocks and temperature, repeat more often."
    )


def _alloc_retries(records: Sequence[Record]) -> str | None:
    clips = sum(bool(r["num_alloc_retries"]) for r in records)
    if not clips:
        return None
    return (
        f"The allocator ran out of memory and tried again in {clips} "
        f"clip{'' if clips == 1 else 's'}: these times are not clean. Leave it more room: "
        "offload=stream, fewer frames, or nothing else on the card."
    )


def _unused_reserve(records: Sequence[Record]) -> str | None:
    names = ("peak_vram_reserved_bytes", "peak_vram_allocated_bytes")
    peaks = [(r[names[0]], r[names[1]]) for r in records if r[names[0]] and r[names[1]]]
    clips = sum(reserved > (1 + MAX_UNUSED_SHARE) * allocated for reserved, allocated in peaks)
    if not clips:
        return None
    return (
        f"Reserved VRAM is over {MAX_UNUSED_SHARE:.0%} more than was ever allocated in {clips} "
        f"clip{'' if clips == 1 else 's'}: fragmentation. Quote the allocated peak beside it, or "
        "set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True."
    )


_CHECKS: tuple[Callable[[Sequence[Record]], str | None], ...] = (
    _too_few,
    _wide_spread,
    _alloc_retries,
    _unused_reserve,
)
