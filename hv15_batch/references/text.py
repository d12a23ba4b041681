"""Verdicts on references and what they imply, as plain text for 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hv15_batch.references._implied import Combination, Feasibility, combinations
from hv15_batch.references.check import MET, Measurement, ReferenceVerdict
from hv15_batch.references.data import GB, Quantity, Reference
from hv15_batch.units import NOT_MEASURED, format_gib, format_share

COLUMNS = 80
_MARKS = {
    Feasibility.meets: "yes",
    Feasibility.faster_than_predicted: "if faster",
    Feasibility.fast_attention: "8-bit only",
    Feasibility.impossible: "no",
    Feasibility.unknown: "unknown",
}


def format_verdicts_text(verdicts: Sequence[ReferenceVerdict]) -> str:
    """Return every reference with its verdict and the reasons, wrapped to 80 columns."""
    lines = []
    for verdict in verdicts:
        name, reference = verdict.reference.name, verdict.reference
        title = f"{name}: {verdict.verdict.value}{format_combination(verdict.best)}"
        lines += textwrap.wrap(title, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
        lines += _wrapped(f"{reference.figure}, {reference.hardware} ({reference.source})")
        if verdict.best is not None:
            lines += _wrapped(f"measured: {format_measured(verdict.best)}; {verdict.best.method}")
        if verdict.combinations:
            lines += _wrapped(
                f"utilisation: {format_implied(verdict.combinations)} implied by the published "
                f"number, {format_utilisation(verdict.best)} here"
            )
        for other in verdict.measured[1:]:
            if not other.differences:
                other_verdict = f"{other.verdict.value}{format_combination(other)}"
                lines += _wrapped(f"{other_verdict}: {format_measured(other)}", "+ ")
        for sentence in sentences(verdict):
            lines += _wrapped(sentence, "- ")
        lines.append("")
    if any(v.best is not None and v.best.values.spread is not None for v in verdicts):
        lines.append(_SPREAD)
    return "\n".join(lines).rstrip() + "\n"


def format_references_text(references: Sequence[Reference]) -> str:
    """Return the references, what each leaves open, and which settings would meet it."""
    lines = []
    for reference in references:
        lines.append(reference.name)
        lines += _wrapped(f"{reference.figure}, {reference.hardware} ({reference.source})")
        lines += _wrapped(f"not stated: {', '.join(reference.not_stated)}")
        if reference.note:
            lines += _wrapped(reference.note)
        rows = [_cells(c) for c in combinations(reference)]
        if rows:
            lines += ["", *(f"    {line}" for line in _text_table(_HEAD, rows))]
        lines.append("")
    return "\n".join([*lines, *textwrap.wrap(_LEGEND, COLUMNS)]) + "\n"


_SPREAD = "Spread: the interquartile range over the median."
_LEGEND = (
    "PFLOP: work of denoising. util: the least share of the card's dense bf16 rate that the "
    "published number implies; over 100 % is impossible in bf16. 8-bit: the same with attention at "
    "twice that rate. predicted: seconds of a warm clip by this project's cost model, resident, "
    "mask-free, not compiled; an estimate from vendor figures. meets: whether these settings would "
    "meet the number; 'if faster': the card's peak allows it, the prediction is slower."
)


def _wrapped(text: str, mark: str = "") -> list[str]:
    indent = "  "
    return textwrap.wrap(
        text, COLUMNS, initial_indent=indent + mark, subsequent_indent=indent + " " * len(mark)
    )


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]


# -- cells ------------------------------------------------------------------------------------

_HEAD = (
    "size", "frames", "steps", "guided", "PFLOP", "util", "8-bit", "predicted", "meets"
)  # fmt: skip


def _cells(combination: Combination) -> list[str]:
    """Return a combination as text, by `_HEAD`."""
    shape, predicted = combination.shape, combination.predicted_seconds
    return [
        f"{shape.height}x{shape.width}",
        str(shape.num_frames),
        str(shape.num_inference_steps),
        "yes" if shape.has_guidance else "no",
        f"{combination.model_pflop:.1f}",
        format_share(combination.utilisation, 0),
        format_share(combination.fast_attention_utilisation, 0),
        NOT_MEASURED if predicted is None else f"{predicted:.0f} s",
        _MARKS[combination.feasibility],
    ]


def sentences(verdict: ReferenceVerdict) -> list[str]:
    """Return why, what else differs, what the source leaves open and what to know."""
    best = verdict.best
    found = [verdict.reason]
    if best is not None:
        found += [sentence for sentence in best.differences if sentence != verdict.reason]
        found += best.remedies
        found += best.notes
        found += _of_several(verdict)
    if verdict.reference.note:
        found.append(verdict.reference.note)
    return found


def _of_several(verdict: ReferenceVerdict) -> list[str]:
    """Return sentences that keep one good group of clips from standing for all of them."""
    found = []
    comparable = [m for m in verdict.measured if not m.differences]
    met = sum(m.verdict in MET for m in comparable)
    if met:
        found.append(f"Left open by the source: {', '.join(verdict.reference.not_stated)}.")
    if len(comparable) > 1:
        found.append(
            f"Of {len(comparable)} groups of clips on this card with these settings "
            f"{met} {'meets' if met == 1 else 'meet'} it."
        )
    others = len(verdict.measured) - max(len(comparable), 1)
    if others:
        found.append(
            f"{others} other group{'s' * (others > 1)} of clips "
            f"{'are' if others > 1 else 'is'} not comparable."
        )
    return found


def format_measured(measurement: Measurement | None) -> str:
    """Return what is compared with the published number, with n and spread; else a dash."""
    if measurement is None:
        return NOT_MEASURED
    values = measurement.values
    spread = "" if values.spread is None else f", spread {format_share(values.spread)}"
    s = measurement.settings
    clip = f"{s['model']} {s['height']}x{s['width']}x{s['num_frames']}"
    clip += f", {s['num_inference_steps']} steps, {s['offload']}, {s['attention_backend']}"
    if measurement.quantity is Quantity.vram:
        peak = f"{format_gib(measurement.compared)} GiB ({measurement.compared / GB:.1f} GB)"
        return f"{peak} (maximum, n = {values.n}); {clip}"
    return f"{measurement.compared:.1f} s (median, n = {values.n}{spread}); {clip}"


def format_combination(measurement: Measurement | None) -> str:
    """Return which settings that the source does not state the clips had, to follow a verdict."""
    if measurement is None or not measurement.combination:
        return ""
    *others, last = measurement.combination
    listed = f"{', '.join(others)} and {last}" if others else last
    return f" with {listed}, which the source does not state"


def format_utilisation(measurement: Measurement | None) -> str:
    """Return the measured share of the card's dense bf16 rate; a dash where it is not known."""
    return format_share(None if measurement is None else measurement.utilisation, 0)


def format_implied(implied: Sequence[Combination]) -> str:
    """Return the range of utilisation that a number implies over what its source leaves open."""
    shares = [c.utilisation for c in implied if c.utilisation is not None]
    if not shares:
        return NOT_MEASURED
    low, high = format_share(min(shares), 0), format_share(max(shares), 0)
    return low if low == high else f"{low} to {high}"
