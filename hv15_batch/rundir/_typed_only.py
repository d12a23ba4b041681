"""Settings that `resume=` never takes from what is stored, because they decide what is fetched."""

from __future__ import annotations

import re
from typing import Any

from hv15_batch.config.settings import CONFIG_DIR, TYPED_ONLY, Config
from hv15_batch.model.attention import is_fetched
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Form of a stored revision: a commit, or the hash of a local checkpoint's content."""


def typed_only_in_use(config: Config) -> list[str]:
    """Return what was typed and does not come from the package: settings of `TYPED_ONLY`, a folder.

    The folder is that of `--config-dir`, where an option of rows comes from it.
    """
    defaults = Config()
    option = model_options().get(config.model.name)
    if option is not None:
        defaults.model = option  # its repository, and that of its transformer
    if not is_fetched(config.runtime.attention_backend):
        defaults.runtime.attention_backend = config.runtime.attention_backend
    values = ((name, value_of(config, name), value_of(defaults, name)) for name in TYPED_ONLY)
    names = [name for name, value, default in values if value not in (None, default)]
    others = (model for name, model in config.models.items() if name != config.model.name)
    return names if all(map(_is_ours, others)) else [*names, CONFIG_DIR]


def section_of(config: Any, name: str) -> tuple[Any, str]:
    """Return the object that holds a setting with a dotted name, and its name there."""
    *path, key = name.split(".")
    section: Any = config
    for part in path:
        section = getattr(section, part)
    return section, key


def value_of(config: Any, name: str) -> Any:
    return getattr(*section_of(config, name))


def safe_options(config: Config) -> dict[str, ModelConfig]:
    """Return the stored options of rows that name nothing but what the package's name.

    The others are composed again from the folder that is typed now. So is the command's own option,
    for which something may have been typed.
    """
    return {
        name: model
        for name, model in config.models.items()
        if name != config.model.name and name == model.name and _is_ours(model)
    }


def _is_ours(model: ModelConfig) -> bool:
    """Whether what is fetched or opened for an option is what the package's option says."""
    option = model_options().get(model.name)
    if option is None:
        return False
    revision = model.revision
    is_fixed = revision in (None, option.revision) or bool(HASH.fullmatch(str(revision)))
    names = [name.partition(".")[2] for name in TYPED_ONLY if name.startswith("model.")]
    return is_fixed and all(value_of(model, name) == value_of(option, name) for name in names)
