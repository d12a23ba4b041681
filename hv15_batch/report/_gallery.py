"""Clips as the gallery shows them: JSON-able, with large numbers as text for JavaScript."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from hv15_batch.config.settings import CONFIG_DIR, TYPED_ONLY, Config
from hv15_batch.figures.facts import different_facts, tags_of
from hv15_batch.files import read_bytes
from hv15_batch.manifest.cells import NO_LORAS
from hv15_batch.manifest.columns import KNOWN_COLUMNS
from hv15_batch.manifest.read import MAX_FILE_BYTES
from hv15_batch.model.attention import is_fetched
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Task
from hv15_batch.record import DONE_STATUSES, attempt_seconds, columns, is_denoised_here
from hv15_batch.report._read import FILE_MISSING, RunData
from hv15_batch.rundir.chosen.ratings import Rating
from hv15_batch.rundir.frames import frame_file, frame_name
from hv15_batch.units import format_gib, format_seconds, format_setting, format_watt_hours

PLAYABLE_SUFFIX = ".mp4"
_PICK_COLUMNS = tuple(
    name
    for name in columns("asked")
    if name in KNOWN_COLUMNS and name not in ("prompt", "seed", "image", "loras")
)
"""Columns of a manifest that a starred clip fills; those left out the page fills by itself."""


@dataclass(frozen=True)
class Place:
    """Where a page finds the clips of a run, and how it tells them from another run's."""

    prefix: str = ""
    """Put before the path of a file below the run directory; quoted, ends with `/`."""
    number: int = 0
    """Of the run, on a page of several."""
    name: str = ""
    """Of the run, on a page of several; empty on its own page."""

    def address(self, name: str | None) -> str | None:
        """Return the address of a file, given its path below the run directory; None of None."""
        return self.prefix + quote(name) if name else None


OWN_PAGE = Place()
"""The page beside the clips."""


def clip_views(
    run: RunData, common: Mapping[str, str], place: Place = OWN_PAGE
) -> list[dict[str, Any]]:
    """Return every clip and variant, row by row in the manifest's order."""
    clips = [(clip, False) for clip in run.clips] + [(clip, True) for clip in run.variants]
    clips.sort(key=lambda pair: pair[0]["row_index"] or 0)  # Stable: variants come last.
    has_loras = _has_loras(run)
    return [_view(run, clip, is_variant, common, has_loras, place) for clip, is_variant in clips]


def _has_loras(run: RunData) -> bool:
    typed = any((settings.get("model") or {}).get("loras") for settings in run.settings.values())
    return typed or any(clip["loras"] for clip in (*run.clips, *run.variants))


def _view(
    run: RunData,
    clip: Mapping[str, Any],
    is_variant: bool,
    common: Mapping[str, str],
    has_loras: bool,
    place: Place,
) -> dict[str, Any]:
    finished_at = clip["finished_at"]
    can_be_picked = clip["status"] in DONE_STATUSES
    return {
        "id": clip["clip_id"],
        "run": place.number,
        "runName": place.name,
        "row": clip["row_index"],
        "rowId": clip["row_id"],
        "otherIds": (clip.get("other_ids") or "").split(),
        "prompt": clip["prompt"] or "",
        "promptOriginal": clip["prompt_original"] or "",
        "image": clip["image"] or "",
        "seed": str(clip["seed"]),
        "status": clip["status"],
        "isDone": clip["status"] in DONE_STATUSES,
        "problem": problem(clip),
        "settings": clip["settings_sha256"],
        "sha": clip["file_sha256"] or "",
        "rating": rating_view(run.ratings, clip["settings_sha256"]),
        "fps": clip["fps"],
        "frames": clip["num_frames"],
        "seconds": attempt_seconds(clip),
        "facts": _measured(clip),
        "isCold": bool(clip["is_cold"]),
        "isFromLatents": not is_denoised_here(clip),
        "finished": finished_at.timestamp() if finished_at is not None else None,
        "file": place.address(clip["file"]),
        "isPlayable": Path(clip["file"] or "").suffix == PLAYABLE_SUFFIX,
        "poster": place.address(clip["thumb"]),
        "shape": _shape(clip),
        "isVariant": is_variant,
        "differences": different_facts(clip, common),
        "tags": tags_of(clip),
        "command": clip_command(run, clip),
        "pick": _pick(run, clip, has_loras) if can_be_picked else None,
        "pickWords": pick_words(run, clip) if can_be_picked else None,
        "variant": clip["model"] or "",
    }


def rating_view(ratings: Mapping[str, Rating], settings_sha256: str) -> dict[str, str] | None:
    """Return how a clip is rated, of which file and when; None where it is not."""
    rating = ratings.get(settings_sha256)
    if rating is None:
        return None
    return {"value": rating.rating, "sha": rating.file_sha256, "at": rating.rated_at}


def other_ratings(run: RunData, number: int = 0) -> list[dict[str, Any]]:
    """Return the ratings of clips that a page does not show; a saved ratings.csv keeps them."""
    shown = {clip["settings_sha256"] for clip in (*run.clips, *run.variants)}
    return [
        {"run": number, "cells": astuple(rating)}
        for key, rating in run.ratings.items()
        if key not in shown
    ]


def _shape(clip: Mapping[str, Any]) -> float | None:
    """Return width over height of a clip's frames; None where the log lacks one of them."""
    width, height = clip["width"], clip["height"]
    return round(width / height, 4) if width and height else None


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


def _pick(run: RunData, clip: Mapping[str, Any], has_loras: bool) -> dict[str, str]:
    """Return the cells of a manifest row that renders this clip again.

    The size of a clip with a first frame follows from the image, and may not be given. Where some
    clips have LoRAs, every row names its own or `none`, because clips of both are picked together.
    """
    cells = {name: clip[name] for name in _PICK_COLUMNS if clip[name] is not None}
    if clip["image"]:
        cells = {name: v for name, v in cells.items() if name not in ("height", "width")}
        cells["image"] = _image_path(run, clip)
    if clip["loras"]:  # the log has their content, and no path
        scales = [scale for _, scale in json.loads(clip["loras"])]
        files = (
            f"FILE{n}.safetensors:{format_setting(scale)}" for n, scale in enumerate(scales, 1)
        )
        cells["loras"] = " ".join(files)
    elif has_loras:
        cells["loras"] = NO_LORAS
    tags = {f"tag_{name}": value for name, value in tags_of(clip).items()}
    return {name: format_setting(value) for name, value in (cells | tags).items()}


def _image_path(run: RunData, clip: Mapping[str, Any]) -> str:
    """Return a first frame's absolute path: picks are saved in another folder than the manifest.

    A frame of another clip is an image of its own in the run directory. Of object storage it has
    its name there, under which whoever needs it fetches it.
    """
    image = str(clip["image"])
    if clip["image_source"] is not None:
        denoise_sha256, _, number = clip["image_source"].partition(":")
        stored = run.stored_frames.get(frame_name(denoise_sha256, int(number)))
        if stored is not None:
            return str(run.directory.path / stored)
        return str(frame_file(run.directory, denoise_sha256, int(number)))
    folder = Path(run.last_settings.get("manifest") or "").parent
    return str(folder / Path(image).expanduser())


_NOT_OF_A_ROW = ("runtime", "video")
_READING = ("manifest_literal", "manifest_other", "templates", "templates_seed")
"""How the manifest is read: settings at the top, beside the section `manifest_columns`."""
_SECTIONS = ("sampling", "override", "manifest_columns", *_NOT_OF_A_ROW)
_LEFT_OUT = ("sampling.seeds", "override.seeds", "runtime.card")
"""The seed is the clip's own; the card is one that a dry run predicts for."""


def clip_command(run: RunData, clip: Mapping[str, Any]) -> str | None:
    """Return what to type to make this clip, and only it, in a new folder; shell-quoted.

    It renders from the manifest copy of that run: the manifest itself may have been edited. Where
    some row may have a first frame, or rows name LoRA files, it is the manifest, because a
    copy's relative paths lead nowhere.

    What decides what is fetched or run is never copied from what is stored: in its place stands
    `...`, which is refused, so that whoever pastes the command types it.

    Returns:
        None where the run that made the clip left no settings, or a server wrote the prompt: it
        would write another one. None for a clip that follows another one, whose seed may differ.
    """
    run_id, row_id = clip["run_id"], clip["logged_row_id"]
    settings = run.settings.get(run_id or "")
    if not settings or not settings["manifest"] or not settings["model"]["name"] or row_id is None:
        return None
    if clip["prompt_original"] is not None or clip["image_source"] is not None:
        return None
    again = f"{run.directory.path}.again/{clip['clip_id']}"
    words = [
        *_folder_words(settings["model"]["name"], *(settings.get("models") or {})),
        *_source(run, clip, settings),
        *(["limit=1"] if settings.get("templates") else []),  # without it many prompts are refused
        f"override.seeds={clip['seed']}",
        *_typed_settings(_without_preset(settings, clip["model"])),
        f"run_dir={again}",
    ]
    return " ".join(["hv15-batch", *map(shlex.quote, words)])


def pick_words(run: RunData, clip: Mapping[str, Any]) -> str:
    """Return the settings that a manifest of this clip cannot hold, shell-quoted.

    They are the model, and what was typed of `offload`, `runtime` and `video`. `model.loras` is
    not among them: each picked row has its own `loras` cell.
    """
    settings = run.settings.get(clip["run_id"] or "")
    if not settings or not settings["model"]["name"]:
        return shlex.quote(f"model={clip['model']}")
    words = [
        *_folder_words(clip["model"]),
        *(
            word
            for word in _typed_settings(_of_model(settings, clip["model"]), _NOT_OF_A_ROW)
            if not word.startswith("model.loras=")
        ),
    ]
    return " ".join(map(shlex.quote, words))


def _folder_words(*models: str) -> Iterator[str]:
    """Yield `--config-dir=...` where a model is an option of the user's folder."""
    if not model_options().keys() >= set(models):
        yield f"{CONFIG_DIR}=..."


def _of_model(settings: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return a run's settings as they hold for the rows of a model."""
    model = (settings.get("models") or {}).get(name)
    if name == settings["model"]["name"] or model is None:
        return settings
    return {**_without_preset(settings, name), "model": model}


def _without_preset(settings: Mapping[str, Any], name: str | None) -> Mapping[str, Any]:
    """Return settings for a command: what a preset set for its own model is typed for no other."""
    if name == settings["model"]["name"]:
        return settings
    preset = settings.get("preset_sampling") or ()
    sampling = {n: v for n, v in (settings.get("sampling") or {}).items() if n not in preset}
    return {**settings, "sampling": sampling}


def _source(run: RunData, clip: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what names the row: a manifest and an id."""
    manifest = str(settings["manifest"])
    models = (settings["model"], *(settings.get("models") or {}).values())
    has_images = any(model.get("task") == Task.i2v.name for model in models)
    if not has_images and not clip["loras"]:
        copy = run.directory.run_folder(clip["run_id"]) / f"manifest{Path(manifest).suffix}"
        if not _names_loras(copy, (settings.get("manifest_columns") or {}).get("loras")):
            manifest = str(copy)
    yield f"manifest={manifest}"
    yield _only(clip["logged_row_id"])


@cache  # a run's copy never changes
def _names_loras(copy: Path, column: str | None) -> bool:
    """Whether a manifest has the column `loras`; a text that only looks like it counts too."""
    try:
        content = read_bytes(copy, MAX_FILE_BYTES)
    except OSError:
        return False
    return (column or "loras").encode() in content


def _only(row_id: str) -> str:
    """Return `only=` as it is typed; a row may be called null."""
    return 'only="null"' if row_id == "null" else f"only={row_id}"


def _typed_settings(
    settings: Mapping[str, Any], sections: Collection[str] = _SECTIONS
) -> Iterator[str]:
    """Yield the settings that differ from what they would be if not typed, as they are typed."""
    model = settings["model"]
    yield f"model={model['name']}"
    stored = dict(model)
    if model["weights"] != "pretrained" or model["repo"] != _option(model["name"])["repo"]:
        del stored["revision"]  # follows from what is built or lies there
    yield from _differences("model", stored, _option(model["name"]))
    kind = settings["offload"]["kind"]
    if kind != "auto":
        yield f"offload={kind}"
    defaults = _defaults()
    if sections is _SECTIONS:
        for name in _READING:
            value, default = settings.get(name), getattr(Config(), name)
            if value is not None and value != getattr(default, "name", default):
                yield f"{name}={_typed(value)}"
    for section in sections:
        yield from _differences(section, settings.get(section) or {}, defaults[section])


def _differences(
    prefix: str, values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from _differences(key, value, defaults.get(name) or {})
        elif value != defaults.get(name) and key not in _LEFT_OUT:
            yield f"{key}={'...' if _must_be_typed(key, value) else _typed(value)}"


def _must_be_typed(key: str, value: Any) -> bool:
    """Whether a stored value would decide what is fetched or run."""
    if key == "runtime.attention_backend":
        return is_fetched(str(value))
    return key in TYPED_ONLY


def _typed(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def _option(name: str) -> dict[str, Any]:
    option = model_options().get(name)
    if option is None:  # an option of another version
        return {"repo": None}
    plain: dict[str, Any] = msgspec.to_builtins(option)
    return plain


@cache
def _defaults() -> dict[str, dict[str, Any]]:
    config = Config()
    return {
        section: {
            name: getattr(value, "name", value)  # enums are stored by name
            for name, value in vars(getattr(config, section)).items()
        }
        for section in _SECTIONS
    }
