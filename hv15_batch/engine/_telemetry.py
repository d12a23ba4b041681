"""What a card did in windows of time, from samples: power, energy, clock, temperature, memory.

A quantity that the card does not report is None. `CardSampler` takes the samples.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hv15_batch.errors import Secondary

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
    # Set together with the hardware's thermal and power brake reasons; alone it may be either.
    "throttle_hardware_seconds": ("hw_slowdown",),
    "throttle_other_seconds": (
        *("sync_boost", "display_clock_setting", "board_limit", "reliability"),
    ),
}
"""The reasons whose time each column of the log has. Reasons overlap, so columns may too."""
_COLUMN_MASKS = {
    column: sum(THROTTLE_REASONS[name] for name in names)
    for column, names in THROTTLE_COLUMNS.items()
}


@dataclass(frozen=True)
class Sample:
    """What a card reported at one moment."""

    at: float
    """Seconds of the sampler's clock."""
    power_watts: float | None
    energy_joules: float | None
    """Counter since the driver was loaded."""
    sm_clock_mhz: float | None
    temperature_celsius: float | None
    clock_reasons: int | None
    """Bits with the reasons for the current clock."""
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
        """Add a value that held for a time; None does not count."""
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
        """Ignore the time until the next sample."""
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
        # A counter that stood still was read too soon: every card draws some power.
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


_T = TypeVar("_T")

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.25
"""One sample takes NVML 2.6 ms of a core (one H100, driver 580, measured 2026-11-25)."""


class CardSampler:
    """Samples one card while windows are open; a daemon thread, which otherwise sleeps."""

    def __init__(
        self,
        nvml: Any,
        handle: Any,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start the thread, once for all windows.

        Args:
            nvml: Module with pynvml's functions, initialised.
            handle: NVML's handle of the card, or of a slice of it.
            interval_seconds: Between two samples.
            clock: Seconds.
        """
        self._nvml = nvml
        self._handle = handle
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._asking = Secondary("power, clocks and memory of the card are not all logged")
        self._known_reasons = self._or_none(self._supported_reasons) or THROTTLE_MASK
        self._lock = threading.Lock()
        self._open: list[Telemetry] = []
        self._is_wanted = threading.Event()
        self.thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self.thread.start()

    def begin(self) -> Telemetry:
        """Open a window with a first sample."""
        window = Telemetry()
        window.add(self.read())
        with self._lock:
            self._open.append(window)
        self._is_wanted.set()
        return window

    def end(self, window: Telemetry) -> None:
        """Close a window with a last sample."""
        with self._lock:
            self._open = [other for other in self._open if other is not window]
            if not self._open:
                self._is_wanted.clear()
        window.add(self.read())
        window.end_window()

    def take(self) -> None:
        """Take a sample for the windows that are open."""
        sample = self.read()
        with self._lock:
            for window in self._open:
                if window.last is None or sample.at >= window.last.at:
                    window.add(sample)

    def read(self) -> Sample:
        """Return what the card says now. Calls of NVML release the interpreter's lock."""
        return Sample(
            at=self._clock(),
            power_watts=self._or_none(self._power_watts),
            energy_joules=_thousandth(self._ask("nvmlDeviceGetTotalEnergyConsumption")),
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", self._nvml.NVML_CLOCK_SM),
            temperature_celsius=self._ask(
                "nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU
            ),
            clock_reasons=self._or_none(self._clock_reasons),
            known_reasons=self._known_reasons,
            used_bytes=self._or_none(self._used_bytes),
        )

    def _run(self) -> None:
        while True:
            self._is_wanted.wait()
            with self._asking:
                self.take()
            time.sleep(self._interval_seconds)

    def _power_watts(self) -> float:
        """Return the power of this moment; cards that lack it give their mean of up to a second."""
        nvml = self._nvml
        (value,) = nvml.nvmlDeviceGetFieldValues(self._handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if value.nvmlReturn == nvml.NVML_SUCCESS:
            return float(value.value.uiVal) / 1000
        return float(nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000

    def _clock_reasons(self) -> int:
        nvml = self._nvml
        with suppress(nvml.NVMLError):
            return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(self._handle))
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))  # older drivers

    def _supported_reasons(self) -> int:
        nvml = self._nvml
        with suppress(nvml.NVMLError):
            return int(nvml.nvmlDeviceGetSupportedClocksEventReasons(self._handle))
        return int(nvml.nvmlDeviceGetSupportedClocksThrottleReasons(self._handle))  # older drivers

    def _used_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _ask(self, name: str, *more: Any) -> float | None:
        return self._or_none(lambda: float(getattr(self._nvml, name)(self._handle, *more)))

    def _or_none(self, ask: Callable[[], _T]) -> _T | None:
        with self._asking, suppress(self._nvml.NVMLError):  # which only says: not on this card
            return ask()
        return None


def sampler_of(uuid: str, nvml: Any = None) -> CardSampler | None:
    """Return a sampler of the card, or slice of a card, with this UUID; None where NVML has none.

    Args:
        uuid: As CUDA gives it, without the beginning `GPU-` or `MIG-`.
        nvml: Module with pynvml's functions; None imports pynvml.
    """
    nvml = nvml or importlib.import_module("pynvml")
    with suppress(nvml.NVMLError):
        nvml.nvmlInit()  # never shut down: the thread reads until the process ends
        for kind in ("GPU", "MIG"):
            with suppress(nvml.NVMLError):
                return CardSampler(nvml, nvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}"))
    logger.info("NVML does not know the card %s: energy, clocks and the like are not logged", uuid)
    return None


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000
