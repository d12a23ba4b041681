"""Clips that look broken bear out no figure: how many of those held against one are suspect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hv15_batch.records import SUSPECT
from hv15_batch.reference_settings import Difference, DifferenceKind
from hv15_batch.references import Quantity


def suspect_difference(quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return why clips that are all suspect can't meet a figure; loading needs no picture."""
    said = suspects_of(rows)
    is_all = all(row["status"] == SUSPECT for row in rows)
    if said is None or not is_all or quantity is Quantity.load_seconds:
        return []
    return [Difference(DifferenceKind.suspect, f"Quality: {said}.")]


def suspects_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how many of the clips are suspect and with which flags; None where none is."""
    suspect = [row for row in rows if row["status"] == SUSPECT]
    if not suspect:
        return None
    flags = sorted({row["quality_flag"] for row in suspect if row["quality_flag"]})
    why = f" ({', '.join(flags)})" if flags else ""
    clips = "clip" if len(rows) == 1 else "clips"
    verb = "is" if len(suspect) == 1 else "are"
    return f"{len(suspect)} of {len(rows)} {clips} {verb} suspect{why}"
