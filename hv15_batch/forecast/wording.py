"""A forecast in words: seconds of a clip of each size, by stage, and what comes once."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import CacheKind, Config
from hv15_batch.forecast._quality import measured, of_setting
from hv15_batch.forecast.forecast import Forecast, is_modelled
from hv15_batch.forecast.offload import OffloadChoice
from hv15_batch.forecast.seconds import ClipCost, CostBasis, write_seconds
from hv15_batch.model.attention import AUTO, is_exact
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import Linear
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.units import counted, format_duration, format_gib

MAX_SIZES = 3
"""Sizes with a line of their own, those that take longest in all."""


def modelled(todo: Sequence[PlannedClip]) -> list[PlannedClip]:
    """Return the clips of full-size models: the others are not predicted."""
    return [p for p in todo if is_modelled(p.clip.settings)]


def small_models(todo: Sequence[PlannedClip]) -> list[str]:
    """Return the model of each clip that is not predicted."""
    return [p.clip.settings.model for p in todo if not is_modelled(p.clip.settings)]


def beside_total(
    forecast: Forecast, todo: Sequence[PlannedClip], sizes: Sequence[Sequence[PlannedClip]]
) -> str:
    """Return what follows a total: the time of a clip, where all have one size, and what it lacks.

    Args:
        forecast: The prediction.
        todo: All clips.
        sizes: The result of `by_size`.
    """
    words = ""
    if len(sizes) == 1:
        words += f", {forecast.clip_seconds(sizes[0][0]):.0f} s per warm clip"
    if small := small_models(todo):
        names = " and ".join(dict.fromkeys(small))
        words += f", without {counted(len(small), 'clip')} of {names} (some seconds each)"
    return words


def by_size(forecast: Forecast, todo: Sequence[PlannedClip]) -> list[list[PlannedClip]]:
    """Return the full-size clips by what decides their time, what takes longest in all first."""
    sizes: dict[tuple[str, Shape], list[PlannedClip]] = {}
    for planned in modelled(todo):
        settings = planned.clip.settings
        sizes.setdefault((settings.model, Shape.of(settings)), []).append(planned)
    return sorted(
        sizes.values(), key=lambda clips: sum(map(forecast.clip_seconds, clips)), reverse=True
    )


def size_lines(
    forecast: Forecast, sizes: Sequence[Sequence[PlannedClip]], todo: Sequence[PlannedClip]
) -> list[str]:
    """Return a line for each size of several: a mean over them is the time of no clip.

    Args:
        forecast: The prediction.
        sizes: The result of `by_size`.
        todo: All clips.
    """
    if len(sizes) == 1:
        return []
    lines = []
    has_models = bool(forecast.further or small_models(todo))
    for clips in sizes[:MAX_SIZES]:
        shape = Shape.of(clips[0].clip.settings)
        cost = forecast.clip_cost(clips[0].clip.settings)
        model = f"{clips[0].clip.settings.model} " * has_models
        lines.append(
            f"{len(clips):>6} x {model}{shape.height}x{shape.width} "
            f"{counted(shape.num_frames, 'frame')}, "
            f"{counted(shape.num_inference_steps, 'step')}{_also(shape)}: "
            f"{cost.seconds:.0f} s per warm clip, {_stage_words(cost)}"
        )
    if rest := sizes[MAX_SIZES:]:
        seconds = [forecast.clip_cost(clips[0].clip.settings).seconds for clips in rest]
        lines.append(
            f"{sum(map(len, rest)):>6} x {counted(len(rest), 'more size')}: "
            f"{min(seconds):.0f} to {max(seconds):.0f} s per warm clip"
        )
    return lines


@dataclass(frozen=True)
class Uncertainty:
    """How wrong a forecast may be."""

    factor: float
    """Seconds at worst, over the predicted ones."""
    words: str
    """Why, and how much."""


_CALIBRATED = Uncertainty(1.05, "calibrated predictions were up to 5 % off on an H100")
_OF_OTHER_SIZES = Uncertainty(
    1.25, "only far larger or smaller clips were measured; 25 % more is assumed at worst"
)
_MEASURED_KIND = Uncertainty(1.1, "without a log, predictions were up to 8 % off on an H100")
_UNKNOWN_KIND = "{card} was never measured; twice as long is assumed at worst"
"""docs/prediction.md has the measurements."""


def uncertainty(forecast: Forecast, todo: Sequence[PlannedClip]) -> Uncertainty:
    """Return how wrong the predicted seconds of these clips may be, by their basis."""
    kinds = {
        (p.clip.settings.model, Shape.of(p.clip.settings)): p.clip.settings for p in modelled(todo)
    }
    basis = min(forecast.clip_cost(settings).basis for settings in kinds.values())
    if basis is CostBasis.calibrated:
        return _CALIBRATED
    if basis is CostBasis.scaled:
        return _OF_OTHER_SIZES
    if forecast.card.is_hopper:
        return _MEASURED_KIND
    return Uncertainty(2.0, _UNKNOWN_KIND.format(card=forecast.card.name))


def memory_lines(choices: Mapping[str, OffloadChoice]) -> list[str]:
    """Return a line about profile and memory, or one for each model where they differ."""
    if len({choice.reason for choice in choices.values()}) == 1:
        return [f"Memory: {next(iter(choices.values())).reason}"]
    return [f"Memory of {name}: {choice.reason}" for name, choice in choices.items()]


def quality_lines(config: Config) -> list[str]:
    """Return a line for each setting of the command that is faster and changes the frames.

    Compilation that was not typed has its own line, see `forecast.compilation`.
    """
    linear = config.runtime.linear
    cache = config.override.cache or config.sampling.cache or CacheKind.none
    found = quality_of(
        compiled=bool(typed_compile(config)),
        linear=None if linear is Linear.bf16 else linear.name,
        cache=None if cache is CacheKind.none else cache.name,
        backend=config.runtime.attention_backend,
    )
    return [f"Quality: {typed}: {line}" for typed, line in found.items()]


def quality_of(
    *, compiled: bool, linear: str | None, cache: str | None, backend: str | None
) -> dict[str, str]:
    """Return what each faster setting that changes the frames costs in quality.

    Args:
        compiled: Whether the transformer's blocks are compiled.
        linear: 8-bit type of the linear modules; None for none.
        cache: Step cache; None for none.
        backend: Of the attention; None if it is not known.
    """
    found = {}
    if compiled:
        found["runtime.compile=true"] = of_setting("compile")
    if linear is not None:
        line = of_setting(linear) if linear in measured() else _OF_FEWER_BITS
        found[f"runtime.linear={linear}"] = line
    if cache is not None:
        found[f"sampling.cache={cache}"] = of_setting("cache")
    if backend is not None and backend != AUTO and not is_exact(backend):
        line = of_setting(backend) if backend in measured() else _OF_FEWER_BITS
        found[f"runtime.attention_backend={backend}"] = line
    return found


_OF_FEWER_BITS = (
    "fewer than 16 bits, and not compared on clips; docs/attention.md has the kernels' errors"
)


def _also(shape: Shape) -> str:
    return " with guidance" * shape.has_guidance + " from an image" * shape.has_image


def _stage_words(cost: ClipCost) -> str:
    return (
        f"denoise {cost.denoise_seconds:.1f} s ({cost.denoise_flop / 1e15:.1f} PFLOP) and decode "
        f"{cost.decode_seconds:.1f} s ({cost.decode_flop / 1e15:.1f})"
    )


def workers_lines(forecast: Forecast, todo: Sequence[PlannedClip]) -> list[str]:
    """Return how several cards share the clips; nothing for one card."""
    if forecast.num_workers == 1:
        return []
    idle = forecast.course(todo).idle_seconds
    line = f"Workers: {forecast.num_workers} x {forecast.gpu_name}, each with a process of its own"
    if idle >= 1:
        share = idle / forecast.course(todo).seconds
        line += f"; at its end each is idle for {format_duration(idle)} in the mean ({share:.0%})"
    return [line]


def stages_line(forecast: Forecast, todo: Sequence[PlannedClip], is_one_size: bool) -> str:
    """Return the time by stage: of a clip, where all have one size, and of what comes once."""
    start = forecast.start
    for other in forecast.further.values():
        start += other.start
    num_denoised = sum(not p.is_from_latents for p in todo)
    cost = forecast.clip_cost(modelled(todo)[0].clip.settings)
    if not num_denoised:
        cost = replace(cost, denoise_seconds=0.0, denoise_flop=0.0)
    clip = f"a clip {_stage_words(cost)}; " * is_one_size
    once = [f"start and load {start.load_seconds:.0f} s", f"encode {start.encode_seconds:.0f} s"]
    if start.compile_seconds:
        once.append(f"compile {start.compile_seconds:.0f} s")
    once.append(f"last write {write_seconds(todo[-1].clip.settings):.0f} s")
    num_decoded = len(todo) - num_denoised
    saved = f"; {num_decoded} of {len(todo)} only decoded, from their latents" * bool(num_decoded)
    return f"Stages: {clip}once {', '.join(once)}{saved}"


def against_prediction(forecast: Forecast, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each size: measured medians beside what was predicted before.

    Args:
        forecast: Made before the run.
        rows: Of the log, warm clips of this run; with `peak_vram_device_bytes`.
    """
    if not rows:
        return ["Measured: no warm clip, so there is nothing to compare with the prediction"]
    sizes: dict[Shape, list[Mapping[str, Any]]] = {}
    for row in rows:
        sizes.setdefault(Shape.of_row(row), []).append(row)
    lines = []
    for shape, own in sizes.items():
        cost = forecast.clip_cost(shape)
        parts = [
            f"{stage} {_beside(statistics.median(r[f'{stage}_seconds'] for r in own), seconds)}"
            for stage, seconds in (
                ("denoise", cost.denoise_seconds),
                ("decode", cost.decode_seconds),
            )
        ]
        peaks = [r["peak_vram_device_bytes"] for r in own if r["peak_vram_device_bytes"]]
        if peaks and forecast.offload.peaks is not None:
            predicted = format_gib(forecast.offload.peaks.device_bytes)
            parts.append(f"card {format_gib(max(peaks))} GiB, {predicted} predicted")
        lines.append(
            f"Measured on this {forecast.gpu_name}: {shape.height}x{shape.width} "
            f"{counted(shape.num_frames, 'frame')}, {counted(shape.num_inference_steps, 'step')}, "
            f"{counted(len(own), 'warm clip')}: {'; '.join(parts)} (the prediction was "
            f"{forecast.basis})"
        )
    return lines


def _beside(measured: float, predicted: float) -> str:
    """Return measured and predicted seconds, and how far they are apart."""
    return f"{measured:.1f} s, {predicted:.1f} predicted ({measured / predicted - 1:+.0%})"
