"""Settings that would make a run shorter, the mildest first. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch.clip import ClipSettings
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import CacheKind, Config
from hv15_batch.errors import Refused
from hv15_batch.forecast._quality import of_frames, of_model, of_setting, of_size
from hv15_batch.forecast.forecast import Forecast
from hv15_batch.model.options import model_options
from hv15_batch.model.step_cache import LEAST_STEPS
from hv15_batch.model.variant import Distillation, Linear, ModelConfig, Task
from hv15_batch.planning.plan import PlannedClip

MAX_WAYS = 4
_FEWER_FRAMES = 61
_SIZES = ((480, 848), (320, 576))
"""Height and width, in pixels, that are offered for larger text-to-video clips, in this order."""
_SAME = "same weights and steps, "


@dataclass(frozen=True)
class Way:
    """Settings that would take less time. The caller checks whether they are accepted."""

    words: str
    """What to type."""
    config: Config
    quality: str
    """What is known of the clips that it gives, in words."""


@dataclass(frozen=True)
class Trial:
    """What the command would do with other settings, as if they had been typed."""

    todo: Sequence[PlannedClip]
    """The clips to render."""
    forecast: Forecast | None
    """None if nothing is left to do, or without a known card."""
    lack: Callable[[], str] = str
    """Returns what the disk lacks here for a run, or an empty text; Refused if a run is refused for
    anything else."""


@dataclass(frozen=True)
class Fitting:
    """A way that is accepted, and with which all clips end in time."""

    way: Way
    todo: Sequence[PlannedClip]
    forecast: Forecast
    lack: str
    """What the disk lacks here for it; empty where there is room."""


def ways_in_time(
    config: Config,
    todo: Sequence[PlannedClip],
    try_out: Callable[[Config], Trial],
    is_in_time: Callable[[Forecast, Sequence[PlannedClip]], bool],
) -> Iterator[Fitting]:
    """Yield up to `MAX_WAYS` settings with which all clips end in time, the mildest first.

    Each is tried as if it had been typed, so that no refused one is offered, and one that only
    adds to another is left out. One for which the disk lacks room says so.

    Args:
        config: Settings, as they were typed.
        todo: The clips to render.
        try_out: Returns what the command would do with other settings; Refused if it is refused.
        is_in_time: Whether a forecast of clips meets the deadline.
    """
    found: list[set[str]] = []
    for way in cheaper_ways(config, [p.clip.settings for p in todo]):
        typed = set(way.words.split())
        if len(found) == MAX_WAYS or any(map(typed.issuperset, found)):
            continue
        try:
            trial = try_out(way.config)
            forecast = trial.forecast
            if forecast is None or not is_in_time(forecast, trial.todo):
                continue
            if not _holds_for(way, config, trial.todo):
                continue
            lack = trial.lack()
        except Refused:
            continue  # refused, or no profile fits
        found.append(typed)
        if way.config.model.name != config.model.name:
            way = replace(way, quality=_smaller_words(todo, trial.todo) + way.quality)
        yield Fitting(way, trial.todo, forecast, lack)


def _holds_for(way: Way, config: Config, todo: Sequence[PlannedClip]) -> bool:
    """Whether what a way says of another model is true of the clips: their cells may name others.

    Steps and guidance of a recipe are for its own model alone.
    """
    name, names = way.config.model.name, {p.clip.settings.model for p in todo}
    if name == config.model.name:
        return True
    has_recipe = way.config.override.num_inference_steps != config.override.num_inference_steps
    return names == {name} if has_recipe else name in names


def _smaller_words(before: Sequence[PlannedClip], after: Sequence[PlannedClip]) -> str:
    """Return which pictures change their size, with a comma after it; empty if none does."""
    sizes = [
        {
            (p.clip.row_index, p.clip.settings.seed): (
                p.clip.settings.height,
                p.clip.settings.width,
            )
            for p in clips
        }
        for clips in (before, after)
    ]
    old, new = sizes
    changed = Counter((new[key], old[key]) for key in new if new[key] != old.get(key, new[key]))
    if not changed:
        return ""
    (to, of), _ = changed.most_common(1)[0]
    others = " and others" if len(changed) > 1 else ""
    return f"pictures of {to[0]}x{to[1]} instead of {of[0]}x{of[1]}{others}, "


def _sizes(clips: Sequence[PlannedClip]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return height and width by row and seed."""
    each = ((p.clip.row_index, p.clip.settings) for p in clips)
    return {(row, s.seed): (s.height, s.width) for row, s in each}


def cheaper_ways(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield settings that keep as much as they can of what was asked.

    A typed value applies to every row, so a value is offered only if no clip grows by it.
    """
    as_it_is = Way("", config, "")
    if not typed_compile(config):
        compiled = replace(config, runtime=replace(config.runtime, compile=True))
        yield Way("runtime.compile=true", compiled, of_setting("compile"))
    eight_bit = list(_eight_bit(config))
    yield from _cached(as_it_is)
    yield from eight_bit
    yield from _shorter(as_it_is, todo)
    for way in eight_bit:
        yield from _cached(way)
    for way in (*_cached(as_it_is), *eight_bit):
        yield from _shorter(way, todo)
    frames = max(s.num_frames for s in todo)
    distilled = list(_distilled(config, frames))
    yield from distilled
    pictures = list(_smaller(config, todo))
    yield from pictures
    models = list(_smaller_models(config, frames))
    yield from models
    for way in (*distilled, *pictures, *models):
        yield from _cached(way)
    for way in (*distilled, *pictures, *models):
        yield from _shorter(way, todo)


def _eight_bit(config: Config) -> Iterator[Way]:
    """Yield the types of 8-bit linear modules, the more exact one first, unless one was typed.

    The caller leaves out what the card cannot do.
    """
    if config.runtime.linear is not Linear.bf16:
        return
    for linear in (Linear.int8, Linear.fp8):
        changed = replace(config, runtime=replace(config.runtime, linear=linear))
        yield Way(f"runtime.linear={linear.name}", changed, of_setting(linear.name))


def _cached(way: Way) -> Iterator[Way]:
    """Yield a way with the static step cache too, unless it has it or has too few steps for it."""
    config = way.config
    if CacheKind.static in (config.sampling.cache, config.override.cache):
        return
    own = config.model.distillation is Distillation.step
    if own and config.model.default_sampling.num_inference_steps < LEAST_STEPS:
        return
    cached = replace(config, sampling=replace(config.sampling, cache=CacheKind.static))
    yield _more(way, cached, "sampling.cache=static", of_setting("cache"))


def _shorter(way: Way, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield a way with fewer frames too, unless a clip is shorter already."""
    frames = [s.num_frames for s in todo]
    if max(frames) > _FEWER_FRAMES <= min(frames):
        model = way.config.model
        quality = way.quality.replace(of_model(model, max(frames)), of_model(model, _FEWER_FRAMES))
        few = of_frames(_FEWER_FRAMES, todo[0].fps)
        yield _with_override(replace(way, quality=quality), few, num_frames=_FEWER_FRAMES)


def _more(way: Way, config: Config, words: str, quality: str) -> Way:
    """Return a way with one more change: the shorter words on it come first."""
    if way.quality:
        first, last = quality, way.quality
        if not quality.startswith(_SAME):
            first, last = last, first
        parts = (part.removeprefix(_SAME) for part in (first, last))
        quality = "; ".join(dict.fromkeys(parts))
    return Way(f"{way.words} {words}".strip(), config, quality)


def _with_override(way: Way, quality: str, **values: Any) -> Way:
    typed = " ".join(f"override.{name}={value:g}" for name, value in values.items())
    changed = replace(way.config, override=replace(way.config.override, **values))
    return _more(way, changed, typed, quality)


_FEWER = {
    Distillation.none: (Distillation.cfg, Distillation.step),
    Distillation.cfg: (Distillation.step,),
    Distillation.step: (),
}
"""The distillations that need fewer forwards."""


def _distilled(config: Config, frames: int, **changes: Any) -> Iterator[Way]:
    """Yield the variants of the same model that need fewer forwards.

    Once by name alone, and once with the recipe's steps and guidance typed too, for rows and
    settings that have their own.

    Args:
        config: Settings.
        frames: Of the longest clip.
        changes: What else is to differ.
    """
    for distillation in _FEWER[config.model.distillation]:
        for model in _variants(config, distillation=distillation, **changes):
            way = _with_model(config, model, frames)
            yield way
            recipe = model.default_sampling
            yield _with_override(
                way,
                way.quality,
                num_inference_steps=recipe.num_inference_steps,
                guidance_scale=recipe.guidance_scale,
            )


def _with_model(config: Config, model: ModelConfig, frames: int) -> Way:
    changed = replace(config, model=model)
    return Way(f"model={model.name}", changed, of_model(model, frames))


def _smaller(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield smaller pictures of the same weights; those of image to video are set by the image."""
    if any(config.models.get(s.model, config.model).task is Task.i2v for s in todo):
        return
    if any(s.height > s.width for s in todo) and any(s.height < s.width for s in todo):
        return  # one size for all would turn some of them
    is_portrait = todo[0].height > todo[0].width
    pixels = [s.height * s.width for s in todo]
    for short, long in _SIZES:
        if max(pixels) > short * long <= min(pixels):
            height, width = (long, short) if is_portrait else (short, long)
            words = of_size(height, width)
            yield _with_override(Way("", config, ""), words, height=height, width=width)


def _smaller_models(config: Config, frames: int) -> Iterator[Way]:
    """Yield the models for smaller pictures, and those of them that need fewer forwards.

    Sizes that were typed or that cells have stay as they are.
    """
    sizes = {option.target_size for option in model_options().values()}
    for size in sorted(sizes, reverse=True):
        if size < config.model.target_size:
            for model in _variants(config, target_size=size):
                yield _with_model(config, model, frames)
            yield from _distilled(config, frames, target_size=size)


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
