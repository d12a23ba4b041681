"""Faults of rows that show only in the clips that they make: recipes, LoRAs, ids."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence

from hv15_batch.clip import Clip
from hv15_batch.config.options import config_of
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import Faults, format_places
from hv15_batch.manifest.read import Manifest
from hv15_batch.manifest.rows import Row, id_rule
from hv15_batch.model.variant import check_recipe
from hv15_batch.official.limits import clip_faults, is_official


def note_clip_faults(
    manifest: Manifest, clips: Sequence[Clip], config: Config, faults: Faults
) -> None:
    """Note the faults of clips that the good rows make.

    Raises:
        Refused: A value comes from the command or the model option, and not from a row.
    """
    if not config.runtime.allow_off_recipe:
        _note_off_recipe(manifest, clips, config, faults)
    _note_shared_ids(manifest, clips, faults)
    _note_unclear_sources(manifest, clips, faults)
    if is_official(config):
        _note_beyond_script(manifest, clips, config, faults)


def _note_beyond_script(
    manifest: Manifest, clips: Sequence[Clip], config: Config, faults: Faults
) -> None:
    """Note each row with a value that the official script has no flag for.

    Raises:
        Refused: The value comes from the command, and not from a row.
    """
    for index, clip in {clip.row_index: clip for clip in clips}.items():
        own = config_of(config, clip.settings.model)
        for name, value, rule in clip_faults(clip, own.model):
            key = None
            if hasattr(own.override, name):
                key = _setting_that_gave(name, manifest.rows[index], own)
            if key is not None:
                raise Refused(f"{key}={value}: {rule}.")
            faults.add(clip.line, name, value, rule)


def _note_off_recipe(
    manifest: Manifest, clips: Sequence[Clip], config: Config, faults: Faults
) -> None:
    """Note each row that uses a distilled model off its recipe.

    Raises:
        Refused: The value comes from the command or the model option, and not from a row.
    """
    for index, clip in {clip.row_index: clip for clip in clips if clip.off_recipe}.items():
        settings = clip.settings
        own = config_of(config, settings.model)
        found = check_recipe(own.model, settings.num_inference_steps, settings.guidance_scale)
        if found is None:
            continue  # told, not refused
        name, reason = found
        rule = f"{reason}; leave it out, or set runtime.allow_off_recipe=true"
        value = getattr(settings, name)
        key = _setting_that_gave(name, manifest.rows[index], own)
        if key is not None:
            raise Refused(f"{key}={value:g}: {rule}.")
        faults.add(clip.line, name, value, rule)


def _setting_that_gave(name: str, row: Row, config: Config) -> str | None:
    """Return the setting that a row's value comes from; None for its own cell."""
    if getattr(config.override, name) is not None:
        return f"override.{name}"
    if getattr(row, name) is not None:
        return None
    if getattr(config.sampling, name) is not None:
        return f"sampling.{name}"
    return f"model.default_sampling.{name}"


def note_same_loras(manifest: Manifest, clips: Iterable[Clip], faults: Faults) -> None:
    """Note each row whose LoRAs are one file under two names.

    Raises:
        Refused: it is the settings that name them.
    """
    for clip in {clip.row_index: clip for clip in clips if len(clip.loras) > 1}.values():
        for one, other in itertools.pairwise(clip.loras):
            if one.sha256 == other.sha256:
                rule = f"{one.path} and {other.path} are the same file; remove one"
                if manifest.rows[clip.row_index].loras is None:
                    raise Refused(f"model.loras: {rule}.")
                faults.add(clip.line, "loras", os.path.basename(one.path), rule)


def _note_shared_ids(manifest: Manifest, clips: Iterable[Clip], faults: Faults) -> None:
    """Note each row with the id of another row that makes other clips."""
    first: dict[str, Row] = {}
    pairs = [
        (row, other)
        for row in manifest.rows
        if row.id_given
        and (other := first.setdefault(row.id.lower(), row)) is not row
        # Of ten thousand prompts of one template two may well share six digits.
        and (row.template_id is None or row.line != other.line)
    ]
    if not pairs:
        return
    made: dict[int, set[str]] = {}
    for clip in clips:
        made.setdefault(clip.row_index, set()).add(clip.settings_sha256)
    for row, other in pairs:
        if not made.get(row.index, set()) <= made.get(other.index, set()):
            where = f"{faults.unit} {other.line}"
            faults.add(row.line, "id", row.id, id_rule(row.id, other.id, where))


def _note_unclear_sources(manifest: Manifest, clips: Iterable[Clip], faults: Faults) -> None:
    """Note each row that follows an id which several rows got by default, for other clips."""
    followed = {row.image_frame.row_id for row in manifest.rows if row.image_frame is not None}
    if not followed:
        return
    of_id: dict[str, list[Row]] = {}
    for row in manifest.rows:
        if row.id in followed:
            of_id.setdefault(row.id, []).append(row)
    # Own ids that rows of other clips share are refused whether or not another row follows them.
    of_id = {
        row_id: rows
        for row_id, rows in of_id.items()
        if len(rows) > 1 and not all(row.id_given for row in rows)
    }
    if not of_id:
        return
    made: dict[int, set[str]] = {}
    for clip in clips:
        made.setdefault(clip.row_index, set()).add(clip.settings_sha256)
    unclear = {
        row_id: rows
        for row_id, rows in of_id.items()
        if any(made.get(r.index, set()) - made.get(rows[0].index, set()) for r in rows)
    }
    for row in manifest.rows:
        if row.image_frame is not None and row.image_frame.row_id in unclear:
            name = row.image_frame.row_id
            lines = [each.line for each in unclear[name]]
            places = format_places(lines, len(lines), faults.unit)
            rule = f"{name} is the id of {places}, which make different clips, and a clip follows "
            rule += "one of them; give those rows ids of their own"
            faults.add(row.line, "image", row.image or "", rule)
