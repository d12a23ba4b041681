"""Files that are there whole or not at all: written beside, synced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hv15_batch.reading import open_regular
from hv15_batch.units import GIB, MIB

MAX_HASHED_BYTES = 1024 * GIB
"""Of a clip or an image; any size, but no pipe."""


@contextmanager
def publishing(path: Path, is_kept: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; sync and rename it when the block succeeds.

    What is not kept is written and synced in the same way, and then deleted.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        _sync(temporary)
        if is_kept:
            temporary.replace(path)
            _sync(path.parent)
        else:
            temporary.unlink()
    except BaseException as error:
        if type(error) is OSError and error.filename is None:
            error.filename = str(path)  # a full disk is noticed by write and fsync, which name none
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
    """Write over a small JSON file in the blocks that it has, where no room is left for another.

    Raises:
        OSError: it is not there, or the text needs more than its blocks.
    """
    data = (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
    with path.open("r+b") as file:
        if len(data) > os.fstat(file.fileno()).st_blocks * 512:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        file.write(data)
        file.truncate()


def publish_copy(path: Path, original: Path) -> None:
    """Copy a file as a whole; a full disk is an error about the copy."""
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
