"""The model options: one YAML each under `conf/model/`, read without composing a configuration."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from hv15_batch.model.variant import ModelConfig, Weights


def conf_dir() -> Path:
    """Return `conf/`: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@cache
def model_options() -> dict[str, ModelConfig]:
    """Return every model option by name, in order of name. Read once: change a copy only.

    Raises:
        msgspec.ValidationError: a value of a YAML is of the wrong type.
    """
    import msgspec.yaml  # here: `status` needs no option and starts at once

    options = {}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        option = msgspec.yaml.decode(path.read_bytes(), type=ModelConfig)
        # msgspec leaves defaults to the class; `vars` and its own encoder read the instance.
        parts = ("default_sampling", "recipe", "transformer_hub", "advice")
        own = {name: replace(getattr(option, name)) for name in parts} | {"loras": []}
        options[path.stem] = replace(option, **own)
    return options


def tiny_model(name: str) -> ModelConfig:
    """Return what defines the weights of one of the tiny models.

    Raises:
        ValueError: if there is no such model.
    """
    option = model_options().get(name)
    if option is None or option.weights is not Weights.tiny:
        tiny = [o.name for o in model_options().values() if o.weights is Weights.tiny]
        raise ValueError(f"tiny model {name!r}: must be one of {', '.join(tiny)}")
    return option


def small_model(name: str) -> ModelConfig:
    """Return one of the models whose checkpoints are written on this machine.

    Raises:
        ValueError: if there is no such model.
    """
    option = model_options().get(name)
    if option is None or not option.weights.is_small:
        small = [o.name for o in model_options().values() if o.weights.is_small]
        raise ValueError(f"small model {name!r}: must be one of {', '.join(small)}")
    return option
