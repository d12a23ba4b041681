"""Checks of the settings: bounds, and settings that contradict each other."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from hv15_batch.config._dispatching import check_dispatch
from hv15_batch.config.rewriting import check_rewriting
from hv15_batch.config.settings import X264_PRESETS, Config, SamplingConfig, each_setting
from hv15_batch.config.shard import parse_shard
from hv15_batch.errors import Refused
from hv15_batch.machine.cards import find_card, typed_card
from hv15_batch.model.attention import ATTENTION_BACKENDS
from hv15_batch.model.linears import linear_fault
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import STEP_DISTILLED_T2V, Distillation, Dtype, Recipe, Task, Weights

_SAMPLING_BOUNDS = {setting.name: setting.metadata for setting in fields(SamplingConfig)}
SAMPLING_FIELDS = tuple(name for name in _SAMPLING_BOUNDS if not name.startswith("cache"))
"""Values that a row, a command and a model option may have; only a command has a cache."""
_USUAL_RECIPES = {
    Distillation.cfg: "{steps: [50], guidance: 1.0}",
    Distillation.step: "{steps: [8, 12], draft_steps: [4], guidance: 1.0, meanflow: true}",
}
"""Recipes as YAML. Source: Tencent-Hunyuan/HunyuanVideo-1.5@60783e7 README."""


def effective_dtype(config: Config) -> Dtype:
    """Return `runtime.dtype`, or the model option's type."""
    return config.runtime.dtype or config.model.dtype


_COMPILE_WORDS = {"auto": None, "true": True, "false": False}
_COMPILE_WORDS |= {"yes": True, "no": False, "on": True, "off": False}


MAX_WORKERS = 4096
"""Of `dispatch.workers`; more is a slip."""


def typed_workers(config: Config) -> int | str:
    """Return `dispatch.workers`: a number, `auto` or `all`.

    Raises:
        Refused: It is something else.
    """
    typed = config.dispatch.workers
    if typed in ("auto", "all"):
        return typed
    if isinstance(typed, bool) or not str(typed).isdecimal() or not 1 <= int(typed) <= MAX_WORKERS:
        raise Refused(
            f"dispatch.workers={typed}: must be auto, all or 1 to {MAX_WORKERS}; leave it out for "
            "auto."
        )
    return int(typed)


def typed_compile(config: Config) -> bool | None:
    """Return `runtime.compile`; None for `auto` that is not decided yet.

    Raises:
        Refused: It is another text.
    """
    typed = config.runtime.compile
    if isinstance(typed, bool):
        return typed
    word = str(typed).strip().lower()
    if word not in _COMPILE_WORDS:
        raise Refused(
            f"runtime.compile={typed}: must be auto, true or false; leave it out for auto."
        )
    return _COMPILE_WORDS[word]


ALL_COMBINATIONS = "all"
MAX_DRAWS = 1_000_000


def typed_templates(config: Config) -> int | str | None:
    """Return `ALL_COMBINATIONS`, or how many prompts to draw; None where braces are text.

    Raises:
        Refused: It is something else.
    """
    typed = config.templates
    if typed is None or typed == ALL_COMBINATIONS:
        return typed
    if not re.fullmatch("[0-9]{1,7}", typed) or not 1 <= int(typed) <= MAX_DRAWS:
        raise Refused(
            f"templates={typed}: must be all, or how many prompts to draw for each row (1 to "
            f"{MAX_DRAWS:,}); leave it out to take braces as text."
        )
    return int(typed)


def linears_fault(config: Config, gpu_name: str | None) -> str | None:
    """Return why `runtime.linear` does not run on a card, or None.

    Args:
        config: The settings.
        gpu_name: A name for `runtime.card`, or NVML's; None for no card. What is not in the table
            is checked by the worker, before it encodes.
    """
    weights = config.model.weights
    card = find_card(gpu_name) if gpu_name else None
    return linear_fault(
        config.runtime.linear,
        effective_dtype(config),
        # A full-size model is assumed to run on a card: a dry run plans for another machine.
        runs_on_cpu=weights is Weights.tiny or (weights.is_small and gpu_name is None),
        capability=card.capability if card else None,
        on=card.name if card else "the card",
    )


def check_config(config: Config, *, is_rendering: bool = True) -> None:
    """Check what can be checked without the manifest.

    Args:
        config: Settings.
        is_rendering: Whether a clip is made with this model. Without it, every row may name another
            one, so that neither a typed size nor `runtime.linear` is judged by it.

    Raises:
        Refused: The message names the key, its value, what is allowed and what to do.
    """
    model = config.model
    if model.task is Task.t2v and (model.recipe.meanflow or _names_meanflow(model.repo)):
        raise Refused(f"model.task=t2v with {model.name}: {STEP_DISTILLED_T2V}.")
    if model.distillation in _USUAL_RECIPES and model.recipe == Recipe():
        raise Refused(
            f"model.recipe with {model.name}: a model with distillation: {model.distillation.name} "
            "needs the steps and the guidance that it was made for; add them to its YAML, for "
            f"example those of HunyuanVideo-1.5: recipe: {_USUAL_RECIPES[model.distillation]}"
        )
    if model.weights.is_small and model.repo is not None:
        option = model_options().get(model.name)
        if option is not None and option.weights.is_small:
            raise Refused(
                f"model.repo={model.repo} with model={model.name}: a {model.weights.name} model is "
                "built on this machine and has no repository; leave model.repo out, or name the "
                "model that the repository holds, for example model=480p_t2v."
            )
        raise Refused(
            f"model.weights={model.weights.name} with model={model.name}: only the "
            f"{model.weights.name} models have such weights; use model={model.weights.name}_t2v, "
            "or model.weights=random for a full-size model without a download."
        )
    if not model.weights.is_small and model.repo is None:
        raise Refused(
            f"model.weights={model.weights.name} with model={model.name}: it has no repository; "
            "leave model.weights out for a tiny or demo model, and set model.repo for any other."
        )
    for key, value, bounds in each_setting(config):
        check_bounds(key, value, bounds)
    if config.runtime.card is not None:
        typed_card(config.runtime.card)
    backend = config.runtime.attention_backend
    if backend not in ATTENTION_BACKENDS:
        raise Refused(
            f"runtime.attention_backend={backend}: known are {', '.join(ATTENTION_BACKENDS)}."
        )
    if config.video.preset not in X264_PRESETS:
        raise Refused(f"video.preset={config.video.preset}: x264 knows {', '.join(X264_PRESETS)}.")
    if config.only is not None and not config.only.replace(",", "").strip():
        raise Refused(
            f"only={config.only}: names no row; give ids, for example only=a,b, or leave it out "
            "for all rows."
        )
    typed_compile(config)
    typed_templates(config)
    check_rewriting(config.rewrite)
    if parse_shard(config.shard) is not None and config.benchmark.repeat is not None:
        raise Refused(
            f"shard={config.shard} with benchmark.repeat={config.benchmark.repeat}: a benchmark "
            "measures on one machine; leave shard out."
        )
    typed_workers(config)
    check_dispatch(config)
    if is_rendering and (fault := linears_fault(config, None)):
        raise Refused(fault)
    _check_sampling(config, is_rendering)


def _names_meanflow(repo: str | None) -> bool:
    """Whether a repository's name says MeanFlow, so that it is refused before a download."""
    options = model_options().values() if repo else ()
    return any(o.recipe.meanflow and o.name in (repo or "") for o in options)


def check_number(key: str, value: float | None, typed: str) -> None:
    """Check a number that was typed as a flag, by the bounds of a setting.

    Args:
        key: The setting.
        value: The number; None is the default.
        typed: Name of the flag.

    Raises:
        Refused: It is out of bounds.
    """
    bounds = {name: metadata for name, _, metadata in each_setting(Config())}
    check_bounds(typed, value, bounds[key])


def check_bounds(key: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Check a value against the bounds in a field's metadata, if there are any.

    Raises:
        Refused: It is out of bounds, infinite or not a number.
    """
    if fault := _bounds_fault(value, bounds):
        shown = f"{value:g}" if isinstance(value, float) else value
        raise Refused(f"{key}={shown}: {fault}.")


def _bounds_fault(value: Any, bounds: Mapping[str, Any]) -> str | None:
    """Return what is allowed and what to do if a value is out of bounds, else None."""
    if value is None or "about" not in bounds:
        return None
    least, most, about = bounds["min"], bounds["max"], str(bounds["about"])
    is_finite = not isinstance(value, float) or math.isfinite(value)
    is_enough = value > least if bounds["is_over"] else value >= least
    if is_finite and is_enough and value <= most:
        return None
    if is_finite or math.isfinite(most):
        return about
    return about.replace("must be", "must be a finite number,", 1)


def _check_sampling(config: Config, is_rendering: bool) -> None:
    """Check every sampling value of the command, the experiment and the model option."""
    task = config.model.task
    typed = None if task is Task.i2v and not is_rendering else task
    defaults = {**asdict(config.model.default_sampling), "seeds": None}
    if task is Task.i2v:
        # A default of the model; the size of a clip follows from its image.
        defaults |= {"height": None, "width": None}
    for section, values, judged_as in (
        ("sampling", asdict(config.sampling), typed),
        ("override", asdict(config.override), typed),
        ("model.default_sampling", defaults, task),
    ):
        for name in SAMPLING_FIELDS:
            if fault := check_sampling_value(name, values[name], judged_as):
                raise Refused(f"{section}.{name}={values[name]}: {fault}.")


def check_sampling_value(name: str, value: Any, task: Task | None) -> str | None:
    """Return what is wrong with a sampling value and what to do, or None.

    The rule is the same for manifest cells, `sampling.*` and `override.*`.

    Args:
        name: Of the setting.
        value: Its value; None is the default.
        task: Of the model; None if it is not known, which sizes depend on.
    """
    if value is None or name in ("seeds", "negative_prompt"):
        return None
    if name in ("height", "width"):
        if task is None:
            return None
        if task is Task.i2v:
            return (
                "an image-to-video model takes its size from the image; "
                "leave it out (the dry run shows the size)"
            )
        if value < 16 or value % 16:
            return f"must be a multiple of 16; {_nearest(value, 16, 0)}"
        if value > MAX_SIDE:
            return f"must be at most {MAX_SIDE} pixels; 480x848 and 720x1280 are usual"
    elif name == "num_frames":
        if value < 1 or (value - 1) % 4:
            return f"must be 4n+1; {_nearest(value, 4, 1)}"
        if value > MAX_FRAMES:
            return f"must be at most {MAX_FRAMES}; split the scene into several rows"
    return _bounds_fault(value, _SAMPLING_BOUNDS[name])


MAX_SIDE = 4096
MAX_FRAMES = 1001


def _nearest(value: int, step: int, offset: int) -> str:
    """Name the allowed values on both sides: n*step + offset, at least `offset or step`."""
    least = offset or step
    below = (value - offset) // step * step + offset
    if below < least:
        return f"the smallest is {least}"
    return f"nearest are {below} and {below + step}"


def parse_command(command: Any) -> tuple[str, ...]:
    """Return program and arguments of `notify.command`; empty without one.

    A text is split into words like a shell does, and nothing is expanded. A list is taken as it is.

    Raises:
        Refused: It is neither, or there is no such program.
    """
    if command is None:
        return ()
    is_list = isinstance(command, list) and all(isinstance(word, str) for word in command)
    if not isinstance(command, str) and not is_list:
        raise Refused(
            f"notify.command={command!r}: must be a text or a list of texts, for example "
            'notify.command="/home/me/tell.sh"; null for none.'
        )
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise Refused(
            f"notify.command={command!r}: not a command ({error}); close the quote, or give a list."
        ) from None
    if not words or not words[0] or any("\0" in word for word in words):
        raise Refused(f"notify.command={command!r}: names no program; leave it out for no notices.")
    program = shutil.which(os.path.expanduser(words[0]))
    if program is None:
        raise Refused(
            f"notify.command={command!r}: no program {words[0]!r} can be run here; install it, "
            "give its whole path, or set notify.command=null."
        )
    return (os.path.abspath(program), *words[1:])


def check_sweep_value(column: str) -> None:
    """Check that a column of the log holds numbers.

    Raises:
        Refused: There is no such column, or it holds no numbers.
    """
    # Imported here, because Hydra's grammar and Arrow are slow to import.
    from hv15_batch.config.words import suggestion
    from hv15_batch.record import ClipRecord

    hints = typing.get_type_hints(ClipRecord)
    numeric = [name for name, hint in hints.items() if {int, float} & set(typing.get_args(hint))]
    if column not in hints:
        raise Refused(
            f"sweep_value={column}: the log has no such column.{suggestion(column, numeric)} "
            "docs/log.md lists them."
        )
    if column not in numeric:
        raise Refused(
            f"sweep_value={column}: this column of the log is no number; name one that is, for "
            "example total_seconds."
        )
