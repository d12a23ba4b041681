"""How alike a pair of clips is, in numbers and in words.

Identical pairs are counted; medians are over the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from hv15_batch.compare._measures import (
    FrameMeasures,
    LatentMeasures,
    measure_frames,
    measure_latents,
)
from hv15_batch.compare._pairs import Pair
from hv15_batch.media.video import lossy_codec, read_frames
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import fetched

LOSSLESS = "lossless"
NOT_KEPT = "not kept, so not measured"
GONE = {
    (True, False): "the file of A is gone",
    (False, True): "the file of B is gone",
    (True, True): "the files of both are gone",
}
"""Which of the two files no longer exist, and the text for it."""
NOT_READ = "a file could not be read"
_CODEC_NOTE = "they include the codec's own error; video.codec=ffv1 has none"


@dataclass(frozen=True)
class Quality:
    """How far the two clips of a pair are apart."""

    pair: Pair
    latents: LatentMeasures | None = None
    has_identical_files: bool | None = None
    """Whether the files have the same bytes, by their hashes in the log; None where not known."""
    frames: FrameMeasures | None = None
    basis: str | None = None
    """`lossless` where both files are, else the other codecs; None where nothing was measured."""
    fault: str | None = None
    """Why nothing, or not all, could be measured; may name files, which is private."""

    @property
    def is_known(self) -> bool:
        """Whether a measure of quality exists, so that a speed-up may be shown."""
        is_measured = self.latents is not None and self.latents.psnr_db is not None
        return is_measured or bool(self.has_identical_files) or self.frames is not None

    @property
    def shared_fault(self) -> str | None:
        """`fault` without names of files, which begin with words of prompts."""
        if self.fault is None or self.fault in (self.pair.fault, *GONE.values()):
            return self.fault
        return NOT_READ


def measure_pair(run_a: RunDir, run_b: RunDir, pair: Pair) -> Quality:
    """Measure one pair; what cannot be measured is reported in `fault`."""
    if pair.fault is not None:
        return Quality(pair, fault=pair.fault)
    latents, is_same = measure_latents(run_a, run_b, pair), _has_identical_files(pair)
    paths = [
        fetched(run_dir, str(record["file"]))
        for run_dir, record in ((run_a, pair.a), (run_b, pair.b))
    ]
    is_gone_a, is_gone_b = (not path.is_file() for path in paths)
    if is_gone_a or is_gone_b:
        return Quality(pair, latents, is_same, fault=GONE[is_gone_a, is_gone_b])
    try:
        frames = measure_frames(*map(read_frames, paths))
    except (OSError, ValueError) as error:
        return Quality(pair, latents, is_same, fault=_without_folders(str(error), run_a, run_b))
    return Quality(pair, latents, is_same, frames, _basis(paths))


def _has_identical_files(pair: Pair) -> bool | None:
    a, b = pair.a["file_sha256"], pair.b["file_sha256"]
    return None if a is None or b is None else a == b


def _basis(paths: Iterable[Path]) -> str:
    lossy = {str(codec) for path in paths if (codec := lossy_codec(path)) is not None}
    return " and ".join(sorted(lossy)) or LOSSLESS


def _without_folders(text: str, *run_dirs: RunDir) -> str:
    """Return a text, for showing, in which the run's name stands for a file's path."""
    for run_dir in run_dirs:
        text = text.replace(str(run_dir.path), run_dir.path.name)
    return text


# -- in words ---------------------------------------------------------------------------------


def quality_lines(qualities: Sequence[Quality]) -> list[str]:
    """Return what was found of latents, of files and of each kind of frames, each apart.

    Latents that differ but were not kept are counted too, though nothing is measured of them.
    """
    latents = [q.latents for q in qualities if q.latents is not None]
    lines = [_latents_line(latents)] if latents else []
    files = [q.has_identical_files for q in qualities if q.has_identical_files is not None]
    if files:
        lines.append(f"Files: {sum(files)} of {len(files)} pairs bit-identical files")
    bases = {q.basis for q in qualities if q.basis is not None}
    for basis in sorted(bases, key=lambda basis: (basis != LOSSLESS, basis)):
        frames = [q.frames for q in qualities if q.basis == basis and q.frames is not None]
        if frames:
            lines.append(_frames_line(basis, frames))
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
    if quality.has_identical_files:
        parts.append("bit-identical files")
    if frames is not None:
        parts.append(f"frames ({quality.basis}) {_measures_text([frames])}")
    if quality.fault:
        parts.append(quality.fault if quality.is_known else f"not comparable: {quality.fault}")
    return ", ".join(parts) or "nothing to measure: neither latents nor files were kept"


def quality_cells(quality: Quality, missing: str) -> list[str]:
    """Return latents' PSNR, and PSNR, SSIM and temporal PSNR of frames, as tables show them."""
    latents, frames = quality.latents, quality.frames
    cells = [missing if latents is None else _latents_cell(latents)]
    if frames is None:
        return [*cells, missing, missing, missing]
    ssim = missing if frames.ssim is None else f"{frames.ssim:.4f}"
    return [*cells, format_db(frames.psnr_db), ssim, format_db(frames.temporal_psnr_db)]


def format_db(value: float | None) -> str:
    """Return decibels as text."""
    if value is None:
        return "not measured"
    return "infinite (identical)" if math.isinf(value) else f"{value:.2f} dB"


def _latents_cell(latents: LatentMeasures) -> str:
    return "differ, not measured" if latents.psnr_db is None else format_db(latents.psnr_db)


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


def _frames_line(basis: str, found: Sequence[FrameMeasures]) -> str:
    """Return the medians of pairs that differ, and how many don't.

    A median over both would be infinite where half of the pairs are identical, as if all were.
    """
    others = [measures for measures in found if not measures.is_identical]
    line = f"Frames ({basis} files): "
    if others and len(others) < len(found):
        line += f"{len(found) - len(others)} of {len(found)} pairs identical; the others "
    shown = others or found
    pairs = "1 pair" if len(shown) == 1 else f"{len(shown)} pairs"
    line += f"{_measures_text(shown)} (medians of {pairs})"
    return f"{line}; {_CODEC_NOTE}" if others and basis != LOSSLESS else line


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
