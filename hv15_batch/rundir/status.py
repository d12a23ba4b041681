"""status.json of a run: a thread writes it, so that the loop never waits for the disk.

It has two times. `last_event_at` is the time of the last step, stage or clip. `updated_at` is the
time of writing, which is also refreshed while nothing happens. A run that hangs has an old
`last_event_at`. A process that was stopped or lost has an old `updated_at`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import psutil

from hv15_batch.clock import utc_now
from hv15_batch.errors import Refused, Secondary
from hv15_batch.files import read_bytes, read_json
from hv15_batch.rundir._lock import SHARDS, whole_of
from hv15_batch.rundir._lock import count_of_shards as count_of_shards
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import overwrite_json, publish_json
from hv15_batch.units import parse_time

LEAST_SECONDS = 1.0
"""It is not written more often, because steps and tiny clips come faster than anyone reads."""
HEARTBEAT_SECONDS = 5.0
"""It is written this often when nothing happens."""
_JOIN_SECONDS = 2.0
"""The end of a run waits at most this long for a disk or driver that does not answer."""


class StatusFile:
    """The values of status.json."""

    def __init__(
        self, path: Path, values: Mapping[str, Any], sample: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Write the first values, and continue in a thread until `close`.

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
        self._writing = Secondary("status.json is not up to date")
        self._sampling = Secondary("status.json lacks card and disk")
        self.update()
        self._write()
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)
        with self._writing:
            self._thread.start()

    def update(self, **values: Any) -> None:
        """Take new values; return at once."""
        with self._values_lock:
            self._values |= {**values, "last_event_at": _now()}
        self._changed.set()

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the values."""
        with self._values_lock:
            return dict(self._values)

    def close(self, **values: Any) -> None:
        """Write the last values; nothing is written after that."""
        self._closed.set()  # first, so that later samples of the thread are dropped
        self.update(**values)
        if self._thread.ident is not None:
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
            sampled: Mapping[str, Any] = {}
            with self._sampling:
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
        with self._writing:  # a full disk already stops the run when it writes clips or log
            try:
                publish_json(self._path, values)
            except OSError:
                if is_last:
                    overwrite_json(self._path, values)
                raise


def settle(path: Path, total: int) -> None:
    """Write into status.json that every clip is done, if it does not have that yet.

    The state of a killed run, or of one that rendered clips again, would stay there otherwise.
    """
    try:
        stored = read_json(path)
    except (OSError, ValueError):
        stored = None
    known = stored if isinstance(stored, dict) else {"pid": os.getpid(), "suspect": 0}
    found = {"state": "done", "total": total, "done": total}
    if any(known.get(name) != value for name, value in found.items()):
        ended = {"failed": 0, "message": "", "type_again": [], "goes_on_at": None, "clip_id": None}
        with Secondary("status.json is not up to date"):
            publish_json(path, {**known, **found, **ended, "updated_at": _now()})


def _now() -> str:
    return utc_now().isoformat(timespec="seconds")


IDLE_STATES = ("waiting", "paused")
"""States of a living process that renders nothing."""

ACTIVE_STATES = ("encoding", "rendering", *IDLE_STATES)
"""States of a living process."""
MAX_STATUS_BYTES = 1 << 20
"""Limit for status.json, which has about one KiB."""
OUTPUTS = Path("outputs")
"""Where runs are looked for when none is named."""

_CLOCK_SLACK = timedelta(seconds=2)
"""Process start times are read to about a hundredth of a second, boot time to a second."""


@dataclass
class WorkerStatus:
    """What one of several workers does."""

    worker: int
    """Its number in the run."""
    where: str
    """Its card in words."""
    clip_id: str | None = None
    stage: str | None = None
    """Of its clip; `lost` from its death until another worker takes its place."""
    step: int | None = None
    steps: int | None = None
    loading: str | None = None
    """What it is loading; None while it loads nothing."""
    done: int = 0
    """Clips of this run that it finished."""
    failed: int = 0
    """Attempts that failed on it."""
    clips_per_hour: float | None = None
    """Of the time since its first clip of this run."""
    idle_share: float | None = None
    """Of the same time: it had no clip on the device."""
    last_event_at: str | None = None
    """Time of its last step, stage or clip, ISO 8601, UTC."""
    temperature_celsius: float | None = None
    """Of its card."""
    power_watts: float | None = None
    vram_used_bytes: int | None = None
    """Of all processes."""
    vram_total_bytes: int | None = None


@dataclass(frozen=True)
class Status:
    """Contents of `status.json`, which the run writes."""

    state: str
    """encoding, rendering, waiting, paused, done, stopped, failed or interrupted."""
    total: int
    """Clips of the current manifest, or of the shard."""
    done: int
    """Clips that are `ok` or `suspect`, of this run and earlier ones."""
    failed: int
    """Clips that failed in this run."""
    suspect: int
    """Clips of this run that are `suspect`."""
    updated_at: str
    """ISO 8601, UTC."""
    pid: int
    """Process that wrote it."""
    run_id: str | None = None
    clip_id: str | None = None
    """Clip being rendered."""
    stage: str | None = None
    """Its stage: encode, denoise, decode, write."""
    step: int | None = None
    """Finished steps of that stage."""
    steps: int | None = None
    seconds_per_clip: float | None = None
    """Median of this run's warm clips; None before the first."""
    eta_p50: str | None = None
    """Expected end, ISO 8601 with the machine's zone; None when not known."""
    eta_p90: str | None = None
    """Time at which the run is over with a probability of 90 %."""
    eta_basis: str | None = None
    """estimated, calibrated, first_clip or measured: see `forecast.eta.EtaBasis`."""
    temperature_celsius: float | None = None
    """Of the card; these are None of several, see `workers`."""
    power_watts: float | None = None
    vram_used_bytes: int | None = None
    """Of all processes."""
    vram_total_bytes: int | None = None
    free_disk_bytes: int | None = None
    """Of the disk that the run directory is on."""
    last_event_at: str | None = None
    """Time of the last step, stage or clip, ISO 8601, UTC."""
    message: str | None = None
    """Why the run ended, waits or is paused."""
    loading: str | None = None
    """What is being loaded, e.g. `the text encoder`; None while nothing is."""
    goes_on_at: str | None = None
    """When a wait ends, ISO 8601; None if unknown."""
    type_again: Sequence[str] = ()
    """Names of this run's settings that `resume=` does not take over."""
    hostname: str | None = None
    """Machine of the process; None counts as this one."""
    workers: Sequence[WorkerStatus] = ()
    """Each of several workers; empty where one renders alone."""


def read_status(run_dir: Path) -> Status:
    """Return the status in a run directory, or in a shard's folder; `status.overall` has both.

    Raises:
        Refused: There is none, or it cannot be understood.
    """
    path = RunDir(run_dir).status
    try:
        content = read_bytes(path, MAX_STATUS_BYTES)
        status = msgspec.json.decode(content, type=Status)  # ignores unknown fields
        parse_time(status.updated_at)
        seen = (worker.last_event_at for worker in status.workers)
        ends = status.eta_p50, status.eta_p90, status.goes_on_at
        for moment in (*ends, status.last_event_at, *seen):
            parse_time(moment or status.updated_at)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(
            f"{RunDir(run_dir).shown()}: no run has written its status here; name a run directory, "
            f"or leave it out for the latest run below {OUTPUTS}/."
        ) from None
    except OSError as error:
        raise Refused(
            f"{path}: cannot be read ({error.strerror}); delete it, and the next run writes a "
            "new one."
        ) from error
    except (ValueError, RecursionError) as error:
        raise Refused(
            f"{path}: not a status of this version ({error}); the next run writes a new one."
        ) from error
    return status


@dataclass(frozen=True)
class Holder:
    """The run that holds a run directory's lock, by its own note."""

    pid: int
    run_id: str
    started_at: str
    """ISO 8601, UTC."""
    hostname: str | None = None


_MAX_HOLDER_BYTES = 64 * 1024


def read_holder(run_dir: Path) -> Holder | None:
    """Return which living run holds the lock of a run directory or a shard's folder, or None."""
    path = RunDir(run_dir).lock_holder
    try:
        if not path.is_file() or path.stat().st_size > _MAX_HOLDER_BYTES:
            return None
        holder = msgspec.json.decode(path.read_bytes(), type=Holder)
        started = parse_time(holder.started_at)
    except (OSError, ValueError):
        return None
    return None if _is_process_gone(holder.pid, holder.hostname, started) else holder


def find_latest_run(outputs: Path) -> Path:
    """Return the run directory that a run or a shard wrote to last, runs of sweeps included.

    Raises:
        Refused: There is none.
    """
    places = [f"{run}{part}" for run in ("*", "*.sweep/*") for part in ("", f"/{SHARDS}/*")]
    names = (RunDir(outputs).status.name, RunDir(outputs).lock_holder.name)
    named = [path for place in places for name in names for path in outputs.glob(f"{place}/{name}")]
    found = [path for path in named if path.is_file()]
    if not found:
        raise Refused(
            f"no run below {outputs.absolute()}; name a run directory: hv15-batch status RUN_DIR."
        )
    return whole_of(max(found, key=_written_at).parent)


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # a run that ends removes its note
        return 0.0


def is_gone(status: Status) -> bool:
    """Whether the status is that of an active run, but its process has ended.

    A process of another machine cannot be seen and counts as alive.
    """
    if status.state not in ACTIVE_STATES:
        return False
    return _is_process_gone(status.pid, status.hostname, parse_time(status.updated_at))


def _is_process_gone(pid: int, hostname: str | None, seen_at: datetime) -> bool:
    """Whether a process has ended since a moment; one of another machine counts as alive."""
    if hostname not in (None, socket.gethostname()):
        return False
    try:
        process = psutil.Process(pid)
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        started = datetime.fromtimestamp(process.create_time(), timezone.utc)
    except (psutil.NoSuchProcess, OverflowError, ValueError):  # or not the number of a process
        return True
    # A process that started after that moment has only taken over the number.
    return is_zombie or started > seen_at + _CLOCK_SLACK


def set_pause(run_dir: RunDir, is_wanted: bool) -> None:
    """Make or remove the file that pauses a run.

    Raises:
        Refused: The run directory cannot be written.
    """
    try:
        if is_wanted:
            # A link of that name is left alone: what it leads to must not be made.
            with suppress(FileExistsError):
                os.close(os.open(run_dir.pause, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        else:
            run_dir.pause.unlink(missing_ok=True)
    except OSError as error:
        raise Refused(f"{run_dir.pause}: {error.strerror}; correct its permissions.") from error


def format_progress(*, total: int, done: int, failed: int, suspect: int) -> str:
    """Return e.g. `143 of 200 done, 3 failed, 2 suspect`; zeros are left out."""
    parts = [f"{done} of {total} done"]
    parts += [f"{n} {word}" for n, word in ((failed, "failed"), (suspect, "suspect")) if n]
    return ", ".join(parts)
