"""The page of every setting, from the dataclasses of `hv15_batch/config/settings.py`."""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from _text import NOTICE, code, docs_of, table

from hv15_batch.config.settings import (
    NOT_TYPED,
    OF_ONE_COMMAND,
    TYPED_ONLY,
    Config,
    ManifestColumns,
    SamplingConfig,
)
from hv15_batch.model.variant import SamplingDefaults


def settings_page() -> str:
    """Return the page of every setting: its type, default, bounds and meaning."""
    parts = [NOTICE, _SETTINGS_HEAD]
    for title, owner, prefix in _sections():
        if title == "`override.*`":
            parts += [f"\n## {title}\n\n{_OVERRIDE}"]
            continue
        about = inspect.cleandoc(owner.__doc__ or "").split("\n")[0]
        parts += [f"\n## {title}\n\n{about}\n\n"]
        rows = list(_settings(owner, prefix))
        parts += [table(("setting", "type", "default", "allowed", "meaning"), rows)]
    return "".join(parts)


_OVERRIDE = """\
The fields of `sampling`. A value here replaces that of every row; null replaces nothing.
"""


def _names(names: Sequence[str]) -> str:
    return ", ".join(map(code, names))


_SETTINGS_HEAD = f"""\
# Settings

This page lists every setting. Type any of them after `hv15-batch`, for example
`hv15-batch prompts.csv runtime.compile=true`, or write them into an experiment under
`conf/experiment/`. `hv15-batch prompts.csv --cfg job` prints every setting with its value. `null`
means that nothing was set.

[The life of a clip](life-of-a-clip.md#what-a-clip-is) names the settings that identify a clip: a
change of one of them makes a new clip.

These settings can start a process, open a socket or cause a download. They count only where you
type them; `resume=` never takes them from a stored configuration:
{_names(TYPED_ONLY)}.
A `runtime.attention_backend` that fetches nothing is taken over.

These settings apply to one command only; `resume=` does not take them over:
{_names(OF_ONE_COMMAND)}.
"""


def _sections() -> Iterator[tuple[str, type, str]]:
    yield "Top level", Config, ""
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield f"`{field.name}.*`", hints[field.name], f"{field.name}."


def _settings(owner: type, prefix: str) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(owner)
    docs = docs_of(SamplingConfig if owner is SamplingDefaults else owner)
    for field in dataclasses.fields(owner):
        if owner is Config and field.name in NOT_TYPED:
            continue
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            if owner is not Config:
                yield from _settings(hint, f"{prefix}{field.name}.")
            continue
        if owner is ManifestColumns:
            docs[field.name] = f"The file's column that stands for `{field.name}`."
        if field.name not in docs:
            raise LookupError(f"{owner.__name__}.{field.name} has no text below it")
        name = f"{prefix}{field.name}"
        default = "from the YAML" if name.startswith("model.") else _default(field)
        allowed = _allowed(hint, field.metadata)
        yield code(name), _type_name(hint), default, allowed, docs[field.name]


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        value = field.default_factory() if callable(field.default_factory) else None
    if isinstance(value, Enum):
        value = value.name
    if isinstance(value, bool):
        value = str(value).lower()
    return "null" if value is None else code(value) or "empty"


def _members(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(part for part in typing.get_args(hint) if part is not type(None))
    return (hint,)


_TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


def _type_name(hint: Any) -> str:
    names = []
    for part in _members(hint):
        if isinstance(part, type) and issubclass(part, Enum):
            names.append("choice")
        elif typing.get_origin(part) is list:
            names.append("list")
        else:
            names.append(_TYPE_NAMES.get(part, "text, number or list"))
    return " or ".join(names)


def _allowed(hint: Any, metadata: Mapping[str, Any]) -> str:
    for part in _members(hint):
        if isinstance(part, type) and issubclass(part, Enum):
            return ", ".join(code(member.name) for member in part)
    if "min" not in metadata:
        return ""
    least, most = metadata["min"], metadata["max"]
    lower = f"over {least:g}" if metadata["is_over"] else f"{least:g}"
    if math.isinf(most):
        return lower if metadata["is_over"] else f"{lower} or more"
    return f"{lower} to {most:g}"
