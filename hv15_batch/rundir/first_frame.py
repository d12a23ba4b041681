"""Where the first frame of a clip is, by what the clip's tag says of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hv15_batch.errors import LogSchemaError, Refused, StoreError
from hv15_batch.media.tag import ClipTag
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import sha256_of_file
from hv15_batch.rundir.store import frame_of


def find_first_frame(tag: ClipTag) -> Path | None:
    """Return the image file with which a clip begins; None where it is not found.

    A file is found by its content: beside the clip, or where its run had it. A frame of another
    clip is in `frames/` of the run.
    """
    if tag.settings.image_source is not None:
        denoise_sha256, _, number = tag.settings.image_source.partition(":")
        try:
            return frame_of(RunDir(tag.path.parent.parent), denoise_sha256, int(number))
        except StoreError:
            return None
    assert tag.image is not None
    for place in (tag.path.with_name(tag.image), *_places_of_run(tag)):
        if place.is_file() and sha256_of_file(place) == tag.settings.image_sha256:
            return place
    return None


def _places_of_run(tag: ClipTag) -> Iterator[Path]:
    """Yield where the manifest of the clip's run directory names the first frame."""
    run_dir = RunDir(tag.path.parent.parent)
    if not run_dir.run_ids():
        return
    from hv15_batch.rundir.log import read_last_attempts
    from hv15_batch.rundir.stored import stored_values

    try:
        manifest = stored_values(run_dir.run_folder(run_dir.run_ids()[-1])).get("manifest")
        rows = read_last_attempts(run_dir.log, ("image",))
    except (Refused, LogSchemaError):  # of another version; a person must name the image
        return
    if not isinstance(manifest, str):
        return
    folder = Path(manifest).parent
    cells = [row["image"] for row in rows if row["settings_sha256"] == tag.settings_sha256]
    yield from (folder / cell for cell in [*cells, tag.image] if cell)
