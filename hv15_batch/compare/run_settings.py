"""What the log does not have of how a clip was made, from the stored settings of its run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from hv15_batch.config import ConfigError, VideoCodec
from hv15_batch.rundir import RunDir
from hv15_batch.stored_settings import stored_values

OF_RUN = ("video", "vram_limit_gib")
"""Names that `with_run_settings` adds."""
NOT_KNOWN = "not known"
"""Of a run whose settings are gone."""


def with_run_settings(run_dir: RunDir, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records of a log with how files were encoded and how much memory was to be used."""
    settings_of = cache(lambda run_id: _of_run(run_dir, run_id))
    return [record | settings_of(record["run_id"]) for record in records]


def codec_text(codec: str, crf: Any, preset: Any) -> str:
    """Return how a file was encoded as text."""
    return codec if codec == VideoCodec.ffv1.name else f"{codec} crf {crf} {preset}"


def _of_run(run_dir: RunDir, run_id: str | None) -> dict[str, Any]:
    unknown: dict[str, Any] = dict.fromkeys(OF_RUN, NOT_KNOWN)
    if not run_id:
        return unknown
    try:
        stored = stored_values(run_dir.run_folder(run_id))
    except ConfigError:
        return unknown
    runtime, video = stored.get("runtime"), stored.get("video")
    if isinstance(runtime, dict):  # without a limit in earlier versions
        unknown["vram_limit_gib"] = runtime.get("vram_limit_gib")
    if isinstance(video, dict) and "codec" in video:
        unknown["video"] = codec_text(video["codec"], video.get("crf"), video.get("preset"))
    return unknown
