"""The quality of pairs as text: what is identical is counted, and medians are of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from hv15_batch.compare.frames import FrameMeasures
from hv15_batch.compare.quality import H264, LOSSLESS, Quality
from hv15_batch.compare.tensors import LatentMeasures

NOT_KEPT = "not kept, so not measured"


def quality_lines(qualities: Iterable[Quality]) -> list[str]:
    """Return what was found of latents and of each kind of file, each apart.

    Latents that differ but were not kept are counted too, though nothing is measured of them.
    """
    found = list(qualities)
    latents = [q.latents for q in found if q.latents is not None]
    lines = [_latents_line(latents)] if latents else []
    files = [is_same for q in found if (is_same := is_same_file(q)) is not None]
    if files:
        lines.append(f"Files: {sum(files)} of {len(files)} pairs bit-identical files")
    for basis in (LOSSLESS, H264):
        of_basis = [q for q in found if q.basis == basis]
        if of_basis:
            lines.append(_frames_line(basis, of_basis))
    return lines


def pair_line(quality: Quality) -> str:
    """Return what was found of one pair."""
    parts = []
    latents, frames = quality.latents, quality.frames
    if latents is not None:
        if latents.is_identical:
            parts.append("bit-identical latents")
        elif latents.psnr_db is not None:
            parts.append(f"latents PSNR {format_db(latents.psnr_db)}")
        else:
            parts.append(f"latents differ ({NOT_KEPT})")
    if is_same_file(quality):
        parts.append("bit-identical files")
    if frames is not None:
        parts.append(f"frames ({quality.basis}) {_measures_text([frames])}")
        if quality.is_at_floor:
            parts.append("within the codec's own error")
    if quality.fault:
        parts.append(quality.fault if quality.is_known else f"not comparable: {quality.fault}")
    return ", ".join(parts) or "nothing to measure: neither latents nor files were kept"


def is_same_file(quality: Quality) -> bool | None:
    """Return whether the log has one hash for both files; None where it lacks one, or sizes differ.

    As for latents, the hashes in the log are enough: the files may be gone.
    """
    pair = quality.pair
    hashes = (pair.a.get("file_sha256"), pair.b.get("file_sha256"))
    if pair.fault is not None or None in hashes:
        return None
    return bool(hashes[0] == hashes[1])


def latents_cell(latents: LatentMeasures) -> str:
    """Return the latents of one pair as a table shows them."""
    return "differ, not measured" if latents.psnr_db is None else format_db(latents.psnr_db)


def format_db(value: float | None) -> str:
    """Return decibels as text."""
    if value is None:
        return "not measured"
    return "infinite (identical)" if math.isinf(value) else f"{value:.2f} dB"


def _latents_line(latents: Sequence[LatentMeasures]) -> str:
    same = sum(found.is_identical for found in latents)
    line = f"Latents: {same} of {len(latents)} pairs bit-identical latents"
    others = [found for found in latents if not found.is_identical]
    psnrs = [found.psnr_db for found in others if found.psnr_db is not None]
    unknown = len(others) - len(psnrs)
    if unknown:
        line += f", {unknown} {'differs' if unknown == 1 else 'differ'} ({NOT_KEPT})"
    if psnrs:
        ranges = [found.data_range for found in others if found.data_range is not None]
        line += (
            f", the others PSNR {_median_db(psnrs)} (median of {len(psnrs)}; relative to the range "
            f"of A's latents, {median(ranges):.3g})"
        )
    return line


def _frames_line(basis: str, found: Sequence[Quality]) -> str:
    frames = [q.frames for q in found if q.frames is not None]
    line = f"Frames ({basis} files): {_medians_text(frames, 'identical')}"
    if basis == LOSSLESS:
        return line
    floors = [q.floor for q in found if q.floor is not None]
    if not floors:
        return f"{line}; the codec's floor is not known: frames are too small for it"
    at_floor = sum(q.is_at_floor for q in found)
    return (
        f"{line}; the codec alone costs each file, estimated: "
        f"{_medians_text(floors, 'without any error')}; {at_floor} of {len(found)} pairs differ by "
        "no more than two such errors"
    )


def _medians_text(found: Sequence[FrameMeasures], identical: str) -> str:
    """Return the medians of pairs that differ, and how many don't.

    A median over both would be infinite where half of the pairs are identical, as if all were.
    """
    others = [measures for measures in found if not _is_identical(measures)]
    if not others or len(others) == len(found):
        return f"{_measures_text(found)} (medians of {_pairs(len(found))})"
    return (
        f"{len(found) - len(others)} of {len(found)} pairs {identical}; the others "
        f"{_measures_text(others)} (medians of {_pairs(len(others))})"
    )


def _pairs(number: int) -> str:
    return "1 pair" if number == 1 else f"{number} pairs"


def _is_identical(measures: FrameMeasures) -> bool:
    """Whether the frames are the same, and not their luma alone."""
    return math.isinf(measures.psnr_db) and math.isinf(measures.rgb_psnr_db)


def _measures_text(found: Sequence[FrameMeasures]) -> str:
    """Return the median of each measure; there must be at least one."""
    parts = [f"PSNR {_median_db([m.psnr_db for m in found])}"]
    ssims = [m.ssim for m in found if m.ssim is not None]
    if ssims:
        parts.append(f"SSIM {median(ssims):.4f}")
    temporal = [m.temporal_psnr_db for m in found if m.temporal_psnr_db is not None]
    if temporal:
        parts.append(f"temporal PSNR {_median_db(temporal)}")
    return ", ".join(parts)


def _median_db(values: Sequence[float]) -> str:
    """Return the median of what is finite, and how many are not.

    One measure may be infinite where another isn't: a steady shift has no temporal error.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return format_db(math.inf)
    text = format_db(median(finite))
    infinite = len(values) - len(finite)
    return f"{text} ({infinite} of {len(values)} infinite)" if infinite else text
