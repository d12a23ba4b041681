"""A run's hold on its directory in the store: lease, status, log, and what the store confirms."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from hv15_batch.clock import utc_now
from hv15_batch.config.shard import shard_of_folder
from hv15_batch.errors import Refused, Secondary, StoreError
from hv15_batch.record import DONE_STATUSES, FAILED, ClipRecord
from hv15_batch.rundir._lock import COUNT, SHARDS, holder_facts, write_count
from hv15_batch.rundir.chosen.previews import found_previews
from hv15_batch.rundir.log import RunLog, read_records
from hv15_batch.rundir.paths import REWRITES, RunDir
from hv15_batch.rundir.remote.client import ROW, SHORT, Client, Patience
from hv15_batch.rundir.remote.lease import NAME as LEASE
from hv15_batch.rundir.remote.lease import Lease
from hv15_batch.rundir.remote.leftovers import (
    ATTEMPT_IN_NAME,
    UPLOADED,
    delete_copies,
    let_go,
    orphans,
)
from hv15_batch.rundir.remote.mirror import PULL_LOCK, Mirror, film_names, push_results
from hv15_batch.rundir.remote.objects import FRAME_SUFFIX, FRAMES, add_objects
from hv15_batch.rundir.remote.probe import Probed, probe
from hv15_batch.rundir.status import read_holder

STATUS_SECONDS = 15.0
ORPHAN_AGE = timedelta(hours=24)
_END = Patience(request_seconds=60.0, retries=3, retry_seconds=30.0)
"""For page and tables at the end of a run."""
UPLOAD_LOST = "UploadLost"
ROW_SECONDS = 180.0
"""A row, or a look at a clip, is tried for so long in the parent, unless a signal ends the run."""

T = TypeVar("T")
Tell = Callable[[str], None]


class StoredRun:
    """One run in a store, while it holds the lease."""

    def __init__(
        self, run_dir: RunDir, run_id: str, client: Client, mirror: Mirror, lease: Lease
    ) -> None:
        """Take what `holding` has prepared."""
        self._run_dir = run_dir
        self._run_id = run_id
        self._client = client
        self._mirror = mirror
        self._lease = lease
        self._row_client = Client(client.url, ROW)
        self._etag_is_md5 = False
        self.signals: Sequence[int] = ()
        """Those that the run has received: after one nothing is tried again."""
        self._putting = threading.Lock()
        self._closing = threading.Event()
        self._previews: set[str] = set()
        """Objects with pictures of clips that denoise."""

    def prepare(self, probed: Probed) -> None:
        """Bring the working folder up to date, and delete what no row names.

        Raises:
            LogSchemaError: The log cannot be read.
            StoreError: The store does not answer.
        """
        self._etag_is_md5 = probed.etag_is_md5
        run_dir = self._run_dir
        others = written_here(run_dir.path, run_dir.own)
        with pull_lock(run_dir.path):
            items = self._mirror.pull(may_put=True, but=others)
        self._lease.check_others(items, self._excludes)
        if run_dir.shard is not None:
            write_count(run_dir.path, run_dir.shard)
            self._mirror.push([COUNT])
        old = probed.now - ORPHAN_AGE
        with Secondary("objects that no row names were not deleted"):
            named = self._named()
            self._client.delete(orphans(items, old, named))
            if not others:  # of another shard a worker may be uploading
                delete_copies(run_dir.path, named)

    def _excludes(self, lease_name: str) -> bool:
        """Whether the holder of another lease may render the same clips as this run."""
        if lease_name == LEASE:
            return True
        folder = lease_name.removeprefix(f"{SHARDS}/").removesuffix(f"/{LEASE}")
        other, own = shard_of_folder(folder), self._run_dir.shard
        if other is None or lease_name != f"{SHARDS}/{folder}/{LEASE}":
            return False
        return own is None or other.count != own.count or other.remainder == own.remainder

    def pull_others(self) -> None:
        """Copy what other shards have written meanwhile, for tables and page.

        Raises:
            StoreError: The store does not answer.
        """
        run_dir = self._run_dir
        if run_dir.shard is not None:
            with pull_lock(run_dir.path), self._putting:
                own = f"{run_dir.relative(run_dir.own)}/"
                self._mirror.pull(but=[own, *written_here(run_dir.path, run_dir.own)])

    def _named(self) -> set[str]:
        named: set[str] = set()
        for row in read_records(self._run_dir.log, ("file", "latents_file")).to_pylist():
            named |= {row["file"], row["latents_file"]} - {None}
        return named

    def put_upgraded(self) -> None:
        """Put segments that were brought to the current schema here.

        Raises:
            StoreError: The store does not take one.
        """
        with self._putting:
            own = f"{self._run_dir.relative(self._run_dir.own_log)}/"
            names = self._mirror.segments_here()
            self._mirror.push(name for name in names if name.startswith(own))

    def put_rewrites(self) -> None:
        """Put the rewritten prompts, so that no other machine asks for them again.

        Raises:
            StoreError: The store does not take them.
        """
        with self._putting:
            self._mirror.push([REWRITES])

    def put_start(self) -> None:
        """Put what a later run needs to go on from here; a run needs it before its first row.

        Raises:
            StoreError: The store does not take it.
        """
        run_dir = self._run_dir
        small = (run_dir.plan, run_dir.decided, run_dir.rows, run_dir.status)
        with self._putting:
            self._mirror.push([*map(run_dir.relative, small), *self._run_files()])

    def _run_files(self) -> list[str]:
        folder = self._run_dir.run_folder(self._run_id)
        files = (path for path in folder.rglob("[!.]*") if path.is_file())
        return sorted(map(self._run_dir.relative, files))

    def fault(self) -> str | None:
        """Return why no further clip may start; None while the lease is held."""
        return self._lease.fault()

    def confirmed(self, record: ClipRecord, kept_frames: Iterable[int] = ()) -> ClipRecord:
        """Return a finished clip's record once the store has size and checksum of its file.

        Otherwise the record is that of a failed attempt; the latents are kept.

        Args:
            record: Of the attempt.
            kept_frames: Numbers of the frames with which other clips begin. They were uploaded
                before the file, and the workers of those clips are to know that.
        """
        if record.status not in DONE_STATUSES or record.repeat is not None:
            return record
        try:
            reason = self._patiently(partial(self._doubt, record))
        except StoreError as error:
            reason = str(error)
        if reason is None:
            attempt = ATTEMPT_IN_NAME.search(record.file or "")
            frames = (f"{record.denoise_sha256}_{number}" for number in kept_frames)
            if attempt is not None:
                suffix = f"{attempt[0]}{FRAME_SUFFIX}"
                names = [(f"{FRAMES}/{frame}{suffix}", 0) for frame in frames]
                add_objects(self._run_dir.path, names)
            return record
        return replace(
            record,
            status=FAILED,
            error_type=UPLOAD_LOST,
            error_message=reason,
            file=None,
            file_bytes=None,
            file_sha256=None,
        )

    def _doubt(self, record: ClipRecord) -> str | None:
        """Return what differs between a record and its object; None if nothing does."""
        name = record.file or ""
        where = f"{self._client.url}/{name}"
        item = self._row_client.head(name) if UPLOADED.fullmatch(name) else None
        if item is None:
            return f"{where}: was uploaded and is not in the store"
        if item.size != record.file_bytes:
            return f"{where}: has {item.size} bytes instead of {record.file_bytes}"
        if item.sha256 not in (None, record.file_sha256):
            return f"{where}: is another upload"
        if self._etag_is_md5 and item.md5 is not None and item.etag != item.md5:
            return f"{where}: has other bytes than were uploaded (by its checksum)"
        return None

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask the store again and again while it fails, until a signal comes.

        Python's handlers of signals run between two tries, and not during one.
        """
        end = time.monotonic() + ROW_SECONDS
        while True:
            try:
                return ask()
            except StoreError as error:
                if not error.may_pass or self.signals or time.monotonic() > end:
                    raise
                time.sleep(min(1.0, ROW_SECONDS / 10))

    def log(self) -> RunLog:
        """Return the log of this run, which puts each segment that it writes."""
        return _StoredLog(self)

    def put_row(self, segment: Path, record: ClipRecord) -> None:
        """Put a segment with its new row, then let the files here go that the row names.

        Raises:
            StoreError: The store does not take it; segment and files are kept here.
        """
        names = [self._run_dir.relative(segment)]
        with self._putting:
            self._patiently(partial(self._mirror.push, names, self._row_client))
        done = record.status in DONE_STATUSES and record.repeat is None
        let_go(self._run_dir.path, record)
        added = []
        for name, size in ((record.file, record.file_bytes), (record.latents_file, 0)):
            if name is not None and UPLOADED.fullmatch(name):
                added.append((name, size or 0))
        if record.file is not None and done:
            added.append((f"thumbs/{Path(record.file).stem}.jpg", 0))
        with suppress(OSError):  # a full disk stops the run where it writes the log
            add_objects(self._run_dir.path, added)

    def keep(self) -> None:
        """Renew the lease and put the status, in threads, until `close`."""
        self._lease.keep()
        threading.Thread(target=self._keep_status, name="store-status", daemon=True).start()

    def _keep_status(self) -> None:
        writing = Secondary("the status in the store is not up to date")
        client = Client(self._client.url, SHORT)  # rows must not wait for it
        while not self._closing.wait(STATUS_SECONDS):
            with writing, self._putting:
                self._mirror.push([self._run_dir.relative(self._run_dir.status)], client)
                self._put_previews(client)

    def _put_previews(self, client: Client) -> None:
        """Put the pictures of the clips that denoise, and delete those of clips that have ended."""
        here = {name for name, _ in found_previews(self._run_dir).values()}
        self._mirror.push(sorted(here), client)
        for name in self._previews - here:
            self._mirror.withdraw(name)
        self._previews = here

    def close(self, tell: Tell) -> None:
        """Put page, tables and the run's folder, and release the lease."""
        self._closing.set()
        with Secondary("page and tables in the store are not up to date", tell), self._putting:
            mirror = Mirror(Client(self._client.url, _END), self._run_dir.path)
            push_results(mirror, self._run_dir)
            mirror.push(self._run_files())
            for name in self._previews:
                mirror.withdraw(name)
            settings = self._run_dir.run_folder(self._run_id) / "config.yaml"
            if not settings.exists():  # of a run that was refused
                mirror.withdraw(self._run_dir.relative(settings))
        for name in film_names(self._run_dir):  # large: each with the usual patience
            with Secondary(f"{name} in the store is not up to date", tell), self._putting:
                Mirror(self._client, self._run_dir.path).push([name])
        with Secondary("the lease was not released, and ends by itself", tell):
            self._lease.release()


class _StoredLog(RunLog):
    """A log whose segments are put, each as a whole object, when a row was added."""

    def __init__(self, stored: StoredRun) -> None:
        super().__init__(stored._run_dir.own_log, stored._run_id)
        self._stored = stored
        self._unput: list[tuple[Path, ClipRecord]] = []  # in a segment here, not in the store
        self._fault: StoreError | None = None

    def append(self, record: ClipRecord) -> None:
        """See `RunLog.append`. Once the store has failed, only `flush` tries it again.

        So the clips that are in work need not wait for it one after another.
        """
        super().append(record)
        if self._fault is not None:
            raise StoreError(str(self._fault))
        self._put()

    def flush(self) -> None:
        super().flush()
        self._put()

    def _write(self, record: ClipRecord) -> None:
        super()._write(record)
        self._unput.append((self.segment, record))

    def _put(self) -> None:
        try:
            while self._unput:
                self._stored.put_row(*self._unput[0])
                del self._unput[0]
        except StoreError as error:
            self._fault = error
            raise
        self._fault = None


def written_here(folder: Path, own: Path | None = None) -> list[str]:
    """Return the beginnings of the names that runs of this machine write now, but one's own."""
    shards = (shard.own for shard in RunDir(folder).shard_dirs())
    live = (each for each in shards if each != own and read_holder(each) is not None)
    return [f"{each.relative_to(folder).as_posix()}/" for each in live]


def pull_lock(folder: Path) -> FileLock:
    """Return the lock that lets one process at a time bring a working folder up to date."""
    return FileLock(folder / PULL_LOCK)


@contextmanager
def holding(run_dir: RunDir, run_id: str, url: str, tell: Tell) -> Iterator[StoredRun]:
    """Hold the lease of a run directory in the store; the working folder is locked already.

    Raises:
        Refused: Another run holds it, or the store cannot be used; nothing was changed there.
        LogSchemaError: The log cannot be read.
    """
    try:
        client = Client(url)
        probed = probe(client)
        mirror = Mirror(client, run_dir.path)
        facts = {**holder_facts(run_id, utc_now()), "folder": mirror.id}
        name = run_dir.relative(run_dir.own / LEASE)
        lease = Lease(Client(url, SHORT), facts, name=name)
        lease.acquire(probed.now)
        stored = StoredRun(run_dir, run_id, client, mirror, lease)
        try:
            stored.prepare(probed)
        except BaseException:
            with suppress(StoreError):
                lease.release()
            raise
    except StoreError as error:
        raise Refused(f"run_dir={error}") from error
    stored.keep()
    try:
        yield stored
    finally:
        stored.close(tell)
