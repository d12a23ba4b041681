"""The command that makes one clip again, from the stored settings of the run that made it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from hv15_batch.config import Config
from hv15_batch.options import model_options
from hv15_batch.report.read import RunData

_NOT_OF_A_ROW = ("runtime", "video")
_SECTIONS = ("sampling", "override", *_NOT_OF_A_ROW)
_LEFT_OUT = ("sampling.seeds", "override.seeds", "runtime.card")
"""The seed is the clip's own; the card is one that a dry run predicts for."""


def clip_command(run: RunData, clip: Mapping[str, Any]) -> str | None:
    """Return what to type to make this clip, and only it, in a new folder; shell-quoted.

    It renders from the manifest copy of that run: the manifest itself may have been edited. Where
    a first frame is needed it is the manifest, because a copy's relative paths lead nowhere.

    Returns:
        None where the run that made the clip left no settings.
    """
    run_id, row_id = clip["run_id"], clip["logged_row_id"]
    settings = run.settings.get(run_id or "")
    if not settings or row_id is None:
        return None
    again = f"{run.directory.path}.again/{clip['clip_id']}"
    words = [
        *_source(run, clip, settings),
        f"override.seeds={clip['seed']}",
        *_typed_settings(settings),
        f"run_dir={again}",
    ]
    return " ".join(["hv15-batch", *map(shlex.quote, words)])


def pick_words(run: RunData, clip: Mapping[str, Any]) -> str:
    """Return what to type beside a manifest of this clip, which says nothing of it; shell-quoted.

    That is the model, and what was typed of `offload`, `runtime` and `video`.
    """
    settings = run.settings.get(clip["run_id"] or "")
    if not settings or "model" not in settings:
        return shlex.quote(f"model={clip['model']}")
    words = _typed_settings(settings, _NOT_OF_A_ROW)
    return " ".join(map(shlex.quote, words))


def _source(run: RunData, clip: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield what names the row: a manifest and an id."""
    manifest = str(settings["manifest"])
    if not clip["image"]:
        copy = f"manifest{Path(manifest).suffix}"
        manifest = str(run.directory.run_folder(clip["run_id"]) / copy)
    yield f"manifest={manifest}"
    yield _only(clip["logged_row_id"])


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
    for section in sections:
        yield from _differences(section, settings[section], defaults[section])


def _differences(
    prefix: str, values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[str]:
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            yield from _differences(key, value, defaults.get(name) or {})
        elif value != defaults.get(name) and key not in _LEFT_OUT:
            yield f"{key}={_typed(value)}"


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
