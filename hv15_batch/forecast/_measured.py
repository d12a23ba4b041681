"""Whether a row is a usable measurement: its types, names and numbers. No torch.

Rows come from logs of other folders and from a file in the user's cache. A newer version, another
program or a user may have written them, and one wrong value must not stop a run.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

from hv15_batch.model.variant import Dtype, Linear, OffloadKind, Task
from hv15_batch.record import DECODE, DENOISE, ClipRecord, seconds_column

MAX_SECONDS = 7 * 24 * 3600.0
"""Of one stage of a clip. Longer ones were not measured."""
MIN_SECONDS = 1e-3
"""Shorter ones were not measured either."""
_MAX_NUMBER = 1 << 16
"""Of pixels at an edge, frames and steps."""
_MIN_NUMBERS = {"height": 16, "width": 16, "num_frames": 1, "num_inference_steps": 1}
"""The smallest number of each; a token is 16 pixels wide and high."""
_NAMES: dict[str, tuple[str | None, ...]] = {
    "task": tuple(each.name for each in Task),
    "dtype": tuple(each.name for each in Dtype),
    "linear": (None, *(each.name for each in Linear)),
    "offload": tuple(each.name for each in OffloadKind if each is not OffloadKind.auto),
}
_SECONDS = tuple(map(seconds_column, (DENOISE, DECODE)))


def is_sound(row: Mapping[str, Any], columns: Iterable[str]) -> bool:
    """Whether every value has its column's type, and those that predictions use make sense.

    Args:
        row: Of a log, or read from JSON.
        columns: That it must have; those with size, steps, names and seconds are among them.
    """
    if not all(name in row and _is_typed(row[name], name) for name in columns):
        return False
    return (
        all(row[name] in allowed for name, allowed in _NAMES.items())
        and all(_is_within(row[name], low, _MAX_NUMBER) for name, low in _MIN_NUMBERS.items())
        and all(_is_within(row[name], MIN_SECONDS, MAX_SECONDS) for name in _SECONDS)
        and None not in (row["guidance_scale"], row["attention_backend"])
        and (not row["cache"] or _is_within(row["num_computed_steps"], 1, _MAX_NUMBER))
    )


def _is_within(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


def _is_typed(value: object, column: str) -> bool:
    """Whether a value is None or of the column's type; a number is finite, a moment has a zone."""
    if value is None:
        return True
    allowed = _types()[column]
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, (int, float)):
        is_number = float in allowed or (int in allowed and isinstance(value, int))
        return is_number and abs(value) < 2.0**63 and math.isfinite(value)
    if isinstance(value, datetime):
        return datetime in allowed and value.tzinfo is not None
    return isinstance(value, str) and str in allowed


@cache
def _types() -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(ClipRecord)
    return {name: typing.get_args(hint) for name, hint in hints.items()}
