"""Clips per hour while a run worked: pauses and the time between runs do not count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.records import DONE_STATUSES
from hv15_batch.status_text import format_duration

Record = Mapping[str, Any]

_MAX_STRETCHES = 96
"""Of fewer clips there is one for each."""
_PAUSE_SECONDS = 300
"""A longer time without an attempt is no work: a window that is shut, a pause."""


@dataclass(frozen=True)
class Stretch:
    """A piece of work and how fast it went."""

    middle: float
    """Seconds since the epoch."""
    seconds: float
    clips_per_hour: float


def rate_of_work(attempts: Sequence[Record]) -> tuple[list[Stretch], str]:
    """Return the rate, each spell of work cut into equal stretches, and what it rests on.

    A clip counts in each stretch by the part of its own time that lies there. Counting ends alone
    would make the rate of a stretch jump by whole clips, and fall where the last is cut short.
    """
    spells = [_done_spans(spell) for spell in _spells(attempts)]
    spells = [(begin, end, spans) for begin, end, spans in spells if spans]
    num_clips = sum(len(spans) for *_, spans in spells)
    if not num_clips:
        return [], ""
    found = []
    for begin, end, spans in spells:
        num = max(1, min(len(spans), round(len(spans) / num_clips * _MAX_STRETCHES)))
        width = (end - begin) / num
        for place, count in enumerate(_counts(begin, width, num, spans)):
            found.append(Stretch(begin + (place + 0.5) * width, width, count * 3600 / width))
    worked = format_duration(sum(end - begin for begin, end, _ in spells))
    caption = f"{num_clips} clip{'' if num_clips == 1 else 's'} in {worked} of work"
    if len(spells) > 1:
        caption += f", {len(spells)} spells of it; the time between them does not count"
    warm_ups = sum(a["repeat"] == 0 and a["status"] in DONE_STATUSES for a in attempts)
    if warm_ups:
        caption += f"; {warm_ups} of them warmed up"
    return found, f"{caption}. A run's start, before its first clip, is not in it."


def _spells(attempts: Sequence[Record]) -> list[list[Record]]:
    """Return attempts that followed each other: those of one run, without a pause between them."""
    spells: list[list[Record]] = []
    begun = sorted((a for a in attempts if _span(a)), key=lambda a: _span(a) or (0.0, 0.0))
    ended = 0.0
    for attempt in begun:
        begin, end = _span(attempt) or (0.0, 0.0)
        is_next = spells and attempt["run_id"] == spells[-1][-1]["run_id"]
        if not is_next or begin - ended > _PAUSE_SECONDS:
            spells.append([])
            ended = 0.0
        spells[-1].append(attempt)
        ended = max(ended, end)
    return spells


def _done_spans(spell: Sequence[Record]) -> tuple[float, float, list[tuple[float, float]]]:
    """Return when a spell began and ended, and the spans of its finished clips."""
    spans = [(_span(a) or (0.0, 0.0), a["status"] in DONE_STATUSES) for a in spell]
    begin, end = min(s for (s, _), _ in spans), max(e for (_, e), _ in spans)
    return begin, end, [span for span, is_done in spans if is_done]


def _counts(
    begin: float, width: float, num: int, spans: Iterable[tuple[float, float]]
) -> list[float]:
    """Return how many clips lie in each of `num` stretches, by parts of their own time."""
    counts = [0.0] * num
    for start, end in spans:
        for place in range(min(int((start - begin) / width), num - 1), num):
            from_, to = begin + place * width, begin + (place + 1) * width
            if from_ >= end:
                break
            counts[place] += (min(end, to) - max(start, from_)) / (end - start)
    return counts


def _span(attempt: Record) -> tuple[float, float] | None:
    """Return when an attempt began and ended; None where that is not known."""
    start, end, seconds = (attempt[n] for n in ("started_at", "finished_at", "total_seconds"))
    if end is None or (start is None and seconds is None):
        return None
    began = end.timestamp() - seconds if start is None else start.timestamp()
    return (began, end.timestamp()) if began < end.timestamp() else None
