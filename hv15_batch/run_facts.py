"""What a row's run says that the log does not: settings and code that decide its seconds.

Clips are counted together only where these are alike too. They are read from `runs/<run_id>/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hv15_batch.config import ConfigError, VideoCodec
from hv15_batch.rundir import RunDir
from hv15_batch.runlog import read_records
from hv15_batch.stored_settings import stored_values

RUN_COLUMNS = ("vram_limit_gib", "video", "commit")
"""`runtime.vram_limit_gib`; codec, CRF and preset in words; the checkout's commit, `and changes`
where it was dirty. None where that is not known, or not so."""


def read_rows_of_runs(run_dir: RunDir, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows of the log with `run_id` and these columns, `RUN_COLUMNS` among them.

    Raises:
        LogSchemaError: the log cannot be read.
    """
    logged = dict.fromkeys(["run_id", *(c for c in columns if c not in RUN_COLUMNS)])
    rows: list[dict[str, Any]] = read_records(run_dir.log, list(logged)).to_pylist()
    folders = {run_id: run_dir.run_folder(run_id) for run_id in run_ids_of(rows)}
    add_run_columns(
        rows, {name: run_columns(run_settings(f), run_system(f)) for name, f in folders.items()}
    )
    return rows


def run_ids_of(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the runs that rows are of."""
    return {row["run_id"] for row in rows if row["run_id"]}


def add_run_columns(
    rows: Iterable[dict[str, Any]], columns: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add `RUN_COLUMNS` to rows with `run_id`, as `columns` has them by run."""
    unknown = dict.fromkeys(RUN_COLUMNS)
    for row in rows:
        row |= columns.get(row["run_id"], unknown)


def run_columns(settings: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, Any]:
    """Return `RUN_COLUMNS` of a run, from what `run_settings` and `run_system` gave."""
    video = settings.get("video") or {}
    codec = video.get("codec")
    return {
        "vram_limit_gib": (settings.get("runtime") or {}).get("vram_limit_gib"),
        "video": codec and codec_text(codec, video.get("crf"), video.get("preset")),
        "commit": commit_text(system.get("project") or {}),
    }


def run_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a run as plain values; empty where they cannot be read."""
    try:
        return stored_values(folder)
    except ConfigError:
        return {}


def run_system(folder: Path) -> dict[str, Any]:
    """Return `system.json` of a run; empty where it cannot be read."""
    try:
        facts = json.loads((folder / "system.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def codec_text(codec: str, crf: Any, preset: Any) -> str:
    """Return how files are encoded; CRF and preset do nothing where that is lossless."""
    return codec if codec == VideoCodec.ffv1.name else f"{codec} crf {crf} {preset}"


def commit_text(project: Mapping[str, Any]) -> str | None:
    """Return the commit of `system.json`'s `project`, and whether it was changed."""
    commit = project.get("git_commit")
    if commit is None:
        return None
    return f"{commit[:12]} and changes" if project.get("git_is_dirty") else str(commit[:12])
