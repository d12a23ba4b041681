"""Settings that would make a run shorter, the mildest first. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hv15_batch.clip import ClipSettings
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import CacheKind, Config
from hv15_batch.errors import Refused
from hv15_batch.forecast._quality import of_frames, of_model, of_setting, of_size
from hv15_batch.forecast.calibrate import read_log_rows
from hv15_batch.forecast.forecast import Forecast, make_forecast
from hv15_batch.machine.machine import Machine
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Distillation, ModelConfig, Task
from hv15_batch.planning.plan import PlannedClip

MAX_WAYS = 4
_FEWER_FRAMES = 61
_SIZES = ((480, 848), (320, 576))
"""Height and width, in pixels, that are offered for larger text-to-video clips, in this order."""


@dataclass(frozen=True)
class Way:
    """Settings that would take less time. The caller checks whether they are accepted."""

    words: str
    """What to type."""
    config: Config
    quality: str
    """What is known of the clips that it gives, in words."""


def ways_in_time(
    config: Config,
    todo: Sequence[PlannedClip],
    machine: Machine,
    log_folder: Path,
    replan: Callable[[Config], Sequence[PlannedClip]],
    is_in_time: Callable[[Forecast, Sequence[PlannedClip]], bool],
) -> Iterator[tuple[Way, Forecast, Sequence[PlannedClip]]]:
    """Yield up to `MAX_WAYS` settings with which all clips end in time, the mildest first.

    Each is planned as if it had been typed, so that no refused one is offered, and one that only
    adds to another is left out.

    Args:
        config: Settings.
        todo: The clips to render.
        machine: This one.
        log_folder: Where logs of the same card are looked for.
        replan: Returns what the command would render with other settings; Refused if it is refused.
        is_in_time: Whether a forecast of clips meets the deadline.
    """
    rows = read_log_rows(log_folder)
    found: list[set[str]] = []
    for way in cheaper_ways(config, [p.clip.settings for p in todo]):
        typed = set(way.words.split())
        if len(found) == MAX_WAYS or any(map(typed.issuperset, found)):
            continue
        try:
            clips = replan(way.config)
            forecast = make_forecast(way.config, clips, machine, log_folder, rows)
        except Refused:
            continue  # refused, or no profile fits
        if forecast is not None and is_in_time(forecast, clips):  # None: nothing left to do
            found.append(typed)
            yield way, forecast, clips


def cheaper_ways(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield settings that keep as much as they can of what was asked.

    A typed value applies to every row, so a value is offered only if no clip grows by it.
    """
    if not typed_compile(config):
        compiled = replace(config, runtime=replace(config.runtime, compile=True))
        yield Way("runtime.compile=true", compiled, of_setting("compile"))
    if CacheKind.static not in (config.sampling.cache, config.override.cache):
        cached = replace(config, sampling=replace(config.sampling, cache=CacheKind.static))
        yield Way("sampling.cache=static", cached, of_setting("cache"))
    frames = [s.num_frames for s in todo]
    is_longer = max(frames) > _FEWER_FRAMES <= min(frames)
    shorter = of_frames(_FEWER_FRAMES, todo[0].fps)
    if is_longer:
        yield _with_override(config, shorter, num_frames=_FEWER_FRAMES)
    distilled = list(_distilled(config))
    yield from distilled
    yield from _smaller(config, todo)
    for way in distilled if is_longer else ():
        few = f"{shorter}; {way.quality}".removeprefix("same weights and steps, ")
        yield _with_override(way.config, few, way.words, num_frames=_FEWER_FRAMES)


def _with_override(config: Config, quality: str, words: str = "", **values: Any) -> Way:
    typed = [f"override.{name}={value:g}" for name, value in values.items()]
    changed = replace(config, override=replace(config.override, **values))
    return Way(" ".join([words, *typed] if words else typed), changed, quality)


def _distilled(config: Config) -> Iterator[Way]:
    """Yield the variants of the same model that need fewer forwards.

    Once by name alone, and once with the recipe's steps and guidance typed too, for rows and
    settings that have their own.
    """
    own = config.model.distillation
    fewer = {
        Distillation.none: (Distillation.cfg, Distillation.step),
        Distillation.cfg: (Distillation.step,),
        Distillation.step: (),
    }
    for distillation in fewer[own]:
        for model in _variants(config, distillation=distillation):
            changed, words = replace(config, model=model), f"model={model.name}"
            quality = of_model(model)
            yield Way(words, changed, quality)
            recipe = model.default_sampling
            yield _with_override(
                changed,
                quality,
                words,
                num_inference_steps=recipe.num_inference_steps,
                guidance_scale=recipe.guidance_scale,
            )


def _smaller(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield smaller pictures; those of image to video follow from the model's bucket."""
    if config.model.task is Task.i2v:
        sizes = {option.target_size for option in model_options().values()}
        for size in sorted(sizes, reverse=True):
            if size < config.model.target_size:
                for model in _variants(config, target_size=size):
                    changed = replace(config, model=model)
                    yield Way(f"model={model.name}", changed, of_model(model))
        return
    if any(s.height > s.width for s in todo) and any(s.height < s.width for s in todo):
        return  # one size for all would turn some of them
    is_portrait = todo[0].height > todo[0].width
    pixels = [s.height * s.width for s in todo]
    for short, long in _SIZES:
        if max(pixels) > short * long <= min(pixels):
            height, width = (long, short) if is_portrait else (short, long)
            yield _with_override(config, of_size(height, width), height=height, width=width)


def _variants(config: Config, **changes: Any) -> Iterator[ModelConfig]:
    """Yield the model options that differ from the asked one by `changes` alone.

    It yields none where the weights were named by hand.
    """
    own = model_options().get(config.model.name)
    if own is None or own.repo != config.model.repo or config.model.transformer_file:
        return
    wanted = _kind(replace(own, **changes))
    for option in model_options().values():
        if _kind(option) == wanted:
            yield replace(option, weights=config.model.weights, loras=config.model.loras)


def _kind(model: ModelConfig) -> tuple[Any, ...]:
    """Return what tells the variants of HunyuanVideo-1.5 apart."""
    return model.task, model.target_size, model.distillation, model.weights, model.dtype
