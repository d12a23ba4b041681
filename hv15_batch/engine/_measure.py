"""Seconds and memory per stage, step times and machine facts.

Only this module reads CUDA counters, NVML while rendering, and the clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hv15_batch.clip import ClipSettings
from hv15_batch.engine._telemetry import CardSampler, Telemetry, sampler_of
from hv15_batch.errors import Secondary
from hv15_batch.machine.cards import find_card
from hv15_batch.machine.nvml import read_gpus
from hv15_batch.model.attention import is_exact
from hv15_batch.model.shapes import Shape, forward_flop
from hv15_batch.record import columns

if TYPE_CHECKING:
    from hv15_batch.engine.encode.cache import Conditioning


_COLUMNS = frozenset(columns())


@dataclass
class Stage:
    """What one stage cost; a stage that was entered twice counts as one."""

    seconds: float = 0.0
    """Wall clock with the device synchronised at both ends."""
    peak_vram_allocated_bytes: int | None = None
    """None without CUDA."""
    peak_vram_reserved_bytes: int | None = None
    telemetry: Telemetry | None = None
    """What the card did meanwhile; None without a card that NVML knows."""

    def merge(self, other: Stage) -> None:
        """Add the same stage as another meter saw it."""
        self.seconds += other.seconds
        self.peak_vram_allocated_bytes = _larger(
            self.peak_vram_allocated_bytes, other.peak_vram_allocated_bytes
        )
        self.peak_vram_reserved_bytes = _larger(
            self.peak_vram_reserved_bytes, other.peak_vram_reserved_bytes
        )
        self.add_telemetry(other.telemetry)

    def add_telemetry(self, telemetry: Telemetry | None) -> None:
        """Add what the card did in another window."""
        if telemetry is not None:
            self.telemetry = self.telemetry or Telemetry()
            self.telemetry.merge(telemetry)

    def add_peaks(self, device: torch.device) -> None:
        """Raise the peaks to what CUDA's counters say since they were reset."""
        allocated = torch.cuda.max_memory_allocated(device)
        reserved = torch.cuda.max_memory_reserved(device)
        self.peak_vram_allocated_bytes = _larger(self.peak_vram_allocated_bytes, allocated)
        self.peak_vram_reserved_bytes = _larger(self.peak_vram_reserved_bytes, reserved)


class StageMeter:
    """Measures the stages of one clip: one meter per clip.

    `with meter.stage("denoise"): ...`, then `meter.columns()["denoise_seconds"]`.
    """

    def __init__(self, device: torch.device, sampler: CardSampler | None = None) -> None:
        """Begin a clip on the device that renders it; `sampler` watches that device."""
        self.stages: dict[str, Stage] = {}
        self._device = device
        self._sampler = sampler
        self._watching = Secondary("what the card did meanwhile is not logged")
        self._retries_before = _num_alloc_retries(device)

    @contextmanager
    def stage(self, name: str, on_device: bool = True) -> Iterator[None]:
        """Measure what is inside, also when it raises.

        Args:
            name: beginning of the log columns' names.
            on_device: False for work that runs beside the next clip's: it must neither wait for
                the device nor reset the peaks that belong to that clip.
        """
        device = self._device if on_device else torch.device("cpu")
        _synchronize(device)
        sampler = self._sampler if on_device else None
        window: Telemetry | None = None
        if sampler is not None:
            with self._watching:
                window = sampler.begin()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begin = time.perf_counter()
        try:
            yield
            _synchronize(device)
        finally:
            stage = self.stages.setdefault(name, Stage())
            stage.seconds += time.perf_counter() - begin
            if sampler is not None and window is not None:
                with self._watching:
                    sampler.end(window)
                    stage.add_telemetry(window)
            if device.type == "cuda":
                stage.add_peaks(device)

    def add(self, other: StageMeter) -> None:
        """Count what another meter measured as this clip's, such as the encoding it caused."""
        self.add_stages(other.stages)

    def add_stages(self, stages: Mapping[str, Stage]) -> None:
        """Count stages that another meter measured, maybe that of another worker."""
        for name, stage in stages.items():
            self.stages.setdefault(name, Stage()).merge(stage)

    def columns(self) -> dict[str, float | int | None]:
        """Return the log columns that were measured; a column that is absent was not.

        Energy, power and clocks are those of this attempt: a clip decoded from saved latents has
        those of its decoding.
        """
        columns: dict[str, float | int | None] = {}
        for name, stage in self.stages.items():
            columns[f"{name}_seconds"] = stage.seconds
            columns[f"{name}_peak_vram_allocated_bytes"] = stage.peak_vram_allocated_bytes
            columns[f"{name}_peak_vram_reserved_bytes"] = stage.peak_vram_reserved_bytes
        for peak in ("peak_vram_allocated_bytes", "peak_vram_reserved_bytes"):
            peaks = (getattr(stage, peak) for stage in self.stages.values())
            columns[peak] = reduce(_larger, peaks, None)
        if self._sampler is not None:
            with self._watching:
                columns |= self._telemetry().columns()
        columns["peak_ram_bytes"] = peak_ram_bytes()
        retries = _num_alloc_retries(self._device)
        if retries is not None and self._retries_before is not None:
            columns["num_alloc_retries"] = retries - self._retries_before
        return {name: value for name, value in columns.items() if name in _COLUMNS}

    def _telemetry(self) -> Telemetry:
        """Return what the card did in all stages."""
        telemetry = Telemetry()
        for stage in self.stages.values():
            if stage.telemetry is not None:
                telemetry.merge(stage.telemetry)
        return telemetry


class StepClock:
    """Marks moments on the device without waiting for it; the waiting is done once, at the end."""

    def __init__(self, device: torch.device) -> None:
        """Begin without a mark."""
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []

    def mark(self) -> None:
        """Mark the moment that the device reaches with the work handed to it so far."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds between neighbouring marks: one value fewer than marks."""
        if self._device.type == "cuda":
            _synchronize(self._device)
            pairs = zip(self._events, self._events[1:], strict=False)
            return [begin.elapsed_time(end) / 1000 for begin, end in pairs]
        times = zip(self._times, self._times[1:], strict=False)
        return [later - earlier for earlier, later in times]


def peak_ram_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Return this process's peak resident set, VmHWM; None where the system does not tell."""
    try:
        lines = status.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # the kernel's "kB" is KiB
    return None


def machine_columns(device: torch.device) -> dict[str, Any]:
    """Return the log's columns on card and versions; None where unknown, or without a card."""
    columns: dict[str, Any] = {
        "gpu_name": None,
        "gpu_uuid": None,
        "gpu_index": None,
        "gpu_total_bytes": None,
        "driver_version": None,
        # Its own type is torch's: taking one out of the pipe would import torch in the parent.
        "torch_version": str(torch.__version__),
        "diffusers_version": metadata.version("diffusers"),
    }
    if device.type != "cuda":
        return columns
    properties = torch.cuda.get_device_properties(device)
    uuid = str(properties.uuid)
    columns |= {
        "gpu_name": properties.name,
        "gpu_uuid": f"GPU-{uuid}",
        "gpu_total_bytes": properties.total_memory,
    }
    with Secondary("the card's index and driver are not logged"):
        for gpu in read_gpus():
            if gpu.uuid.partition("-")[2] == uuid:  # GPU-... or, of a slice, MIG-...
                columns |= {
                    "gpu_uuid": gpu.uuid,
                    "gpu_name": gpu.name,
                    "gpu_index": gpu.index,
                    "gpu_total_bytes": gpu.total_bytes,
                    "driver_version": gpu.driver,
                }
    return columns


def make_sampler(device: torch.device) -> CardSampler | None:
    """Return what watches this device from now on; None without a card that NVML knows."""
    if device.type != "cuda":
        return None
    with Secondary("power, clocks and memory of the card are not logged"):
        return sampler_of(str(torch.cuda.get_device_properties(device).uuid))
    return None


def _larger(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _num_alloc_retries(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))


def work_columns(
    settings: ClipSettings,
    conditioning: Conditioning,
    seconds: float,
    gpu_name: str | None,
    attention_backend: str,
) -> dict[str, Any]:
    """Return the log's columns on tokens, FLOP and rate.

    Args:
        settings: Size, frames, steps and guidance.
        conditioning: Gives the lengths of the texts.
        seconds: Of denoising.
        gpu_name: Product name of the card; None for a tiny or demo model, for which the FLOP
            formula of the full-size transformer does not hold.
        attention_backend: In effect. One of 8 bits has another rate to be compared with.
    """
    video_tokens = Shape.of(settings).num_video_tokens
    columns: dict[str, Any] = {
        "num_text_tokens": conditioning.prompt.num_text_tokens,
        "num_glyph_tokens": conditioning.prompt.num_glyph_tokens,
        "num_video_tokens": video_tokens,
    }
    if gpu_name is None:
        return columns
    image_tokens = 0 if conditioning.image is None else conditioning.image.image_embeds.shape[1]
    texts = [conditioning.prompt] + ([conditioning.negative] if conditioning.negative else [])
    flop = Shape.of(settings).num_computed_steps * sum(
        forward_flop(video_tokens, text.num_text_tokens + text.num_glyph_tokens + image_tokens)
        for text in texts
    )
    tflops = flop / 1e12 / seconds
    card = find_card(gpu_name)
    # The table's rate is that of 16 bits.
    is_16_bit = (
        settings.dtype != "float32" and settings.linear is None and is_exact(attention_backend)
    )
    mfu = tflops / card.dense_bf16_tflops if card is not None and is_16_bit else None
    return columns | {"model_pflop": flop / 1e15, "tflops": tflops, "mfu": mfu}
