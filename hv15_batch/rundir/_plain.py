"""A stored YAML file as plain data: no tags, no aliases, little depth, and texts unchanged.

A run directory may come from somebody else, so its files are data only. A tag makes no object, an
alias is refused, and `${...}` is a text like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hv15_batch.files import read_text
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
