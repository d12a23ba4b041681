"""Previews in a run directory: one small picture for each worker, of the clip that it denoises.

They lie beside the log of the run or shard, under names that follow from the worker's number. They
are worth nothing later, so they are not synced to the disk.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hv15_batch.files import make_beside, sweep
from hv15_batch.rundir.paths import RunDir

FOLDER = "previews"
_NAME = re.compile(r"worker-[0-9]{1,6}\.jpg")


def preview_file(run_dir: RunDir, worker: int) -> Path:
    """Return where the picture of a worker is kept while there is one."""
    return run_dir.own / FOLDER / f"worker-{worker}.jpg"


def write_preview(run_dir: RunDir, worker: int, write: Callable[[Path], None]) -> None:
    """Put a picture in the place of the one before, whole.

    Args:
        run_dir: As the run or shard sees it.
        worker: Its number.
        write: Fills the file whose path it gets.

    Raises:
        OSError: it cannot be written, or the folder is a link.
    """
    path = preview_file(run_dir, worker)
    with suppress(FileExistsError):
        path.parent.mkdir()
    if path.parent.is_symlink():
        raise OSError(errno.ELOOP, "is a link", str(path.parent))
    temporary = make_beside(path)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_preview(run_dir: RunDir, worker: int) -> None:
    """Remove the picture of a worker, if there is one."""
    path = preview_file(run_dir, worker)
    if not path.parent.is_symlink():
        with suppress(OSError):
            path.unlink(missing_ok=True)


def clear_previews(run_dir: RunDir) -> None:
    """Remove the pictures of a run or shard, and their folder where nothing else is in it."""
    folder = run_dir.own / FOLDER
    if folder.is_symlink() or not folder.is_dir():
        return
    sweep(folder)
    with suppress(OSError):
        for name in filter(_NAME.fullmatch, os.listdir(folder)):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def found_previews(run_dir: RunDir) -> dict[tuple[int, int], tuple[str, int]]:
    """Return the pictures that there are now, of all shards.

    Returns:
        By number of the folder (0 is the run's own, then the shards') and of the worker: the path
        below the run directory, and when it was written in nanoseconds.
    """
    found = {}
    for number, own in enumerate((run_dir, *run_dir.shard_dirs())):
        folder = own.own / FOLDER
        try:
            names = [] if folder.is_symlink() else os.listdir(folder)
        except OSError:
            continue
        for name in filter(_NAME.fullmatch, names):
            with suppress(OSError):
                written = os.stat(folder / name, follow_symlinks=False).st_mtime_ns
                worker = int(name.removeprefix("worker-").removesuffix(".jpg"))
                found[number, worker] = run_dir.relative(folder / name), written
    return found
