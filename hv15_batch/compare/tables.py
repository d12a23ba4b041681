"""A comparison as CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from hv15_batch.compare.comparison import Comparison, summary_lines
from hv15_batch.compare.quality import Quality
from hv15_batch.compare.quality_text import format_db, latents_cell, pair_line
from hv15_batch.compare.ratios import ClipTimings
from hv15_batch.timings import clip_seconds

SIDES = ("a", "b")
_LOGGED = (
    "clip_id",
    "denoise_seconds",
    "is_cold",
    "peak_vram_reserved_bytes",
    "peak_ram_bytes",
)
"""Columns of the log, one for each side."""
_MEASURES = ("psnr_db", "rgb_psnr_db", "ssim", "temporal_psnr_db")
COLUMNS = (
    "row_id",
    "seed",
    "is_comparable",
    "note",
    "latents_identical",
    "latents_psnr_db",
    "latents_data_range",
    "frames_basis",
    *_MEASURES,
    *(f"floor_{name}" for name in _MEASURES),
    *(f"{name}_{side}" for name in ("clip_seconds", *_LOGGED) for side in SIDES),
    *("num_timings", "timed_seconds_a", "timed_seconds_b"),
    *("num_timings_left_out", "left_out_by"),
)


def format_csv(comparison: Comparison) -> str:
    """Return one line per pair; not measured is empty, and infinite is `inf`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for quality, timings in zip(comparison.qualities, comparison.timings, strict=True):
        cells = _cells(quality) | _timing_cells(timings)
        writer.writerow([_cell(cells.get(name)) for name in COLUMNS])
    return text.getvalue()


def format_markdown(comparison: Comparison) -> str:
    """Return summary, differing settings and a table, fit to paste into an issue."""
    matched = comparison.matched
    lines = [f"# {matched.a.path.name} (A) and {matched.b.path.name} (B)", ""]
    lines += [f"- {_escaped(line)}" for line in summary_lines(comparison)]
    differing = [row for row in comparison.settings if not row.is_same]
    lines += ["", *_table(("setting", "A", "B"), [(r.name, r.a, r.b) for r in differing])]
    if not differing:
        lines[-2:] = ["No setting differs."]
    rows = []
    for quality in comparison.qualities:
        pair, frames, latents = quality.pair, quality.frames, quality.latents
        rows.append(
            (
                pair.row_id,
                str(pair.seed),
                "" if latents is None else latents_cell(latents),
                "" if frames is None else format_db(frames.psnr_db),
                "" if frames is None or frames.ssim is None else f"{frames.ssim:.4f}",
                "" if frames is None else format_db(frames.temporal_psnr_db),
                pair_line(quality) if quality.fault else "",
            )
        )
    header = ("row", "seed", "latents PSNR", "PSNR", "SSIM", "temporal PSNR", "note")
    return "\n".join([*lines, "", *_table(header, rows)]) + "\n"


def _cells(quality: Quality) -> dict[str, Any]:
    pair, latents = quality.pair, quality.latents
    cells: dict[str, Any] = {
        "row_id": pair.row_id,
        "seed": pair.seed,
        "is_comparable": quality.is_known,
        "note": quality.fault,
        "frames_basis": quality.basis,
    }
    if latents is not None:
        cells |= {
            "latents_identical": latents.is_identical,
            "latents_psnr_db": latents.psnr_db,
            "latents_data_range": latents.data_range,
        }
    for prefix, measures in (("", quality.frames), ("floor_", quality.floor)):
        if measures is not None:
            cells |= {f"{prefix}{name}": getattr(measures, name) for name in _MEASURES}
    for side, record in zip(SIDES, (pair.a, pair.b), strict=True):
        cells |= {f"{name}_{side}": record[name] for name in _LOGGED}
        cells[f"clip_seconds_{side}"] = clip_seconds(record)
    if not quality.is_known:  # no time without its quality
        for name in ("clip_seconds", *_LOGGED[1:]):
            cells |= {f"{name}_{side}": None for side in SIDES}
    return cells


def _timing_cells(timings: ClipTimings) -> dict[str, Any]:
    """Return what the ratios have of a pair: not the clips where a benchmark repeated them."""
    return {
        "num_timings": timings.n,
        "timed_seconds_a": timings.seconds_a,
        "timed_seconds_b": timings.seconds_b,
        "num_timings_left_out": len(timings.left_out),
        "left_out_by": "; ".join(dict.fromkeys(timings.left_out)),
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines]


def _escaped(text: str) -> str:
    """Return a text that is one line of Markdown and neither markup nor a cell's end."""
    words = " ".join(text.split())
    for sign in ("\\", "|", "<", "`", "*", "_"):
        words = words.replace(sign, f"\\{sign}")
    return words
