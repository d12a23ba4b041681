"""Seconds against memory: the Pareto front, one sentence, and what the faster ones cost in quality.

A group is on the front if no other is as fast with less memory, or faster with as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.figures.groups import Group, group_key
from hv15_batch.figures.summary import Facts, differing, labels
from hv15_batch.forecast.wording import quality_of
from hv15_batch.record import DONE_STATUSES
from hv15_batch.report._plots import make_plot
from hv15_batch.units import GIB, counted

Named = Sequence[tuple[str, Facts, Group]]
"""Groups with the name that tells them apart, and their facts."""

MAX_LINES = 8
"""Groups whose quality is said below the plot."""
_ALIKE = 0.005
"""Ratios nearer to 1 than this are called equal: the sentence shows no more digits."""
_MEMORY = {"peak_vram_reserved_bytes": "memory", "peak_ram_bytes": "RAM"}
"""What is compared, the first that two groups have: without a card there is RAM alone."""
_MEMORY_AXIS = {
    "peak_vram_reserved_bytes": "peak VRAM reserved by torch, GiB",
    "peak_ram_bytes": "peak RAM, GiB",
}
_SAME, _OTHER, _UNKNOWN = "same bits", "other bits", "bits not compared"


@dataclass(frozen=True)
class _Point:
    """A group with both figures."""

    name: str
    facts: Facts
    group: Group
    seconds: float
    """Median of a warm clip."""
    memory: float
    """Highest peak, in bytes."""

    def beats(self, other: _Point) -> bool:
        """Whether it is as good in both and better in one."""
        mine, its = (self.seconds, self.memory), (other.seconds, other.memory)
        return mine != its and mine[0] <= its[0] and mine[1] <= its[1]


@dataclass(frozen=True)
class Tradeoff:
    """What two or more groups say of seconds against memory."""

    headline: str | None
    """One sentence; None where there are no two groups to compare."""
    plot: dict[str, Any]
    """Without traces where there are not."""


def tradeoff(named: Named, attempts: Iterable[Mapping[str, Any]]) -> Tradeoff:
    """Return the sentence and the plot of some groups.

    Args:
        named: The groups.
        attempts: Rows of the log that they are made of; for the hashes of the clips.
    """
    column = next((c for c in _MEMORY if sum(bool(_peak(g, c)) for *_, g in named) > 1), None)
    points = [] if column is None else _points(named, column)
    if column is None or len(points) < 2:
        return Tradeoff(None, _plot([], "", {}, ""))
    hashes = _hashes(attempts)
    front = _front(points)
    lines = _quality_lines(points, hashes)
    captions = [
        f"Pareto front: {'; '.join(p.name for p in front)}. No other is faster without more memory."
    ]
    if {"Size", "Frames"} & set(differing([p.facts for p in points])):
        captions.append("Not all have the same size and frames.")
    captions += [f"{line}." for line in lines[:MAX_LINES]]
    if len(lines) > MAX_LINES:
        captions.append(f"Quality of {len(lines) - MAX_LINES} more is not said here.")
    drawn = _plot(points, _MEMORY_AXIS[column], {p.name for p in front}, " ".join(captions))
    return Tradeoff(_sentence(*_extremes(points, front), column, hashes), drawn)


def _peak(group: Group, column: str) -> float | None:
    return group.peak(column) if group.clip_seconds is not None else None


def _points(named: Named, column: str) -> list[_Point]:
    """Return the groups that have both; the others have no place in the plot."""
    return [
        _Point(name, facts, group, group.clip_seconds.median, peak)
        for name, facts, group in named
        if group.clip_seconds is not None and (peak := _peak(group, column))
    ]


def _front(points: Sequence[_Point]) -> list[_Point]:
    """Return the points that no other beats, the fastest first."""
    best = [p for p in points if not any(other.beats(p) for other in points)]
    return sorted(best, key=lambda p: (p.seconds, p.memory))


def _extremes(points: Sequence[_Point], front: Sequence[_Point]) -> tuple[_Point, _Point]:
    """Return what the sentence compares: the front's frugal end with its fast end.

    Where one group is best in both, it is compared with the next fastest.
    """
    if len(front) > 1:
        return front[-1], front[0]
    rest = [p for p in points if p is not front[0]]
    return min(rest, key=lambda p: (p.seconds, p.memory)), front[0]


def _sentence(one: _Point, other: _Point, column: str, hashes: _Hashes) -> str | None:
    """Return how one compares with another, which is at least as fast; None without two names."""
    facts = [one.facts, other.facts]
    a, b = labels(facts, differing(facts))
    if a == b:  # they differ in what the page has no name for
        return None
    times, memory = one.seconds / other.seconds, one.memory / other.memory - 1
    if times - 1 < _ALIKE:
        speed = f"{a} is as fast as {b}"
    else:
        speed = f"{a} is {times:.3g} times slower than {b}"
    word = _MEMORY[column]
    if abs(memory) < _ALIKE:
        need = f"needs as much {word}"
    else:
        need = f"needs {abs(memory) * 100:.0f} % {'less' if memory < 0 else 'more'} {word}"
    return f"{speed} and {need}, {_bits(one, other, hashes)}"


# -- quality ----------------------------------------------------------------------------------

_Hashes = Mapping[tuple[Any, ...], Mapping[tuple[Any, ...], "str | None"]]
"""Of the clips' files, by group and clip."""


def _hashes(attempts: Iterable[Mapping[str, Any]]) -> _Hashes:
    """Return the hash of each clip's last file; repetitions of a benchmark keep none."""
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], str | None]] = {}
    for row in attempts:
        if row["status"] in DONE_STATUSES and row["repeat"] is None and row["model"] is not None:
            clip = (row["row_id"], row["seed"], row["prompt"], row["image_sha256"])
            found.setdefault(group_key(row), {})[clip] = row["file_sha256"]
    return found


def _shared(one: _Point, other: _Point, hashes: _Hashes) -> list[bool]:
    """Return of each clip that two groups have in common whether its file is the same."""
    a, b = (hashes.get(p.group.key, {}) for p in (one, other))
    pairs = [(a[clip], b[clip]) for clip in a if clip in b]
    return [x == y for x, y in pairs if x is not None and y is not None]


def _bits(one: _Point, other: _Point, hashes: _Hashes) -> str:
    shared = _shared(one, other, hashes)
    if not shared:
        return _UNKNOWN
    return _SAME if all(shared) else _OTHER


def _quality_lines(points: Sequence[_Point], hashes: _Hashes) -> list[str]:
    """Return what each group costs in quality, beside the first that has no such setting."""
    base = next((p for p in points if not _settings(p)), points[0])
    return [_quality_line(p, base, hashes) for p in points if p is not base]


def _quality_line(point: _Point, base: _Point, hashes: _Hashes) -> str:
    shared = _shared(point, base, hashes)
    clips = counted(len(shared), "clip")
    if not shared:
        line = f"{point.name}: no clip has the hash of its file in common with {base.name}"
    elif all(shared):
        return f"{point.name}: same bits as {base.name} in {clips}"
    else:
        line = f"{point.name}: {shared.count(False)} of {clips} with other bits than {base.name}"
    known = _settings(point)
    return "; ".join(
        [line, *known.values()] if known else [line, "hv15-batch compare says how far apart"]
    )


def _settings(point: _Point) -> dict[str, str]:
    """Return the settings of a group that change frames, with what is known of their quality."""
    columns = point.group.columns
    return quality_of(
        compiled=bool(columns["compiled"]),
        linear=columns["linear"],
        cache=columns["cache"],
        backend=columns["attention_backend"],
    )


# -- the plot ---------------------------------------------------------------------------------


def _plot(
    points: Sequence[_Point], axis: str, front: Iterable[str], caption: str
) -> dict[str, Any]:
    names = set(front)
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": p.name + (" (Pareto front)" if p.name in names else ""),
            "x": [p.memory / GIB],
            "y": [p.seconds],
        }
        for p in points
    ]
    line = sorted((p.memory / GIB, p.seconds) for p in points if p.name in names)
    if len(line) > 1:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "Pareto front",
                "x": [x for x, _ in line],
                "y": [y for _, y in line],
                "line": {"dash": "dot"},
            }
        )
    return make_plot(
        "tradeoff", "Seconds against memory", "seconds a clip", axis, traces, caption, is_free=True
    )
