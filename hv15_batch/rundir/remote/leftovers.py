"""What runs that ended early left: uploads that no row names, and files here that the store has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from hv15_batch.model.codec import VIDEO_SUFFIXES
from hv15_batch.record import DONE_STATUSES, ClipRecord
from hv15_batch.rundir.remote.client import Item
from hv15_batch.rundir.remote.objects import ATTEMPT, FRAMES
from hv15_batch.rundir.remote.probe import FOLDER

UPLOADED = re.compile(
    rf"clips/.+\.{ATTEMPT}({'|'.join(map(re.escape, VIDEO_SUFFIXES))})|thumbs/.+\.{ATTEMPT}\.jpg"
    rf"|latents/[0-9a-f]{{64}}\.{ATTEMPT}\.safetensors"
    rf"|{FRAMES}/[0-9a-f]{{64}}_[0-9]+\.{ATTEMPT}\.png"
    rf"|{FOLDER}/{ATTEMPT}"
)
ATTEMPT_IN_NAME = re.compile(rf"\.{ATTEMPT}(?=\.[a-z0-9]+$)")


def let_go(folder: Path, record: ClipRecord) -> None:
    """Delete the files of a finished clip in a working folder; the store has them."""
    if record.status not in DONE_STATUSES or record.repeat is not None:
        return
    for name in (record.file, record.latents_file):
        if name is not None and UPLOADED.fullmatch(name):
            with suppress(OSError):
                (folder / _name_here(name)).unlink(missing_ok=True)


def delete_copies(folder: Path, named: Iterable[str]) -> None:
    """Delete files of a working folder that the store has: another machine finished their clips.

    Args:
        folder: No run is active in it but the caller's.
        named: What rows name; each was uploaded, and then looked at in the store.
    """
    here = [p for each in ("clips", "latents") for p in (folder / each).glob("[!.]*")]
    if here:
        sent = set(map(_name_here, named))
        for path in here:
            if path.relative_to(folder).as_posix() in sent:
                path.unlink(missing_ok=True)


def _name_here(name: str) -> str:
    """Return the name in a working folder of what was uploaded."""
    return ATTEMPT_IN_NAME.sub("", name)


def orphans(items: Iterable[Item], before: datetime, named: Collection[str]) -> list[str]:
    """Return the uploads of a listing that no row names, and that are older than a moment."""
    thumbs = {f"thumbs/{name.rpartition('/')[2].rpartition('.')[0]}.jpg" for name in named}
    attempts = {match[0] for match in map(ATTEMPT_IN_NAME.search, named) if match}
    # Frames are named by no row; they belong to the attempt that made their clip.
    return [
        item.name
        for item in items
        if item.modified < before
        and UPLOADED.fullmatch(item.name)
        and item.name not in named
        and item.name not in thumbs
        and not (item.name.startswith(FRAMES) and ATTEMPT_IN_NAME.findall(item.name)[0] in attempts)
    ]
