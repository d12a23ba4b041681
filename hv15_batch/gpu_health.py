"""How a card is right now: temperature, power, memory. NVML only: no CUDA context, no VRAM."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuHealth:
    """One card at one moment; None where it does not tell."""

    temperature_celsius: int | None = None
    power_watts: float | None = None
    vram_used_bytes: int | None = None
    """Of all processes."""
    vram_total_bytes: int | None = None


class GpuHealthReader:
    """Reads one card again and again; NVML stays initialised, which makes a reading cheap."""

    def __init__(self, uuid: str | None, nvml: Any = None) -> None:
        """Remember the card.

        Args:
            uuid: The card's or MIG slice's UUID; None where there is no card.
            nvml: Module with pynvml's functions; None imports pynvml at the first reading.
        """
        self._uuid = uuid
        self._nvml = nvml
        self._is_ready = False

    def read(self) -> GpuHealth:
        """Return how the card is; a card that is lost or silent gives None, never an error."""
        if self._uuid is None:
            return GpuHealth()
        nvml = self._nvml = self._nvml or importlib.import_module("pynvml")
        try:
            if not self._is_ready:
                nvml.nvmlInit()
                self._is_ready = True
            handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except nvml.NVMLError:
            return GpuHealth()
        sensor = nvml.NVML_TEMPERATURE_GPU
        power = self._told(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        memory = self._told(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        return GpuHealth(
            temperature_celsius=self._told(lambda: nvml.nvmlDeviceGetTemperature(handle, sensor)),
            power_watts=None if power is None else power / 1000,
            vram_used_bytes=None if memory is None else int(memory.used),
            vram_total_bytes=None if memory is None else int(memory.total),
        )

    def close(self) -> None:
        """Let go of NVML."""
        if self._is_ready:
            self._is_ready = False
            self._told(self._nvml.nvmlShutdown)

    def _told(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._nvml.NVMLError:
            return None
