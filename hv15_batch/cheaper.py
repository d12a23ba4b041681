"""Settings that would make a run shorter, the mildest first. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from hv15_batch.clip import ClipSettings
from hv15_batch.config import Config, Task, conf_dir

_FEWER_FRAMES = 61
_SIZES = ((480, 848), (320, 576))
"""Height and width that larger text-to-video clips are cut down to, in turn."""


@dataclass(frozen=True)
class Way:
    """A command that would take less time, and its clips."""

    words: str
    """What to type."""
    config: Config
    todo: list[ClipSettings]


def cheaper_ways(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield settings that keep as much as they can of what was asked, one change each."""
    if not config.runtime.compile:
        compiled = replace(config, runtime=replace(config.runtime, compile=True))
        yield Way("runtime.compile=true", compiled, list(todo))
    if max(s.num_frames for s in todo) > _FEWER_FRAMES:
        shorter = [replace(s, num_frames=min(s.num_frames, _FEWER_FRAMES)) for s in todo]
        yield Way(f"override.num_frames={_FEWER_FRAMES}", config, shorter)
    yield from _distilled(config, todo)
    yield from _smaller(config, todo)


def _distilled(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield the variants of the same model that need fewer forwards."""
    for suffix in ("_distilled", "_step_distilled"):
        name = config.model.name + suffix
        path = conf_dir() / "model" / f"{name}.yaml"
        if config.model.distillation.name == "none" and path.is_file():
            option: Any = OmegaConf.load(path)
            sampling = option["default_sampling"]
            changed: dict[str, Any] = {
                "num_inference_steps": int(sampling["num_inference_steps"]),
                "guidance_scale": float(sampling["guidance_scale"]),
                "negative_prompt": None,
                "model": name,
            }
            distilled = [replace(s, **changed) for s in todo]
            yield Way(f"model={name}", config, distilled)


def _smaller(config: Config, todo: Sequence[ClipSettings]) -> Iterator[Way]:
    """Yield smaller pictures; those of image to video follow from the model's bucket."""
    name = config.model.name
    if config.model.task is Task.i2v:
        if name.startswith("720p_"):
            smaller = [
                replace(s, height=s.height * 2 // 3 // 16 * 16, width=s.width * 2 // 3 // 16 * 16)
                for s in todo
            ]
            yield Way(f"model={name.replace('720p_', '480p_', 1)}", config, smaller)
        return
    for height, width in _SIZES:
        if any(s.height * s.width > height * width for s in todo):
            smaller = [
                replace(s, height=height, width=width) if s.height * s.width > height * width else s
                for s in todo
            ]
            yield Way(f"override.height={height} override.width={width}", config, smaller)
