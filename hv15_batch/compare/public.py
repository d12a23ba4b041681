"""What a public comparison may know: everything else is taken out before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hv15_batch.compare.comparison import Comparison
from hv15_batch.compare.pairs import Pair
from hv15_batch.compare.quality import GONE, Quality
from hv15_batch.compare.settings import SettingsRow
from hv15_batch.report.public import PRIVATE_COLUMNS, public_clip
from hv15_batch.rundir import RunDir

NOT_SHOWN = "not shown"
"""In place of a private setting: whether it differs is no secret."""
NOT_READ = "a file could not be read"
"""In place of a message, which names files: their names begin with words of the prompt."""


def without_private(comparison: Comparison) -> Comparison:
    """Return a comparison without hostname, folders and prompts, and so without its clips.

    Rows are numbered in the order of the page: their places in a manifest that has changed since
    may be those of other rows.
    """
    matched = comparison.matched
    rows = list(dict.fromkeys(pair.row_id for pair in matched.pairs))
    places = {row_id: place for place, row_id in enumerate(rows)}
    qualities = [_public_quality(q, places[q.pair.row_id]) for q in comparison.qualities]
    return replace(
        comparison,
        matched=replace(
            matched,
            a=RunDir(Path("run 1")),
            b=RunDir(Path("run 2")),
            pairs=[quality.pair for quality in qualities],
            timed=[],
            left_out=[],
        ),
        qualities=qualities,
        settings=[_public_row(row) for row in comparison.settings],
        is_public=True,
    )


def _public_quality(quality: Quality, place: int) -> Quality:
    pair = quality.pair
    a, b = (public_clip({**record, "row_index": place}) for record in (pair.a, pair.b))
    fault = quality.fault
    if fault is not None and fault not in (pair.fault, *GONE.values()):
        fault = NOT_READ
    return replace(quality, pair=Pair(a["row_id"], pair.seed, a, b, pair.fault), fault=fault)


def _public_row(row: SettingsRow) -> SettingsRow:
    if row.name not in PRIVATE_COLUMNS:
        return row
    return replace(row, a=NOT_SHOWN, b=NOT_SHOWN)
