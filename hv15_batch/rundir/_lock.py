"""The run directory's lock, and the note of who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from hv15_batch.errors import NO_LOCKS
from hv15_batch.files import read_json


class RunLock(FileLock):
    """A lock that is free again when all processes that have its file open are gone.

    The library locks with `flock`, which belongs to the open file: a child that inherits the
    descriptor keeps the lock when its parent is killed.
    """

    @property
    def descriptor(self) -> int | None:
        """The open file while the lock is held."""
        return self._context.lock_file_fd


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


def held_message(path: Path, holder: Path) -> str:
    """Return why the run directory cannot be used now, who holds it and what to do."""
    advice = (
        f"wait for it, watch it with `hv15-batch status {path}`, or choose another folder with "
        "run_dir=DIR"
    )
    try:
        facts = read_json(holder)
        who = (
            f"process {facts['pid']} on {facts['hostname']} (run {facts['run_id']}, "
            f"since {facts['started_at']})"
        )
        if facts["hostname"] == socket.gethostname() and not psutil.pid_exists(facts["pid"]):
            who = f"a worker of {who}, which was killed"
            advice = "the worker still holds the card; wait until it has ended, or end it"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        who = "another process"
    return f"run_dir={path}: in use by {who}; {advice}."
