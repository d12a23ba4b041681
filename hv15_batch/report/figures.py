"""Statistics of timed clips, and when not to trust them. Never a mean alone.

A clip counts as timed when it ran warm and from noise to file: cold ones load and compile, and
those from saved latents lack the denoising.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.records import DONE_STATUSES, FAILED
from hv15_batch.report.facts import FACTS, KEY_COLUMNS, KEY_FACTS
from hv15_batch.timings import (
    TimingWarning,
    WarningKind,
    clip_seconds,
    distribution,
    is_denoised_here,
    warnings_of,
)

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


@dataclass(frozen=True)
class Group:
    """Clips of one way of rendering on one kind of machine, of one run or several."""

    facts: dict[str, str]
    """By the names on the page; what is not known is absent."""
    columns: dict[str, Any]
    """`KEY_COLUMNS`, as logged."""
    runs: list[str]
    """Names of the run directories, where the records say them."""
    seconds: Summary
    """Of warm clips, without encoding."""
    samples: list[float]
    is_benchmark: bool
    """Whether they are repetitions of a benchmark."""
    cold: int
    failed: int
    peak_vram_bytes: float | None
    """Reserved by torch; the highest, cold clips included, those from saved latents not."""
    device_vram_bytes: float | None
    """Of the whole card, as NVML reads it; the highest of the same clips."""
    energy_joules: Summary
    """Of warm clips, encoding included; fewer than those of `seconds` where the card did not
    always tell."""
    warnings: list[TimingWarning]


def group_figures(records: Iterable[Record]) -> list[Group]:
    """Return the figures of each way of rendering, in the order in which they come.

    Where a way was measured repeatedly, only repetitions make its times, energy and warnings.
    Other cards, machines, software or settings make another group. Those without a finished clip
    are left out: attempts that failed before anything was in effect have no figures. So are those
    with clips from saved latents only.

    Args:
        records: Attempts; their `run` names the run directory where there are several.
    """
    found = [_group(alike) for alike in _groups(r for r in records if r["model"] is not None)]
    return [group for group in found if group.seconds.n or group.cold]


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
        and is_denoised_here(r)
    ]


def warning_texts(groups: Sequence[Group], labels: Sequence[str]) -> list[str]:
    """Return what makes these figures unfit to quote, each with its remedy.

    Each kind of fault once, with the first group that has it; `labels` are the groups' names.
    """
    found: dict[WarningKind, list[tuple[str, TimingWarning]]] = {}
    for group, label in zip(groups, labels, strict=True):
        for warning in group.warnings:
            found.setdefault(warning.kind, []).append((label, warning))
    return [_text(*warnings[0], len(warnings) - 1, len(groups) > 1) for warnings in found.values()]


def _text(label: str, warning: TimingWarning, others: int, is_named: bool) -> str:
    about = warning.kind.about[0].upper() + warning.kind.about[1:]
    detail = f"{label}: {warning.detail}" if is_named else warning.detail
    if others:
        detail += f"; and so in {others} more {'group' if others == 1 else 'groups'} of settings"
    return f"{about} ({detail}): {warning.remedy}."


def _groups(records: Iterable[Record]) -> list[list[Record]]:
    found: dict[tuple[str | None, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(FACTS[name](record) for name in KEY_FACTS), []).append(record)
    return list(found.values())


def _group(records: Sequence[Record]) -> Group:
    facts = {name: FACTS[name](records[0]) for name in KEY_FACTS}
    # From saved latents, neither the peak nor the cold start is that of a whole clip.
    made = [r for r in records if r["status"] in DONE_STATUSES and is_denoised_here(r)]
    repetitions = [r for r in made if r["repeat"] is not None]
    is_benchmark = any(r["repeat"] for r in timed(repetitions))
    measured = repetitions if is_benchmark else made
    warm = timed(measured)
    samples = [s for s in map(clip_seconds, warm) if s is not None]
    return Group(
        facts={name: value for name, value in facts.items() if value is not None},
        columns={name: records[0][name] for name in KEY_COLUMNS},
        runs=list(dict.fromkeys(r["run"] for r in records if "run" in r)),
        seconds=summarise(samples),
        samples=samples,
        is_benchmark=is_benchmark,
        cold=sum(bool(r["is_cold"]) for r in measured),
        failed=sum(r["status"] == FAILED for r in records),
        peak_vram_bytes=_highest(made, "peak_vram_reserved_bytes"),
        device_vram_bytes=_highest(made, "peak_vram_device_bytes"),
        energy_joules=summarise(r["energy_joules"] for r in warm),
        warnings=warnings_of(measured),
    )


def _highest(records: Sequence[Record], column: str) -> float | None:
    return max((r[column] for r in records if r[column] is not None), default=None)
