"""The page of a comparison: players side by side, opened from disk, with its assets beside it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hv15_batch.compare.comparison import (
    Comparison,
    format_db,
    pair_line,
    summary_lines,
)
from hv15_batch.compare.pairs import Record
from hv15_batch.compare.quality import Quality
from hv15_batch.compare.tables import format_csv, format_markdown
from hv15_batch.config import ConfigError, VideoConfig
from hv15_batch.rundir import RunDir, publish_text, publishing
from hv15_batch.video import read_frames, write_video

PAGE = "compare.html"
CSV = "compare.csv"
MARKDOWN = "compare.md"
ASSETS = ("compare.css", "compare.js")
PREVIEWS = "previews"
PLAYABLE_SUFFIX = ".mp4"
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class PlayedClip:
    """One of the two clips of a pair on the page."""

    side: str
    href: str | None
    """None where its file is gone."""
    poster: str | None
    facts: str


@dataclass(frozen=True)
class PlayedPair:
    """A pair on the page."""

    name: str
    prompt: str
    fps: float
    note: str
    cells: list[str]
    clips: list[PlayedClip]


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write page, tables and assets into a folder; return the page.

    Raises:
        ConfigError: the folder cannot be made.
        OSError: a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be made ({error.strerror}); name another folder with --out DIR."
        ) from error
    publish_text(folder / CSV, format_csv(comparison))
    publish_text(folder / MARKDOWN, format_markdown(comparison))
    for name in ASSETS:
        with publishing(folder / name) as temporary:
            shutil.copyfile(TEMPLATES / name, temporary)
    publish_text(folder / PAGE, _page(comparison, folder))
    return folder / PAGE


def _page(comparison: Comparison, folder: Path) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    matched = comparison.matched
    return environment.get_template(f"{PAGE}.j2").render(
        name_a=matched.a.path.name,
        name_b=matched.b.path.name,
        lines=summary_lines(comparison),
        differing=[row for row in comparison.settings if not row.is_same],
        same=[row for row in comparison.settings if row.is_same],
        pairs=[_played(comparison, quality, folder) for quality in comparison.qualities],
    )


def _played(comparison: Comparison, quality: Quality, folder: Path) -> PlayedPair:
    pair, latents, frames = quality.pair, quality.latents, quality.frames
    sides = (("A", comparison.matched.a, pair.a), ("B", comparison.matched.b, pair.b))
    return PlayedPair(
        name=f"{pair.row_id}, seed {pair.seed}",
        prompt=pair.a["prompt"] or "",
        fps=pair.a["fps"] or 24.0,
        note=pair_line(quality),
        cells=[
            "–" if latents is None else format_db(latents.psnr_db),  # noqa: RUF001
            "–" if frames is None else format_db(frames.psnr_db),  # noqa: RUF001
            "–" if frames is None or frames.ssim is None else f"{frames.ssim:.4f}",  # noqa: RUF001
            "–" if frames is None else format_db(frames.temporal_psnr_db),  # noqa: RUF001
        ],
        clips=[
            PlayedClip(
                side=side,
                href=_playable(run_dir, record, folder, side),
                poster=_poster(run_dir, record, folder),
                facts=_facts(record) if quality.is_known else "",
            )
            for side, run_dir, record in sides
        ],
    )


def _facts(record: Record) -> str:
    seconds = record["total_seconds"]
    parts = [] if seconds is None else [f"{seconds:.1f} s"]
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
    path = run_dir.thumbs / f"{record['clip_id']}.jpg"
    return _href(path, folder) if path.is_file() else None


def _href(path: Path, folder: Path) -> str:
    """Return a link that works wherever the two folders are moved together."""
    return quote(Path(os.path.relpath(path, folder)).as_posix())
