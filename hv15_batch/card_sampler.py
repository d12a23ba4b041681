"""Samples a card through NVML in the background, on a thread that otherwise sleeps.

Imported by `measure` only.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from hv15_batch.telemetry import THROTTLE_MASK, Sample, Telemetry

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
        try:
            return ask()
        except self._nvml.NVMLError:
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
