"""Statistics of timed clips, and when not to trust them. Never a mean alone.

A clip counts as timed when it ran warm and from noise to file: cold ones load and compile, and
those from saved latents lack the denoising.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch import timings
from hv15_batch.records import DONE_STATUSES
from hv15_batch.report.facts import FACTS, KEY_FACTS
from hv15_batch.timings import TimingWarning, WarningKind, clip_seconds, distribution

__all__ = ["Summary", "clip_seconds", "groups", "summarise", "timed", "warnings_of"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """A sample in four figures."""

    n: int
    median: float | None
    """None where n is 0."""
    p90: float | None
    """None below two values."""
    spread: float | None
    """Interquartile range over the median; None below two values."""


def summarise(values: Iterable[float | None]) -> Summary:
    """Return the summary of the values that were measured."""
    found = distribution([v for v in values if v is not None])
    if found is None:
        return Summary(0, None, None, None)
    return Summary(found.n, found.median, found.p90, found.spread)


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


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Return the attempts by what must be alike for their times to be one sample."""
    found: dict[tuple[str | None, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(FACTS[name](record) for name in KEY_FACTS), []).append(record)
    return list(found.values())


def warnings_of(records: Sequence[Record]) -> list[str]:
    """Return what makes the figures of these attempts unfit to quote, each with its remedy.

    Each kind of fault once, whichever groups of equal settings have it.
    """
    found: dict[WarningKind, list[TimingWarning]] = {}
    for warning in timings.warnings_of(records):
        found.setdefault(warning.kind, []).append(warning)
    return [_text(kind, warnings) for kind, warnings in found.items()]


def _text(kind: WarningKind, warnings: Sequence[TimingWarning]) -> str:
    more = f", and so in {len(warnings) - 1} more groups of settings" if len(warnings) > 1 else ""
    about = kind.about[0].upper() + kind.about[1:]
    return f"{about} ({warnings[0].detail}{more}): {kind.remedy}."
