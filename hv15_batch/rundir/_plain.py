"""A stored YAML file as plain data: no tags, no aliases, little depth, and texts unchanged.

A run directory may come from somebody else, so its files are data only. A tag makes no object, an
alias is refused, and `${...}` is a text like any other.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hv15_batch.files import read_text
from hv15_batch.model.variant import Lora
from hv15_batch.units import MIB

MAX_BYTES = MIB
"""A stored configuration has a few KiB."""
MAX_DEPTH = 20
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotPlain(ValueError):
    """The file is no plain mapping; the message is the reason."""


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        NotPlain: It is no YAML, no mapping, too large or too deep, has aliases or tags of a
            language, or is no regular file.
        FileNotFoundError: It does not exist.
    """
    text = _read(path)
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            if isinstance(event, yaml.AliasEvent):
                raise NotPlain("it has an alias, which hv15-batch never writes")
            depth += isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent))
            depth -= isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent))
            if depth > MAX_DEPTH:
                raise NotPlain(f"it is nested deeper than {MAX_DEPTH} levels")
        value = yaml.load(text, Loader=_LOADER)
    except NotPlain:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that is none
        raise NotPlain((str(error).splitlines() or ["no YAML"])[0]) from error
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise NotPlain("no mapping")
    return value


def _read(path: Path) -> str:
    try:
        return read_text(path, MAX_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotPlain(str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise NotPlain(str(error)) from error


def literal(value: Any) -> Any:
    """Return stored values with every text escaped so that OmegaConf reads it as it was typed."""
    if isinstance(value, dict):
        return {name: literal(item) for name, item in value.items()}
    if isinstance(value, list):
        return [literal(item) for item in value]
    return escaped(unescaped(value)) if isinstance(value, str) else value


def escaped(value: Any) -> Any:
    """Return a value whose texts OmegaConf reads as they are."""
    if isinstance(value, (list, tuple)):
        return [escaped(item) for item in value]
    if isinstance(value, Lora):
        return replace(value, path=escaped(value.path))
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
    return value


def unescaped(text: str) -> str:
    """Return a text as it was typed, of one that `escaped` returned."""
    return re.sub(r"((?:\\\\)*)\\\$\{", lambda match: match[1][::2] + "${", text)
