"""Clips as the gallery shows them: JSON-able, every number that JavaScript could bend as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hv15_batch.records import DONE_STATUSES
from hv15_batch.report.clip_command import clip_command, pick_words
from hv15_batch.report.facts import different_facts, tags_of
from hv15_batch.report.formats import format_gib, format_seconds, format_value, format_watt_hours
from hv15_batch.report.read import FILE_MISSING, RunData
from hv15_batch.timings import attempt_seconds, is_denoised_here

PLAYABLE_SUFFIX = ".mp4"
_PICK_COLUMNS = (
    *("negative_prompt", "height", "width", "num_frames", "num_inference_steps"),
    *("guidance_scale", "flow_shift", "fps"),
)
"""Columns of a manifest that a starred clip fills, beside id, prompt, seed, image and tags."""


def clip_views(run: RunData, common: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return every clip and variant, row by row in the manifest's order."""
    clips = [(clip, False) for clip in run.clips] + [(clip, True) for clip in run.variants]
    clips.sort(key=lambda pair: pair[0]["row_index"] or 0)  # Stable: variants come last.
    return [_view(run, clip, is_variant, common) for clip, is_variant in clips]


def _view(
    run: RunData, clip: Mapping[str, Any], is_variant: bool, common: Mapping[str, str]
) -> dict[str, Any]:
    finished_at = clip["finished_at"]
    can_be_picked = clip["status"] in DONE_STATUSES
    return {
        "id": clip["clip_id"],
        "row": clip["row_index"],
        "rowId": clip["row_id"],
        "prompt": clip["prompt"] or "",
        "image": clip["image"] or "",
        "seed": str(clip["seed"]),
        "status": clip["status"],
        "isDone": clip["status"] in DONE_STATUSES,
        "problem": problem(clip),
        "seconds": attempt_seconds(clip),
        "facts": _measured(clip),
        "isCold": bool(clip["is_cold"]),
        "isFromLatents": not is_denoised_here(clip),
        "finished": finished_at.timestamp() if finished_at is not None else None,
        "file": quote(clip["file"]) if clip["file"] else None,
        "isPlayable": Path(clip["file"] or "").suffix == PLAYABLE_SUFFIX,
        "poster": quote(clip["thumb"]) if clip["thumb"] else None,
        "isVariant": is_variant,
        "differences": different_facts(clip, common),
        "tags": tags_of(clip),
        "command": clip_command(run, clip),
        "pick": _pick(run, clip) if can_be_picked else None,
        "pickWords": pick_words(run, clip) if can_be_picked else None,
        "variant": clip["model"] or "",
    }


def problem(clip: Mapping[str, Any]) -> str:
    """Return what went wrong with a clip, or which flag makes it suspect; empty when nothing."""
    if clip["status"] == FILE_MISSING:
        return "rendered, but its file is gone or was renamed; run again to make it"
    error = ": ".join(p for p in (clip["error_type"], clip["error_message"]) if p)
    return error or clip["quality_flag"] or ""


def _measured(clip: Mapping[str, Any]) -> dict[str, str]:
    """Return what the last attempt at a clip cost, as text; what was not measured is left out."""
    seconds = attempt_seconds(clip)
    values = {
        "s": seconds and format_seconds(seconds),
        "GiB": clip["peak_vram_reserved_bytes"] and format_gib(clip["peak_vram_reserved_bytes"]),
        "Wh": clip["energy_joules"] and format_watt_hours(clip["energy_joules"]),
    }
    return {unit: text for unit, text in values.items() if text}


def _pick(run: RunData, clip: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a manifest row that renders this clip again.

    The size of a clip with a first frame follows from the image, and may not be given.
    """
    cells = {name: clip[name] for name in _PICK_COLUMNS if clip[name] is not None}
    if clip["image"]:
        cells = {name: v for name, v in cells.items() if name not in ("height", "width")}
        cells["image"] = _image_path(run, clip["image"])
    tags = {f"tag_{name}": value for name, value in tags_of(clip).items()}
    return {name: format_value(value) for name, value in (cells | tags).items()}


def _image_path(run: RunData, image: str) -> str:
    """Return a first frame's absolute path: picks are saved in another folder than the manifest."""
    folder = Path(run.last_settings.get("manifest") or "").parent
    return str(folder / Path(image).expanduser())
