"""A log compared with published numbers: the verdict, and what differs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hv15_batch.figures.groups import (
    GROUP_COLUMNS,
    TIMING_COLUMNS,
    Distribution,
    distribution,
    group_key,
)
from hv15_batch.machine.cards import CONTEXT_BYTES
from hv15_batch.model.variant import SMALL
from hv15_batch.record import DONE_STATUSES, SUSPECT, clip_seconds, is_denoised_here
from hv15_batch.references._implied import Combination, combinations
from hv15_batch.references._settings import (
    Difference,
    DifferenceKind,
    combination_of,
    differences,
    remedies,
)
from hv15_batch.references.data import ABOUT_TOLERANCE, GB, Quantity, Reference, bounds_of
from hv15_batch.units import GIB, format_gib, format_share

CHECK_COLUMNS = (*TIMING_COLUMNS, "quality_flag", "mfu")
"""Columns of the log that this module reads."""


class Verdict(Enum):
    """What a log says of a published number, best first."""

    reproduced = "reproduced"
    """Within the published number, its range or its bound."""
    surpassed = "surpassed"
    """Faster or smaller than the published number or its range; met, but not the same."""
    not_reproduced = "not reproduced"
    """Same card, same stated settings, but slower or larger."""
    not_comparable = "not comparable"
    """Another card or other settings, or all clips are suspect."""


MET = (Verdict.reproduced, Verdict.surpassed)


@dataclass(frozen=True)
class Measurement:
    """Clips of one log with equal settings, compared with one published number."""

    verdict: Verdict
    quantity: Quantity
    settings: dict[str, Any]
    """`figures.groups.GROUP_COLUMNS` with what all these clips have."""
    values: Distribution
    """Seconds or bytes, by `quantity`; spread is the IQR over the median."""
    compared: float
    """What is compared with the published number: the median of seconds, the maximum of bytes."""
    method: str
    """What was measured, in words."""
    differences: tuple[str, ...]
    """One sentence for each thing that is not as the source states; empty where comparable."""
    remedies: tuple[str, ...]
    """One sentence for each kind of difference: what to do about it."""
    combination: tuple[str, ...]
    """In words, the settings of comparable clips that the source does not state."""
    notes: tuple[str, ...]
    """Sentences on what to know before quoting it."""
    ratio: float
    """`compared` over the upper end of the published number (GB as 10^9 bytes)."""
    utilisation: float | None
    """Median of the log's `mfu`: the work of denoising over its seconds, as a share of this card's
    dense bf16 rate. None where it was not logged, and for memory and loading."""


@dataclass(frozen=True)
class ReferenceVerdict:
    """One published number, what it implies and what the log says of it."""

    reference: Reference
    verdict: Verdict
    measured: tuple[Measurement, ...]
    """Best verdict first, then fewest differences; empty without any fitting clip."""
    combinations: tuple[Combination, ...]
    """What the number implies for each set of settings that the source leaves possible."""
    reason: str
    """One sentence: why this verdict."""

    @property
    def best(self) -> Measurement | None:
        """The measurement that the verdict rests on, or the nearest one."""
        return self.measured[0] if self.measured else None


def compare_with_references(
    records: Iterable[Mapping[str, Any]], references: Sequence[Reference]
) -> list[ReferenceVerdict]:
    """Return a verdict on each reference, in their order.

    Tiny and demo models never count. Random weights count for time and memory, which do not depend
    on the values, and are noted; for loading they don't.

    Args:
        records: rows of one or several logs with `CHECK_COLUMNS`.
        references: published numbers.
    """
    rows = [r for r in records if r["status"] in DONE_STATUSES and r["weights"] not in SMALL]
    return [_verdict(reference, rows) for reference in references]


def _verdict(reference: Reference, rows: Sequence[Mapping[str, Any]]) -> ReferenceVerdict:
    implied = tuple(combinations(reference))
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if _value(reference.quantity, row) is not None:
            groups.setdefault(group_key(row), []).append(row)
    order = list(Verdict)
    measured = sorted(
        (_measurement(reference, group) for group in groups.values()),
        key=lambda m: (order.index(m.verdict), len(m.differences), m.compared),
    )
    if not measured:
        reason = f"No {_WANTED[reference.quantity]} is in the log."
        return ReferenceVerdict(reference, Verdict.not_comparable, (), implied, reason)
    best = measured[0]
    return ReferenceVerdict(
        reference, best.verdict, tuple(measured), implied, _reason(reference, best)
    )


_WANTED = {
    Quantity.clip_seconds: "finished warm clip of a full-size model",
    Quantity.vram: "clip of a full-size model, denoised and decoded at once, with its peak memory",
    Quantity.load_seconds: "loading of published weights",
}


def _value(quantity: Quantity, row: Mapping[str, Any]) -> float | None:
    """Return what a row says of a quantity; None where it does not count."""
    if quantity is Quantity.load_seconds:
        return row["load_seconds"] if row["weights"] == "pretrained" else None
    if not is_denoised_here(row):
        return None
    if quantity is Quantity.vram:
        return _vram_bytes(row)
    return None if row["is_cold"] is not False or row["repeat"] == 0 else clip_seconds(row)


def _measurement(reference: Reference, rows: Sequence[Mapping[str, Any]]) -> Measurement:
    settings = {name: rows[0][name] for name in GROUP_COLUMNS}
    raw = [_value(reference.quantity, row) for row in rows]
    values = distribution([value for value in raw if value is not None])
    assert values is not None
    is_vram = reference.quantity is Quantity.vram
    compared = values.maximum if is_vram else values.median
    differing = [
        *differences(reference, settings),
        *_suspect_difference(reference.quantity, rows),
    ]
    low, high = bounds_of(reference)
    verdict = Verdict.not_reproduced
    if differing:
        verdict = Verdict.not_comparable
    elif compared <= high:
        verdict = Verdict.reproduced if compared >= low else Verdict.surpassed
    is_clip = reference.quantity is Quantity.clip_seconds
    shares = distribution([row["mfu"] for row in rows if row["mfu"] is not None])
    return Measurement(
        verdict=verdict,
        quantity=reference.quantity,
        settings=settings,
        values=values,
        compared=compared,
        method=_method_of(reference.quantity, rows),
        differences=tuple(difference.sentence for difference in differing),
        remedies=tuple(remedies(differing)),
        combination=() if differing else tuple(combination_of(reference, settings)),
        notes=tuple(_notes_of(reference, settings, values, compared, rows)),
        ratio=compared / reference.figure_max,
        utilisation=shares.median if shares and is_clip else None,
    )


def _reason(reference: Reference, best: Measurement) -> str:
    if best.verdict is Verdict.not_comparable:
        return best.differences[0]
    ratio = _ratio_text(reference, best.ratio)
    where = f"Same card and all that the source states; {ratio} times the published number"
    is_vram = reference.quantity is Quantity.vram
    if best.verdict is Verdict.surpassed:
        return f"{where}: {'smaller' if is_vram else 'faster'} than published."
    if best.verdict is Verdict.reproduced:
        return f"{where}."
    return f"{where}: {'larger' if is_vram else 'slower'}."


# -- what to know before quoting ---------------------------------------------------------------

_MAX_DECIMALS = 6


def _vram_bytes(row: Mapping[str, Any]) -> int | None:
    """Return the peak of the whole card: NVML's, else torch's reserved one plus CUDA's own part."""
    if row["peak_vram_device_bytes"] is not None:
        return int(row["peak_vram_device_bytes"])
    reserved = row["peak_vram_reserved_bytes"]
    return None if reserved is None else int(reserved) + CONTEXT_BYTES


def _method_of(quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return in words what was measured."""
    if quantity is Quantity.clip_seconds:
        return "seconds of a warm clip without text encoding"
    if quantity is Quantity.load_seconds:
        return "seconds of loading transformer and VAE"
    if all(row["peak_vram_device_bytes"] is not None for row in rows):
        return "highest peak of the whole card, NVML"
    return "highest of torch's reserved peaks plus 1.4 GiB of CUDA context, where NVML gave nothing"


def _ratio_text(reference: Reference, ratio: float) -> str:
    """Return a ratio with two decimals, or as many as tell it from the bounds."""
    bounds = [bound / reference.figure_max for bound in bounds_of(reference)]
    other = [bound for bound in bounds if not math.isclose(bound, ratio, rel_tol=1e-9)]
    text = ""
    for decimals in range(2, _MAX_DECIMALS + 1):
        text = f"{ratio:.{decimals}f}"
        if text not in [f"{bound:.{decimals}f}" for bound in other]:
            break
    return text


def _notes_of(
    reference: Reference,
    settings: Mapping[str, Any],
    values: Distribution,
    compared: float,
    rows: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return sentences on what to know before quoting what was measured.

    Args:
        reference: the number that it is compared with.
        settings: what the clips share.
        values: how the quantity was distributed.
        compared: what of it is compared with the number.
        rows: the clips.
    """
    notes = []
    suspects = _suspects_of(rows)
    if suspects is not None and not _suspect_difference(reference.quantity, rows):
        notes.append(f"{suspects}: look before quoting.")
    if settings["weights"] == "random":
        notes.append("Random weights: time and memory as with the published ones, no pictures.")
    if reference.engine is not None:
        here = "hv15_batch" if settings["engine"] is None else "Tencent's generate.py"
        notes.append(f"The published number is of {reference.engine}; this log is of {here}.")
    if reference.quantity is Quantity.load_seconds and settings["engine"] is None:
        notes.append("Not included: the text encoder, which this project loads separately.")
    if reference.quantity is Quantity.vram:
        notes.append(_gb_note(reference, compared))
        if all(row["encode_seconds"] is None for row in rows):
            notes.append("The peak is without encoding: all embeddings were cached.")
    if values.n < 3:
        notes.append(f"Only n = {values.n}: too few to tell the spread.")
    encoding = distribution([r["encode_seconds"] for r in rows if r["encode_seconds"] is not None])
    if reference.quantity is Quantity.clip_seconds and encoding is not None:
        notes.append(
            f"Not included: encoding of a new text, {encoding.median:.1f} s "
            f"(median, n = {encoding.n})."
        )
    return notes


def _gb_note(reference: Reference, compared: float) -> str:
    assert reference.vram_gb_min is not None
    figure = reference.vram_gb_min
    decimal, binary = figure * GB, figure * GIB
    both = f"{format_gib(decimal)} GiB if GB is 10^9 bytes, {figure:g} GiB if it is 2^30"
    about = ABOUT_TOLERANCE if reference.is_approximate else 0.0
    over = compared / decimal - 1
    if 0 < over <= about:
        return (
            f"The published number is {both}. The peak is {format_share(over)} over the first "
            f"reading, which decides: 'about' in the source allows {format_share(about, 0)}."
        )
    if decimal * (1 + about) < compared <= binary * (1 + about):
        return f"The published number is {both}. Only the second is met, and the first decides."
    return f"The published number is {both}. The peak is {'over' if over > 0 else 'under'} both."


def _suspect_difference(quantity: Quantity, rows: Sequence[Mapping[str, Any]]) -> list[Difference]:
    """Return why clips that are all suspect can't meet a number; loading needs no picture."""
    said = _suspects_of(rows)
    is_all = all(row["status"] == SUSPECT for row in rows)
    if said is None or not is_all or quantity is Quantity.load_seconds:
        return []
    return [Difference(DifferenceKind.suspect, f"Quality: {said}.")]


def _suspects_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return how many of the clips are suspect and with which flags; None where none is."""
    suspect = [row for row in rows if row["status"] == SUSPECT]
    if not suspect:
        return None
    flags = sorted({row["quality_flag"] for row in suspect if row["quality_flag"]})
    why = f" ({', '.join(flags)})" if flags else ""
    clips = "clip" if len(rows) == 1 else "clips"
    verb = "is" if len(suspect) == 1 else "are"
    return f"{len(suspect)} of {len(rows)} {clips} {verb} suspect{why}"
