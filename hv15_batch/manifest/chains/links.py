"""Which row follows which: references between rows are found, checked and put in order."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from hv15_batch.manifest.cells import MAX_SHOWN_FAULTS, Faults
from hv15_batch.manifest.rows import Row

_BROKEN = -1
"""In place of a level: the row's chain has no beginning."""


def whole_chains(rows: Sequence[Row], refused: Collection[str], faults: Faults) -> list[Row]:
    """Return the rows whose chains are whole; note the faults of the others.

    A row that follows a refused one has no fault of its own, and is left out too.

    Args:
        rows: The good rows of a manifest, in file order.
        refused: Ids of rows that have other faults.
        faults: Where faults are noted.
    """
    if not any(row.image_frame for row in rows):
        return list(rows)
    by_id = _by_id(rows)
    expanded = {row.template_id: row for row in reversed(rows) if row.template_id is not None}
    for row in rows:
        if row.image_frame is None:
            continue
        name = row.image_frame.row_id
        source = by_id.get(name)
        rule = None
        if name in expanded or (source is not None and source.template_id is not None):
            rule = f"{name} is a template, which makes many rows, and a clip follows one of them"
            rule += "; write that one as a row of its own"
        elif source is None and name not in refused:
            # Each search goes through all ids: none for faults that are only counted.
            is_shown = len(faults) < MAX_SHOWN_FAULTS
            near = difflib.get_close_matches(name, by_id, n=1) if is_shown else []
            hint = f"write @{near[0]}:{row.image_frame.frame} if that is meant" if near else ""
            rule = f"no row has the id {name}; {hint or 'give the row that it follows that id'}"
        if rule is not None:
            faults.add(row.line, "image", row.image or "", rule)
    levels = _levels(rows, by_id)
    for row in _circles(rows, by_id):
        rule = "a chain of rows has a beginning, and this one is a circle; correct one of its cells"
        faults.add(row.line, "image", row.image or "", rule)
    whole = [
        row
        for row in rows
        if levels[row.index] != _BROKEN
        and not (row.image_frame and by_id[row.image_frame.row_id].template_id)
    ]
    if len(whole) == len(rows):
        return whole
    return [replace(row, index=index) for index, row in enumerate(whole)]


def sources_first(rows: Sequence[Row]) -> list[tuple[Row, Row | None]]:
    """Return each row with the row that it follows, after that one; others are left out.

    Args:
        rows: Of a manifest, or some of them.
    """
    if not any(row.image_frame for row in rows):
        return [(row, None) for row in rows]
    by_id = _by_id(rows)
    levels = _levels(rows, by_id)
    found = [(row, _source(row, by_id)) for row in rows if levels[row.index] != _BROKEN]
    return sorted(found, key=lambda pair: levels[pair[0].index])  # stable


def _by_id(rows: Iterable[Row]) -> dict[str, Row]:
    """Return the first row of each id."""
    found: dict[str, Row] = {}
    for row in rows:
        found.setdefault(row.id, row)
    return found


def _source(row: Row, by_id: dict[str, Row]) -> Row | None:
    return by_id.get(row.image_frame.row_id) if row.image_frame else None


def _levels(rows: Sequence[Row], by_id: dict[str, Row]) -> dict[int, int]:
    """Return how many rows come before each in its chain, by index; `_BROKEN` without a first."""
    levels: dict[int, int] = {}
    for start in rows:
        path: dict[int, None] = {}
        row: Row | None = start
        while row is not None and row.index not in levels and row.index not in path:
            path[row.index] = None
            if row.image_frame is None:
                level = 0
                break
            row = _source(row, by_id)
        else:  # a row that is known, a circle, or no row
            known = levels.get(row.index, _BROKEN) if row is not None else _BROKEN
            level = _BROKEN if known == _BROKEN else known + 1
        for index in reversed(path):
            levels[index] = level
            level = _BROKEN if level == _BROKEN else level + 1
    return levels


def _circles(rows: Sequence[Row], by_id: dict[str, Row]) -> list[Row]:
    """Return the first row of each circle."""
    seen: set[int] = set()
    found = []
    for start in rows:
        path: dict[int, Row] = {}
        row: Row | None = start
        while row is not None and row.index not in seen:
            seen.add(row.index)
            path[row.index] = row
            row = _source(row, by_id)
        if row is not None and row.index in path:
            circle = list(path.values())[list(path).index(row.index) :]
            found.append(min(circle, key=lambda each: each.index))
    return found
