"""The model options that rows name, each composed from its own YAML alone.

What is typed or set by a preset for `model` holds for the option that it was typed for.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from hv15_batch.config.messages import refusal_of
from hv15_batch.config.settings import Config, SamplingConfig
from hv15_batch.errors import Refused
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig, Weights

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def config_of(config: Config, model: str | None) -> Config:
    """Return the settings of the rows of a model.

    Args:
        config: All settings, those in `models` included.
        model: A row's cell, or the name of a clip's model; None is the command's.
    """
    if model is None or model == config.model.name:
        return config
    preset = set(config.preset_sampling)
    free = {f.name: None for f in fields(SamplingConfig) if f.name in preset}
    sampling = replace(config.sampling, **free)
    return replace(config, model=config.models[model], sampling=sampling)


def with_models(config: Config, models: Iterable[str | None]) -> Config:
    """Return settings whose `models` are those of rows, and no others.

    Args:
        config: Settings; options in their `models`, which a run stored, are kept as they are.
        models: The cells of the rows; None is an empty one.

    Raises:
        Refused: An option cannot be composed.
    """
    others = {name for name in models if name not in (None, config.model.name)}
    composed = {name: row_option(config, name) for name in sorted(filter(None, others))}
    return replace(config, models=composed)


def row_option(config: Config, name: str) -> ModelConfig:
    """Return the option that a row names, from its YAML alone.

    Raises:
        ValueError: There is no such option; the message has what is allowed.
        Refused: Its YAML cannot be read as one.
    """
    if name == config.model.name:
        if config.model_option is not None:
            own = config.model_option
            raise ValueError(
                f"model={own} of the command says name: {name} in its file, so this cell could "
                f"mean either; write name: {own} into {own}.yaml"
            )
        return config.model
    if name in config.models:
        return _with_weights(config, config.models[name])
    option = _composed(config, name)
    if option is None:
        raise ValueError(_unknown(config, name))
    if option.name != name:
        raise ValueError(
            f"its file says name: {option.name}, by which it is logged; write name: {name} into it"
        )
    return _with_weights(config, option)


def _with_weights(config: Config, option: ModelConfig) -> ModelConfig:
    """Return a row's option with random weights where the command asks for them.

    A stored option may have those of an earlier command; its revision is that of its weights.
    """
    if _asks_random(config):
        if option.weights is Weights.pretrained:
            return replace(option, weights=Weights.random, revision=None)
    elif option.weights is Weights.random:
        own = _composed(config, option.name)
        if own is not None and own.weights is not Weights.random:
            return replace(option, weights=own.weights, revision=own.revision)
    return option


def _asks_random(config: Config) -> bool:
    """Whether `model.weights=random` was typed, rather than an option's own."""
    if config.model.weights is not Weights.random:
        return False
    own = _composed(config, config.model.name)
    return own is None or own.weights is not Weights.random


def _composed(config: Config, name: str) -> ModelConfig | None:
    """Return an option of the user's folder, or else of the package; None without one."""
    if not _NAME.fullmatch(name):
        return None
    if name not in _own_names(config):
        return copy.deepcopy(model_options().get(name))
    from hv15_batch.config.compose import compose_one  # Hydra, which few runs need for it

    try:
        return compose_one([f"model={name}", "experiment=null"], config.config_dir).config.model
    except Refused as error:
        raise Refused(_with_file(config, name, str(error))) from error
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        raise Refused(_with_file(config, name, refusal[0])) from error


def _with_file(config: Config, name: str, fault: str) -> str:
    """Return a fault of an own option with its file named once, and without a full stop."""
    fault = fault.removesuffix(".")
    file = os.path.join(str(config.config_dir), "model", f"{name}.yaml")
    if file in fault:
        return fault
    return f"{file}: {fault.removeprefix(f'model/{name}.yaml: ')}"


def _own_names(config: Config) -> list[str]:
    if config.config_dir is None:
        return []
    return sorted(path.stem for path in (Path(config.config_dir) / "model").glob("*.yaml"))


def _unknown(config: Config, name: str) -> str:
    known = list(dict.fromkeys([*model_options(), *_own_names(config), config.model.name]))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}? " if near else ""
    own = "" if config.config_dir else "; --config-dir=DIR adds those in DIR/model"
    return f"{hint}a row names a model option, one of {', '.join(known)}{own}"
