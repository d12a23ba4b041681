"""What Tencent's generate.py cannot do, found before anything is touched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip
from hv15_batch.config.checks import effective_dtype, typed_compile
from hv15_batch.config.settings import CacheKind, Config, VideoConfig
from hv15_batch.errors import Refused
from hv15_batch.files import read_text
from hv15_batch.media.conversion import is_turned
from hv15_batch.model.attention import AUTO
from hv15_batch.model.official import (
    FPS,
    KNOWN_FLAGS,
    VERSIONS,
    OfficialConfig,
    cache_is_asked,
    sage_is_asked,
    script_size,
    transformer_version,
    typed_flags,
)
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import (
    STEP_DISTILLED_T2V,
    Distillation,
    Dtype,
    Engine,
    Linear,
    ModelConfig,
    OffloadKind,
    Task,
    Weights,
)

SAGE = "sage"
"""`runtime.attention_backend` that the script can be asked for; else it takes what it finds."""
SCRIPT, WEIGHTS = "generate.py", "ckpts"
_MAX_SCRIPT_BYTES = 16 * 1024 * 1024
_MAX_ARGUMENT_BYTES = 131_071
"""Of one argument of a process. Source: Linux, MAX_ARG_STRLEN less the ending zero."""


def is_official(config: Config) -> bool:
    """Whether the official script renders."""
    return config.runtime.engine is Engine.official


def script_of(config: OfficialConfig) -> Path:
    """Return the absolute path of generate.py."""
    return Path(os.path.abspath(os.path.expanduser(config.repo or ""))) / SCRIPT


def weights_of(config: OfficialConfig) -> Path:
    """Return the absolute path of the model folder."""
    return script_of(config).with_name(WEIGHTS)


def python_of(config: OfficialConfig) -> str:
    """Return the absolute path of the interpreter; a link stays one, as environments need it.

    Raises:
        Refused: There is no such program.
    """
    found = shutil.which(os.path.expanduser(config.python or ""))
    if found is None:
        raise Refused(
            f"official.python={config.python}: no such program can be run here; give the python "
            "of the environment with the repository's requirements, e.g. "
            "/home/me/hunyuan/venv/bin/python."
        )
    return os.path.abspath(found)


def check_official(config: Config) -> None:
    """Check settings that the script cannot follow, and that it is there.

    Args:
        config: Settings, `model` being one that rows use.

    Raises:
        Refused: The message names the setting, its value, what is allowed and what to do.
    """
    official = config.official
    if not is_official(config):
        for name, value in asdict(official).items():
            if value != getattr(OfficialConfig(), name):
                raise Refused(
                    f"official.{name}={value}: has no effect without runtime.engine=official; add "
                    "that, or leave it out."
                )
        return
    flags = typed_flags(official)
    _check_model(config.model)
    for key, value, rule in _faults(config):
        raise Refused(f"{key}={value} with runtime.engine=official: {rule}.")
    if official.repo is None:
        raise Refused(
            "runtime.engine=official: name the folder with generate.py and ckpts/ with "
            "official.repo=DIR."
        )
    if official.python is None:
        raise Refused(
            "runtime.engine=official: name the interpreter of its environment with "
            "official.python=PYTHON."
        )
    script = script_of(official)
    if not script.is_file() or not weights_of(official).is_dir():
        lacking = SCRIPT if not script.is_file() else f"{WEIGHTS}/"
        raise Refused(
            f"official.repo={official.repo}: there is no {lacking} in it; name the folder of "
            "Tencent's HunyuanVideo-1.5 with its weights in ckpts/, see docs/official-engine.md."
        )
    _check_weights(config.model, weights_of(official))
    python_of(official)
    for flag in flags:
        if flag.name not in KNOWN_FLAGS and not _is_named(flag.name, script, official):
            raise Refused(
                f"official.arguments={official.arguments}: {script} has no flag --{flag.name}; "
                "leave it out, or write it in full."
            )


def _is_named(name: str, script: Path, official: OfficialConfig) -> bool:
    """Whether the script or a module beside it has a name, in whatever way it makes its flags."""
    whole = re.compile(rf"(?<![\w-])(?:--)?{re.escape(name)}(?![\w-])")
    modules = sorted(script.with_name("hyvideo").rglob("*.py"))
    return any(whole.search(_text_of(path, official)) for path in (script, *modules))


def _text_of(script: Path, official: OfficialConfig) -> str:
    try:
        return read_text(script, _MAX_SCRIPT_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Refused(
            f"official.repo={official.repo}: {script} cannot be read ({why}); clone the repository "
            "again."
        ) from error


def _check_model(model: ModelConfig) -> None:
    option, known = model_options().get(model.name), ", ".join(VERSIONS)
    if transformer_version(model.name) is None or option is None:
        why = "Tencent's script loads Tencent's checkpoints only"
        if model.distillation is Distillation.step and model.task is Task.t2v:
            why = STEP_DISTILLED_T2V
        raise Refused(f"model={model.name} with runtime.engine=official: {why}; use {known}.")
    named: dict[str, tuple[Any, Any]] = {
        "repo": (model.repo, option.repo),
        "target_size": (model.target_size, option.target_size),
        "transformer_file": (model.transformer_file, None),
        "weights": (model.weights.name, Weights.pretrained.name),
        "loras": ([lora.path for lora in model.loras], []),
    }
    for key, (value, allowed) in named.items():
        if value != allowed:
            raise Refused(
                f"model.{key}={value} with runtime.engine=official: the script loads "
                f"transformer/{model.name} of official.repo's ckpts/ as it is; leave it out."
            )


def _check_weights(model: ModelConfig, folder: Path) -> None:
    """Refuse a checkpoint that is not there: the script would look for it on the hub.

    Raises:
        Refused: Others are there, and this one is not.
    """
    transformers = folder / "transformer"
    if transformers.is_dir() and not (transformers / model.name).is_dir():
        there = ", ".join(sorted(p.name for p in transformers.iterdir() if p.is_dir())[:12])
        raise Refused(
            f"model={model.name} with runtime.engine=official: {transformers} has no {model.name}"
            f" ({f'there are {there}' if there else 'it is empty'}); download it, for example hf "
            f"download tencent/HunyuanVideo-1.5 --include 'transformer/{model.name}/*' --local-dir "
            f"{folder}."
        )


def _faults(config: Config) -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and rule of each setting that the script has no flag for."""
    runtime, backend = config.runtime, config.runtime.attention_backend
    if effective_dtype(config) is Dtype.float16:
        yield "runtime.dtype", "float16", "it computes in bfloat16 or float32"
    if backend not in (AUTO, SAGE):
        rule = "it is asked for auto (what it finds of FlashAttention and torch's) or sage"
        yield "runtime.attention_backend", backend, rule
    if runtime.linear is not Linear.bf16:
        rule = "leave it out, and use official.arguments='--use_fp8_gemm true'"
        yield "runtime.linear", runtime.linear.name, rule
    if typed_compile(config):
        rule = "leave it out, and use official.arguments='--enable_torch_compile true'"
        yield "runtime.compile", str(runtime.compile).lower(), rule
    if not runtime.mask_free:
        yield "runtime.mask_free", "false", "it decides that itself; leave it out"
    if runtime.vram_limit_gib is not None:
        yield "runtime.vram_limit_gib", f"{runtime.vram_limit_gib:g}", "it has none; leave it out"
    if runtime.card is not None:
        yield "runtime.card", runtime.card, "its time is not predicted; leave it out"
    if config.offload.kind is not OffloadKind.auto:
        rule = (
            "it offloads in ways of its own; leave it out, and use official.arguments with "
            "--offloading, --group_offloading or --overlap_group_offloading"
        )
        yield "offload", config.offload.kind.name, rule
    for section, sampling in (("sampling", config.sampling), ("override", config.override)):
        if sampling.cache is CacheKind.static:
            rule = "leave it out, and use official.arguments='--enable_cache true'"
            yield f"{section}.cache", "static", rule
    for name, value in vars(config.video).items():
        if name != "embed_metadata" and value != getattr(VideoConfig(), name):
            shown = getattr(value, "name", value)
            yield (
                f"video.{name}",
                shown,
                "it writes its file with settings of its own; leave it out",
            )
    if config.retry.suspect:
        yield "retry.suspect", "true", "it would make the same frames again; leave it out"
    if config.benchmark.calibrate:
        yield "benchmark.calibrate", "true", "the predictions are of diffusers; leave it out"
    if backend == SAGE and any(f.name == "use_sageattn" for f in typed_flags(config.official)):
        yield "runtime.attention_backend", SAGE, "--use_sageattn is in official.arguments too"
    if cache_is_asked(config.official) and config.model.distillation is Distillation.step:
        rule = "--enable_cache of official.arguments is not for a step-distilled model"
        yield "model", config.model.name, rule


def clip_faults(clip: Clip, model: ModelConfig) -> Iterator[tuple[str, Any, str]]:
    """Yield column, value and rule of each setting of a clip that the script cannot follow."""
    settings = clip.settings
    fixed = model_options()[model.name].default_sampling
    no_flag = (
        "with runtime.engine=official it is {} for this model, because generate.py has no flag"
    )
    for name, allowed in (
        ("guidance_scale", fixed.guidance_scale),
        ("flow_shift", fixed.flow_shift),
        ("fps", FPS),
    ):
        value = getattr(settings, name)
        if value != allowed:
            yield name, f"{value:g}", f"{no_flag.format(f'{allowed:g}')}; leave it out"
    size = settings.height, settings.width
    nearest = script_size(*size, model.target_size)
    if nearest != size:
        rule = (
            f"with runtime.engine=official the nearest size is {nearest[0]}x{nearest[1]}; leave "
            "height and width out for the model's own size"
        )
        yield "height", f"{size[0]} and width={size[1]}", rule
    if settings.loras:
        yield "loras", len(settings.loras), "has no effect with runtime.engine=official; use none"
    if settings.has_image and clip.image_path is None:
        rule = "with runtime.engine=official a first frame is a file; save the frame, and name it"
        yield "image", clip.image, rule
    elif clip.image_path is not None:
        needed = settings.image_conversion
        why = f"needs {needed}" if needed else "has an orientation"
        if needed or is_turned(clip.image_path):
            rule = (
                "with runtime.engine=official a first frame is read as plain RGB, and this one "
                f"{why}; save it as an upright RGB PNG"
            )
            yield "image", clip.image, rule
    for name in ("prompt", "negative_prompt"):
        text = getattr(settings, name) or ""
        if len(text.encode(errors="surrogatepass")) + 32 > _MAX_ARGUMENT_BYTES:
            rule = f"with runtime.engine=official it must be under {_MAX_ARGUMENT_BYTES:,} bytes"
            yield name, f"{text[:40]}…", f"{rule}; shorten it"
        if any("\ud800" <= character <= "\udfff" for character in text):
            yield name, "text", "holds half a character (a lone surrogate); correct it"


def asks_for_sage(config: Config) -> bool:
    """Whether SageAttention is asked for, in either way."""
    return config.runtime.attention_backend == SAGE or sage_is_asked(config.official)
