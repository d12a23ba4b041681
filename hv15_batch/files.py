"""Files of others and our own: opened within limits, made under names that nobody can guess.

A pipe or a device would keep a reader waiting for ever, a huge file would fill the memory, and a
link at a name that can be guessed would lead a writer elsewhere. So what is read must be a regular
file of limited size and depth. A temporary file is made only where nothing has its name, and of
what is left behind only files of that form go, and only out of real folders.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_KIB, _MIB = 2**10, 2**20
_YAML_LOADER = "CSafeLoader"
MAX_JSON_BYTES = 16 * _MIB
"""Of status, lock, settings and configurations, which have some KiB."""
MAX_DEPTH = 64
"""Levels of lists and objects; configurations have fewer than ten."""
MAX_YAML_BYTES = 1 * _MIB
MAX_YAML_NODES = 100_000
"""With what aliases repeat: ten lines of them can stand for a billion."""
_NOT_THROUGH = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ODD = {
    stat.S_IFLNK: (errno.ELOOP, "is a link"),
    stat.S_IFDIR: (errno.EISDIR, "is a folder"),
    stat.S_IFIFO: (errno.EINVAL, "is a pipe and no regular file"),
    stat.S_IFSOCK: (errno.EINVAL, "is a socket and no regular file"),
    stat.S_IFCHR: (errno.EINVAL, "is a device and no regular file"),
    stat.S_IFBLK: (errno.EINVAL, "is a device and no regular file"),
}


class TooLarge(OSError):
    """A file with more bytes than its kind may have."""

    num_bytes = 0


def open_regular(path: str | os.PathLike[str], max_bytes: int) -> IO[bytes]:
    """Open a regular file of at most `max_bytes` to read its bytes; a link may lead to it.

    Raises:
        OSError: it is missing, not readable, no regular file or too large; `strerror` says which.
    """
    _check(path, os.stat(path), max_bytes)  # before it is opened: a device may act on that
    file = open(path, "rb", opener=_without_waiting)
    try:
        _check(path, os.fstat(file.fileno()), max_bytes)  # of what was opened, not of the name
    except OSError:
        file.close()
        raise
    return file


def check_regular(path: str | os.PathLike[str], max_bytes: int) -> None:
    """Check a file that a library will open by its name.

    Raises:
        OSError: as `open_regular`.
    """
    open_regular(path, max_bytes).close()


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)  # what is appended now is left


def read_below(folder: Path, parts: Sequence[str], max_bytes: int) -> bytes:
    """Return all bytes of a regular file below a folder, to which no link leads.

    Args:
        folder: Where the path starts; it may be a link itself.
        parts: Names of the folders below it, and of the file.
        max_bytes: Its limit.

    Raises:
        OSError: as `open_regular`, or a part of the path is a link.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in parts[:-1]:
            below = os.open(name, _REAL_FOLDER, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        name, path = parts[-1], os.path.join(folder, *parts)
        _check(path, os.stat(name, dir_fd=descriptor, follow_symlinks=False), max_bytes)
        number = os.open(name, os.O_RDONLY | _NOT_THROUGH, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    with os.fdopen(number, "rb") as file:
        status = os.fstat(number)
        _check(path, status, max_bytes)  # of what was opened, not of the name
        return file.read(status.st_size)


def read_text(path: str | os.PathLike[str], max_bytes: int) -> str:
    """Return the text of a regular file in UTF-8.

    Raises:
        OSError: as `open_regular`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, max_bytes).decode("utf-8")


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is no JSON in UTF-8, or nested too deeply.
    """
    return parse_json(read_text(path, max_bytes))


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is no JSON, or nested more deeply than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from None
    check_depth(value)
    return value


def check_depth(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Check how deeply lists and dictionaries are nested.

    Raises:
        ValueError: too deeply.
    """
    level = [value]
    for _ in range(max_depth + 1):
        level = [
            item
            for holder in level
            if isinstance(holder, (list, dict))
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {max_depth} levels deep")


def read_yaml(path: str | os.PathLike[str], max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Return what a YAML file holds, in plain types.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is no YAML of plain types in UTF-8, nested too deeply or grows too much.
    """
    import yaml

    text = read_text(path, max_bytes)
    check_yaml(text)
    try:
        return yaml.load(text, Loader=getattr(yaml, _YAML_LOADER, yaml.SafeLoader))
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def check_yaml(text: str) -> None:
    """Check depth and size of a YAML text before anything is made of it.

    Raises:
        ValueError: it is no YAML, nested more deeply than `MAX_DEPTH`, or of more than
            `MAX_YAML_NODES` values once its aliases are followed.
    """
    import yaml

    loader = getattr(yaml, _YAML_LOADER, yaml.SafeLoader)
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    try:
        for event in yaml.parse(text, Loader=loader):
            anchor, added = getattr(event, "anchor", None), 0
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((anchor, 1))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, added = open_nodes.pop()
            elif isinstance(event, yaml.ScalarEvent):
                added = 1
            elif isinstance(event, yaml.AliasEvent):
                if anchor not in sizes:
                    raise ValueError(f"*{anchor} stands for nothing, or for itself")
                added, anchor = sizes[anchor], None
            if anchor is not None and added:
                sizes[anchor] = added
            open_nodes[-1] = open_nodes[-1][0], open_nodes[-1][1] + added
            if len(open_nodes) > MAX_DEPTH + 1:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            if open_nodes[-1][1] > MAX_YAML_NODES:
                raise ValueError(f"more than {MAX_YAML_NODES:,} values")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _check(path: str | os.PathLike[str], status: os.stat_result, max_bytes: int) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        number, words = _ODD.get(kind, (errno.EINVAL, "is no regular file"))
        raise OSError(number, words, os.fspath(path))
    if status.st_size > max_bytes:
        raise _too_large(path, status.st_size, max_bytes)


def _too_large(path: str | os.PathLike[str], size: int, max_bytes: int) -> TooLarge:
    limit = f"{max_bytes // _MIB} MiB" if max_bytes >= _MIB else f"{max_bytes // _KIB} KiB"
    words = f"has {size:,} bytes, more than {limit}"
    error = TooLarge(errno.EFBIG, words, os.fspath(path))
    error.num_bytes = size
    return error


# -- temporary files ----------------------------------------------------------------------------

SCRATCH = ".script."
"""Begins the name of a folder where another program writes a clip under names of its own."""
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

    Those of another program are in folders of `SCRATCH`, whatever their names. Nothing is removed
    through a link. What cannot be removed stays.
    """
    removed = _sweep_files(folder, is_temporary)
    if not folder.is_symlink():
        removed += sum(map(remove_scratch, folder.glob(f"{SCRATCH}*")))
    return removed


def remove_scratch(folder: Path) -> int:
    """Remove a folder of `SCRATCH` with all that is in it, and return how many files they were.

    No link is followed: a linked folder is left alone, and of a link in it only the link goes.
    """
    if folder.is_symlink() or not folder.is_dir():
        return 0
    removed = sum(len(files) for _, _, files in os.walk(folder))
    shutil.rmtree(folder, ignore_errors=True)
    return removed


def _sweep_files(folder: Path, is_wanted: Callable[[str], bool]) -> int:
    try:
        descriptor = os.open(folder, _REAL_FOLDER)
    except OSError:  # missing, a link, or no folder
        return 0
    removed = 0
    try:
        for name in os.listdir(descriptor):
            if not is_wanted(name):
                continue
            with suppress(OSError):
                if stat.S_ISREG(os.lstat(name, dir_fd=descriptor).st_mode):
                    os.unlink(name, dir_fd=descriptor)
                    removed += 1
    finally:
        os.close(descriptor)
    return removed
