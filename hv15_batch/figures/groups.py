"""Seconds, memory and energy in a log: distributions per group, and warnings.

Run, report and comparisons take their numbers from here, so they agree.

No torch. Reads rows of the log. A distribution is n, median, p90, spread, minimum and maximum,
never a mean alone. Spread is the interquartile range over the median: it is defined from two values
on, and one outlier among a few values hardly changes it. Quartiles and p90 are interpolated
linearly, "type 7" of Hyndman & Fan, Sample Quantiles in Statistical Packages, 1996.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hv15_batch.model.step_cache import computed_seconds
from hv15_batch.record import (
    DONE_STATUSES,
    FAILED,
    STAGES,
    clip_seconds,
    columns,
    is_denoised_here,
    seconds_column,
)
from hv15_batch.rundir.stored import RUN_COLUMNS
from hv15_batch.units import format_gib, format_share

GROUP_COLUMNS = (*columns(groups=True), *RUN_COLUMNS)
"""Columns that must be equal for renderings to be counted together."""

QUANTITIES = ("clip_seconds", "step_seconds", *(seconds_column(stage) for stage in STAGES[1:]))
"""`clip_seconds` is `total_seconds` without the encoding, which only the first clip of a text pays;
`step_seconds` is the median step of a clip."""

MEMORY_COLUMNS = ("peak_vram_reserved_bytes", "peak_vram_device_bytes", "peak_ram_bytes")
"""Peaks: what torch reserved, what NVML saw of the whole card, and RAM."""

TIMING_COLUMNS = (
    *("attempt", "repeat", "started_at", "energy_joules", "status"),
    *columns("time"),
    *columns("memory"),
    *GROUP_COLUMNS,
)
"""Columns that this module reads: of the log, and of the row's run (`rundir.stored`)."""

SLOW_FIRST_FACTOR = 1.1
MAX_SPREAD = 0.1
MIN_TIMED = 3
MAX_RESERVED_OVER_ALLOCATED = 1.2


@dataclass(frozen=True)
class Distribution:
    """How one quantity was distributed, in its unit."""

    n: int
    median: float
    minimum: float
    maximum: float
    p90: float | None
    """None with fewer than two values."""
    spread: float | None
    """Interquartile range over the median; None with fewer than two values."""


_FREE_CARD = (
    "keep other work off card and machine, lock the clocks (nvidia-smi -lgc), look at "
    "throttle_seconds and its reasons"
)
_FREE_MACHINE = "keep other work off the machine"
_FREE_MEMORY = "free the card, or choose a smaller profile such as offload=stream"
_ALLOCATED_TOO = (
    "compare peak_vram_allocated_bytes too; if you set PYTORCH_CUDA_ALLOC_CONF yourself (see "
    "system.json), unset it, so that expandable_segments:True is used"
)


class WarningKind(Enum):
    """What can be wrong with a group's numbers, and what to do about it. A closed list.

    Each member has three texts: what is wrong, the remedy for the clips of a usual run, and the
    remedy for repetitions of a benchmark.
    """

    slow_first = (
        "the first timed clip took far longer than the others and is counted",
        "use benchmark.repeat, which warms up first; with more clips it weighs less",
        "raise benchmark.repeat, so that it weighs less, and keep other work off the card",
    )
    wide_spread = (
        "the timed clips differ much",
        f"{_FREE_CARD}, use benchmark.repeat=5",
        f"{_FREE_CARD}, raise benchmark.repeat",
    )
    few_timed = (
        "too few timed clips to tell the spread",
        "use benchmark.repeat=3 or more",
        "run the same command again to measure what is missing, with benchmark.repeat=3 or more",
    )
    alloc_retries = (
        "torch ran out of memory and tried again within clips, which costs time",
        _FREE_MEMORY,
        _FREE_MEMORY,
    )
    fragmented = ("torch reserved far more memory than it used", _ALLOCATED_TOO, _ALLOCATED_TOO)

    @property
    def about(self) -> str:
        """What is wrong."""
        return self.value[0]

    def remedy(self, is_benchmark: bool, has_card: bool = True) -> str:
        """Return what to do about it, for repetitions or for the clips of a usual run."""
        remedy = self.value[2] if is_benchmark else self.value[1]
        return remedy if has_card else remedy.replace(_FREE_CARD, _FREE_MACHINE)


@dataclass(frozen=True)
class TimingWarning:
    """One thing to know before quoting a group's figures."""

    kind: WarningKind
    detail: str
    """The numbers behind it."""
    remedy: str
    """What to do about it."""

    def __str__(self) -> str:
        """Return the warning as a sentence, without the group's name."""
        about = self.kind.about[0].upper() + self.kind.about[1:]
        return f"{about} ({self.detail}): {self.remedy}."


@dataclass(frozen=True)
class Group:
    """Attempts of one way of rendering on one kind of machine, of one run or several."""

    columns: dict[str, Any]
    """`GROUP_COLUMNS` with what all of them have."""
    runs: list[str]
    """Names of the run directories, where the rows say them."""
    is_benchmark: bool
    """Whether times and energy are those of a benchmark's repetitions."""
    samples: list[float]
    """Seconds of each warm clip, or repetition, without the encoding."""
    num_cold: int
    """First clips of a worker, compiling ones and warm-ups: not in the distributions of times."""
    num_failed: int
    seconds: dict[str, Distribution]
    """Of warm clips, by `QUANTITIES`, as far as measured; empty where all clips are cold."""
    memory: dict[str, Distribution]
    """By `MEMORY_COLUMNS`, as far as measured; of cold clips too, which encode."""
    energy_joules: Distribution | None
    """Of warm clips, encoding included. Its n is smaller than that of `seconds` where the card did
    not always report energy."""
    warnings: list[TimingWarning]

    @property
    def key(self) -> tuple[Any, ...]:
        """What `group_key` returns for each of its rows."""
        return tuple(self.columns.values())

    @property
    def clip_seconds(self) -> Distribution | None:
        """Seconds of a warm clip without encoding; None without one."""
        return self.seconds.get("clip_seconds")

    @property
    def num_timed(self) -> int:
        """Warm clips, or repetitions, that count."""
        return len(self.samples)

    def peak(self, column: str) -> float | None:
        """Return the highest of a memory column; None where it was not measured."""
        return self.memory[column].maximum if column in self.memory else None


def group_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides the group of a row: rows with equal keys are counted together."""
    return tuple(row[name] for name in GROUP_COLUMNS)


def group_rows(rows: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Return the groups in the order of their first row.

    Where a group has repetitions, its times, energy and warnings come from these alone. Clips
    decoded from saved latents are left out: their denoising time is that of another attempt, and
    their peak is not that of a whole clip. Groups without a finished clip are left out too.

    Args:
        rows: Rows of the log with `TIMING_COLUMNS`; their `run` names the run directory where
            there are several.
    """
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["model"] is not None:
            alike.setdefault(group_key(row), []).append(row)
    return [group for found in alike.values() if (group := _group(found)) is not None]


def distribution(values: Sequence[float]) -> Distribution | None:
    """Return how values are distributed; None without any."""
    if not values:
        return None
    p90 = spread = None
    median = statistics.median(values)
    if len(values) > 1:
        p90 = statistics.quantiles(values, n=10, method="inclusive")[-1]
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        spread = (high - low) / median if median > 0 else None
    return Distribution(len(values), median, min(values), max(values), p90, spread)


# -- groups -----------------------------------------------------------------------------------


def _group(rows: Sequence[Mapping[str, Any]]) -> Group | None:
    """Return the figures of rows with one key; None where no clip was made from noise to file."""
    made = [r for r in rows if r["status"] in DONE_STATUSES and is_denoised_here(r)]
    if not made:
        return None
    repetitions = [row for row in made if row["repeat"] is not None]
    is_benchmark = any(row["repeat"] and not row["is_cold"] for row in repetitions)
    measured = sorted(
        repetitions if is_benchmark else made,
        key=lambda row: (row["started_at"] is not None, row["started_at"]),
    )
    warm = [row for row in measured if not row["is_cold"]]
    return Group(
        columns={name: rows[0][name] for name in GROUP_COLUMNS},
        runs=list(dict.fromkeys(row["run"] for row in rows if "run" in row)),
        is_benchmark=is_benchmark,
        samples=_values("clip_seconds", warm),
        num_cold=len(measured) - len(warm),
        num_failed=sum(row["status"] == FAILED for row in rows),
        seconds=_distributions(QUANTITIES, warm),
        memory=_distributions(MEMORY_COLUMNS, made),
        energy_joules=distribution(_values("energy_joules", warm)),
        warnings=_warnings(warm, any(row["repeat"] for row in measured)),
    )


def _distributions(
    names: Iterable[str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Distribution]:
    measured = {name: distribution(_values(name, rows)) for name in names}
    return {name: found for name, found in measured.items() if found is not None}


def _values(name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    values = [_value(name, row) for row in rows]
    return [value for value in values if value is not None]


def _value(name: str, row: Mapping[str, Any]) -> float | None:
    if name == "clip_seconds":
        return clip_seconds(row)
    if name == "step_seconds":
        computed = computed_seconds(row[name] or (), row["cache"])
        return statistics.median(computed) if computed else None
    value: float | None = row[name]
    return value


# -- warnings ---------------------------------------------------------------------------------


def _warnings(timed: Sequence[Mapping[str, Any]], is_benchmark: bool) -> list[TimingWarning]:
    """Return what is wrong with the numbers of a group, as far as its rows show it."""
    found = {
        WarningKind.slow_first: _slow_first(timed),
        WarningKind.wide_spread: _wide_spread(timed),
        WarningKind.few_timed: f"n = {len(timed)}" if len(timed) < MIN_TIMED else None,
        WarningKind.alloc_retries: _alloc_retries(timed),
        WarningKind.fragmented: _fragmented(timed),
    }
    has_card = any(row["gpu_name"] is not None for row in timed)
    return [
        TimingWarning(kind, detail, kind.remedy(is_benchmark, has_card))
        for kind, detail in found.items()
        if detail is not None
    ]


def _slow_first(timed: Sequence[Mapping[str, Any]]) -> str | None:
    values = _values("clip_seconds", timed)
    if len(values) < MIN_TIMED:
        return None
    rest = statistics.median(values[1:])
    if values[0] <= SLOW_FIRST_FACTOR * rest:
        return None
    return f"{values[0]:.3g} s, the others {rest:.3g} s (median)"


def _wide_spread(timed: Sequence[Mapping[str, Any]]) -> str | None:
    found = distribution(_values("clip_seconds", timed))
    if found is None or found.spread is None or found.spread < MAX_SPREAD:
        return None
    return f"the middle half spans {format_share(found.spread, 0)} of the median"


def _alloc_retries(timed: Sequence[Mapping[str, Any]]) -> str | None:
    retries = sum(row["num_alloc_retries"] or 0 for row in timed)
    return f"{retries} times" if retries else None


def _fragmented(timed: Sequence[Mapping[str, Any]]) -> str | None:
    pairs = [(r["peak_vram_allocated_bytes"], r["peak_vram_reserved_bytes"]) for r in timed]
    known = [(a, r) for a, r in pairs if a and r]
    allocated, reserved = max(known, key=lambda pair: pair[1] / pair[0], default=(1, 1))
    if reserved <= MAX_RESERVED_OVER_ALLOCATED * allocated:
        return None
    return f"{format_gib(reserved)} GiB reserved, {format_gib(allocated)} GiB allocated"
