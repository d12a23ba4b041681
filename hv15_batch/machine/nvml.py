"""Cards as the driver knows them, and their health while they work."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from hv15_batch.errors import Secondary


@dataclass(frozen=True)
class GpuHealth:
    """One card at one moment; None for what it does not report."""

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
        self._reading = Secondary("how the card is cannot be shown")

    def read(self) -> GpuHealth:
        """Return the state of the card; None from a card that is lost or silent, never an error."""
        if self._uuid is None:
            return GpuHealth()
        with self._reading:
            return self._read(self._uuid)
        return GpuHealth()

    def _read(self, uuid: str) -> GpuHealth:
        nvml = self._nvml = self._nvml or importlib.import_module("pynvml")
        try:
            if not self._is_ready:
                nvml.nvmlInit()
                self._is_ready = True
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
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
            with self._reading:
                self._told(self._nvml.nvmlShutdown)

    def _told(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except self._nvml.NVMLError:
            return None


@dataclass(frozen=True)
class Gpu:
    """One visible card, as NVML describes it."""

    index: int
    """NVML's index: that of CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID, or with equal cards."""
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    """At the moment of reading, all processes counted."""
    driver: str
    power_limit_watts: float | None
    """Enforced limit; None where the card does not report it."""


def read_gpus(environ: Mapping[str, str] = os.environ, nvml: Any = None) -> list[Gpu]:
    """Return the cards that CUDA would see, in its order; empty without a driver.

    Args:
        environ: Environment; only CUDA_VISIBLE_DEVICES is read.
        nvml: Module with pynvml's functions; None imports pynvml.
    """
    with open_nvml(nvml) as library:
        if library is not None:
            with suppress(library.NVMLError):
                return _visible(library, environ.get("CUDA_VISIBLE_DEVICES"))
    return []


@contextmanager
def open_nvml(nvml: Any = None) -> Iterator[Any]:
    """Yield NVML, initialised (None imports pynvml), or None without a driver."""
    nvml = nvml or importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _visible(nvml: Any, wanted: str | None) -> list[Gpu]:
    """Return the cards named by CUDA_VISIBLE_DEVICES, by index or by (the start of) a UUID.

    As CUDA does, the list ends at the first entry that names no card.
    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    gpus = [gpu for i in range(nvml.nvmlDeviceGetCount()) if (gpu := _card(nvml, i))]
    if wanted is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.startswith("MIG-"):
            slice_ = _mig_slice(nvml, entry)
            found = [slice_] if slice_ else []
        elif entry.isdigit():
            found = [gpu for gpu in gpus if gpu.index == int(entry)]
        else:
            found = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(found) != 1:
            break
        chosen.append(found[0])
    return chosen


def _card(nvml: Any, index: int) -> Gpu | None:
    """Return the card at NVML's `index`; None where it is lost or not readable."""
    try:
        return _read_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index), index)
    except nvml.NVMLError:
        return None


def _mig_slice(nvml: Any, uuid: str) -> Gpu | None:
    """Return the part of a card with this MIG UUID, with the index of the whole card."""
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        whole = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return _read_gpu(nvml, handle, nvml.nvmlDeviceGetIndex(whole))
    except nvml.NVMLError:
        return None


def _read_gpu(nvml: Any, handle: Any, index: int) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    power = None
    with suppress(nvml.NVMLError):
        power = nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    return Gpu(
        index=index,
        name=as_text(nvml.nvmlDeviceGetName(handle)),
        uuid=as_text(nvml.nvmlDeviceGetUUID(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        driver=as_text(nvml.nvmlSystemGetDriverVersion()),
        power_limit_watts=power,
    )


def as_text(value: Any) -> str:
    """Return a text of NVML's; older bindings give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
