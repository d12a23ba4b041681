"""A comparison as CSV and Markdown, which are for sharing.

They hold no prompt, row id, tag, folder or hostname: a pair appears as its number on the page.
"""

from __future__ import annotations

from typing import Any

from hv15_batch.compare._comparison import Comparison, SettingsRow, summary_lines
from hv15_batch.compare._quality import Quality, quality_cells
from hv15_batch.figures.tables import csv_text, markdown
from hv15_batch.record import columns

_PRIVATE = frozenset(columns(private=True)) - {"repo"}  # which goes without its folder
NOT_SHOWN = "not shown"
"""In place of a private setting, of which only the fact that it differs is shown."""
QUALITY_HEADERS = ("latents PSNR", "PSNR", "SSIM", "temporal PSNR")

_LATENTS = ("psnr_db", "data_range")
_FRAMES = ("psnr_db", "rgb_psnr_db", "ssim", "temporal_psnr_db")
COLUMNS = (
    *("pair", "seed", "is_comparable", "note", "latents_identical"),
    *(f"latents_{name}" for name in _LATENTS),
    *("files_identical", "frames_basis"),
    *_FRAMES,
)


def format_csv(comparison: Comparison) -> str:
    """Return one line per pair; not measured is empty, and infinite is `inf`."""
    rows = [
        [_cell(value) for value in _values(number, quality)]
        for number, quality in enumerate(comparison.qualities, 1)
    ]
    return csv_text(COLUMNS, rows)


def format_markdown(comparison: Comparison) -> str:
    """Return summary, differing settings and a table of pairs, fit to paste into an issue."""
    differing = [_shared(row) for row in comparison.settings if not row.is_same]
    pairs = [
        (str(number), str(q.pair.seed), *quality_cells(q, ""), q.shared_fault or "")
        for number, q in enumerate(comparison.qualities, 1)
    ]
    lines = [
        "# Run B compared with run A",
        "",
        *(f"- {line}" for line in summary_lines(comparison)),
        "",
        *(markdown(("setting", "A", "B"), differing) if differing else ["No setting differs."]),
        "",
        *markdown(("pair", "seed", *QUALITY_HEADERS, "note"), pairs),
    ]
    return "\n".join(lines) + "\n"


def _shared(row: SettingsRow) -> tuple[str, str, str]:
    if row.name in _PRIVATE:
        return row.name, NOT_SHOWN, NOT_SHOWN
    return row.name, row.a, row.b


def _values(number: int, quality: Quality) -> list[Any]:
    """Return the values of a pair in the order of `COLUMNS`."""
    latents, frames = quality.latents, quality.frames
    return [
        *(number, quality.pair.seed, quality.is_known, quality.shared_fault),
        getattr(latents, "is_identical", None),
        *(getattr(latents, name, None) for name in _LATENTS),
        *(quality.has_identical_files, quality.basis),
        *(getattr(frames, name, None) for name in _FRAMES),
    ]


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
