"""picks/ of a run directory: copies of the clips that a person chose, under readable names."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from hv15_batch.errors import Refused
from hv15_batch.rundir.chosen.beneath import open_beneath
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import MIB

USUAL_PATTERN = "{tag_shot}_v{seed}"
MAX_NAME = 100
_MAX_NAME_BYTES = 200
"""A file system takes 255, and a suffix, a number and a temporary name's beginning are added."""
MAX_PATTERN = 200
_FIELD = re.compile(r"\{([^{}]*)\}")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OF_A_NAME = 10_000


def pick_name(pattern: str, values: Mapping[str, str], instead: str) -> str:
    """Return the name of a copy, without its suffix: letters of any script, digits, `.`, `_`, `-`.

    Args:
        pattern: A text with fields such as `{seed}` or `{tag_shot}`.
        values: What fields stand for.
        instead: What a tag that this clip lacks stands for.

    Raises:
        Refused: the pattern has an unknown field or a single brace, or is too long.
    """
    if len(pattern) > MAX_PATTERN:
        raise Refused(f"a name pattern has at most {MAX_PATTERN} characters.")

    def value(match: re.Match[str]) -> str:
        field = match[1]
        if field in values:
            return values[field] or instead
        if field.startswith("tag_"):
            return instead
        known = ", ".join(f"{{{name}}}" for name in values if not name.startswith("tag_"))
        raise Refused(f"{{{field}}}: no such field; name {known} or a tag such as {{tag_shot}}.")

    if lone := re.search(r"[{}]", _FIELD.sub("", pattern)):
        raise Refused(f"{pattern!r}: has a single {lone[0]}; a field is such as {{seed}}.")
    name = _plain(_FIELD.sub(value, pattern)).strip("._-")
    return name or instead


def _plain(text: str) -> str:
    """Return a text with `_` for what a name may not have, and not too long."""
    plain = "".join(
        each if each.isalnum() or each in "._-" or unicodedata.category(each)[0] == "M" else " "
        for each in unicodedata.normalize("NFC", text)
    )
    name = "_".join(part for part in plain.split(" ") if part)[:MAX_NAME]
    return name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")


def picks_folder(run_dir: RunDir) -> Path:
    """Return where copies of a run directory's clips go."""
    return run_dir.path / "picks"


def copy_pick(run_dir: RunDir, file: str, name: str) -> str:
    """Copy a clip into picks/ and return the copy's name; no file there is replaced.

    The same clip under the same name is not copied again; another one gets `.2` and so on.

    Args:
        run_dir: The run directory.
        file: The clip, as the log names it.
        name: Of the copy, from `pick_name`.

    Raises:
        Refused: picks/ is a link.
        OSError: the clip cannot be read, or the copy cannot be written.
    """
    suffix = PurePosixPath(file).suffix
    source = open_beneath(run_dir, file)
    try:
        folder = _open_folder(run_dir)
        try:
            digest = _sha256(source)
            for number in range(1, _MOST_OF_A_NAME):
                wanted = f"{name}{'' if number == 1 else f'.{number}'}{suffix}"
                if _is_free(folder, wanted):
                    _copy(source, folder, wanted)
                    return wanted
                if _is_the_same(run_dir, wanted, digest):
                    return wanted
        finally:
            os.close(folder)
    finally:
        os.close(source)
    raise Refused(
        f"{picks_folder(run_dir)}: has too many files named {name}; choose another pattern."
    )


def _open_folder(run_dir: RunDir) -> int:
    path = picks_folder(run_dir)
    with suppress(FileExistsError):
        path.mkdir()
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(
            f"{path}: is a link or no folder; copies go into a real folder: move it."
        ) from error


def _is_free(folder: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    return False


def _is_the_same(run_dir: RunDir, name: str, digest: str) -> bool:
    try:
        descriptor = open_beneath(run_dir, f"{picks_folder(run_dir).name}/{name}")
    except OSError:  # a link or a folder has that name
        return False
    try:
        return _sha256(descriptor) == digest
    finally:
        os.close(descriptor)


def _copy(source: int, folder: int, name: str) -> None:
    """Copy under a temporary name of the form in `files.py`, sync, and rename."""
    temporary = f".{secrets.token_hex(8)}.{name}"
    target = os.open(temporary, _NEW, 0o666, dir_fd=folder)
    try:
        at = 0
        while chunk := os.pread(source, MIB, at):
            view = memoryview(chunk)
            while view:
                view = view[os.write(target, view) :]
            at += len(chunk)
        os.fsync(target)
        if not stat.S_ISREG(os.lstat(temporary, dir_fd=folder).st_mode):
            raise OSError("another file was put in its place")
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(target)


def _sha256(descriptor: int) -> str:
    digest, at = hashlib.sha256(), 0
    while chunk := os.pread(descriptor, MIB, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()
