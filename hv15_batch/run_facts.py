"""What a row's run says that the log does not: settings and code that decide its seconds.

Clips are counted together only where these are alike too. They are read from `runs/<run_id>/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
    add_run_facts(rows, run_dir)
    return rows


def add_run_facts(rows: Iterable[dict[str, Any]], run_dir: RunDir) -> None:
    """Add `RUN_COLUMNS` to rows with `run_id`."""
    known: dict[str, dict[str, Any]] = {}
    for row in rows:
        run_id = row["run_id"] or ""
        if run_id not in known:
            known[run_id] = _facts(run_dir.run_folder(run_id)) if run_id else {}
        row |= {name: known[run_id].get(name) for name in RUN_COLUMNS}


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


def commit_text(project: dict[str, Any]) -> str | None:
    """Return the commit of `system.json`'s `project`, and whether it was changed."""
    commit = project.get("git_commit")
    if commit is None:
        return None
    return f"{commit[:12]} and changes" if project.get("git_is_dirty") else str(commit[:12])


def _facts(folder: Path) -> dict[str, Any]:
    settings = run_settings(folder)
    video = settings.get("video") or {}
    return {
        "vram_limit_gib": (settings.get("runtime") or {}).get("vram_limit_gib"),
        "video": _video(video),
        "commit": commit_text(run_system(folder).get("project") or {}),
    }


def _video(video: dict[str, Any]) -> str | None:
    codec = video.get("codec")
    return codec and codec_text(codec, video.get("crf"), video.get("preset"))
