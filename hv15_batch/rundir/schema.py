"""The log's columns as a page: `python -m hv15_batch.rundir.schema > docs/log.md`."""

from __future__ import annotations

import types
import typing
from dataclasses import fields
from datetime import datetime
from typing import Any

import pyarrow as pa

from hv15_batch.record import KINDS, ClipRecord, columns

SCHEMA_VERSION = 2
"""Bumped when a column is added, removed or changes its meaning."""

_HEAD = f"""\
# Columns of the log

Written from `hv15_batch/record.py`, not by hand:

    python -m hv15_batch.rundir.schema > docs/log.md

Schema version {SCHEMA_VERSION}. One row per attempt, in `log/*.parquet` of a run directory. Every
column is in every segment of this version; not measured is null, never 0, and nothing is rounded.
How to read segments of several versions: [analysis.md](analysis.md).
"""


def format_schema_table() -> str:
    """Return the page, in Markdown."""
    lines = [_HEAD]
    schema = arrow_schema()
    for kind, title in KINDS.items():
        lines += [f"\n## {title}\n", *_TABLE_HEAD]
        lines += [_row(schema.field(name)) for name in columns(kind)]
    return "\n".join(lines) + "\n"


_STORED = ("about", "unit", "source")
"""What a segment says of each column."""
_TABLE_HEAD = ("| column | type | unit | source | meaning |", "|---|---|---|---|---|")


def _row(field: pa.Field) -> str:
    metadata = {key.decode(): value.decode() for key, value in field.metadata.items()}
    unit = "" if metadata["unit"] == "none" else metadata["unit"]
    cells = (f"`{field.name}`", f"`{_type(field.type)}`", unit, metadata["source"])
    return f"| {' | '.join((*cells, metadata['about']))} |"


def _type(data_type: pa.DataType) -> str:
    if pa.types.is_list(data_type):
        return f"list of {data_type.value_type}"
    return str(data_type)


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


if __name__ == "__main__":
    print(format_schema_table(), end="")
