"""Columns of a manifest: which there are, and what to do about one that is not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.manifest_cells import Faults

KNOWN_COLUMNS = (
    "prompt",
    "id",
    "seed",
    "negative_prompt",
    "image",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
)

TAG_PREFIX = "tag_"
"""Begins the name of a column that is the user's own label."""

MAX_COLUMNS = 1_000

SIMILARITY = 0.5
"""Names less alike than this (difflib's ratio) are not suggested."""

# The row index as pandas writes it: to_csv, the same read back and written again, to_parquet.
_INDEX_COLUMN = re.compile(r"|Unnamed: 0(\.[0-9]+)*|__index_level_[0-9]+__")


class Unreadable(Exception):
    """The rest of the file makes no sense; the fault has been noted."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file holds it."""

    line: int
    """Where the record starts, from 1 (the header is 1 in CSV); in Parquet the row from 1."""
    cells: dict[str, Any]
    """Text in CSV and .txt, any JSON or Arrow value otherwise; absent where the file has none."""


def is_known_column(name: str) -> bool:
    """Return whether a manifest may have a column of this name."""
    return name in KNOWN_COLUMNS or (name.startswith(TAG_PREFIX) and name.isprintable())


def is_index_column(name: str) -> bool:
    """Return whether this is the nameless row index of pandas, which is ignored."""
    return _INDEX_COLUMN.fullmatch(name) is not None


def check_header(line: int, header: Sequence[str], faults: Faults) -> list[tuple[int, str]]:
    """Return (place, name) of the columns to be read, and note those that cannot be.

    Raises:
        Unreadable: There is no `prompt`, so that no row can be checked.
    """
    if len(header) > MAX_COLUMNS:
        rule = f"a manifest has at most {MAX_COLUMNS:,} columns, and this one {len(header):,}"
        faults.add(line, "header", header[0], f"{rule}; remove some")
        raise Unreadable
    places: dict[str, int] = {}
    unknown = []
    for place, name in enumerate(header):
        if is_index_column(name):
            continue
        if name in places:
            rule = f"a name stands for one column, and {places[name] + 1} and {place + 1} share it"
            faults.add(line, "column", name, f"{rule}; rename or remove one")
        elif is_known_column(name):
            places[name] = place
        else:
            unknown.append(name)
            faults.add(line, "column", name, unknown_column_rule(name))
    if "prompt" not in places:
        if "prompt" not in map(_nearest_column, unknown):
            rule = "a manifest has a column prompt, and this one has none"
            faults.add(
                line, "header", ",".join(header), f"{rule}; name the columns in the first line"
            )
        raise Unreadable
    return [(place, name) for name, place in places.items()]


def unknown_column_rule(name: str) -> str:
    """Return what is wrong with the name of a column, and what to do."""
    nearest = _nearest_column(name)
    known = (
        f"the nearest known name is {nearest}"
        if nearest
        else f"the known names are {', '.join(KNOWN_COLUMNS)}"
    )
    return (
        f"a manifest has no such column, and {known}; correct or remove it, "
        f"or begin it with {TAG_PREFIX} if it is a label of your own"
    )


def _nearest_column(name: str) -> str | None:
    # Columns have short names, and difflib's time grows with the square of the length.
    short = name.strip(" _").lower()[:64]
    whole = [known for known in KNOWN_COLUMNS if short in known and len(short) > 2]
    if whole:
        return whole[0]  # `steps`, `frames`, `guidance`
    near = difflib.get_close_matches(short, KNOWN_COLUMNS, n=1, cutoff=SIMILARITY)
    return near[0] if near else None
