"""Tencent's generate.py: its settings here, its checkpoints, and the flags that it takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hv15_batch.errors import Refused


@dataclass
class OfficialConfig:
    """Tencent's generate.py, which renders with `runtime.engine=official`."""

    repo: str | None = field(default=None, metadata={"typed_only": True})
    """Folder of the HunyuanVideo-1.5 repository, with `generate.py` and the weights in `ckpts/`."""
    python: str | None = field(default=None, metadata={"typed_only": True})
    """Interpreter of an environment with that repository's requirements; torchrun is its module
    `torch.distributed.run`."""
    load_once: bool = field(default=False, metadata={"typed_only": True})
    """Keep one process that loads the model once, instead of a new torchrun for each clip."""
    arguments: Any = field(default=None, metadata={"typed_only": True})
    """Further flags of generate.py, as a text or a list, e.g. `--use_fp8_gemm true`."""


# Source: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 hyvideo/commons/__init__.py PIPELINE_CONFIGS and
# generate.py. Its text-to-video checkpoint with few steps does not exist.
VERSIONS: dict[str, tuple[str, ...]] = {
    "480p_t2v": (),
    "480p_i2v": (),
    "720p_t2v": (),
    "720p_i2v": (),
    "480p_t2v_distilled": ("cfg_distilled",),
    "480p_i2v_distilled": ("cfg_distilled",),
    "720p_i2v_distilled": ("cfg_distilled",),
    "480p_i2v_step_distilled": ("enable_step_distill",),
}
"""The script's name of a checkpoint, which is that of our option, and the flags that choose it."""

FPS = 24.0
"""Of every file; the script has no flag for it."""

OWN_FLAGS = {
    "prompt": "the manifest's prompt",
    "negative_prompt": "negative_prompt",
    "resolution": "model",
    "model_path": "official.repo, whose ckpts/ it is",
    "aspect_ratio": "height and width",
    "num_inference_steps": "num_inference_steps",
    "video_length": "num_frames",
    "cfg_distilled": "model",
    "enable_step_distill": "model",
    "dtype": "runtime.dtype",
    "seed": "seed",
    "image_path": "the column image",
    "output_path": "run_dir",
}
"""Flags that are set here, and the setting that decides each."""
_OFF_FLAGS = {
    "sr": "super-resolution takes noise that the seed does not decide, so that no clip could be "
    "made again",
    "save_pre_sr_video": "it belongs to --sr, which is off",
    "rewrite": "a failed rewriting would be a silent original; use rewrite.base_url",
    "sparse_attn": "it loads another checkpoint than model= names",
}
"""Flags that are always off."""
_FILE_FLAGS = ("lora_path", "checkpoint_path")
"""Flags that load files whose content no clip would be told apart by."""
_HARMLESS = ("offloading", "group_offloading", "overlap_group_offloading", "save_generation_config")
"""Flags that change no frame."""
_NUMBER = re.compile(r"-\d+(\.\d*)?")
_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
_SAGE, _CACHE = "use_sageattn", "enable_cache"
_DEFAULTS = {
    _SAGE: "false",
    _CACHE: "false",
    "enable_torch_compile": "false",
    "use_fp8_gemm": "false",
    "sage_blocks_range": "0-53",
    "cache_type": "deepcache",
    "no_cache_block_id": "53",
    "cache_start_step": "11",
    "cache_end_step": "45",
    "total_steps": "50",
    "cache_step_interval": "4",
    "quant_type": "fp8-per-token-sgl",
    "include_patterns": "double_blocks",
}
"""Source: as above, generate.py."""

KNOWN_FLAGS = frozenset({*_DEFAULTS, *_HARMLESS})
"""Flags that the script has, as above; they are passed on without a look into it."""


def transformer_version(name: str) -> str | None:
    """Return the script's name of an option's checkpoint; None where it has none."""
    return name if name in VERSIONS else None


@dataclass(frozen=True)
class Flag:
    """One flag of `official.arguments`."""

    name: str
    """Without its hyphens."""
    values: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The flag as it is typed."""
        return (f"--{self.name}", *self.values)

    @property
    def value(self) -> str:
        """Its value, of a switch `true` or `false`."""
        text = " ".join(self.values) if self.values else "true"
        word = text.lower().strip()
        if not self.is_switch:
            return text
        return "true" if word in _TRUE else "false" if word in _FALSE else text

    @property
    def is_switch(self) -> bool:
        """Whether its values are `true` and `false`."""
        is_off = _DEFAULTS.get(self.name) == "false"
        return is_off or self.name in (*_OFF_FLAGS, *_HARMLESS)

    @property
    def is_on(self) -> bool:
        """Whether it is a switch that is on."""
        return self.value == "true"


def typed_flags(config: OfficialConfig) -> tuple[Flag, ...]:
    """Return `official.arguments`, without those that only repeat what is set here.

    Of a flag that is typed twice the last counts.

    Raises:
        Refused: It is no text and no list, or has a flag that is not free.
    """
    typed = config.arguments
    words = _words(typed)
    flags: list[Flag] = []
    for word in words:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            flags.append(Flag(name, (value,) if has_value else ()))
        elif flags:
            flags[-1] = Flag(flags[-1].name, (*flags[-1].values, word))
        else:
            raise Refused(
                f"official.arguments={typed}: begins with {word!r}; give flags of generate.py, "
                "for example --use_fp8_gemm true."
            )
    for flag in flags:
        if fault := _fault(flag):
            raise Refused(f"official.arguments={typed}: --{flag.name} {fault}.")
    last = {flag.name: flag for flag in flags}  # as argparse takes them
    return tuple(flag for flag in last.values() if flag.name not in _OFF_FLAGS)


def _words(typed: Any) -> list[str]:
    if typed is None:
        return []
    if isinstance(typed, str):
        try:
            return shlex.split(typed)
        except ValueError as error:
            raise Refused(
                f"official.arguments={typed!r}: cannot be read ({error}); close the quote, or "
                "give a list."
            ) from None
    if isinstance(typed, list) and all(
        isinstance(word, str | bool | int | float) for word in typed
    ):
        return [str(word).lower() if isinstance(word, bool) else str(word) for word in typed]
    raise Refused(
        f"official.arguments={typed!r}: must be a text or a list of texts, for example "
        '"--use_fp8_gemm true"; null for none.'
    )


def _fault(flag: Flag) -> str | None:
    if flag.name in OWN_FLAGS:
        return f"is decided by {OWN_FLAGS[flag.name]}; leave it out"
    if flag.name in _OFF_FLAGS and flag.value != "false":
        return f"is always false: {_OFF_FLAGS[flag.name]}; leave it out"
    if flag.name in _FILE_FLAGS:
        return (
            "loads files whose content would not be part of a clip's identity; leave it out, or "
            "render with runtime.engine=diffusers"
        )
    short = [word for word in flag.values if word.startswith("-") and not _NUMBER.fullmatch(word)]
    if short:
        return f"is followed by {short[0]}; write flags in full, with two hyphens"
    if len(flag.values) > 1:
        return f"takes one value, and {' '.join(flag.values)} is more; quote it, or leave it out"
    if flag.is_switch and flag.value not in ("true", "false"):
        return f"is {flag.value}; it takes true or false"
    return None


def sage_is_asked(config: OfficialConfig) -> bool:
    """Whether the flags ask for SageAttention."""
    return any(flag.is_on for flag in typed_flags(config) if flag.name == _SAGE)


def cache_is_asked(config: OfficialConfig) -> bool:
    """Whether the flags ask for a step cache."""
    return any(flag.is_on for flag in typed_flags(config) if flag.name == _CACHE)


def frame_flags(config: OfficialConfig) -> Iterator[str]:
    """Yield `name=value` of each flag that may change frames and is not at its default."""
    last = {flag.name: flag for flag in typed_flags(config)}
    for name, flag in sorted(last.items()):
        if name not in _HARMLESS and flag.value != _DEFAULTS.get(name):
            yield f"{name}={flag.value}"


def script_size(height: int, width: int, target_size: int) -> tuple[int, int]:
    """Return the (height, width) that the script makes of an aspect ratio, or of an image.

    Of sizes in steps of 16 pixels with about `target_size`² pixels it is the nearest in aspect;
    diffusers takes one that is not more elongated (`shapes.bucket_size`).

    Source: as above, hyvideo/utils/data_utils.py.
    """
    patches = round((target_size / 16) ** 2)
    best: tuple[float, int, int] | None = None
    rows, columns = patches, 1
    while rows > 0:
        if max(rows, columns) / min(rows, columns) <= 4.0:
            distance = abs(round(rows / columns, 5) - height / width)
            if best is None or distance < best[0]:
                best = (distance, rows * 16, columns * 16)
        if (columns + 1) * rows <= patches:
            columns += 1
        else:
            rows -= 1
    assert best is not None
    return best[1], best[2]


_RATIOS = ((16, 9), (9, 16), (4, 3), (3, 4), (1, 1))


def aspect_ratio(height: int, width: int, target_size: int) -> str:
    """Return what `--aspect_ratio` makes this size of: a usual ratio, or width and height."""
    for across, down in _RATIOS:
        if script_size(down, across, target_size) == (height, width):
            return f"{across}:{down}"
    return f"{width}:{height}"
