"""status.json while a run goes on: a thread writes it, so that the loop never waits for it.

Two times are in it. `last_event_at` is when the run last got on with something: a step, a stage, a
clip. `updated_at` is when the file was written, which happens also while nothing does. A run that
hangs shows an old `last_event_at`, a process that was stopped or lost an old `updated_at`.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hv15_batch.rundir import overwrite_json, publish_json, utc_now

LEAST_SECONDS = 1.0
"""Steps and tiny clips come faster than anyone reads: it is not written more often."""
HEARTBEAT_SECONDS = 5.0
"""It is written this often when nothing happens."""
_JOIN_SECONDS = 2.0
"""How long the end waits for a disk or a driver that does not answer."""


class StatusFile:
    """Values that are shown to other processes."""

    def __init__(
        self, path: Path, values: Mapping[str, Any], sample: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Write the first values, and go on writing in a thread until `close`.

        Args:
            path: `status.json`.
            values: The first ones.
            sample: Called in the thread before each writing, for values of that moment.
        """
        self._path = path
        self._sample = sample
        self._values: dict[str, Any] = dict(values)
        self._values_lock = threading.Lock()
        self._file_lock = threading.Lock()
        self._changed = threading.Event()
        self._closed = threading.Event()
        self.update()
        self._write()
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)
        self._thread.start()

    def update(self, **values: Any) -> None:
        """Take values of something that happened; returns at once."""
        with self._values_lock:
            self._values |= {**values, "last_event_at": _now()}
        self._changed.set()

    def snapshot(self) -> dict[str, Any]:
        """Return the values as they are."""
        with self._values_lock:
            return dict(self._values)

    def close(self, **values: Any) -> None:
        """Write the last values; nothing is written after that."""
        self._closed.set()  # first: what the thread samples from now on is not taken
        self.update(**values)
        self._thread.join(_JOIN_SECONDS)
        if self._file_lock.acquire(timeout=_JOIN_SECONDS):
            try:
                self._write(is_last=True)
            finally:
                self._file_lock.release()

    def _keep(self) -> None:
        while True:
            self._changed.wait(HEARTBEAT_SECONDS)
            self._changed.clear()
            sampled = {} if self._closed.is_set() else self._sample()
            with self._values_lock:
                if self._closed.is_set():
                    return
                self._values |= sampled
            with self._file_lock:
                if self._closed.is_set():
                    return
                self._write()
            self._closed.wait(LEAST_SECONDS)

    def _write(self, is_last: bool = False) -> None:
        values = self.snapshot() | {"updated_at": _now()}
        with suppress(OSError):  # a full disk stops the run where clips and log are written
            try:
                publish_json(self._path, values)
            except OSError:
                if is_last:
                    overwrite_json(self._path, values)
                raise


def settle(path: Path, total: int) -> None:
    """Let status.json say that every clip is done, as was found without a run, where it does not.

    What a run that was killed has left there, or one that rendered some again, would stay for good.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {"pid": os.getpid(), "suspect": 0}
    found = {"state": "done", "total": total, "done": total}
    if any(known.get(name) != value for name, value in found.items()):
        ended = {"failed": 0, "message": "", "type_again": [], "goes_on_at": None, "clip_id": None}
        with suppress(OSError):
            publish_json(path, {**known, **found, **ended, "updated_at": _now()})


def _now() -> str:
    return utc_now().isoformat(timespec="seconds")
