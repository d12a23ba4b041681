"""Where composed settings come from, as far as rows of other models need it (`options`).

What is typed or set by a preset for `model` holds for the option that it was typed for. So it has
to be known which values a preset set, and which file the option came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from hv15_batch.config.settings import Config
from hv15_batch.files import read_text
from hv15_batch.model.options import conf_dir

_MAX_NOTES_BYTES = 64 * 1024


def note_origin(
    config: Config, config_dir: str | None, option: str, values: Mapping[str, str]
) -> None:
    """Let settings know folder, option and preset that their values come from.

    Args:
        config: The settings; `config_dir`, `model_option`, `preset_sampling` and `preset_notes`
            are set.
        config_dir: Folder of `--config-dir`, as typed.
        option: The chosen one of the group `model`: the name of its file.
        values: The typed settings and their values.
    """
    config.config_dir = config_dir and os.path.abspath(config_dir)
    if "model.name" not in values:
        config.model_option = _option_of_another_name(config, option)
    if values.get("experiment", "null") != "null":
        config.preset_sampling = _untyped_sampling(config, values)
        config.preset_notes = _notes_of(values["experiment"].removesuffix(".yaml"), config_dir)


def _notes_of(preset: str, config_dir: str | None) -> list[str]:
    """Return the lines of the text file beside a preset; empty without one."""
    folders = ([Path(config_dir)] if config_dir else []) + [conf_dir()]
    for folder in folders:
        path = folder / "experiment" / f"{preset}.txt"
        with suppress(OSError, ValueError):
            return read_text(path, _MAX_NOTES_BYTES).splitlines()
    return []


def _option_of_another_name(config: Config, option: str) -> str | None:
    """Return the name of the option's file if the file says another name, else None."""
    stem = option.removesuffix(".yaml")
    return None if stem == config.model.name else stem


def _untyped_sampling(config: Config, values: Mapping[str, str]) -> list[str]:
    """Return the `sampling` values that are set and were not typed."""
    given = (name for name, value in vars(config.sampling).items() if value is not None)
    return [name for name in given if f"sampling.{name}" not in values]
