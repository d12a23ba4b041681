"""What a working folder knows of its run in the store: the URL, the copies, the objects there.

A folder with these files stands for a run directory on object storage, for every reader.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from hv15_batch.files import read_bytes, read_json
from hv15_batch.rundir.publish import publish_json, publish_text
from hv15_batch.rundir.remote.address import mirror_folder
from hv15_batch.units import GIB, MIB

ADDRESS = ".store.json"
OBJECTS = ".objects"
PULL_LOCK = ".pull.lock"
NAMES = (ADDRESS, OBJECTS, PULL_LOCK)
ATTEMPT = r"[0-9a-f]{16}"
"""Part of each uploaded name, so that no name is used twice."""
FRAMES, FRAME_SUFFIX = "frames", ".png"
FILMS = "films"
_FRAME = re.compile(rf"frames/([0-9a-f]{{64}}_[0-9]+)\.{ATTEMPT}\.png")
_LATENTS = re.compile(rf"latents/([0-9a-f]{{64}})\.{ATTEMPT}\.safetensors")
_MAX_OBJECTS_BYTES = GIB
_MAX_ADDRESS_BYTES = 64 * MIB


@dataclass(frozen=True)
class Stored:
    """A run directory on object storage, as the last listing and this run's own uploads have it."""

    url: str
    objects: Mapping[str, int]
    """Bytes of each clip, latents, thumbnail, frame and film, by its name."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of the objects in one folder, by their names in it."""
        start = f"{folder}/"
        return {n[len(start) :]: size for n, size in self.objects.items() if n.startswith(start)}

    @property
    def latents(self) -> dict[str, str]:
        """Names of saved latents by `denoise_sha256`; of several the last one."""
        return {match[1]: match[0] for match in map(_LATENTS.fullmatch, self.objects) if match}

    @property
    def frames(self) -> dict[str, str]:
        """Names of kept frames by `<denoise_sha256>_<number>`; of several the last one."""
        return {frame: names[-1] for frame, names in self.attempts_at_frames.items()}

    @cached_property
    def attempts_at_frames(self) -> dict[str, list[str]]:
        """Names of each kept frame, one of each attempt that made it, the newest last."""
        found: dict[str, list[str]] = {}
        for match in map(_FRAME.fullmatch, self.objects):
            if match:
                found.setdefault(match[1], []).append(match[0])
        return found


def read_url(folder: Path) -> str | None:
    """Return the URL that a folder stands for; None for an ordinary one.

    Only the folder in the cache that belongs to the URL counts. A run directory of somebody else
    must not decide where something is sent.
    """
    url = _address(folder).get("url")
    if not isinstance(url, str) or mirror_folder(url) != Path(os.path.abspath(folder)):
        return None
    return url


def read_stored(folder: Path) -> Stored | None:
    """Return what a folder knows of its store; None for an ordinary one."""
    url = read_url(folder)
    return None if url is None else Stored(url, _objects(folder))


def _objects(folder: Path) -> dict[str, int]:
    """Return the list of objects."""
    path = folder / OBJECTS
    try:
        status = path.stat()
    except OSError:
        return {}
    return _parsed(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _parsed(path: Path, num_bytes: int, modified_ns: int) -> dict[str, int]:
    """Return a list of objects; the last one is kept until its file has other bytes or time."""
    try:
        lines = read_bytes(path, _MAX_OBJECTS_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, int] = {}
    for line in lines:
        size, _, name = line.partition(" ")
        if size.isdigit() and name:
            found.pop(name, None)  # the last one is the newest
            found[name] = int(size)
    return found


def write_objects(folder: Path, sizes: Iterable[tuple[str, int]]) -> None:
    """Write what a listing found, oldest first."""
    publish_text(folder / OBJECTS, "".join(f"{size} {name}\n" for name, size in sizes))


def add_objects(folder: Path, sizes: Iterable[tuple[str, int]]) -> None:
    """Add what was uploaded since."""
    with (folder / OBJECTS).open("a", encoding="utf-8") as file:
        file.write("".join(f"{size} {name}\n" for name, size in sizes))


Copy = tuple[str, int, int]
"""Etag in the store, and bytes and `st_mtime_ns` of the file here, when both were the same."""


@dataclass
class Address:
    """The URL of a folder, its id on this machine, and which files are copies of objects."""

    url: str
    id: str
    copies: dict[str, Copy]


def read_address(folder: Path, url: str) -> Address:
    """Return what a folder has noted, or a new note for it."""
    found = _address(folder)
    copies = found.get("copies")
    own_id = found.get("id")
    if found.get("url") != url or not isinstance(copies, dict) or not isinstance(own_id, str):
        return Address(url, secrets.token_hex(8), {})
    known = {n: tuple(c) for n, c in copies.items() if isinstance(c, list) and len(c) == 3}
    return Address(url, own_id, known)


def write_address(folder: Path, address: Address) -> None:
    """Store the note."""
    publish_json(folder / ADDRESS, vars(address))


def _address(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / ADDRESS, _MAX_ADDRESS_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
