"""What a page is made from: plan, log, status and settings of a run directory, read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.planning.benchmark import Progress, progress_of
from hv15_batch.planning.films import Film, read_films
from hv15_batch.planning.tables import FROM_PLAN, SKIPPED, read_plan
from hv15_batch.record import DONE_STATUSES, columns
from hv15_batch.rundir.chosen.ratings import Rating, read_ratings
from hv15_batch.rundir.log import last_attempts, read_rows
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import Status
from hv15_batch.rundir.stored import (
    RUN_COLUMNS,
    add_run_columns,
    run_columns,
    run_settings,
    run_system,
)
from hv15_batch.status.overall import overall_status

NOT_RENDERED = "not rendered"
FILE_MISSING = "file missing"


@dataclass(frozen=True)
class RunData:
    """What a run directory holds, as plain values under the names of the log's columns."""

    directory: RunDir
    folder: str
    """Name of the directory."""
    clips: list[dict[str, Any]]
    """Current clips in the manifest's order: what was asked, and the last attempt where there is
    one. `status` is always set; `file` is None where there is none to show, `thumb` likewise."""
    variants: list[dict[str, Any]]
    """Finished clips of the same rows with other settings."""
    films: list[Film]
    """Joined clips of chains, in the manifest's order, also those that are not built yet."""
    attempts: list[dict[str, Any]]
    """Every attempt, oldest first, benchmark repetitions included; with `RUN_COLUMNS`."""
    status: Status | None
    settings: dict[str, dict[str, Any]]
    """Stored settings by run, oldest first."""
    systems: dict[str, dict[str, Any]]
    """`system.json` by run."""
    progress: Progress | None
    """Of the last run's repetitions; None where it is no benchmark."""
    ratings: dict[str, Rating]
    ratings_fault: str | None
    """Why the ratings are not shown."""

    @property
    def last_settings(self) -> dict[str, Any]:
        """Settings of the last run; empty where there are none."""
        return next(reversed(self.settings.values()), {})

    @cached_property
    def stored_frames(self) -> Mapping[str, str]:
        """Names of frames on object storage by `<denoise_sha256>_<number>`; empty on a disk."""
        stored = self.directory.stored()
        return {} if stored is None else stored.frames

    @property
    def last_system(self) -> dict[str, Any]:
        """Facts about the machine of the last run; empty where there are none."""
        return next(reversed(self.systems.values()), {})


def read_run(directory: RunDir) -> RunData:
    """Return what a run directory holds.

    Raises:
        Refused: the folder is no run directory.
        LogSchemaError: the log cannot be read.
    """
    directory.check_started()
    folders = directory.run_folders()
    settings = {run_id: run_settings(folder) for run_id, folder in folders.items()}
    systems = {run_id: run_system(folder) for run_id, folder in folders.items()}
    attempts = read_rows(directory.log)
    add_run_columns(
        attempts, {name: run_columns(settings[name], systems[name]) for name in folders}
    )
    last = {a["settings_sha256"]: a for a in last_attempts(attempts)}
    files, thumbs = _names(directory.clips), _names(directory.thumbs)
    if (stored := directory.stored()) is not None:
        files, thumbs = (frozenset(stored.sizes(part)) for part in ("clips", "thumbs"))
    # The plan's `file` is where a clip belongs; whether it is there is checked below.
    plan = [{**row, "file": None} for row in read_plan(directory)]
    asked: list[Mapping[str, Any]] = list(plan or last.values())
    asked.sort(key=lambda clip: clip["row_index"])  # Stable: seeds stay in their order.
    clips = [_shown(a, last.get(a["settings_sha256"]), files, thumbs) for a in asked]
    current = {clip["settings_sha256"] for clip in clips}
    others = [_shown(a, a, files, thumbs) for key, a in last.items() if key not in current]
    ratings, ratings_fault = read_rated(directory)
    return RunData(
        directory=directory,
        folder=directory.path.name,
        clips=clips,
        variants=_variants(clips, others),
        films=read_films(directory, clips),
        attempts=attempts,
        status=_status(directory),
        settings=settings,
        systems=systems,
        progress=progress_of(plan or _measured_clips(attempts), attempts, directory),
        ratings=ratings,
        ratings_fault=ratings_fault,
    )


def read_rated(directory: RunDir) -> tuple[dict[str, Rating], str | None]:
    """Return the ratings of a run directory, or why they cannot be shown."""
    try:
        return read_ratings(directory), None
    except Refused as error:
        return {}, str(error)


def _shown(
    asked: Mapping[str, Any],
    attempt: Mapping[str, Any] | None,
    files: frozenset[str],
    thumbs: frozenset[str],
) -> dict[str, Any]:
    """Return a clip as the page shows it; files that the disk lacks are left out."""
    known = {name: value for name, value in (attempt or {}).items() if value is not None}
    clip = {**dict.fromkeys((*columns(), *RUN_COLUMNS)), **asked, **known}
    clip |= {name: asked[name] for name in FROM_PLAN}
    clip["logged_row_id"] = known.get("row_id")
    clip["status"] = known.get("status") or NOT_RENDERED
    if asked.get("state") == SKIPPED:
        clip |= {"status": SKIPPED, "error_type": None, "error_message": asked["reason"]}
    file, thumb = Path(clip["file"] or ""), f"{Path(clip['file'] or '').stem}.jpg"
    has_file = clip["status"] in DONE_STATUSES and file.name in files
    if clip["status"] in DONE_STATUSES and not has_file:
        clip["status"] = FILE_MISSING
    clip["file"] = file.as_posix() if has_file else None
    clip["thumb"] = f"thumbs/{thumb}" if has_file and thumb in thumbs else None
    return clip


def _measured_clips(attempts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was measured repeatedly, for a directory that has lost its plan."""
    return list({a["settings_sha256"]: a for a in attempts if a["repeat"]}.values())


def _variants(
    clips: list[dict[str, Any]], others: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the clips of other settings that a row of today has, in that row's place."""
    rows = {(*_as_written(c), c["row_id"]): c for c in reversed(clips)}
    by_text = {_as_written(c): c for c in reversed(clips)}
    found = []
    for other in others:
        text = _as_written(other)
        row = rows.get((*text, other["row_id"])) or by_text.get(text)
        if row is not None and other["file"] is not None:
            place = {"row_index": row["row_index"], "row_id": row["row_id"]}
            found.append({**other, **place})
    return found


def _as_written(clip: Mapping[str, Any]) -> tuple[str, str]:
    """Return prompt and first frame of a clip as its row has them, rewritten or not."""
    return clip["prompt_original"] or clip["prompt"] or "", clip["image"] or ""


def _status(directory: RunDir) -> Status | None:
    try:
        return overall_status(directory.path)
    except Refused:  # deleted, or of another version: the page says less
        return None


def _names(folder: Path) -> frozenset[str]:
    return frozenset(entry.name for entry in folder.iterdir()) if folder.is_dir() else frozenset()
