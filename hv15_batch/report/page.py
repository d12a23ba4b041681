"""The page of one run directory: what the log and the plan say, as one HTML file."""

from __future__ import annotations

import csv
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hv15_batch.config import ConfigError
from hv15_batch.records import DONE_STATUSES, FAILED, SUSPECT
from hv15_batch.rundir import RunDir, publish_text, utc_now
from hv15_batch.runlog import read_last_attempts
from hv15_batch.status_text import format_progress

NOT_RENDERED = "not rendered"
FILE_MISSING = "file missing"
NOT_MEASURED = "\N{EN DASH}"

LONG_TEXT = 240
"""Characters of a prompt or an error beyond which it is folded."""
MAX_LISTED = 50
"""Failed or suspect clips listed above the table; the table has them all."""
PLAYABLE_SUFFIX = ".mp4"

_LOG_COLUMNS = (
    "settings_sha256",
    "clip_id",
    "row_index",
    "attempt",
    "prompt",
    "image",
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "total_seconds",
    "is_cold",
    "peak_vram_reserved_bytes",
    "status",
    "quality_flag",
    "error_type",
    "error_message",
    "file",
    "model",
    "weights",
    "offload",
    "attention_backend",
    "gpu_name",
    "torch_version",
    "diffusers_version",
)
_COMMON_COLUMNS = {
    "model": "Model",
    "weights": "Weights",
    "gpu_name": "Card",
    "offload": "Offload",
    "attention_backend": "Attention",
    "torch_version": "PyTorch",
    "diffusers_version": "diffusers",
}
"""Log columns that clips usually share, and their names in the head of the page."""

_NOISE_NOTES = {
    "tiny": (
        "These clips are noise on purpose: the tiny models are small instances of the real "
        "classes with random weights, made to try the whole way from manifest to page. "
        "Their times and memory say nothing about the full-size model."
    ),
    "random": (
        "These clips are noise on purpose: model.weights=random builds the full-size model "
        "without its published weights. Time and memory are as with the published weights; "
        "the pictures mean nothing."
    ),
}


@dataclass(frozen=True)
class PageClip:
    """One row of the page's table, as text."""

    clip_id: str
    prompt: str
    image: str
    seed: str
    size: str
    num_frames: str
    num_inference_steps: str
    seconds: str
    peak_vram: str
    status: str
    problem: str
    """What went wrong, or which flag makes it suspect; empty when nothing."""
    href: str | None
    """Link to the clip's file; None when there is none."""
    is_playable: bool
    """Whether browsers play it; they do not play Matroska."""
    poster: str | None
    """Link to its thumbnail."""

    @property
    def label(self) -> str:
        """What a screen reader says of the clip."""
        words = " ".join(self.prompt.split())
        return f"Clip {self.clip_id}: {words if len(words) <= 120 else words[:119] + '…'}"


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    headline: str
    folder: str
    written_at: str
    common: dict[str, str]
    noise_notes: list[str]
    failed: list[PageClip]
    suspect: list[PageClip]
    clips: list[PageClip]


def write_page(run_dir: Path) -> Path:
    """Build `index.html` in a run directory from its plan and its log; return its path.

    Raises:
        ConfigError: the folder is no run directory.
        LogSchemaError: the log cannot be read.
    """
    directory = RunDir(run_dir.absolute())
    publish_text(directory.page, render_page(read_page(directory)))
    return directory.page


def render_page(page: Page) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        page=page, long_text=LONG_TEXT, max_listed=MAX_LISTED
    )


def read_page(directory: RunDir) -> Page:
    """Return what a run directory's page shows.

    Raises:
        ConfigError: the folder is no run directory.
        LogSchemaError: the log cannot be read.
    """
    if not directory.is_run_dir():
        raise ConfigError(
            f"{directory.path}: no run directory (it has no log); "
            "name the folder that a run has printed as its first line."
        )
    attempts = {a["settings_sha256"]: a for a in read_last_attempts(directory.log, _LOG_COLUMNS)}
    shown = _current_clips(directory, attempts)
    files = _names(directory.clips)
    thumbs = _names(directory.thumbs)
    clips = [_page_clip(asked, attempt, files, thumbs) for asked, attempt in shown]
    current = [attempt for _, attempt in shown if attempt is not None]
    counts = Counter(clip.status for clip in clips)
    weights = {attempt["weights"] for attempt in current}
    return Page(
        headline=format_progress(
            total=len(clips),
            done=sum(counts[status] for status in DONE_STATUSES),
            failed=counts[FAILED],
            suspect=counts[SUSPECT],
        ),
        folder=directory.path.name,
        written_at=f"{utc_now():%Y-%m-%d %H:%M} UTC",
        common=_common_values(current),
        noise_notes=[note for name, note in _NOISE_NOTES.items() if name in weights],
        failed=[clip for clip in clips if clip.status == FAILED],
        suspect=[clip for clip in clips if clip.status == SUSPECT],
        clips=clips,
    )


def _current_clips(
    directory: RunDir, attempts: Mapping[str, dict[str, Any]]
) -> list[tuple[Mapping[str, Any], dict[str, Any] | None]]:
    """Return (what was asked, last attempt) of the manifest's clips, in the manifest's order.

    Without a plan, which a person may delete, the log's clips are the current ones.
    """
    asked: list[Mapping[str, Any]] = list(_read_plan(directory.plan)) or list(attempts.values())
    asked.sort(key=lambda clip: int(clip["row_index"]))  # Stable: seeds stay in their order.
    return [(clip, attempts.get(clip["settings_sha256"])) for clip in asked]


def _read_plan(path: Path) -> Iterable[dict[str, str]]:
    if not path.is_file():
        return []
    csv.field_size_limit(sys.maxsize)  # The default refuses prompts over 128 KiB.
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _page_clip(
    asked: Mapping[str, Any],
    attempt: Mapping[str, Any] | None,
    files: frozenset[str],
    thumbs: frozenset[str],
) -> PageClip:
    done = attempt or {}
    status = done.get("status") or NOT_RENDERED
    file = Path(done.get("file") or "")
    has_file = status in DONE_STATUSES and file.name in files
    if status in DONE_STATUSES and not has_file:
        status = FILE_MISSING
    thumb = f"{file.stem}.jpg"
    return PageClip(
        clip_id=asked["clip_id"],
        prompt=asked["prompt"] or "",
        image=asked["image"] or "",
        seed=str(asked["seed"]),
        size=f"{asked['height']}×{asked['width']}",  # noqa: RUF001 - the sign itself
        num_frames=str(asked["num_frames"]),
        num_inference_steps=str(asked["num_inference_steps"]),
        seconds=format_seconds(done.get("total_seconds")),
        peak_vram=format_gib(done.get("peak_vram_reserved_bytes")),
        status=status,
        problem=_problem(done),
        href=quote(file.as_posix()) if has_file else None,
        is_playable=file.suffix == PLAYABLE_SUFFIX,
        poster=quote(f"thumbs/{thumb}") if has_file and thumb in thumbs else None,
    )


def _problem(attempt: Mapping[str, Any]) -> str:
    error = ": ".join(p for p in (attempt.get("error_type"), attempt.get("error_message")) if p)
    return error or attempt.get("quality_flag") or ""


def _common_values(attempts: list[dict[str, Any]]) -> dict[str, str]:
    common = {}
    for column, name in _COMMON_COLUMNS.items():
        values = dict.fromkeys(a[column] for a in attempts if a[column] is not None)
        if values:
            common[name] = ", ".join(values)
    done = [a for a in attempts if a["status"] in DONE_STATUSES]
    warm = [a["total_seconds"] for a in done if a["total_seconds"] and not a["is_cold"]]
    if warm:
        count = f"{len(warm)} warm clip{'s' if len(warm) > 1 else ''}"
        common["Seconds a clip"] = f"{format_seconds(statistics.median(warm))} (median of {count})"
    peaks = [a["peak_vram_reserved_bytes"] for a in done if a["peak_vram_reserved_bytes"]]
    if peaks:
        common["Peak VRAM"] = f"{format_gib(max(peaks))} GiB"
    return common


def format_seconds(seconds: float | None) -> str:
    """Return seconds with one decimal, or a dash where nothing was measured."""
    return NOT_MEASURED if seconds is None else f"{seconds:.1f}"


def format_gib(num_bytes: int | None) -> str:
    """Return bytes as GiB (1024³) with one decimal, or a dash where nothing was measured."""
    return NOT_MEASURED if num_bytes is None else f"{num_bytes / 2**30:.1f}"


def _names(folder: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in folder.iterdir()) if folder.is_dir() else frozenset()
