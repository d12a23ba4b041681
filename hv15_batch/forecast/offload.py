"""Chooses a run's cards, and its offload profile by predicted peaks and free memory. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hv15_batch.clip import ClipSettings
from hv15_batch.config.checks import (
    effective_dtype,
    linears_fault,
    typed_compile,
    typed_workers,
)
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.forecast._memory import Peaks, fits_text_encoder, predict_peaks
from hv15_batch.forecast._quality import of_setting
from hv15_batch.forecast.seconds import Execution, auto_backend, predict_clip
from hv15_batch.machine.cards import ALLOCATOR_BYTES, CONTEXT_BYTES, Card, find_card
from hv15_batch.machine.machine import Machine, usable_cpus
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.linears import linear_name, weights_text
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import Linear, ModelConfig, OffloadKind, Weights
from hv15_batch.official.limits import is_official
from hv15_batch.units import GIB, counted, format_gib

_USUAL_ORDER = (
    OffloadKind.resident,
    OffloadKind.stream,
    OffloadKind.model,
    OffloadKind.stream_disk,
)
"""The fastest first, for clips that are long enough to hide the copying of weights."""


_PROCESS_BYTES = GIB // 4
"""Of a process that has imported torch, before it loads a model: 0.2 to 0.35 GiB resident."""
_AS_FREE = 0.8
"""`dispatch.workers=auto` takes a further card if so much of the first one's free memory is free
there: a desktop takes less than the rest, another program's model takes more."""


def choose_cards(
    config: Config, machine: Machine, models: Iterable[ModelConfig], num_clips: int
) -> tuple[Gpu | None, ...]:
    """Return the card of each worker; None stands for a process on the CPU.

    Args:
        config: Has `dispatch.workers`.
        machine: Has the cards.
        models: Those of the clips.
        num_clips: Clips to render that do not share latents: more workers would be idle.

    Raises:
        Refused: More cards are typed than this machine has, more processes than its RAM holds, or
            several workers for a benchmark.
    """
    typed, most = typed_workers(config), max(num_clips, 1)
    if config.benchmark.repeat is not None or config.benchmark.calibrate:
        if typed not in ("auto", 1):
            raise Refused(
                f"dispatch.workers={typed}: a benchmark measures one card at a time, because "
                "several share RAM and disk; leave it out."
            )
        typed = 1
    if not machine.gpus or all(model.weights is Weights.tiny for model in models):
        count = {"auto": 1, "all": usable_cpus()}.get(str(typed), typed)
        count = min(int(count), most)
        room = machine.ram_total_bytes // _PROCESS_BYTES
        if count > max(room, usable_cpus()) and not config.dry_run:
            raise Refused(
                f"dispatch.workers={typed}: the RAM of this machine "
                f"({format_gib(machine.ram_total_bytes)} GiB) has room for {room} processes at "
                f"most; type dispatch.workers=all for its {counted(usable_cpus(), 'core')}."
            )
        return (None,) * count
    cards = machine.gpus
    if isinstance(typed, int):
        if (fault := workers_fault(config, machine)) and not config.dry_run:
            raise Refused(fault)
        cards = (cards * typed)[:typed]
    elif typed == "auto":
        first = cards[0]
        kind, least = (first.name, first.total_bytes), _AS_FREE * first.free_bytes
        cards = tuple(
            gpu for gpu in cards if (gpu.name, gpu.total_bytes) == kind and gpu.free_bytes >= least
        )
    return cards[:most]


def workers_fault(config: Config, machine: Machine) -> str | None:
    """Return why a run with so many workers would be refused here, or None."""
    typed = typed_workers(config)
    if not isinstance(typed, int) or not machine.gpus or typed <= len(machine.gpus):
        return None
    return (
        f"dispatch.workers={typed}: this machine shows {counted(len(machine.gpus), 'card')}; type "
        "dispatch.workers=all, or look at CUDA_VISIBLE_DEVICES."
    )


@dataclass(frozen=True)
class OffloadChoice:
    """The profile of a run."""

    kind: OffloadKind
    """Never `auto`."""
    reason: str
    """One line for the user."""
    budget_bytes: int | None
    """Bytes of the card that torch may use; None on the CPU."""
    streams_text_encoder: bool
    peaks: Peaks | None
    """Predicted, of the clip that needs most; None on the CPU."""
    gpu: Gpu | None
    """The card that it is chosen for; None on the CPU."""


def choose_offload(
    config: Config,
    settings: Iterable[ClipSettings],
    machine: Machine,
    lora_bytes: int = 0,
    num_workers: int = 1,
) -> OffloadChoice:
    """Return the profile typed, or for `auto` the fastest one that fits.

    Args:
        config: Has the typed profile and `runtime.vram_limit_gib`.
        settings: Clips to be rendered; the size that needs most memory decides.
        machine: Has the card and the RAM.
        lora_bytes: Bytes of the largest set of LoRAs, in 16 bits.
        num_workers: How many share the RAM of this machine.

    Raises:
        Refused: the typed profile, or every profile, needs more memory than there is.
    """
    gpu = machine.gpu
    if is_official(config):
        what = "the official script decides where its model is"
        return OffloadChoice(OffloadKind.resident, what, None, False, None, gpu)
    if config.model.weights.is_small or gpu is None:
        kind = config.offload.kind
        kind = OffloadKind.resident if kind is OffloadKind.auto else kind
        return OffloadChoice(kind, "on the CPU nothing is moved", None, False, None, None)
    machine = replace(machine, ram_available_bytes=machine.ram_available_bytes // num_workers)
    budget = device_budget_bytes(config, gpu.free_bytes)
    card = find_card(gpu.name)
    execution = replace(execution_of(config, card), lora_bytes=lora_bytes)
    settings = list(settings)
    sizes = list({(s.height, s.width, s.num_frames): s for s in settings}.values())
    fastest_first = _fastest_first(settings, card, execution)
    candidates = [
        _neediest(kind, sizes, replace(execution, offload=kind.name), budget, config)
        for kind in fastest_first
    ]
    faults = {c.kind: _fault(c.peaks, budget, machine) for c in candidates}
    by_kind = {c.kind: c for c in candidates}
    fitting = [kind for kind in fastest_first if faults[kind] is None]
    wanted = config.offload.kind
    if wanted is not OffloadKind.auto and wanted in fitting:
        return _choice(by_kind[wanted], "as typed", budget, machine, num_workers)
    if not fitting:
        why = "; ".join(f"{kind.name} {faults[kind]}" for kind in _USUAL_ORDER)
        raise Refused(
            f"offload={wanted.name}: {by_kind[_USUAL_ORDER[0]].size} fits no profile here: "
            f"{why}. {_what_would_do(sizes, execution, config, machine)}"
            f"{_eight_bit_ways(sizes, execution, budget, config, machine)}"
            f"{_remedy(sizes[0], execution, budget, config, machine)}"
        )
    if wanted is not OffloadKind.auto:
        raise Refused(
            f"offload={wanted.name}: {by_kind[wanted].size} {faults[wanted]}; use "
            f"offload={fitting[0].name} or offload=auto."
        )
    kind = fitting[0]
    before = fastest_first[: fastest_first.index(kind)]
    reasons = [f"{k.name} {faults[k]}" for k in before]
    usual = _USUAL_ORDER[: _USUAL_ORDER.index(kind)]
    reasons += [f"{k.name} would take longer for clips this short" for k in usual if k in fitting]
    why = "; ".join(reasons) or "everything fits"
    return _choice(by_kind[kind], why, budget, machine, num_workers)


def _fastest_first(
    settings: Sequence[ClipSettings], card: Card | None, execution: Execution
) -> list[OffloadKind]:
    """Return the profiles by the predicted time of these clips; the usual order breaks ties."""
    if card is None:
        return list(_USUAL_ORDER)
    shapes = Counter(map(Shape.of, settings))

    def seconds(kind: OffloadKind) -> float:
        way = replace(execution, offload=kind.name)
        return sum(n * predict_clip(s, card, way, None).seconds for s, n in shapes.items())

    return sorted(_USUAL_ORDER, key=seconds)  # stable


def execution_of(config: Config, card: Card | None) -> Execution:
    """Return how a command carries out the maths, resident; an unknown card takes torch's own."""
    runtime, dtype = config.runtime, effective_dtype(config).value
    backend = runtime.attention_backend
    if backend == "auto":
        backend = auto_backend(card, runtime.mask_free, dtype) if card else "native"
    return Execution(
        attention_backend=backend,
        compiled=typed_compile(config) is True,
        mask_free=runtime.mask_free,
        dtype=dtype,
        linear=linear_name(runtime.linear),
    )


def device_budget_bytes(config: Config, free_bytes: int) -> int:
    """Return the bytes that torch may use: free memory or the typed limit, less CUDA's own part."""
    limit = config.runtime.vram_limit_gib
    usable = free_bytes if limit is None else min(free_bytes, int(limit * GIB))
    return usable - CONTEXT_BYTES - ALLOCATOR_BYTES


@dataclass(frozen=True)
class _Candidate:
    """A profile with the size of clip that needs most of it."""

    kind: OffloadKind
    execution: Execution
    size: str
    peaks: Peaks


def _neediest(
    kind: OffloadKind,
    sizes: Iterable[ClipSettings],
    execution: Execution,
    budget: int,
    config: Config,
) -> _Candidate:
    reads_weights = config.model.weights is not Weights.random
    found = [
        _Candidate(
            kind,
            execution,
            f"{s.height}x{s.width}x{s.num_frames}",
            predict_peaks(Shape.of(s), execution, budget, reads_weights=reads_weights),
        )
        for s in sizes
    ]
    return max(found, key=lambda c: c.peaks.allocated_bytes)


def _choice(
    candidate: _Candidate, why: str, budget: int, machine: Machine, num_workers: int
) -> OffloadChoice:
    peaks = candidate.peaks
    stages = (peaks.encode_bytes, peaks.denoise_bytes, peaks.decode_bytes)
    encode, denoise, decode = map(format_gib, stages)
    reserved = peaks.reserved_bytes
    held = f", held by the allocator {format_gib(reserved)}" if reserved else ""
    where = f"for each of {num_workers} workers" if num_workers > 1 else "on this machine"
    text = (
        f"offload {candidate.kind.name}: {why}; predicted peak {format_gib(peaks.device_bytes)} "
        f"GiB of card (encode {encode}, denoise {denoise}, decode {decode}, CUDA's own "
        f"{format_gib(CONTEXT_BYTES)}{held}) and {format_gib(peaks.host_bytes)} GiB of RAM ("
        f"{format_gib(machine.ram_available_bytes)} are available {where})"
    )
    execution = candidate.execution
    if execution.linear is not None:
        text += f"; {weights_text(execution.linears, execution.bytes_factor)}"
    streams = not fits_text_encoder(candidate.execution, budget)
    return OffloadChoice(candidate.kind, text, budget, streams, peaks, machine.gpu)


def _fault(peaks: Peaks, budget: int, machine: Machine) -> str | None:
    """Return what a profile lacks, CUDA's own part and the allocator's included on both sides."""
    faults = []
    if peaks.allocated_bytes > budget:
        free = max(budget + CONTEXT_BYTES + ALLOCATOR_BYTES, 0)
        faults.append(
            f"needs {_at_least(_card_bytes(peaks))} GiB of card and {_at_most(free)} are free"
        )
    if peaks.host_bytes > machine.ram_available_bytes:
        free = machine.ram_available_bytes
        faults.append(
            f"needs {_at_least(peaks.host_bytes)} GiB of RAM and {_at_most(free)} are available"
        )
    return ", and ".join(faults) or None


def _card_bytes(peaks: Peaks) -> int:
    """Return how much of a card must be free for this."""
    return peaks.allocated_bytes + CONTEXT_BYTES + ALLOCATOR_BYTES


def _at_least(number: float) -> str:
    return f"{math.ceil(number / GIB * 10) / 10:.1f}"


def _at_most(number: float) -> str:
    return f"{math.floor(number / GIB * 10) / 10:.1f}"


def _what_would_do(
    sizes: Sequence[ClipSettings], execution: Execution, config: Config, machine: Machine
) -> str:
    """Return the profile that fits the least memory, and how much that is.

    Of the card, where one fits this machine's RAM; else of RAM.
    """
    # A budget of nothing: the most frugal plans.
    frugal = [
        (kind.name, _neediest(kind, sizes, replace(execution, offload=kind.name), 0, config).peaks)
        for kind in _USUAL_ORDER
    ]
    ram = machine.ram_available_bytes
    fitting = [(name, peaks) for name, peaks in frugal if peaks.host_bytes <= ram]
    if fitting:
        name, peaks = min(fitting, key=lambda it: _card_bytes(it[1]))
        return f"offload={name} needs only {_at_least(_card_bytes(peaks))} GiB of card. "
    name, peaks = min(frugal, key=lambda it: (it[1].host_bytes, _card_bytes(it[1])))
    return (
        f"offload={name} needs only {_at_least(peaks.host_bytes)} GiB of RAM and "
        f"{_at_least(_card_bytes(peaks))} GiB of card. "
    )


def _eight_bit_ways(
    sizes: Sequence[ClipSettings],
    execution: Execution,
    budget: int,
    config: Config,
    machine: Machine,
) -> str:
    """Return the types of linear modules with which a profile fits, with their quality lines.

    Empty where none does, or where it is typed already.
    """
    if execution.linear is not None or machine.gpu is None:
        return ""
    ways = []
    for linear in (Linear.int8, Linear.fp8):
        typed = replace(config, runtime=replace(config.runtime, linear=linear))
        if linears_fault(typed, machine.gpu.name) is not None:
            continue
        for kind in _USUAL_ORDER:
            way = replace(execution, offload=kind.name, linear=linear_name(linear))
            if _fault(_neediest(kind, sizes, way, budget, config).peaks, budget, machine) is None:
                quality = of_setting(linear.name)
                ways.append(
                    f"runtime.linear={linear.name} fits with offload={kind.name} "
                    f"(quality: {quality}). "
                )
                break
    return "".join(ways)


def _remedy(
    settings: ClipSettings, execution: Execution, budget: int, config: Config, machine: Machine
) -> str:
    """Return what to do; smaller clips do not help where the weights alone do not fit."""
    smallest = [replace(settings, height=16, width=16, num_frames=1)]
    for kind in _USUAL_ORDER:
        way = replace(execution, offload=kind.name)
        if _fault(_neediest(kind, smallest, way, budget, config).peaks, budget, machine) is None:
            return "Render smaller or shorter clips, or free memory."
    return "Free memory: the weights alone do not fit, whatever the clips."
