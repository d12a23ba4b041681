"""What a card did in windows of time, from samples: power, energy, clock, temperature, memory.

What a card does not tell is None, each quantity for itself. `card_sampler` takes the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_IDLE = 0x1
THROTTLE_REASONS = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clock_setting": 0x100,
    "board_limit": 0x200,
    "reliability": 0x400,
}
"""Bits that count as throttling: all but idle (0x1) and the applications clock setting (0x2).

Source: nvml.h, `nvmlClocksEventReason*`; the last two are from before they were renamed.
"""
THROTTLE_MASK = sum(THROTTLE_REASONS.values())

THROTTLE_COLUMNS = {
    "throttle_power_seconds": ("sw_power_cap", "hw_power_brake_slowdown"),
    "throttle_thermal_seconds": ("sw_thermal_slowdown", "hw_thermal_slowdown"),
    # The hardware's thermal and power brake reasons come with this one; alone it may be either.
    "throttle_hardware_seconds": ("hw_slowdown",),
    "throttle_other_seconds": (
        *("sync_boost", "display_clock_setting", "board_limit", "reliability"),
    ),
}
"""The log's columns by the reasons whose time each has. Reasons overlap, so columns may."""
_COLUMN_MASKS = {
    column: sum(THROTTLE_REASONS[name] for name in names)
    for column, names in THROTTLE_COLUMNS.items()
}


@dataclass(frozen=True)
class Sample:
    """What a card said at one moment."""

    at: float
    """Seconds of the sampler's clock."""
    power_watts: float | None
    energy_joules: float | None
    """Counter since the driver was loaded."""
    sm_clock_mhz: float | None
    temperature_celsius: float | None
    clock_reasons: int | None
    """Bits that say why the clock is what it is."""
    known_reasons: int
    """Bits that the card can set."""
    used_bytes: int | None
    """Memory in use on the card, by all processes."""


@dataclass
class _Sum:
    """One quantity summed over time."""

    value: float = 0.0
    seconds: float = 0.0
    """Time between neighbouring samples that both had the quantity."""
    has_gap: bool = False

    def integrate(self, begin: float | None, end: float | None, seconds: float) -> None:
        """Add an interval by the trapezoid rule, so that each weighs as long as it lasted."""
        if begin is None or end is None:
            self.has_gap = True
        else:
            self.value += (begin + end) / 2 * seconds
            self.seconds += seconds

    def weigh(self, value: float | None, seconds: float) -> None:
        """Add what was so for a time; a value that does not count is None."""
        if value is not None:
            self.value += value * seconds
            self.seconds += seconds

    def count(self, begin: float | None, end: float | None, seconds: float) -> None:
        """Add an interval by a counter's difference."""
        if begin is None or end is None or end < begin:
            self.has_gap = True
        else:
            self.value += end - begin
            self.seconds += seconds

    def merge(self, other: _Sum) -> None:
        """Add another sum."""
        self.value += other.value
        self.seconds += other.seconds
        self.has_gap = self.has_gap or other.has_gap

    @property
    def mean(self) -> float | None:
        """Mean over the time that was seen; None when none was."""
        return self.value / self.seconds if self.seconds > 0 else None

    @property
    def total(self) -> float | None:
        """Sum over all the time; None when part of it was not seen."""
        return None if self.has_gap or self.seconds == 0 else self.value


@dataclass
class Telemetry:
    """What a card did during some windows of time."""

    counted_energy: _Sum = field(default_factory=_Sum)
    power: _Sum = field(default_factory=_Sum)
    clock: _Sum = field(default_factory=_Sum)
    throttle: _Sum = field(default_factory=_Sum)
    throttle_by_column: dict[str, _Sum] = field(
        default_factory=lambda: {column: _Sum() for column in THROTTLE_COLUMNS}
    )
    clock_min: float | None = None
    temperature_max: float | None = None
    used_bytes_max: int | None = None
    last: Sample | None = None
    """End of the interval that the next sample closes; None between windows."""

    def add(self, sample: Sample) -> None:
        """Take the next sample of a window."""
        before, self.last = self.last, sample
        if before is not None:
            seconds = sample.at - before.at
            self.counted_energy.count(before.energy_joules, sample.energy_joules, seconds)
            self.power.integrate(before.power_watts, sample.power_watts, seconds)
            # Each end stands for half of the interval, so that the mean is never below the lowest.
            self.clock.weigh(_working_clock(before), seconds / 2)
            self.clock.weigh(_working_clock(sample), seconds / 2)
            self._add_throttle(before, sample, seconds)
        self._add_extremes(_working_clock(sample), sample.temperature_celsius, sample.used_bytes)

    def end_window(self) -> None:
        """Let the time until the next sample count for nothing."""
        self.last = None

    def merge(self, other: Telemetry) -> None:
        """Add what was seen in other windows."""
        self.counted_energy.merge(other.counted_energy)
        self.power.merge(other.power)
        self.clock.merge(other.clock)
        self.throttle.merge(other.throttle)
        for column, found in self.throttle_by_column.items():
            found.merge(other.throttle_by_column[column])
        self._add_extremes(other.clock_min, other.temperature_max, other.used_bytes_max)

    def columns(self) -> dict[str, float | int | None]:
        """Return the log's columns; energy by the card's own counter where it has one."""
        # A counter at rest did not tick in so short a time: no card draws nothing.
        counted = self.counted_energy.total or None
        return {
            "energy_joules": self.power.total if counted is None else counted,
            "power_watts_mean": self.power.mean,
            "sm_clock_mhz_mean": self.clock.mean,
            "sm_clock_mhz_min": self.clock_min,
            "temperature_celsius_max": self.temperature_max,
            "throttle_seconds": self.throttle.total,
            **{column: found.total for column, found in self.throttle_by_column.items()},
            "peak_vram_device_bytes": self.used_bytes_max,
        }

    def _add_throttle(self, before: Sample, sample: Sample, seconds: float) -> None:
        self.throttle.integrate(_is_throttled(before), _is_throttled(sample), seconds)
        for column, mask in _COLUMN_MASKS.items():
            begin, end = (_has_reason(each, mask) for each in (before, sample))
            self.throttle_by_column[column].integrate(begin, end, seconds)

    def _add_extremes(
        self, clock: float | None, temperature: float | None, used_bytes: int | None
    ) -> None:
        self.clock_min = _extreme(min, self.clock_min, clock)
        self.temperature_max = _extreme(max, self.temperature_max, temperature)
        self.used_bytes_max = _extreme(max, self.used_bytes_max, used_bytes)


def _working_clock(sample: Sample) -> float | None:
    """Return the clock; None where the card is idle, since it then clocks down."""
    is_idle = sample.clock_reasons is not None and bool(sample.clock_reasons & _IDLE)
    return None if is_idle else sample.sm_clock_mhz


def _is_throttled(sample: Sample) -> float | None:
    if sample.clock_reasons is None:
        return None
    return float(bool(sample.clock_reasons & THROTTLE_MASK))


def _has_reason(sample: Sample, mask: int) -> float | None:
    """Return 1 where one of these reasons is set, 0 where none is, None if the card has none."""
    if sample.clock_reasons is None or not sample.known_reasons & mask:
        return None
    return float(bool(sample.clock_reasons & mask))


def _extreme(choose: Callable[..., Any], one: Any, other: Any) -> Any:
    """Return the smaller or larger of two values of which either may be missing."""
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None
