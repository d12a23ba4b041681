"""`from=clip.mp4`: a clip's own tag in the place of a manifest and of what was typed.

What makes the clip becomes settings (`words_of_clip`, before the configuration is composed) and one
row (`clip_manifest`), checked as a manifest's row is. What is typed beside `from=` wins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hv15_batch.attention_needs import is_fetched
from hv15_batch.clip import Clip
from hv15_batch.clip_tag import ClipTag, read_clip_tag
from hv15_batch.config import Config, ConfigError, Task, Weights
from hv15_batch.manifest import Manifest, ManifestError
from hv15_batch.manifest_cells import Faults, format_value
from hv15_batch.manifest_columns import Record
from hv15_batch.manifest_rows import Row, RowReader
from hv15_batch.overrides import FROM_CLIP, key_of, value_of
from hv15_batch.rundir import RunDir, sha256_of_file

_NOT_WITH = ("manifest", "experiment", "resume")
_OF_THE_MODEL = ("model.revision", "model.weights")


def words_of_clip(settings: Sequence[str]) -> list[str]:
    """Return the settings that make the clip of `from=`, less those that were typed.

    Args:
        settings: what was typed, in Hydra's grammar.

    Raises:
        ConfigError: the clip cannot be used, or something goes against it.
    """
    typed = {key_of(word) for word in settings}
    named = [value_of(word) for word in settings if key_of(word) == FROM_CLIP]
    if not named:
        if "image" in typed:
            raise ConfigError("image=: goes with from=clip.mp4; in a manifest it is a column.")
        return []
    if len(named) > 1:
        raise ConfigError("from=: one clip at a time; name one, or write a manifest.")
    for key in _NOT_WITH:
        if key in typed:
            raise ConfigError(f"{key}= with from={named[0]}: leave one of them out.")
    values = _settings_of(read_clip_tag(named[0]))
    key = "runtime.attention_backend"
    backend = values[key]
    if is_fetched(backend) and key not in typed:
        raise ConfigError(
            f"from={named[0]}: was rendered with {backend}, which fetches code from the Hugging "
            f"Face hub and runs it, and a tag never decides that; type {key}={backend} if you want "
            f"it, or {key}=auto."
        )
    if "model" in typed:
        for key in _OF_THE_MODEL:  # of the tag's model
            values.pop(key, None)
    return [f"{key}={value}" for key, value in values.items() if key not in typed]


def _settings_of(tag: ClipTag) -> dict[str, str]:
    asked = tag.settings
    values = {
        "model": asked.model,
        "model.weights": asked.weights,
        "runtime.dtype": asked.dtype,
        "runtime.attention_backend": asked.attention_backend,
        "video.codec": asked.video["codec"],
        "video.crf": str(asked.video["crf"]),
        "video.preset": asked.video["preset"],
        "video.embed_metadata": str(asked.video["embed_metadata"]).lower(),
    }
    if asked.revision is not None:
        values["model.revision"] = f'"{asked.revision}"'
    if tag.off_recipe:
        values["runtime.allow_off_recipe"] = "true"
    return values


def clip_manifest(config: Config) -> Manifest:
    """Return the manifest that a clip's tag stands for: its one row and seed.

    Raises:
        ConfigError: the clip, its weights or its first frame are not there.
        ManifestError: the tag asks for what no manifest may.
    """
    assert config.from_clip is not None
    tag = read_clip_tag(config.from_clip)
    _check_model(tag, config)
    image = _find_image(tag, config.image) if config.model.task is Task.i2v else None
    faults = Faults(tag.name)
    row = RowReader(config.model.task, tag.path.parent, faults).read(0, _record(tag, image))
    if faults.messages:
        raise ManifestError(faults.messages)
    if image is not None and row.image_sha256 != tag.settings.image_sha256:
        raise ConfigError(
            f"image={image}: is not the first frame of {tag.name}: its content is another; name "
            "the right one with image=FILE."
        )
    row = _as_asked(row, tag)
    return Manifest(tag.path, tag.name, sha256_of_file(tag.path), (row,))


def check_same_clip(config: Config, clips: Sequence[Clip]) -> tuple[str, ...]:
    """Return the line that is said where a typed setting makes another clip than the one named.

    Raises:
        ConfigError: nothing typed does, but the weights here are not those of the clip.
    """
    assert config.from_clip is not None
    tag = read_clip_tag(config.from_clip)
    if any(clip.settings_sha256 == tag.settings_sha256 for clip in clips):
        return ()
    before, now = tag.settings.as_dict(), clips[0].settings.as_dict()
    changed = [name for name in before if before[name] != now[name]]
    if "revision" in changed and config.model.revision == tag.settings.revision:
        raise ConfigError(
            f"from={tag.name}: was rendered with revision {before['revision']} of its weights by "
            f"hv15_batch {format_value(tag.version)}, and here they have {now['revision']}; name "
            "those weights with model.repo=FOLDER, or take what is here with model.revision=null."
        )
    return (f"not the clip of {tag.name}: {', '.join(changed)} differ, as typed",)


def _check_model(tag: ClipTag, config: Config) -> None:
    """Refuse weights that only a name is known of: a tag never names what is loaded.

    Raises:
        ConfigError: with what to type.
    """
    model = config.model
    is_of_tag = model.name == tag.settings.model and model.weights is Weights.pretrained
    if not is_of_tag or tag.repo == model.repo or Path(model.repo or "").expanduser().is_dir():
        return
    raise ConfigError(
        f"from={tag.name}: its weights came from {tag.repo!r}, which is not that of "
        f"model={model.name}; name the folder or hub id with model.repo=..."
    )


def _record(tag: ClipTag, image: Path | None) -> Record:
    asked = tag.settings
    cells = {
        "prompt": asked.prompt,
        "seed": asked.seed,
        "num_frames": asked.num_frames,
        "num_inference_steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "flow_shift": asked.flow_shift,
        "fps": asked.fps,
        "negative_prompt": asked.negative_prompt,
    }
    row_id = re.sub(r"_s[0-9]+_[0-9a-f]{8}\Z", "", tag.clip_id)
    cells["id"] = row_id
    if image is not None:
        cells["image"] = str(image)
    else:  # an image-to-video model takes its size from the image
        cells |= {"height": asked.height, "width": asked.width}
    return Record(line=1, cells=cells)


def _as_asked(row: Row, tag: ClipTag) -> Row:
    """Return the row with what a manifest's cell cannot hold: an empty text, a bare name."""
    negative_prompt = tag.settings.negative_prompt
    return replace(
        row,
        negative_prompt=row.negative_prompt if negative_prompt is None else negative_prompt,
        image=tag.image if row.image else None,
    )


def _find_image(tag: ClipTag, typed: str | None) -> Path:
    """Return the first frame: as typed, beside the clip, or where its run's manifest names it.

    Raises:
        ConfigError: it is in none of these places.
    """
    if typed is not None:
        return Path(typed).expanduser().absolute()
    if tag.image is None:
        raise ConfigError(
            f"from={tag.name}: model={tag.settings.model} needs a first frame, and the clip was "
            "made without one; name it with image=FILE."
        )
    places = [tag.path.with_name(tag.image), *_places_of_run(tag)]
    for place in places:
        if place.is_file() and sha256_of_file(place) == tag.settings.image_sha256:
            return place
    looked = ", ".join(dict.fromkeys(str(place.parent) for place in places))
    raise ConfigError(
        f"from={tag.name}: its first frame {tag.image!r} is not in {looked} (with the content that "
        "the clip was made from); name it with image=FILE."
    )


def _places_of_run(tag: ClipTag) -> list[Path]:
    """Return where the manifest of the clip's run directory has, or had, the first frame."""
    from hv15_batch.runlog import LogSchemaError, read_last_attempts
    from hv15_batch.stored_settings import latest_settings

    run_dir = RunDir(tag.path.parent.parent)
    if not run_dir.run_ids():
        return []
    try:
        manifest = latest_settings(run_dir).manifest
        rows = read_last_attempts(run_dir.log, ("image",))
    except (ConfigError, LogSchemaError):
        return []  # of another version: then the user names the image
    if manifest is None:
        return []
    cells = [r["image"] for r in rows if r["settings_sha256"] == tag.settings_sha256]
    folder = Path(manifest).parent
    return [folder / cell for cell in [*cells, tag.image] if cell]
