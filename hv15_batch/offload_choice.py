"""Which offload profile a run uses, and why: predicted peaks against free memory. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hv15_batch.clip import ClipSettings
from hv15_batch.config import Config, ConfigError, OffloadKind, Task, Weights
from hv15_batch.costs import (
    ALLOCATOR_BYTES,
    CONTEXT_BYTES,
    GIB,
    Peaks,
    fits_text_encoder,
    predict_peaks,
)
from hv15_batch.machine import Machine

_FASTEST_FIRST = (
    OffloadKind.resident,
    OffloadKind.stream,
    OffloadKind.model,
    OffloadKind.stream_disk,
)


@dataclass(frozen=True)
class OffloadChoice:
    """The profile of a run."""

    kind: OffloadKind
    """Never `auto`."""
    reason: str
    """One line for the user."""
    budget_bytes: int | None
    """What torch may take of the card; None on the CPU."""
    streams_text_encoder: bool
    peaks: Peaks | None
    """Predicted, of the largest clip; None on the CPU."""


def choose_offload(
    config: Config, settings: Iterable[ClipSettings], machine: Machine
) -> OffloadChoice:
    """Return the profile typed, or for `auto` the fastest one that fits.

    Args:
        config: Decides profile and `runtime.vram_limit_gib`.
        settings: What is to be rendered; its largest clip decides.
        machine: Cards and RAM; the first card is the one used.

    Raises:
        ConfigError: the profile typed, or every profile, needs more than there is.
    """
    if config.model.weights is Weights.tiny or not machine.gpus:
        kind = config.offload.kind
        kind = OffloadKind.resident if kind is OffloadKind.auto else kind
        return OffloadChoice(kind, "on the CPU nothing is moved", None, False, None)
    budget = device_budget_bytes(config, machine.gpus[0].free_bytes)
    largest = _largest(settings)
    is_i2v = config.model.task is Task.i2v
    peaks = {
        kind: predict_peaks(
            largest, kind.name, budget, is_i2v=is_i2v, compiled=config.runtime.compile
        )
        for kind in _FASTEST_FIRST
    }
    faults = {kind: _fault(peaks[kind], budget, machine) for kind in _FASTEST_FIRST}
    fitting = [kind for kind in _FASTEST_FIRST if faults[kind] is None]
    wanted = config.offload.kind
    if wanted is not OffloadKind.auto and wanted in fitting:
        return _choice(wanted, "as typed", budget, peaks[wanted])
    if not fitting:
        why = "; ".join(f"{kind.name} {faults[kind]}" for kind in _FASTEST_FIRST)
        raise ConfigError(
            f"offload={wanted.name}: {_size(largest)} fits no profile here: {why}. Render smaller "
            "or shorter clips, or free memory."
        )
    if wanted is not OffloadKind.auto:
        raise ConfigError(
            f"offload={wanted.name}: {_size(largest)} {faults[wanted]}; use "
            f"offload={fitting[0].name} or offload=auto."
        )
    kind = fitting[0]
    before = _FASTEST_FIRST[: _FASTEST_FIRST.index(kind)]
    why = "; ".join(f"{k.name} {faults[k]}" for k in before) or "everything fits"
    return _choice(kind, why, budget, peaks[kind])


def device_budget_bytes(config: Config, free_bytes: int) -> int:
    """Return what torch may take: free memory or the typed limit, less CUDA's own part."""
    limit = config.runtime.vram_limit_gib
    usable = free_bytes if limit is None else min(free_bytes, int(limit * GIB))
    return usable - CONTEXT_BYTES - ALLOCATOR_BYTES


def _choice(kind: OffloadKind, why: str, budget: int, peaks: Peaks | None) -> OffloadChoice:
    assert peaks is not None
    text = (
        f"offload {kind.name}: {why}; predicted peak {peaks.device_bytes / GIB:.1f} GiB of card "
        f"and {peaks.host_bytes / GIB:.1f} GiB of RAM"
    )
    return OffloadChoice(kind, text, budget, not fits_text_encoder(kind.name, budget), peaks)


def _fault(peaks: Peaks | None, budget: int, machine: Machine) -> str | None:
    if peaks is None:
        return f"cannot decode within {budget / GIB:.1f} GiB"
    needed = max(peaks.encode_bytes, peaks.denoise_bytes, peaks.decode_bytes)
    if needed > budget:
        return f"needs {needed / GIB:.1f} GiB of card and {budget / GIB:.1f} are free for it"
    if peaks.host_bytes > machine.ram_available_bytes:
        return (
            f"needs {peaks.host_bytes / GIB:.1f} GiB of RAM and "
            f"{machine.ram_available_bytes / GIB:.1f} are available"
        )
    return None


def _largest(settings: Iterable[ClipSettings]) -> ClipSettings:
    return max(settings, key=lambda s: (s.height * s.width * s.num_frames, s.height))


def _size(settings: ClipSettings) -> str:
    return f"{settings.height}x{settings.width}x{settings.num_frames}"
