"""What each worker of a run did: clips, clips an hour, idle share, and whether it is slow."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hv15_batch.model.shapes import Shape
from hv15_batch.record import DENOISE, DONE_STATUSES, STAGES, is_denoised_here, seconds_column
from hv15_batch.units import NOT_MEASURED, format_duration, format_gib, format_share

COLUMNS = (
    "card",
    "clips",
    "clips an hour",
    "idle",
    "times as long as its like",
    "hottest",
    "throttled",
    "most memory",
    "last seen",
)
"""What is shown of each worker."""
MIN_CLIPS = 3
"""With fewer timed clips a worker's pace is not compared."""
SLOW = 1.25
"""A worker is named if its clips take so many times as long as on others of its kind of card."""


@dataclass(frozen=True)
class WorkerFigures:
    """One worker of a run directory: a card, or a process on the CPU."""

    worker: str
    """Its `worker_id` without the number of its process."""
    card: str
    num_clips: int
    clips_per_hour: float | None
    """Of the time from its first clip to its last, in each run."""
    idle_share: float | None
    """Of the same time; its own start of loading counts as work."""
    times_as_long: float | None
    """Median over its clips of their seconds over the median of the other workers with such a
    card, for the same size and settings; None where there are too few."""
    last_seen: datetime
    temperature_celsius: float | None = None
    """Highest of its card."""
    throttle_seconds: float | None = None
    """In which its card was slowed down."""
    vram_bytes: int | None = None
    """Most that was in use on its card."""

    @property
    def is_slow(self) -> bool:
        """Whether it is much slower than others of its kind."""
        return self.times_as_long is not None and self.times_as_long >= SLOW


def place_of(worker_id: str) -> str:
    """Return the worker's place in its run: `local-2` of `local-2-0`, `local` of `local-1`."""
    return worker_id.rpartition("-")[0] or worker_id


def worker_figures(rows: Iterable[Mapping[str, Any]]) -> list[WorkerFigures]:
    """Return the figures of each worker, those of several machines apart.

    Args:
        rows: Attempts with the columns of the log; only those that a worker wrote count.
    """
    workers: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["worker_id"] and row["started_at"] and row["finished_at"]:
            card = f"{row['gpu_name']}, card {row['gpu_index']}" if row["gpu_name"] else "CPU"
            key = row["hostname"] or "", place_of(row["worker_id"]), card
            workers.setdefault(key, []).append(row)
    is_one_host = len({host for host, *_ in workers}) == 1
    paces = _paces(workers)
    return [
        _figures(place if is_one_host else f"{host} {place}", card, own, paces.get(key))
        for key, own in sorted(workers.items())
        for host, place, card in [key]
    ]


def _figures(
    worker: str, card: str, rows: Sequence[Mapping[str, Any]], pace: float | None
) -> WorkerFigures:
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(row["run_id"], []).append(row)
    span = sum(
        (max(r["finished_at"] for r in own) - min(r["started_at"] for r in own)).total_seconds()
        for own in runs.values()
    )
    names = ["load_seconds", *map(seconds_column, STAGES[:-1])]  # a clip is written beside the next
    busy = sum(row[name] or 0.0 for row in rows for name in names)
    done = sum(row["status"] in DONE_STATUSES for row in rows)
    return WorkerFigures(
        worker,
        card,
        done,
        done / span * 3600 if span else None,
        max(1 - busy / span, 0.0) if span else None,
        pace,
        max(row["finished_at"] for row in rows),
        max(_known(rows, "temperature_celsius_max"), default=None),
        sum(throttled) if (throttled := _known(rows, "throttle_seconds")) else None,
        max(_known(rows, "peak_vram_device_bytes"), default=None),
    )


def _known(rows: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
    return [row[column] for row in rows if row[column] is not None]


def _paces(
    workers: Mapping[tuple[str, str, str], Sequence[Mapping[str, Any]]],
) -> dict[tuple[str, str, str], float]:
    """Return how many times as long each worker takes as others with such a card."""
    seconds: dict[Any, dict[tuple[str, str, str], list[float]]] = {}
    for key, rows in workers.items():
        for row in rows:
            taken = row[seconds_column(DENOISE)]
            if row["status"] in DONE_STATUSES and not row["is_cold"] and is_denoised_here(row):
                kind = row["gpu_name"], Shape.of_row(row), row["model"], row["compiled"]
                if taken:
                    seconds.setdefault(kind, {}).setdefault(key, []).append(taken)
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for by_worker in seconds.values():
        if len(by_worker) > 1:
            medians = {key: statistics.median(taken) for key, taken in by_worker.items()}
            for key, taken in by_worker.items():
                usual = statistics.median(m for other, m in medians.items() if other != key)
                ratios.setdefault(key, []).extend(each / usual for each in taken)
    return {key: statistics.median(of) for key, of in ratios.items() if len(of) >= MIN_CLIPS}


def slow_lines(workers: Iterable[WorkerFigures]) -> list[str]:
    """Return a line for each worker that is much slower than its like."""
    return [
        f"{each.worker} ({each.card}) takes {each.times_as_long:.1f} times as long as its like"
        f"{_health_words(each)}: look at its temperature, power limit and PCIe link"
        for each in workers
        if each.is_slow
    ]


def _health_words(each: WorkerFigures) -> str:
    parts = []
    if each.temperature_celsius is not None:
        parts.append(f"up to {each.temperature_celsius:.0f} °C")
    if each.throttle_seconds is not None:
        parts.append(f"throttled for {format_duration(each.throttle_seconds)}")
    return f" ({', '.join(parts)})" if parts else ""


def format_worker(each: WorkerFigures, now: datetime) -> list[str]:
    """Return the cells of a worker, in the order of `COLUMNS`."""
    rate = NOT_MEASURED if each.clips_per_hour is None else f"{each.clips_per_hour:.1f}"
    idle = NOT_MEASURED if each.idle_share is None else format_share(each.idle_share)
    pace = NOT_MEASURED if each.times_as_long is None else f"{each.times_as_long:.2f}"
    seen = f"{format_duration((now - each.last_seen).total_seconds())} ago"
    heat = each.temperature_celsius
    health = [
        NOT_MEASURED if heat is None else f"{heat:.0f} °C",
        NOT_MEASURED if each.throttle_seconds is None else format_duration(each.throttle_seconds),
        NOT_MEASURED if each.vram_bytes is None else f"{format_gib(each.vram_bytes)} GiB",
    ]
    return [each.card, str(each.num_clips), rate, idle, pace, *health, seen]
