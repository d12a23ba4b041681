"""Published figures against a log: reproduced, or not, or not comparable and why. No torch.

"Reproduced" is said only of the same card with every setting that the source states, and of what it
does not state only with one of the combinations that are swept. Times are
medians of warm clips without text encoding, as in `timings`; memory is the highest peak of all
finished clips, since encoding is in the first ones; loading is that of the published weights. Clips
decoded from saved latents count for neither time nor memory. Where all are suspect, none counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hv15_batch.records import DONE_STATUSES
from hv15_batch.reference_combination import combination_of
from hv15_batch.reference_costs import Combination, combinations
from hv15_batch.reference_notes import method_of, notes_of, ratio_text, vram_bytes
from hv15_batch.reference_quality import suspect_difference
from hv15_batch.reference_settings import differences, remedies
from hv15_batch.references import Quantity, Reference, bounds_of
from hv15_batch.timings import GROUP_COLUMNS, Distribution, clip_seconds, distribution

CHECK_COLUMNS = (
    *("status", "is_cold", "repeat", "attempt", "denoise_attempt", "started_at"),
    *("total_seconds", "encode_seconds", "load_seconds", "quality_flag"),
    *("peak_vram_device_bytes", "peak_vram_reserved_bytes", "mfu"),
    *GROUP_COLUMNS,
)
"""Columns of the log that this module reads."""


class Verdict(Enum):
    """What a log says of a figure, best first."""

    reproduced = "reproduced"
    """Within the figure, its range or its bound."""
    surpassed = "surpassed"
    """Faster or smaller than the figure or its range; met, but not the same."""
    not_reproduced = "not reproduced"
    """Same card, same stated settings, but slower or larger."""
    not_comparable = "not comparable"
    """Another card or other settings, or nothing but suspect clips."""


MET = (Verdict.reproduced, Verdict.surpassed)


@dataclass(frozen=True)
class Measurement:
    """Clips of one log with equal settings, held against one figure."""

    verdict: Verdict
    quantity: Quantity
    settings: dict[str, Any]
    """`timings.GROUP_COLUMNS` with what all these clips have."""
    values: Distribution
    """Seconds or bytes, as the figure's quantity; spread is the IQR over the median."""
    compared: float
    """What is held against the figure: the median of seconds, the maximum of bytes."""
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
    """`compared` over the figure's upper end (GB as 10^9 bytes)."""
    utilisation: float | None
    """Median of the log's `mfu`: the work of denoising over its seconds, as a share of this card's
    dense bf16 rate. None where it was not logged or the figure is no time of a clip."""


@dataclass(frozen=True)
class ReferenceVerdict:
    """One published figure, what it implies and what the log says of it."""

    reference: Reference
    verdict: Verdict
    measured: tuple[Measurement, ...]
    """Best verdict first, then fewest differences; empty without any fitting clip."""
    combinations: tuple[Combination, ...]
    """What the figure implies for each set of settings that the source leaves possible."""
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

    Tiny models never count. Random weights count for time and memory, which do not depend on the
    values, and are noted; for loading they don't.

    Args:
        records: rows of one or several logs with `CHECK_COLUMNS`.
        references: published figures.
    """
    rows = [r for r in records if r["status"] in DONE_STATUSES and r["weights"] != "tiny"]
    return [_verdict(reference, rows) for reference in references]


def _verdict(reference: Reference, rows: Sequence[Mapping[str, Any]]) -> ReferenceVerdict:
    implied = tuple(combinations(reference))
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if _value(reference.quantity, row) is not None:
            groups.setdefault(tuple(row[name] for name in GROUP_COLUMNS), []).append(row)
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
    if row["denoise_attempt"] != row["attempt"]:
        return None  # decoded from saved latents: denoised at another time
    if quantity is Quantity.vram:
        return vram_bytes(row)
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
        *suspect_difference(reference.quantity, rows),
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
        method=method_of(reference.quantity, rows),
        differences=tuple(difference.sentence for difference in differing),
        remedies=tuple(remedies(differing)),
        combination=() if differing else tuple(combination_of(reference, settings)),
        notes=tuple(notes_of(reference, settings, values, compared, rows)),
        ratio=compared / reference.figure_max,
        utilisation=shares.median if shares and is_clip else None,
    )


def _reason(reference: Reference, best: Measurement) -> str:
    if best.verdict is Verdict.not_comparable:
        return best.differences[0]
    ratio = ratio_text(reference, best.ratio)
    where = f"Same card and all that the source states; {ratio} times the figure"
    is_vram = reference.quantity is Quantity.vram
    if best.verdict is Verdict.surpassed:
        return f"{where}: {'smaller' if is_vram else 'faster'} than published."
    if best.verdict is Verdict.reproduced:
        return f"{where}."
    return f"{where}: {'larger' if is_vram else 'slower'}."
