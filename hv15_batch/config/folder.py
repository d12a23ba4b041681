"""A folder of the user's own configurations (`--config-dir`), read within limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathQuery

from hv15_batch.errors import Refused
from hv15_batch.files import MAX_YAML_BYTES, check_yaml, read_text

_PROVIDER = "command-line"


def add_folder(hydra: Any, config_dir: str) -> None:
    """Let Hydra look into a folder before its own; `hydra` is its `Hydra` object.

    Raises:
        Refused: there is no such folder.
    """
    folder = os.path.abspath(config_dir)
    if not os.path.isdir(folder):
        raise Refused(f"--config-dir={config_dir}: there is no such folder.")
    path = hydra.config_loader.get_search_path()
    path.prepend(_PROVIDER, f"file://{folder}", SearchPathQuery(provider="schema"))
    loader = ConfigLoaderImpl(path)  # which reads the path once
    for source in loader.repository.get_sources():
        if source.provider == _PROVIDER:
            source.load_config = partial(_load, source.load_config, folder)
    hydra.config_loader = loader


def _load(load: Callable[..., Any], folder: str, config_path: str) -> Any:
    """Load a file as Hydra does, once it is known that it can be.

    Raises:
        Refused: it is no regular file, too large, too deep, no YAML, or grows by its aliases.
    """
    name = config_path if config_path.endswith((".yaml", ".yml")) else f"{config_path}.yaml"
    file = os.path.join(folder, name)
    if os.path.exists(file):
        try:
            check_yaml(read_text(file, MAX_YAML_BYTES))
        except OSError as error:
            raise Refused(f"{file}: it cannot be read ({error.strerror}); name another.") from error
        except ValueError as error:
            raise Refused(f"{file}: it is no configuration ({error}); correct it.") from error
    return load(config_path)
