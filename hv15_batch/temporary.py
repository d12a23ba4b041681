"""Temporary files of our own: made where nothing is followed, known by their names, swept.

A folder may hold what somebody else has put there: links at names that can be guessed, hidden files
of a user. So a temporary file has a name that nobody can guess, and is made only where nothing has
that name. Of what is left behind only files of that form go, and only out of real folders.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_FORM = re.compile(r"\.[0-9a-f]{16}\..+", re.DOTALL)
_FORM_BEFORE = re.compile(
    r"\.[0-9]{1,10}\..+\.(mp4|mkv|jpg|safetensors|parquet|yaml|json|jsonl|ndjson|csv|txt|html|js|css|md)",
    re.DOTALL,
)
"""Of versions that named the process: what one of those left behind goes too."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REAL_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one that an interrupted write left behind."""
    return bool(_FORM.fullmatch(name) or _FORM_BEFORE.fullmatch(name))


def make_beside(path: Path) -> Path:
    """Make an empty temporary file in the folder of `path` and return its path.

    Raises:
        OSError: it cannot be made there; the error names `path`.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        os.close(os.open(temporary, _NEW, 0o666))
    except OSError as error:
        error.filename = str(path)
        raise
    return temporary


def check_is_file(temporary: Path) -> None:
    """Check that what is about to get a visible name is still a file of its own.

    Raises:
        OSError: a link or something else has its name.
    """
    status = os.lstat(temporary)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise OSError(errno.ELOOP, "another file was put in its place", str(temporary))


def sweep(folder: Path) -> int:
    """Remove the temporary files of a folder and return how many they were.

    Nothing is removed through a link: a linked folder is left alone, and so is a link in a folder.
    What cannot be removed stays.
    """
    try:
        descriptor = os.open(folder, _REAL_FOLDER)
    except OSError:  # missing, a link, or no folder
        return 0
    removed = 0
    try:
        for name in os.listdir(descriptor):
            if not is_temporary(name):
                continue
            with suppress(OSError):
                if stat.S_ISREG(os.lstat(name, dir_fd=descriptor).st_mode):
                    os.unlink(name, dir_fd=descriptor)
                    removed += 1
    finally:
        os.close(descriptor)
    return removed
