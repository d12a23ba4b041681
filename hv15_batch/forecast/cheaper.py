"""Settings that would make a run shorter, the mildest first. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import Config
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Distillation, ModelConfig, Task

_FEWER_FRAMES = 61
_SIZES = ((480, 848), (320, 576))
"""Height and width, in pixels, that are offered for larger text-to-video clips, in this order."""


@dataclass(frozen=True)
class Way:
    """Settings that would take less time. The caller checks whether they are accepted."""

    words: str
    """What to type."""
    config: Config


def cheaper_ways(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield settings that keep as much as they can of what was asked.

    A typed value applies to every row, so a value is offered only if no clip grows by it.
    """
    if not config.runtime.compile:
        compiled = replace(config, runtime=replace(config.runtime, compile=True))
        yield Way("runtime.compile=true", compiled)
    frames = [s.num_frames for s in todo]
    if max(frames) > _FEWER_FRAMES <= min(frames):
        yield _with_override(config, num_frames=_FEWER_FRAMES)
    yield from _distilled(config)
    yield from _smaller(config, todo)


def _with_override(config: Config, words: str = "", **values: Any) -> Way:
    typed = [f"override.{name}={value:g}" for name, value in values.items()]
    changed = replace(config, override=replace(config.override, **values))
    return Way(" ".join([words, *typed] if words else typed), changed)


def _distilled(config: Config) -> Iterator[Way]:
    """Yield the variants of the same model that need fewer forwards.

    Once by name alone, and once with the recipe's steps and guidance typed too, for rows and
    settings that have their own.
    """
    if config.model.distillation is not Distillation.none:
        return
    for distillation in (Distillation.cfg, Distillation.step):
        for model in _variants(config, distillation=distillation):
            changed, words = replace(config, model=model), f"model={model.name}"
            yield Way(words, changed)
            recipe = model.default_sampling
            yield _with_override(
                changed,
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
                    yield Way(f"model={model.name}", replace(config, model=model))
        return
    if any(s.height > s.width for s in todo) and any(s.height < s.width for s in todo):
        return  # one size for all would turn some of them
    is_portrait = todo[0].height > todo[0].width
    pixels = [s.height * s.width for s in todo]
    for short, long in _SIZES:
        if max(pixels) > short * long <= min(pixels):
            height, width = (long, short) if is_portrait else (short, long)
            yield _with_override(config, height=height, width=width)


def _variants(config: Config, **changes: Any) -> Iterator[ModelConfig]:
    """Yield the model options that differ from the asked one by `changes` alone.

    It yields none where the weights were named by hand.
    """
    own = model_options().get(config.model.name)
    if own is None or own.repo != config.model.repo:
        return
    wanted = _kind(replace(own, **changes))
    for option in model_options().values():
        if _kind(option) == wanted:
            yield replace(option, weights=config.model.weights, loras=config.model.loras)


def _kind(model: ModelConfig) -> tuple[Any, ...]:
    """Return what tells the variants of HunyuanVideo-1.5 apart."""
    return model.task, model.target_size, model.distillation, model.weights, model.dtype
