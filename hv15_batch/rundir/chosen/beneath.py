"""Files of a run directory that somebody asks for over a network: opened beneath it, or not at all.

A run directory may be a stranger's. A name in its log may lead upwards, and a file or a folder in
it may be a link. So a name is taken apart, and each part is opened in the folder before it. The
kernel refuses a link at any part.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from hv15_batch.rundir.paths import RunDir

SERVED_TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".png": "image/png"}
"""What a server may hand out of a run directory, by suffix, and as what."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def served_type(name: str | None) -> str | None:
    """Return the content type of a name that the log holds; None if it must not be served."""
    if name is None or _parts(name) is None:
        return None
    return SERVED_TYPES.get(PurePosixPath(name).suffix)


def open_beneath(run_dir: RunDir, name: str) -> int:
    """Open a regular file of a run directory for reading; return its descriptor.

    Args:
        run_dir: The directory, which was typed and may be a link itself.
        name: Path below it, as the log has it.

    Raises:
        OSError: the name leads elsewhere, a part of it is a link, or it is no regular file.
    """
    parts = _parts(name)
    if parts is None:
        raise OSError(errno.EPERM, "leads out of the run directory", name)
    with _folder(run_dir, parts[:-1]) as folder:
        descriptor = os.open(parts[-1], _FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", name)
    return descriptor


@contextmanager
def _folder(run_dir: RunDir, parts: list[str]) -> Iterator[int]:
    """Yield the descriptor of a folder of a run directory."""
    descriptor = os.open(run_dir.path, _FOLDER)
    try:
        for part in parts:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _parts(name: str) -> list[str] | None:
    """Return the parts of a relative path; None if it is absolute, leads upwards or is odd."""
    parts = name.split("/")
    odd = "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in parts)
    return None if odd else parts
