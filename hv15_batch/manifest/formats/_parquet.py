"""Parquet as records: the sizes in the footer are checked before anything else is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.columns import Columns, Unreadable
from hv15_batch.manifest.rows import MAX_ROWS, Record
from hv15_batch.units import GIB, MIB

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 1_024
MAX_FOOTER_STRING_BYTES = 16 * MIB
MAX_FOOTER_ITEMS = 1_000_000
MAX_GROUP_BYTES = GIB
"""Largest unpacked row group, counted over the columns that are read."""


def read_parquet(file: IO[bytes], columns: Columns, faults: Faults) -> Iterator[Record]:
    """Yield the rows of a Parquet file; unknown columns are not read.

    Raises:
        Unreadable: No row of it can be read; the fault has been noted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        parquet = pq.ParquetFile(
            file,
            thrift_string_size_limit=MAX_FOOTER_STRING_BYTES,
            thrift_container_size_limit=MAX_FOOTER_ITEMS,
        )
        names: list[str] = parquet.schema_arrow.names
        chosen = columns.read_header(1, names)
        _check_size(parquet, [names[place] for place, _ in chosen], faults)
        wanted = [names[place] for place, _ in chosen]
        # By name where that is unambiguous; a name that comes twice is a fault already noted.
        is_plain = len(set(names)) == len(names) and not any("." in name for name in names)
        for batch in parquet.iter_batches(BATCH_ROWS, columns=wanted if is_plain else None):
            places = [batch.schema.names.index(name) for name in wanted]
            cells = batch.select(places).rename_columns([known for _, known in chosen])
            for values in _with_shortest_decimals(cells).to_pylist():
                row += 1
                yield Record(row, columns.with_labels(values))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        rule = f"a whole Parquet file can be read, and this one breaks after row {row} ({reason})"
        faults.add(row + 1, "file", Path(faults.manifest).name, f"{rule}; write it again")


def _check_size(parquet: pq.ParquetFile, wanted: Sequence[str], faults: Faults) -> None:
    """Check number and size of the rows in the footer.

    Raises:
        Unreadable: They are too many or too large; the fault has been noted.
    """
    footer = parquet.metadata
    if footer.num_rows > MAX_ROWS:
        rule = f"a manifest has at most {MAX_ROWS:,} rows; split it into several"
        faults.add(1, "rows", footer.num_rows, rule)
        raise Unreadable
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        chunks = [group.column(place) for place in range(group.num_columns)]
        size = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.split(".")[0] in wanted
        )
        if size > MAX_GROUP_BYTES:
            rule = f"a row group has at most {MAX_GROUP_BYTES // GIB} GiB in the columns read here"
            faults.add(1, "bytes", size, f"{rule}; write the file with smaller row groups")
            raise Unreadable


def _with_shortest_decimals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with 23.976 where a narrow float column has 23.97599983215332.

    Both are the same float32, and 23.976 is what was written and what a CSV would hold.
    """
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_float16(field.type) or pa.types.is_float32(field.type):
            narrow = field.type.to_pandas_dtype()
            values = [
                v if v is None or v.is_integer() else float(str(narrow(v)))
                for v in batch.column(place).to_pylist()
            ]
            batch = batch.set_column(place, field.name, pa.array(values, pa.float64()))
    return batch
