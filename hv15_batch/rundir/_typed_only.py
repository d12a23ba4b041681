"""Settings that `resume=` never takes from what is stored, because they decide what is fetched."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from hv15_batch.config.settings import CONFIG_DIR, TYPED_ONLY, Config
from hv15_batch.model.attention import is_fetched
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import shortened

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""Form of a stored revision: a commit, or the hash of a local checkpoint's content."""
_MAX_CHARACTERS = 80
"""Of a stored value in a message."""


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


def lacking_fault(config: Config, typed: Collection[str], file: Path, command: str) -> str | None:
    """Return why stored settings are not enough to resume, and what to type; None if they are.

    Args:
        config: Those of the last run.
        typed: Names of settings, or of their sections, that are typed now.
        file: Where they are stored.
        command: Resumes the run.
    """
    lacking = [n for n in typed_only_in_use(config) if not {n, n.split(".")[0]} & set(typed)]
    if CONFIG_DIR in lacking and (changed := _changed_options(config)):
        return (
            f"{'; '.join(changed)}. That decides what is fetched, and is never taken from {file}. "
            f"If the option is yours, type its folder: {command} {CONFIG_DIR}=DIR. If the program "
            "was updated, type the run's own command instead of resume=."
        )
    if lacking:
        words = " ".join(f"{name}=..." for name in lacking)
        return (
            f"the last run used {', '.join(lacking)}, which decides what is run or fetched on this "
            f"machine and is never taken from a stored configuration; read {file}, and type it: "
            f"{command} {words}"
        )
    return None


def _changed_options(config: Config) -> list[str]:
    """Return how stored options of rows differ from the package's options of the same names.

    They come from the user's folder, or from another version of the package.
    """
    texts = []
    for name, model in config.models.items():
        option = model_options().get(name)
        if name == config.model.name or option is None or _is_ours(model):
            continue
        key = next(_reaching_differences(model, option), "name")
        stored, ours = (_shown(value_of(each, key)) for each in (model, option))
        texts.append(f"the option {name} has {key}={stored}, and that of this version {key}={ours}")
    return texts


def _shown(value: Any) -> str:
    return "null" if value is None else shortened(str(value), _MAX_CHARACTERS)


def _is_ours(model: ModelConfig) -> bool:
    """Whether what is fetched or opened for an option is what the package's option says."""
    option = model_options().get(model.name)
    return option is not None and not any(_reaching_differences(model, option))


def _reaching_differences(model: ModelConfig, option: ModelConfig) -> Iterator[str]:
    """Yield the members of an option that decide what is fetched or opened, where they differ."""
    for name in TYPED_ONLY:
        section, _, key = name.partition(".")
        if section == "model" and value_of(model, key) != value_of(option, key):
            yield key
    revision = model.revision
    if revision not in (None, option.revision) and not HASH.fullmatch(str(revision)):
        yield "revision"
