"""A folder of the user's own configurations (`--config-dir`), read within limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import yaml

from hv15_batch.errors import Refused
from hv15_batch.files import MAX_YAML_BYTES, check_yaml, read_text

PROVIDER = "command-line"
"""Hydra's name for the origin of the folder."""


def conf_folder(typed: str) -> str:
    """Return the folder of `--config-dir`, absolute.

    Raises:
        Refused: There is no such folder.
    """
    folder = os.path.abspath(typed)
    if not os.path.isdir(folder):
        raise Refused(f"--config-dir={typed}: there is no such folder.")
    return folder


def limit_sources(sources: Iterable[Any], folder: str) -> None:
    """Let Hydra read the files of a user's folder only within limits.

    Args:
        sources: Sources of its configuration; the folder has the provider `PROVIDER`.
        folder: Absolute path.
    """
    for source in sources:
        if source.provider == PROVIDER:
            source.load_config = partial(_load, source.load_config, folder)


def _load(load: Callable[..., Any], folder: str, config_path: str) -> Any:
    """Load a file like Hydra does, after a check of its limits.

    Raises:
        Refused: It is no regular file, too large, too deep, or grows by its aliases.
    """
    name = config_path if config_path.endswith((".yaml", ".yml")) else f"{config_path}.yaml"
    file = os.path.join(folder, name)
    if os.path.exists(file):
        try:
            check_yaml(read_text(file, MAX_YAML_BYTES))
        except OSError as error:
            raise Refused(f"{file}: cannot be read ({error.strerror}); name another.") from error
        except ValueError as error:
            if isinstance(error.__cause__, yaml.YAMLError):
                return load(config_path)  # its error names the line
            raise Refused(f"{file}: no configuration ({error}); correct it.") from error
    return load(config_path)
