"""What a public page may know: everything else is taken out before anything is made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hv15_batch.report.read import RunData

PRIVATE_COLUMNS = (
    *("prompt", "negative_prompt", "image", "tags", "error_message", "repo"),
    *("file", "thumb", "latents_file", "settings_sha256", "denoise_sha256"),
    *("logged_row_id", "gpu_uuid", "hostname"),
)
"""Texts of the user, and what names a folder or a machine. Files are among them: their names begin
with words of the prompt, and their tags hold all of it."""


def without_private(run: RunData, number: int = 1) -> RunData:
    """Return a run without hostname, folders and prompts; rows go by their place.

    `number` tells the runs of a comparison apart.
    """
    status = run.status
    if status is not None:
        status = replace(status, message="", type_again=(), hostname=None, clip_id=None)
    return replace(
        run,
        folder=f"run {number}",
        clips=[public_clip(clip) for clip in run.clips],
        variants=[public_clip(clip) for clip in run.variants],
        attempts=[public_clip(attempt) for attempt in run.attempts],
        status=status,
        settings={key: _public_settings(value) for key, value in run.settings.items()},
    )


def public_clip(clip: dict[str, Any]) -> dict[str, Any]:
    """Return a clip, or an attempt at one, without what is private; its name is its row's place."""
    row = f"row {(clip['row_index'] or 0) + 1}"
    private = dict.fromkeys(name for name in PRIVATE_COLUMNS if name in clip)
    return {**clip, **private, "row_id": row, "clip_id": f"{row}, seed {clip['seed']}"}


def _public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("runtime", "report", "benchmark") if name in settings}
