"""Writes files whole or not at all: under another name first, then synced and renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hv15_batch.files import check_is_file, make_beside, open_regular
from hv15_batch.units import GIB, MIB

MAX_HASHED_BYTES = 1024 * GIB
"""Limit for a clip or an image: in effect any size, but no pipe."""


@contextmanager
def publishing(path: Path, is_kept: bool = True, makes_folder: bool = False) -> Iterator[Path]:
    """Yield an empty file beside `path`; sync and rename it when the block succeeds.

    Args:
        path: The final name.
        is_kept: False writes and syncs the file in the same way, and then deletes it.
        makes_folder: Make the folder of `path` again if it was deleted during a run. Its parent is
            not made again, because that may have been moved.
    """
    if makes_folder:
        with suppress(FileExistsError):
            path.parent.mkdir()
    temporary = make_beside(path)
    try:
        yield temporary
        check_is_file(temporary)
        _sync(temporary)
        if is_kept:
            temporary.replace(path)
            _sync(path.parent)
        else:
            temporary.unlink()
    except BaseException as error:
        if type(error) is OSError and error.filename is None:
            error.filename = str(path)  # write and fsync do not name the file
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def publish_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with publishing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def publish_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole."""
    publish_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def overwrite_json(path: Path, value: Any) -> None:
    """Overwrite a small JSON file in place, for a disk without room for a second one.

    Raises:
        OSError: It does not exist, it is a link, or the text needs more than its blocks.
    """
    data = (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
        if len(data) > os.fstat(file.fileno()).st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        file.write(data)
        file.truncate()


def publish_copy(path: Path, original: Path) -> None:
    """Copy a file as a whole; the error of a full disk names the copy."""
    with publishing(path) as temporary, original.open("rb") as file, temporary.open("wb") as copy:
        copy.writelines(file)


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path, MAX_HASHED_BYTES) as file:
        while chunk := file.read(MIB):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
