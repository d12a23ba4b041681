"""What a log says of speed: distributions per group of equal settings, and warnings with remedies.

No torch. Reads rows of the log; never a mean alone: n, median, p90, spread, minimum and maximum.
Spread is the interquartile range over the median: defined from two values on, and one outlier in
a handful does not make it, as it does a standard deviation. Quartiles and p90 are interpolated
linearly, "type 7" of Hyndman & Fan, Sample Quantiles in Statistical Packages, 1996.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hv15_batch.records import DONE_STATUSES
from hv15_batch.run_facts import RUN_COLUMNS

GROUP_COLUMNS = (
    *("model", "weights", "task", "height", "width", "num_frames", "num_inference_steps"),
    *("guidance_scale", "flow_shift", "fps", "off_recipe", "revision", "dtype"),
    *("attention_backend", "mask_free", "compiled", "offload", "vae_tile_size", "decode_device"),
    *("gpu_name", "gpu_total_bytes", "driver_version", "torch_version", "system_sha256"),
    *RUN_COLUMNS,
)
"""What two renderings share to be comparable. Prompt and seed are not in it: they don't decide how
long it takes, but for some thousandths by the length of the text."""

QUANTITIES = ("clip_seconds", "step_seconds", "denoise_seconds", "decode_seconds", "write_seconds")
"""`clip_seconds` is `total_seconds` without the encoding, which only the first clip of a text pays;
`step_seconds` is the median step of a clip."""

TIMING_COLUMNS = (
    *("status", "is_cold", "repeat", "attempt", "denoise_attempt", "started_at", "total_seconds"),
    *("encode_seconds", "num_alloc_retries"),
    *("peak_vram_allocated_bytes", "peak_vram_reserved_bytes"),
    *QUANTITIES[1:],
    *GROUP_COLUMNS,
)
"""Columns that this module reads: of the log, and of the row's run (`run_facts`)."""

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


@dataclass(frozen=True)
class TimingSummary:
    """The renderings of one group."""

    group: dict[str, Any]
    """`GROUP_COLUMNS` with what all of them have."""
    num_timed: int
    num_cold: int
    """First clips of a worker, compiling ones and warm-ups: not in the distributions."""
    seconds: dict[str, Distribution]
    """By `QUANTITIES`, as far as measured; empty where all clips are cold."""


_FREE_CARD = (
    "keep other work off card and machine, lock the clocks (nvidia-smi -lgc), look at "
    "throttle_seconds and its reasons"
)
_FREE_MACHINE = "keep other work off the machine"
_FREE_MEMORY = "free the card, or choose a smaller profile such as offload=stream"
_ALLOCATED_TOO = (
    "compare peak_vram_allocated_bytes too; where PYTORCH_CUDA_ALLOC_CONF is set by hand "
    "(system.json has it), unset it, and expandable_segments:True is used"
)


class WarningKind(Enum):
    """What can be wrong with figures, and what to do about it. A closed list.

    Each has what is wrong, the remedy for the clips of a usual run, and that for repetitions of a
    benchmark, whose user has followed the first already.
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
        "too few timed clips to say how they spread",
        "use benchmark.repeat=3 or more",
        "run the same command again, which measures what is missing; with benchmark.repeat=3 or "
        "more where it was less",
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
    group: dict[str, Any]
    detail: str
    """The figures that it rests on."""
    is_benchmark: bool
    """Whether the group has repetitions of a benchmark."""

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.kind.remedy(self.is_benchmark, self.group["gpu_name"] is not None)

    def __str__(self) -> str:
        """Return the warning as a sentence, without the group's name."""
        about = self.kind.about[0].upper() + self.kind.about[1:]
        return f"{about} ({self.detail}): {self.remedy}."


def summarise(records: Iterable[Mapping[str, Any]]) -> list[TimingSummary]:
    """Return the groups in order of their first rendering.

    Failed attempts and clips that were decoded from saved latents are left out: the latter carry
    the denoising time of another attempt.

    Args:
        records: rows of the log with `TIMING_COLUMNS`.
    """
    return [_summary(group, rows) for group, rows in _groups(records)]


def warnings_of(records: Iterable[Mapping[str, Any]]) -> list[TimingWarning]:
    """Return what is wrong with the figures of each group, as far as the rows tell it."""
    found = []
    for group, rows in _groups(records):
        timed = _timed(rows)
        is_benchmark = any(row["repeat"] for row in rows)
        for kind, detail in (
            (WarningKind.slow_first, _slow_first(timed)),
            (WarningKind.wide_spread, _wide_spread(timed)),
            (WarningKind.few_timed, f"n = {len(timed)}" if len(timed) < MIN_TIMED else None),
            (WarningKind.alloc_retries, _alloc_retries(timed)),
            (WarningKind.fragmented, _fragmented(timed)),
        ):
            if detail is not None:
                found.append(TimingWarning(kind, group, detail, is_benchmark))
    return found


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


def clip_seconds(row: Mapping[str, Any]) -> float | None:
    """Return what a clip took without encoding; None where it was not measured."""
    if row["total_seconds"] is None:
        return None
    return float(row["total_seconds"] - (row["encode_seconds"] or 0.0))


def is_denoised_here(row: Mapping[str, Any]) -> bool:
    """Whether an attempt denoised itself; False where it decoded saved latents."""
    return row["denoise_attempt"] in (None, row["attempt"])


def attempt_seconds(row: Mapping[str, Any]) -> float | None:
    """Return what an attempt took: its clip's seconds, but no denoising of an earlier attempt."""
    if row["total_seconds"] is None or is_denoised_here(row):
        return None if row["total_seconds"] is None else float(row["total_seconds"])
    return float(row["total_seconds"] - (row["denoise_seconds"] or 0.0))


# -- groups -----------------------------------------------------------------------------------


def _groups(
    records: Iterable[Mapping[str, Any]],
) -> list[tuple[dict[str, Any], list[Mapping[str, Any]]]]:
    """Return the renderings by what they share, each group in the order in which it was made."""
    made = [r for r in records if r["status"] in DONE_STATUSES and is_denoised_here(r)]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(made, key=lambda r: (r["started_at"] is not None, r["started_at"])):
        groups.setdefault(tuple(row[name] for name in GROUP_COLUMNS), []).append(row)
    return [(dict(zip(GROUP_COLUMNS, key, strict=True)), rows) for key, rows in groups.items()]


def _timed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if not row["is_cold"]]


def _summary(group: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> TimingSummary:
    timed = _timed(rows)
    measured = {name: distribution(_values(name, timed)) for name in QUANTITIES}
    return TimingSummary(
        group=group,
        num_timed=len(timed),
        num_cold=len(rows) - len(timed),
        seconds={name: found for name, found in measured.items() if found is not None},
    )


def _values(name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    values = [_value(name, row) for row in rows]
    return [value for value in values if value is not None]


def _value(name: str, row: Mapping[str, Any]) -> float | None:
    if name == "clip_seconds":
        return clip_seconds(row)
    if name == "step_seconds":
        return statistics.median(row[name]) if row[name] else None
    value: float | None = row[name]
    return value


# -- warnings ---------------------------------------------------------------------------------


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
    return f"the middle half spans {found.spread:.0%} of the median"


def _alloc_retries(timed: Sequence[Mapping[str, Any]]) -> str | None:
    retries = sum(row["num_alloc_retries"] or 0 for row in timed)
    return f"{retries} times" if retries else None


def _fragmented(timed: Sequence[Mapping[str, Any]]) -> str | None:
    pairs = [(r["peak_vram_allocated_bytes"], r["peak_vram_reserved_bytes"]) for r in timed]
    known = [(a, r) for a, r in pairs if a and r]
    allocated, reserved = max(known, key=lambda pair: pair[1] / pair[0], default=(1, 1))
    if reserved <= MAX_RESERVED_OVER_ALLOCATED * allocated:
        return None
    return f"{reserved / 2**30:.1f} GiB reserved, {allocated / 2**30:.1f} GiB allocated"
