"""The log's columns as a page: `python -m hv15_batch.schema_table > docs/log.md`."""

from __future__ import annotations

import pyarrow as pa

from hv15_batch.records import SCHEMA_VERSION, arrow_schema

GROUPS = {
    "run_id": "Identity",
    "prompt": "Asked for",
    "model": "In effect, read back from the live objects",
    "load_seconds": "Time",
    "peak_vram_allocated_bytes": "Memory",
    "energy_joules": "Telemetry",
    "model_pflop": "Derived",
    "luma_mean": "Quality",
    "file": "Output",
    "status": "Outcome",
    "gpu_name": "Machine",
}
"""Headings by the column before which they stand."""

_HEAD = f"""\
# Columns of the log

Written from `hv15_batch/records.py`, not by hand:

    python -m hv15_batch.schema_table > docs/log.md

Schema version {SCHEMA_VERSION}. One row per attempt, in `log/*.parquet` of a run directory. Every
column is in every segment of this version; not measured is null, never 0, and nothing is rounded.
How to read segments of several versions: [analysis.md](analysis.md).
"""


def format_schema_table() -> str:
    """Return the page, in Markdown."""
    lines = [_HEAD]
    for field in arrow_schema():
        if field.name in GROUPS:
            lines += [f"\n## {GROUPS[field.name]}\n", *_TABLE_HEAD]
        lines.append(_row(field))
    return "\n".join(lines) + "\n"


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


if __name__ == "__main__":
    print(format_schema_table(), end="")
