"""The settings in an mp4: written as its comment, read back as untrusted text."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from hv15_batch import __version__
from hv15_batch.clip import SCHEMA, Clip, ClipSettings
from hv15_batch.config.settings import X264_PRESETS, VideoCodec, VideoConfig
from hv15_batch.errors import Refused
from hv15_batch.files import parse_json
from hv15_batch.media.conversion import CONVERSIONS
from hv15_batch.model.attention import ATTENTION_BACKENDS
from hv15_batch.model.options import conf_dir
from hv15_batch.model.variant import Dtype, Linear, Task, Weights
from hv15_batch.units import MIB, format_value

MAX_TAG_CHARACTERS = 16 * MIB
"""More than the longest prompt and negative prompt need."""

_SETTINGS = frozenset(f.name for f in fields(ClipSettings))
_NEEDED = frozenset(f.name for f in fields(ClipSettings) if f.default is MISSING)
"""Required keys. Others were added later; a tag without them was made with their defaults."""
_FACTS = {
    "schema": int,
    "hv15_batch_version": str,
    "clip_id": str,
    "settings_sha256": str,
    "repo": str,
    "task": str,
    "off_recipe": bool,
    "image": (str, type(None)),
}
_ADDED_FACTS = frozenset({"prompt_original"})
"""Facts that only some tags have."""
_VIDEO = {"codec": str, "crf": int, "preset": str, "embed_metadata": bool}
_VIDEO_NEEDED = frozenset({"codec", "crf", "preset", "embed_metadata"})
"""Required keys of `video`; later ones may be missing, as above."""
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SOURCE = re.compile(r"[0-9a-f]{64}:[0-9]{1,5}")
_LINEARS = tuple(linear.name for linear in Linear if linear is not Linear.bf16)
_ENGINE = re.compile(r"official@[0-9a-f]{40}( [!-~]{1,200}){2,40}")
_CACHE = re.compile(r"[0-9]{1,4}(:[0-9]{1,4}){2}")


@dataclass(frozen=True)
class ClipTag:
    """The settings in a clip's file. Types and names are checked; the sampling is checked later."""

    path: Path
    """Absolute."""
    name: str
    """The file as the user typed it, for messages."""
    settings: ClipSettings
    video: VideoConfig
    """Its `video` section, with defaults for settings that are newer than the tag."""
    settings_sha256: str
    """Hash in the tag, which is also the hash of its settings."""
    clip_id: str
    repo: str
    """Hub id, or the name of a local folder; for messages only."""
    task: Task
    off_recipe: bool
    image: str | None
    """Name of the first frame's file, without a folder."""
    version: str
    """hv15_batch that wrote it; for messages only."""
    prompt_original: str | None = None
    """The prompt before it was rewritten; None for a prompt as it was written."""


def read_clip_tag(name: str) -> ClipTag:
    """Return the tag of a clip.

    Args:
        name: The file, as typed.

    Raises:
        Refused: There is no such file, it has no tag of this project, or the tag has another
            schema or was edited.
    """
    path = Path(os.path.expanduser(name)).absolute()
    values = _read_json(path, name)
    schema, version = values["schema"], values["hv15_batch_version"]
    if schema != SCHEMA:
        raise Refused(
            f"{name}: its tag has schema {schema}, and this version reads {SCHEMA}; use the "
            f"version of hv15_batch that wrote it ({format_value(version)})."
        )
    needed, known = _NEEDED | _FACTS.keys(), _SETTINGS | _FACTS.keys() | _ADDED_FACTS
    for key in sorted((needed - values.keys()) | (values.keys() - known)):
        raise _refused(name, key, values.get(key), "is missing or unknown")
    values = {f.name: f.default for f in fields(ClipSettings) if f.name not in _NEEDED} | values
    _check_facts(values, name)
    _check_choices(values, name)
    if values["loras"] is not None:
        values["loras"] = tuple(tuple(pair) for pair in values["loras"])
    settings = ClipSettings(**{key: values[key] for key in _SETTINGS})
    if settings.settings_sha256() != values["settings_sha256"]:
        raise Refused(
            f"{name}: its tag was edited: the settings do not give the settings_sha256 beside "
            "them; write a manifest instead."
        )
    return ClipTag(
        path=path,
        name=name,
        settings=settings,
        video=_video_of(settings),
        settings_sha256=values["settings_sha256"],
        clip_id=values["clip_id"],
        repo=values["repo"],
        task=Task[values["task"]],
        off_recipe=values["off_recipe"],
        image=values["image"],
        version=values["hv15_batch_version"],
        prompt_original=values.get("prompt_original"),
    )


def _video_of(settings: ClipSettings) -> VideoConfig:
    """Return the `video` section; that of another program's file has nothing of it."""
    if settings.engine is not None:
        return VideoConfig()
    return VideoConfig(**settings.video | {"codec": VideoCodec[settings.video["codec"]]})


def _read_json(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file's comment, which has a schema and a version.

    Raises:
        Refused: There is none, or it is another program's.
    """
    from hv15_batch.media.video import read_comment

    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Refused(f"{name}: is no regular file; name a clip.")
        comment = read_comment(path)
    except (OSError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Refused(f"{name}: {why}; name a clip (.mp4, .mkv or .mov) of a run.") from error
    if comment is None:
        raise Refused(
            f"{name}: it has no tag (video.embed_metadata=false, or a program that rewrote "
            "the file left it out); render it from its manifest."
        )
    try:
        values = parse_json(comment) if len(comment) <= MAX_TAG_CHARACTERS else None
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(
        _is_a(values.get(key), _FACTS[key]) for key in ("schema", "hv15_batch_version")
    ):
        raise Refused(
            f"{name}: its comment is not the settings of a clip; name a clip that hv15-batch "
            "rendered with video.embed_metadata=true, or write a manifest."
        )
    return values


def _check_facts(values: dict[str, Any], name: str) -> None:
    """Check the types of the settings that are not cells of a manifest.

    Raises:
        Refused: The message names the first wrong one.
    """
    for key, kind in _FACTS.items():
        if not _is_a(values[key], kind):
            raise _refused(name, key, values[key], "is of the wrong type")
    video = values["video"]
    engine = values["engine"]
    if engine is not None and not (isinstance(engine, str) and _ENGINE.fullmatch(engine)):
        raise _refused(name, "engine", engine, "must be official@ and what it consisted of")
    needed = _VIDEO_NEEDED if engine is None else frozenset()
    most = _VIDEO.keys() if engine is None else frozenset()
    if not isinstance(video, dict) or not needed <= video.keys() <= most:
        raise _refused(name, "video", video, f"must have {', '.join(_VIDEO)}")
    for key, value in video.items():
        if not _is_a(value, _VIDEO[key]):
            raise _refused(name, f"video.{key}", video[key], "is of the wrong type")
    source = values["image_source"]
    if source is not None and not (isinstance(source, str) and _SOURCE.fullmatch(source)):
        raise _refused(name, "image_source", source, "must be a SHA-256 and a frame's number")
    if source is not None and values["image_sha256"] is not None:
        raise _refused(name, "image_source", source, "and image_sha256 are never both there")
    image = values["image"]
    if image is not None and (image != Path(image).name or "\\" in image or "\0" in image):
        raise _refused(name, "image", image, "must be a file's name without a folder")
    if (image is None) != (values["image_sha256"] is None and values["image_source"] is None):
        raise _refused(name, "image_sha256", values["image_sha256"], "needs an image beside it")
    if not isinstance(values.get("prompt_original"), str | None):
        raise _refused(name, "prompt_original", values["prompt_original"], "must be text")
    if (image is None) != (values["task"] != Task.i2v.name):
        raise _refused(name, "task", values["task"], "needs an image if it is i2v, and only then")


def _check_choices(values: dict[str, Any], name: str) -> None:
    """Check that each setting in the tag has a known value.

    Raises:
        Refused: The message names the first wrong one.
    """
    models = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))
    choices: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
        ("model", values["model"], tuple(models)),
        ("weights", values["weights"], tuple(Weights.__members__)),
        ("dtype", values["dtype"], tuple(Dtype.__members__)),
        ("task", values["task"], tuple(Task.__members__)),
        ("attention_backend", values["attention_backend"], ATTENTION_BACKENDS),
        ("video.codec", values["video"].get("codec"), tuple(VideoCodec.__members__)),
        ("video.preset", values["video"].get("preset"), X264_PRESETS),
    )
    if values["engine"] is not None:  # its file has no `video` section
        choices = choices[:-2]
    for key, value, allowed in choices:
        if not isinstance(value, str) or value not in allowed:
            raise _refused(name, key, value, f"must be one of {', '.join(allowed)}")
    hashes = {key: values[key] for key in ("revision", "image_sha256", "transformer_sha256")}
    for key, value in hashes.items():
        if value is not None and not (isinstance(value, str) and _HEX.fullmatch(value)):
            raise _refused(name, key, value, "must be 40 or 64 hexadecimal digits")
    if values["quantisation"] is not None:
        raise _refused(name, "quantisation", values["quantisation"], "is not supported here")
    linear = values["linear"]
    if linear is not None and linear not in _LINEARS:
        raise _refused(name, "linear", linear, f"must be one of {', '.join(_LINEARS)}")
    cache = values["cache"]
    if cache is not None and not (isinstance(cache, str) and _CACHE.fullmatch(cache)):
        raise _refused(name, "cache", cache, "must be every:start:end, such as 4:11:45")
    loras = values["loras"]
    if loras is not None and not (isinstance(loras, list) and loras and all(map(_is_lora, loras))):
        raise _refused(name, "loras", loras, "must be a list of SHA-256 and scale")
    conversion = values["image_conversion"]
    known = (None,) if values["image"] is None else (None, *CONVERSIONS)
    if conversion not in known:
        raise _refused(name, "image_conversion", conversion, "is not known to this version")
    if values["negative_prompt"] is not None and not isinstance(values["negative_prompt"], str):
        raise _refused(name, "negative_prompt", values["negative_prompt"], "must be text")


def _is_lora(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and bool(_HEX.fullmatch(value[0]))
        and isinstance(value[1], float)
        and math.isfinite(value[1])
    )


def _is_a(value: Any, kind: Any) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _refused(name: str, key: str, value: Any, rule: str) -> Refused:
    return Refused(
        f"{name}: {format_value(key)}={format_value(value)} in its tag {rule}; "
        "write a manifest instead."
    )


def settings_comment(clip: Clip, repo: str, task: str) -> str:
    """Return a clip's settings as JSON, file names without their folders."""
    settings = clip.settings.as_dict()
    facts = {
        "schema": SCHEMA,
        "hv15_batch_version": __version__,
        "clip_id": clip.clip_id,
        "settings_sha256": clip.settings_sha256,
        "repo": Path(repo).name if Path(repo).is_absolute() else repo,
        "task": task,
        "off_recipe": clip.off_recipe,
        "image": Path(clip.image).name if clip.image else None,
    }
    if clip.rewrite is not None:
        facts["prompt_original"] = clip.rewrite.original
    return json.dumps(facts | settings, ensure_ascii=False)
