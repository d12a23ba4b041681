"""The page of a comparison: players side by side, opened from disk, with its assets beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from hv15_batch.clock import utc_now
from hv15_batch.compare._comparison import (
    Comparison,
    cost_notes,
    n_texts,
    quality_lines,
    range_text,
    value_text,
    warning_lines,
)
from hv15_batch.compare._pairs import Record
from hv15_batch.compare._quality import Quality, pair_line, quality_cells
from hv15_batch.compare._ratios import SIDES, Costs, Ratio
from hv15_batch.compare._text import QUALITY_HEADERS, format_csv, format_markdown
from hv15_batch.config.settings import VideoConfig
from hv15_batch.errors import Refused
from hv15_batch.media.video import read_frames, write_video
from hv15_batch.record import clip_seconds
from hv15_batch.report.render import render, write_assets
from hv15_batch.rundir.paths import ASSETS, RunDir
from hv15_batch.rundir.publish import publish_text, publishing
from hv15_batch.rundir.store import fetched
from hv15_batch.units import NOT_MEASURED, format_seconds

PAGE = "compare.html"
CSV = "compare.csv"
MARKDOWN = "compare.md"
REPORT_ASSETS = ("page.css", "clock.js", "paper.js")
OWN_ASSETS = ("compare.css", "compare.js")
PREVIEWS = "previews"
PLAYABLE_SUFFIX = ".mp4"

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class PlayedClip:
    """One of the two clips of a pair on the page."""

    side: str
    href: str | None
    """None where there is no file that can be shown."""
    poster: str | None
    facts: str


@dataclass(frozen=True)
class PlayedPair:
    """A pair on the page."""

    name: str
    prompt: str
    fps: float
    num_frames: int
    """Of the longer clip."""
    shape: str
    """Width and height of A, as a ratio of CSS."""
    note: str
    clips: list[PlayedClip]


@dataclass(frozen=True)
class PairRow:
    """A pair in the table."""

    name: str
    cells: list[str]
    fault: str
    """Why something, or everything, could not be measured; empty where all was."""


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write page, tables and assets into a folder; return the page.

    Raises:
        Refused: the folder cannot be made.
        OSError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"{folder}: cannot be made ({error.strerror}); name another folder with --out DIR."
        ) from error
    publish_text(folder / CSV, format_csv(comparison))
    publish_text(folder / MARKDOWN, format_markdown(comparison))
    write_assets(folder, REPORT_ASSETS)
    write_assets(folder, OWN_ASSETS, _HERE / ASSETS)
    html = render(f"{PAGE}.j2", _values(comparison, folder), _HERE / "templates")
    publish_text(folder / PAGE, html)
    return folder / PAGE


def _values(comparison: Comparison, folder: Path) -> Mapping[str, Any]:
    """Return what the template shows."""
    matched = comparison.matched
    return {
        "names": (matched.a.path.name, matched.b.path.name),
        "written_at": f"{utc_now().astimezone():%Y-%m-%d %H:%M %Z}",
        "files": {"csv": CSV, "markdown": MARKDOWN},
        "quality": quality_lines(comparison),
        "costs": [
            (costs.name, [_cost_cells(ratio, costs) for ratio in costs.ratios])
            for costs in comparison.costs
            if costs.ratios
        ],
        "notes": cost_notes(comparison),
        "warnings": warning_lines(comparison),
        "differing": [row for row in comparison.settings if not row.is_same],
        "same": [row for row in comparison.settings if row.is_same],
        "headers": QUALITY_HEADERS,
        "rows": [
            PairRow(_name(quality), quality_cells(quality, NOT_MEASURED), quality.fault or "")
            for quality in comparison.qualities
        ],
        "has_faults": any(quality.fault for quality in comparison.qualities),
        "pairs": [_played(comparison, quality, folder) for quality in comparison.qualities],
    }


def _cost_cells(ratio: Ratio, costs: Costs) -> list[str]:
    """Return name, ratio, and of A and of B value, range and n."""
    word = "fast" if ratio.is_time else "much"
    cells = [ratio.name, f"{ratio.ratio:#.3g} times as {word}"]
    for found, n in zip((ratio.a, ratio.b), n_texts(ratio, costs), strict=True):
        cells += [value_text(ratio, found), range_text(ratio, found), n]
    return cells


def _name(quality: Quality) -> str:
    return f"{quality.pair.row_id}, seed {quality.pair.seed}"


def _played(comparison: Comparison, quality: Quality, folder: Path) -> PlayedPair:
    pair = quality.pair
    run_dirs = (comparison.matched.a, comparison.matched.b)
    return PlayedPair(
        name=_name(quality),
        prompt=pair.a["prompt"] or "",
        fps=pair.a["fps"] or 24.0,
        num_frames=max(pair.a["num_frames"] or 1, pair.b["num_frames"] or 1),
        shape=f"{pair.a['width'] or 16} / {pair.a['height'] or 9}",
        note=pair_line(quality),
        clips=[
            PlayedClip(
                side=side,
                href=_playable(run_dir, record, folder, side),
                poster=_poster(run_dir, record, folder),
                facts=_facts(record) if quality.is_known else record["clip_id"],
            )
            for side, run_dir, record in zip(SIDES, run_dirs, (pair.a, pair.b), strict=True)
        ],
    )


def _facts(record: Record) -> str:
    seconds = clip_seconds(record)
    parts = [] if seconds is None else [f"{format_seconds(seconds)} s"]
    if record["is_cold"]:
        parts.append("cold")
    return ", ".join([*parts, record["clip_id"]])


def _playable(run_dir: RunDir, record: Record, folder: Path, side: str) -> str | None:
    """Return the link to a file that browsers play; Matroska gets a preview in H.264."""
    path = run_dir.path / (record["file"] or "")
    if not path.is_file():
        return None
    if path.suffix == PLAYABLE_SUFFIX:
        return _href(path, folder)
    preview = folder / PREVIEWS / f"{record['clip_id']}_{side.lower()}{PLAYABLE_SUFFIX}"
    try:
        frames = np.stack(list(read_frames(path)))
    except ValueError:
        return None  # damaged, as the pair's note says
    preview.parent.mkdir(exist_ok=True)
    with publishing(preview) as temporary:
        write_video(frames, temporary, fps=record["fps"], video=VideoConfig(), comment=None)
    return _href(preview, folder)


def _poster(run_dir: RunDir, record: Record, folder: Path) -> str | None:
    path = fetched(run_dir, f"{run_dir.thumbs.name}/{Path(record['file'] or '').stem}.jpg")
    return _href(path, folder) if path.is_file() else None


def _href(path: Path, folder: Path) -> str:
    """Return a link that works wherever the two folders are moved together."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())
