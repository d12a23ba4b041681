"""The schema of a log segment, derived from `ClipRecord`."""

from __future__ import annotations

import types
import typing
from dataclasses import fields
from datetime import datetime
from typing import Any

import pyarrow as pa

from hv15_batch.record import ClipRecord

SCHEMA_VERSION = 8
"""Bumped when a column is added, removed or changes its meaning."""

_STORED = ("about", "unit", "source")
"""The metadata of each column in a segment."""


def arrow_schema() -> pa.Schema:
    """Return the Arrow schema of a log segment, derived from `ClipRecord`."""
    hints = typing.get_type_hints(ClipRecord)
    return pa.schema(
        [
            pa.field(
                f.name,
                _arrow_type(hints[f.name]),
                metadata={name: f.metadata[name] for name in _STORED},
            )
            for f in fields(ClipRecord)
        ],
        metadata={"schema_version": str(SCHEMA_VERSION)},
    )


_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
    list[float]: pa.list_(pa.field("element", pa.float64())),  # Parquet's own name for it
}


def _arrow_type(hint: Any) -> pa.DataType:
    assert typing.get_origin(hint) in (typing.Union, types.UnionType)
    (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
    return _ARROW_TYPES[inner]
