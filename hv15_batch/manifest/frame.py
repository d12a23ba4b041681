"""A pandas DataFrame as a manifest: its rows become JSON Lines, which are read like any file.

So the rows pass the same checks, and a run resumes from the written file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ROWS, Faults, ManifestError, parse_loras
from hv15_batch.manifest.chains.cells import is_frame
from hv15_batch.manifest.columns import TAG_PREFIX, Columns, Reading, Unreadable

if TYPE_CHECKING:
    from pandas import DataFrame


def frame_content(rows: DataFrame, reading: Reading) -> bytes:
    """Return the rows as JSON Lines, UTF-8: one line for each, a member for each column.

    Levels of the index that have a name are columns too. Paths in the columns `image` and `loras`
    start at the working directory and become absolute. Cells are checked when the lines are read.

    Args:
        rows: The rows.
        reading: The settings for reading columns.

    Raises:
        Refused: It is no DataFrame.
        ManifestError: There is no column `prompt`, or two columns have one name.
    """
    import pandas as pd

    if not isinstance(rows, pd.DataFrame):
        kind = type(rows).__name__
        raise Refused(f"rows={kind}: must be a pandas DataFrame; convert it to one.")
    levels = [n for n, name in enumerate(rows.index.names) if name is not None]
    names = [str(rows.index.names[n]) for n in levels] + [str(name) for name in rows.columns]
    known = _known_names(names, reading)
    members: list[Iterable[Any]] = [rows.index.get_level_values(n) for n in levels]
    members += [rows.iloc[:, place] for place in range(rows.shape[1])]
    columns = [_cells(known.get(place, ""), values) for place, values in enumerate(members)]
    records = zip(*columns, strict=True)
    return b"".join(_line(dict(zip(names, cells, strict=True))) for cells in records)


def _known_names(names: Sequence[str], reading: Reading) -> dict[int, str]:
    """Return the meaning of each column; unknown ones are reported with the cells.

    Raises:
        ManifestError: There is no `prompt`, or two columns have one name, which JSON cannot
            express.
    """
    faults = Faults(ROWS)
    try:
        places = Columns(reading, faults).read_header(1, names)
    except Unreadable:
        raise ManifestError(faults.messages) from None
    if len(set(names)) < len(names):
        raise ManifestError(faults.messages)
    return dict(places)


def _line(cells: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(cells, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which the check of the cell reports
        text = json.dumps(cells).encode()
    return text + b"\n"


def _cells(column: str, values: Iterable[Any]) -> list[Any]:
    """Return the cells of a column as values for JSON."""
    import numpy as np

    dtype: Any = getattr(values, "dtype", None)  # of pandas' own kinds a wrapper
    dtype = getattr(dtype, "numpy_dtype", dtype)
    is_narrow = isinstance(dtype, np.dtype) and dtype.kind == "f" and dtype.itemsize < 8
    if column == "loras":
        return [_loras_cell(value) for value in values]
    cells = [_plain(value) for value in values]
    if is_narrow:  # 23.976 and not 23.97599983215332
        cells = [cell if cell is None else float(str(dtype.type(cell))) for cell in cells]
    if column == "image":
        return [_image_cell(cell) for cell in cells]
    if column.startswith(TAG_PREFIX):
        return [next(iter(c.values())) if isinstance(c, dict) else c for c in cells]
    return cells


def _image_cell(cell: Any) -> Any:
    """Return a cell of `image` with an absolute path; a frame of another row stays as it is."""
    is_path = isinstance(cell, str) and cell.strip() and not is_frame(cell, os.getcwd())
    return os.path.abspath(cell) if is_path else cell


def _loras_cell(value: Any) -> Any:
    """Return a cell of `loras` with absolute paths; what is of no known form stays as it is.

    It is a text as in a file, a path, an object with `path` and `scale`, or a list of objects and
    paths; a text in a list is a path.
    """
    import numpy as np

    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str):
        try:
            return [_lora_object(path, scale) for path, scale in parse_loras(value)] or value
        except ValueError:
            return value  # the reader reports it
    if isinstance(value, (dict, os.PathLike)):
        value = [value]
    if not isinstance(value, (list, tuple)):
        return _plain(value)
    return [_lora_item(item) for item in value]


def _lora_item(item: Any) -> Any:
    if isinstance(item, (str, os.PathLike)):
        return _lora_object(os.fspath(item), 1.0)
    if not isinstance(item, dict):
        return _plain(item)
    found = {str(name): _plain(value) for name, value in item.items()}
    if isinstance(found.get("path"), str):
        found["path"] = os.path.abspath(found["path"])
    return found


def _lora_object(path: Any, scale: float) -> dict[str, Any]:
    return {"path": os.path.abspath(path), "scale": scale}


def _plain(value: Any) -> Any:
    """Return a value of numpy or pandas as Python's own; None if it is missing.

    Other values become an object, which only labels accept.
    """
    import numpy as np
    import pandas as pd

    if isinstance(value, np.floating) and value.itemsize < 8:
        value = float(str(value))  # 0.3 and not 0.30000001192092896
    elif isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, int)):
        return value
    return str(value) if isinstance(value, Decimal) else {type(value).__name__: str(value)}
