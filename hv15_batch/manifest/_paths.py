"""Paths that do not exist here: each fault comes with the fix, and no path is translated."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from itertools import islice
from pathlib import Path

_DRIVE = re.compile(r"([A-Za-z]):[\\/]+(.*)", re.DOTALL)
_WSL = re.compile(
    r"[\\/]{2}wsl(?:\$|\.localhost)[\\/]+[^\\/]+[\\/]*(.*)", re.IGNORECASE | re.DOTALL
)
_SHARE = re.compile(r"\\\\[^\\/]+[\\/].*", re.DOTALL)
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]+://|data:[a-z]+/).*", re.DOTALL)

MAX_NAMES = 10_000
"""At most this many names of a folder are compared with a missing one."""


def path_fault(path: str, folder: str = "") -> str | None:
    """Return why a path does not exist here, and what to write instead; None if it exists.

    Args:
        path: The path as typed, relative to `folder` or absolute.
        folder: The folder where a relative path starts.

    Returns:
        `what is allowed; what to do`; None if the file exists or no reason is known.
    """
    try:
        if os.path.lexists(os.path.join(folder, path)):
            return None
    except ValueError:
        return None  # a NUL, which the check of the cell reports
    if _URL.fullmatch(path):
        if path.startswith("file://"):
            return f"must be a path and no address; write {path.removeprefix('file://') or '/'}"
        return "a manifest names files only, and this is an address; download it and name the file"
    foreign = foreign_path(path)
    if foreign is not None:
        return foreign
    plain = path.strip().strip("\"'").strip()
    if plain != path and plain and os.path.lexists(os.path.join(folder, plain)):
        return f"a path has no quotation marks or spaces around it; write {plain}"
    if "\\" in path:
        slashed = path.replace("\\", "/")
        return f"folders are separated by /, and here by backslashes; write {slashed}"
    if path.startswith("~"):
        return f"~ is not replaced in a manifest; write {os.path.expanduser(path)}"
    return _near_fault(path, folder)


def foreign_path(path: str) -> str | None:
    """Return the path on this system for a path of Windows; None for other paths."""
    if match := _WSL.fullmatch(path):
        here = "/" + match[1].replace("\\", "/")
        return f"this is the path under Windows of a file of this system; write {here}"
    if match := _DRIVE.fullmatch(path):
        here = f"/mnt/{match[1].lower()}/" + match[2].replace("\\", "/")
        return f"this is a path of Windows, and under WSL the drive is a folder; write {here}"
    if _SHARE.fullmatch(path):
        return (
            "this is a network path of Windows; mount the share (under WSL: sudo mount -t drvfs), "
            "and write the path below the mount"
        )
    return None


def _near_fault(path: str, folder: str) -> str | None:
    """Return which file exists with other case, Unicode composition or suffix."""
    parent, name = os.path.split(os.path.join(folder, path))
    there = _existing(parent)
    if there is None:
        return None
    names = _names(there)
    same = [other for other in names if _plain(other) == _plain(name)]
    if not same and there == parent:
        near = [other for other in names if Path(other).stem == Path(name).stem]
        near = near or difflib.get_close_matches(name, names, n=1, cutoff=0.85)
        if near:
            shown = os.path.join(os.path.dirname(path), near[0])
            whole = os.path.join(folder, path)
            return f"the file must exist, and {whole} does not; write {shown} if that is meant"
    if not same:
        return None
    where = os.path.dirname(path) if there == parent else os.path.relpath(there, folder or ".")
    shown = os.path.join(where, same[0])
    if same[0].casefold() != name.casefold():
        return (
            "names are compared letter by letter, and the file's accents are composed in another "
            f"way (Unicode); copy the name from the folder: {shown}"
        )
    return f"names are case-sensitive, and the file is called {shown}; write that"


def _existing(folder: str) -> str | None:
    """Return a folder's name on the disk; None if no folder has a similar one."""
    if os.path.isdir(folder or "."):
        return folder
    parent, name = os.path.split(folder)
    if parent == folder or not name:
        return None
    above = _existing(parent)
    if above is None:
        return None
    same = [other for other in _names(above) if _plain(other) == _plain(name)]
    found = os.path.join(above, same[0]) if same else ""
    return found if same and os.path.isdir(found) else None


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(entry.name for entry in islice(entries, MAX_NAMES))
    except OSError:
        return []


def _plain(name: str) -> str:
    """Return a form that is equal for names that differ only in case or Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
