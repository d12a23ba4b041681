"""The locks of a run directory and of its shards, the notes of who holds them, and their count.

A run of all clips holds the lock of the directory. A shard holds the one of its own folder, and
that of the directory for moments only: while it starts, and while it writes what all shards write.
A shard that rewrites prompts holds a lock for that alone, since it may take hours.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from hv15_batch.clock import utc_now
from hv15_batch.config.shard import Shard, shard_of_folder
from hv15_batch.errors import NO_LOCKS, Refused
from hv15_batch.files import read_json
from hv15_batch.rundir.publish import publish_json, publish_text

LOCK, HOLDER = ".lock", ".lock.json"
REWRITING_LOCK = ".rewrites.lock"
SHARDS, COUNT = "shards", "run.json"
_COUNT_KEY = "shards"
MOMENT_SECONDS = 300.0
"""A shard waits at most this long for others that start or write the page: there may be many."""
_TRY_SECONDS = 0.5
_POLL_SECONDS = 0.5
"""Between two looks at a lock that may be held for hours, perhaps over a network."""


class RunLock(FileLock):
    """A lock that is free again when all processes that have its file open are gone.

    The library locks with `flock`, which belongs to the open file: a child that inherits the
    descriptor keeps the lock when its parent is killed.
    """

    @property
    def descriptor(self) -> int | None:
        """The open file while the lock is held."""
        return self._context.lock_file_fd


# -- folders ----------------------------------------------------------------------------------


def own_folder(path: Path, shard: Shard | None) -> Path:
    """Return the folder of a run directory that only this shard writes; the directory without."""
    return path if shard is None else path / SHARDS / shard.folder_name


def whole_of(folder: Path) -> Path:
    """Return the run directory of a folder that may be that of a shard."""
    is_shard = folder.parent.name == SHARDS and shard_of_folder(folder.name) is not None
    return folder.parent.parent if is_shard else folder


def shards_in(path: Path) -> list[Shard]:
    """Return the shards that were ever started in a run directory. Links are no shards."""
    names: list[str] = []
    folder = path / SHARDS
    with suppress(OSError):  # none
        names = [] if folder.is_symlink() else os.listdir(folder)
    found = (shard for name in names if (shard := shard_of_folder(name)) is not None)
    real = (shard for shard in found if not own_folder(path, shard).is_symlink())
    return sorted(real, key=lambda shard: (shard.count, shard.number))


def check_no_link(path: Path, shard: Shard | None) -> None:
    """Refuse a shard whose folder leads elsewhere.

    Raises:
        Refused: The message names the folder.
    """
    own = own_folder(path, shard)
    if shard is not None and any(part.is_symlink() for part in (path / SHARDS, own)):
        raise Refused(f"{own}: leads through a link, and a shard writes there; remove the link.")


def count_of_shards(path: Path) -> int | None:
    """Return in how many shards a directory was rendered last; None if in none."""
    try:
        value = read_json(path / COUNT)[_COUNT_KEY]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return value if isinstance(value, int) and value > 0 else None


def write_count(path: Path, shard: Shard) -> None:
    """Note in how many shards a directory is rendered now."""
    if count_of_shards(path) != shard.count:
        publish_json(path / COUNT, {_COUNT_KEY: shard.count})


# -- locks ------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, shard: Shard | None, run_id: str) -> Iterator[int | None]:
    """Hold the lock of a run directory, or of one of its shards, and yield its descriptor.

    Raises:
        Refused: Another run holds it, or renders the same clips: a run of all clips beside shards,
            shards of another count. Or its file is a link.
    """
    own = own_folder(path, shard)
    holder = own / HOLDER
    check_no_link(path, shard)
    with ExitStack() as held:
        with ExitStack() as starting:
            if shard is not None:
                starting.enter_context(moment(path))
            try:
                lock = held.enter_context(_taken(path, own, 0))
            except Refused:
                if not holder.exists():  # a shard may have it for a moment
                    _check_others(path, shard)
                raise
            _check_others(path, shard)
            if shard is not None:
                write_count(path, shard)
            held.callback(_unlink, holder)
            publish_text(holder, json.dumps(holder_facts(run_id, utc_now())))
        yield lock.descriptor


def check_free(path: Path, shard: Shard | None) -> None:
    """Refuse where `locked` would, as far as a look can tell; it holds nothing afterwards.

    Raises:
        Refused: See `locked`.
    """
    own = own_folder(path, shard)
    check_no_link(path, shard)
    if (own / HOLDER).exists() and _is_locked(own / LOCK):
        raise Refused(_held_message(path, own))
    _check_others(path, shard)


@contextmanager
def moment(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Hold the lock of the directory for a moment, as one of its shards.

    Args:
        path: The directory.
        seconds: Wait at most this long for other shards; None means `MOMENT_SECONDS`.

    Raises:
        Refused: A run of all clips holds it, or other shards have it all this time.
    """
    deadline = time.monotonic() + (MOMENT_SECONDS if seconds is None else seconds)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_taken(path, path, _TRY_SECONDS))
                break
            except Refused:
                # Shards leave no note: this one is of a run of all clips.
                if (path / HOLDER).exists() or time.monotonic() > deadline:
                    raise
        _unlink(path / HOLDER)  # of a killed run, since the lock is free
        yield


@contextmanager
def rewriting(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of the shard that rewrites prompts. Wait for it without limit, and say so.

    Raises:
        Refused: The file is a link.
    """
    lock = _lock_of(path / REWRITING_LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"Waiting while another shard rewrites prompts: {path}")
        lock.acquire(timeout=-1, poll_interval=_POLL_SECONDS)
    try:
        yield
    finally:
        _release(lock)


def is_another_in_use(path: Path, shard: Shard) -> bool:
    """Whether any other shard of a directory is rendering."""
    others = (other for other in shards_in(path) if other != shard)
    return any(_is_locked(own_folder(path, other) / LOCK) for other in others)


@contextmanager
def _taken(path: Path, folder: Path, seconds: float) -> Iterator[RunLock]:
    """Hold the lock of a folder of the run directory `path`; wait for it so long.

    Raises:
        Refused: Another run holds it, or the file is a link.
    """
    lock = _lock_of(folder / LOCK)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise Refused(_held_message(path, folder)) from None
    try:
        yield lock
    finally:
        _release(lock)


def _lock_of(file: Path) -> RunLock:
    """Return the lock of a file, which is not held yet.

    Raises:
        Refused: It is a link.
    """
    if file.is_symlink():  # some versions of the library follow it
        raise Refused(f"{file}: is a link, and a run locks this file; remove the link.")
    return RunLock(file)


def _release(lock: RunLock) -> None:
    # A fault here does not change how the run ended.
    with suppress(OSError):
        lock.release()


def _is_locked(file: Path) -> bool:
    try:
        with file.open("r+b") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _check_others(path: Path, shard: Shard | None) -> None:
    """Refuse to render beside a shard that may render the same clips.

    Where `run.json` has this shard's count, no other count is in use, and the locks of all the
    others need not be looked at: there may be a thousand, on a slow disk.

    Raises:
        Refused: The message names that shard.
    """
    others = shards_in(path)
    if shard is not None and count_of_shards(path) == shard.count:
        others = [] if shard.other_name is None else [shard.other_name]
    for other in others:
        excludes = (
            shard is None
            or other.count != shard.count
            or (other != shard and other.remainder == shard.remainder)
        )
        if excludes and _is_locked(own_folder(path, other) / LOCK):
            raise Refused(_shard_message(path, shard, other))


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


# -- who holds them ---------------------------------------------------------------------------


def holder_facts(run_id: str, since: datetime) -> dict[str, Any]:
    """Return what the lock's holder writes for runs that are refused."""
    return {
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "run_id": run_id,
        "started_at": since.isoformat(timespec="seconds"),
    }


def missing_locks(folder: Path) -> str | None:
    """Return the file system's error if a folder cannot be locked; None if it can.

    A file without a name is locked as a test. Other faults of the folder count as no fault here.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return str(error.strerror) if error.errno in NO_LOCKS else None
    return None


def _held_message(path: Path, folder: Path) -> str:
    """Return why a folder of the run directory cannot be used now, who holds it and what to do."""
    who, advice = _held_by(folder / HOLDER)
    if advice is None:
        advice = (
            f"wait for it, watch it with `hv15-batch status {path}`, or choose another folder with "
            "run_dir=DIR"
        )
    what = "" if folder == path else f"shard {shard_of_folder(folder.name)} is "
    return f"run_dir={path}: {what}in use by {who}; {advice}."


def _shard_message(path: Path, shard: Shard | None, other: Shard) -> str:
    """Return which shard in use excludes this one, or a run of all clips, and what to do."""
    why = f"shard {other} is in use by {_held_by(own_folder(path, other) / HOLDER)[0]}"
    advice = f"wait until all shards have ended, or render one of them with shard=k/{other.count}"
    if shard is not None and shard.count == other.count:
        why += f", and has the same clips as {shard}"
        advice = "count all shards from 1, or all from 0"
    elif shard is not None:
        why += f", and {shard} would divide the clips in another way"
    return f"run_dir={path}: {why}; {advice}."


def _held_by(holder: Path) -> tuple[str, str | None]:
    """Return who wrote a note, and what to do if that is no living run."""
    try:
        facts = read_json(holder)
        who = (
            f"process {facts['pid']} on {facts['hostname']} (run {facts['run_id']}, "
            f"since {facts['started_at']})"
        )
        if facts["hostname"] == socket.gethostname() and not psutil.pid_exists(facts["pid"]):
            who = f"a worker of {who}, which was killed"
            return who, "the worker still holds the card; wait until it has ended, or end it"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process", None
    return who, None
