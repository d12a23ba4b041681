"""What to know before quoting a measured value beside a published figure, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hv15_batch.costs import CONTEXT_BYTES
from hv15_batch.reference_quality import suspect_difference, suspects_of
from hv15_batch.references import ABOUT_TOLERANCE, GB, Quantity, Reference, bounds_of
from hv15_batch.timings import Distribution, distribution

_MAX_DECIMALS = 6


def vram_bytes(row: Mapping[str, Any]) -> int | None:
    """Return the peak of the whole card: NVML's, else torch's reserved one plus CUDA's own part."""
    if row["peak_vram_device_bytes"] is not None:
        return int(row["peak_vram_device_bytes"])
    reserved = row["peak_vram_reserved_bytes"]
    return None if reserved is None else int(reserved) + CONTEXT_BYTES


def method_of(quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return in words what was measured."""
    if quantity is Quantity.clip_seconds:
        return "seconds of a warm clip without text encoding"
    if quantity is Quantity.load_seconds:
        return "seconds of loading transformer and VAE"
    if all(row["peak_vram_device_bytes"] is not None for row in rows):
        return "highest peak of the whole card, NVML"
    return "highest of torch's reserved peaks plus 1.4 GiB of CUDA context, where NVML told nothing"


def ratio_text(reference: Reference, ratio: float) -> str:
    """Return a ratio to the figure with two decimals, or as many as tell it from the bounds."""
    bounds = [bound / reference.figure_max for bound in bounds_of(reference)]
    other = [bound for bound in bounds if not math.isclose(bound, ratio, rel_tol=1e-9)]
    text = ""
    for decimals in range(2, _MAX_DECIMALS + 1):
        text = f"{ratio:.{decimals}f}"
        if text not in [f"{bound:.{decimals}f}" for bound in other]:
            break
    return text


def notes_of(
    reference: Reference,
    settings: Mapping[str, Any],
    values: Distribution,
    compared: float,
    rows: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return sentences on what to know before quoting what was measured.

    Args:
        reference: the figure that it is held against.
        settings: what the clips share.
        values: how the quantity was distributed.
        compared: what of it is held against the figure.
        rows: the clips.
    """
    notes = []
    suspects = suspects_of(rows)
    if suspects is not None and not suspect_difference(reference.quantity, rows):
        notes.append(f"{suspects}: look before quoting.")
    if settings["weights"] == "random":
        notes.append("Random weights: time and memory as with the published ones, no pictures.")
    if reference.engine is not None:
        notes.append(f"The figure is of {reference.engine}; measured was hv15_batch.")
    if reference.quantity is Quantity.load_seconds:
        notes.append("The text encoder, which this project loads apart, is not in it.")
    if reference.quantity is Quantity.vram:
        notes.append(_gb_note(reference, compared))
        if all(row["encode_seconds"] is None for row in rows):
            notes.append(
                "All embeddings were cached: encoding, which belongs to a peak, is not in it."
            )
    if values.n < 3:
        notes.append(f"Only n = {values.n}: too few to say how it spreads.")
    encoding = distribution([r["encode_seconds"] for r in rows if r["encode_seconds"] is not None])
    if reference.quantity is Quantity.clip_seconds and encoding is not None:
        notes.append(
            f"Encoding of a new text is not in it: {encoding.median:.1f} s "
            f"(median, n = {encoding.n})."
        )
    return notes


def _gb_note(reference: Reference, compared: float) -> str:
    assert reference.vram_gb_min is not None
    figure = reference.vram_gb_min
    decimal, binary = figure * GB, figure * 2**30
    both = f"{decimal / 2**30:.1f} GiB if GB is 10^9 bytes, {figure:g} GiB if it is 2^30"
    about = ABOUT_TOLERANCE if reference.is_approximate else 0.0
    over = compared / decimal - 1
    if 0 < over <= about:
        return (
            f"The figure is {both}; the peak is {over:.1%} over the first reading, which counts: "
            f"the source says 'about', here taken as {about:.0%}."
        )
    if decimal * (1 + about) < compared <= binary * (1 + about):
        return f"The figure is {both}: it holds only in the second reading, the first one counts."
    return f"The figure is {both}; the peak is {'over' if over > 0 else 'under'} both."
