"""Run directories on object storage: the only file that others import for them.

A run directory there has a working folder here, in the cache, with the shape of a local one. The
readers of run directories read that folder; the store decides what exists.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hv15_batch.errors import Refused, StoreError
from hv15_batch.rundir import _lock
from hv15_batch.rundir.frames import frame_file, frame_name
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing, sha256_of_file
from hv15_batch.rundir.remote.address import checked_url, is_url, mirror_folder
from hv15_batch.rundir.remote.objects import FRAMES, add_objects, read_stored
from hv15_batch.rundir.status import read_holder

if TYPE_CHECKING:
    from hv15_batch.record import ClipRecord
    from hv15_batch.rundir.remote.held import StoredRun as StoredRun
    from hv15_batch.rundir.remote.uploads import Uploads as Uploads

__all__ = (
    "Hold",
    "below",
    "check_free",
    "clip_file",
    "fetched",
    "frame_of",
    "hold",
    "is_url",
    "learn_frames",
    "let_go",
    "open_uploads",
    "place",
    "put_results",
    "refresher",
    "sha256_in",
)


def place(typed: str | os.PathLike[str], setting: str = "run_dir", is_start: bool = False) -> Path:
    """Return the folder of a typed run directory; of a URL its working folder, up to date.

    One listing brings it up to date, and log segments and small files that have changed are
    fetched. Where a run of this machine works there, its folder is up to date already.

    Args:
        typed: A path or a URL.
        setting: What it was typed for.
        is_start: A run begins there, and looks again once it holds it, see `hold`.

    Raises:
        Refused: The URL has another form, or its store cannot be read.
    """
    text = os.fspath(typed)
    if not is_url(text):
        return Path(text)
    url = checked_url(text, setting)
    folder = mirror_folder(url)
    from hv15_batch.rundir.remote.client import LOOK, Client
    from hv15_batch.rundir.remote.held import pull_lock, written_here
    from hv15_batch.rundir.remote.mirror import Mirror

    try:
        mirror = Mirror(Client(url, LOOK), folder)
        with pull_lock(folder):
            if read_holder(folder) is None:
                mirror.pull(but=written_here(folder), is_start=is_start)
    except StoreError as error:
        raise Refused(f"{setting}={error}") from error
    return folder


def below(run_dir: str, name: str) -> str:
    """Return a folder below a typed run directory."""
    return f"{run_dir.rstrip('/')}/{name}" if is_url(run_dir) else str(Path(run_dir) / name)


@dataclass(frozen=True)
class Hold:
    """A run directory that a run holds."""

    lock_descriptor: int | None
    """Of the lock's file, see `RunDir.locked`."""
    store: StoredRun | None = None
    """Its side in the store; None on a disk."""


@contextmanager
def hold(run_dir: RunDir, run_id: str, tell: Callable[[str], None]) -> Iterator[Hold]:
    """Hold a run directory: its lock, and on object storage its lease too.

    At the end page and tables go to the store.

    Raises:
        Refused: Another run holds it, or the store cannot be used.
        LogSchemaError: The log cannot be read.
    """
    with run_dir.locked(run_id) as descriptor:
        url = run_dir.url
        if url is None:
            yield Hold(descriptor)
            return
        from hv15_batch.rundir.remote.held import holding

        with holding(run_dir, run_id, url, tell) as stored:
            yield Hold(descriptor, stored)


def check_free(run_dir: RunDir) -> None:
    """Refuse a run directory that another run holds now; `hold` looks again.

    So a run does not wait for machines, or take them, in vain.

    Raises:
        Refused: Another run holds it, or the store cannot be used.
    """
    _lock.check_free(run_dir.path, run_dir.shard)
    if run_dir.url is None:
        return
    from hv15_batch.rundir.remote.client import Client
    from hv15_batch.rundir.remote.lease import NAME, Lease
    from hv15_batch.rundir.remote.mirror import Mirror
    from hv15_batch.rundir.remote.probe import probe

    name = run_dir.relative(run_dir.own / NAME)
    try:
        client = Client(run_dir.url)
        now = probe(client).now
        Lease(client, {"folder": Mirror(client, run_dir.path).id}, name=name).check_free(now)
    except StoreError as error:
        raise Refused(f"run_dir={error}") from error


def open_uploads(run_dir: RunDir) -> Uploads | None:
    """Return what a worker of a run directory on object storage uploads with; None on a disk."""
    url = run_dir.url
    if url is None:
        return None
    from hv15_batch.rundir.remote.client import Client
    from hv15_batch.rundir.remote.uploads import Uploads

    return Uploads(Client(url), run_dir.path)


def fetched(run_dir: RunDir, name: str) -> Path:
    """Return the path of a file of a run; one that only the store has is fetched first.

    Raises:
        StoreError: The store does not answer.
    """
    path = run_dir.path / name
    stored = read_stored(run_dir.path)
    if stored is None or name not in stored.objects or path.is_file():
        return path
    from hv15_batch.rundir.remote.client import Client

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with publishing(path) as temporary:
            Client(stored.url).fetch(name, temporary)
    except FileNotFoundError:
        return path
    return path


def frame_of(run_dir: RunDir, denoise_sha256: str, number: int) -> Path | None:
    """Return the path of a frame with which another clip begins; None where it is not kept.

    One that only the store has is fetched, under its name there, which is never reused.

    Raises:
        StoreError: The store does not answer.
    """
    stored = read_stored(run_dir.path)
    if stored is None:
        path = frame_file(run_dir, denoise_sha256, number)
    elif name := stored.frames.get(frame_name(denoise_sha256, number)):
        path = fetched(run_dir, name)
    else:
        return None
    return path if path.is_file() else None


def learn_frames(run_dir: RunDir, wanted: Iterable[tuple[str, int]]) -> None:
    """Look once in the store for frames that this machine does not know; another one put them.

    Args:
        run_dir: The run directory; nothing happens on a disk.
        wanted: The `denoise_sha256` of a clip, and the number of its frame.

    Raises:
        StoreError: The store does not answer.
    """
    stored = read_stored(run_dir.path)
    if stored is None or all(frame_name(*each) in stored.frames for each in wanted):
        return
    from hv15_batch.rundir.remote.client import LOOK, Client

    found = Client(f"{stored.url}/{FRAMES}", LOOK).list()
    named = ((f"{FRAMES}/{item.name}", item.size) for item in found)
    add_objects(run_dir.path, [each for each in named if each[0] not in stored.objects])


def clip_file(typed: str) -> Path:
    """Return the path of a typed clip; one with a URL is fetched.

    Raises:
        Refused: The URL is not that of a clip in a run directory, or its store cannot be read.
    """
    if not is_url(typed):
        return Path(typed)
    run, _, name = typed.rpartition("/clips/")
    if not run or not name or "/" in name:
        raise Refused(f"{typed}: names no clip; type the URL of a run directory, /clips/, a name.")
    run_dir = RunDir(place(run, "recipe"))
    try:
        path = fetched(run_dir, f"clips/{name}")
    except StoreError as error:
        raise Refused(f"recipe={error}") from error
    if not path.is_file():
        raise Refused(f"{typed}: there is no such clip in the store.")
    return path


def let_go(run_dir: RunDir, record: ClipRecord) -> None:
    """Delete what a worker of another machine uploaded of a finished clip; nothing on a disk."""
    if run_dir.url is not None:
        from hv15_batch.rundir.remote import leftovers

        leftovers.let_go(run_dir.path, record)


def refresher(typed: str, seconds: float = 15.0) -> Callable[[], None]:
    """Return what brings the working folder of a URL up to date, at most so often.

    A store that does not answer changes nothing.
    """
    latest = time.monotonic()

    def refresh() -> None:
        nonlocal latest
        if time.monotonic() - latest >= seconds:
            with suppress(Refused):
                place(typed)
            latest = time.monotonic()

    return refresh if is_url(typed) else lambda: None


def sha256_in(run_dir: RunDir, name: str) -> str:
    """Return the SHA-256 of a file of a run; one that only the store has is read there.

    Raises:
        OSError: It cannot be read.
    """
    if (url := run_dir.url) is None:
        return sha256_of_file(run_dir.path / name)
    from hv15_batch.rundir.remote.client import Client

    return Client(url).sha256(name)


def put_results(run_dir: RunDir) -> None:
    """Put page and tables that were made again into the store; nothing on a disk.

    Raises:
        StoreError: The store does not take them.
    """
    if (url := run_dir.url) is None:
        return
    from hv15_batch.rundir.remote.client import Client
    from hv15_batch.rundir.remote.held import pull_lock
    from hv15_batch.rundir.remote.mirror import Mirror, film_names, push_results

    with pull_lock(run_dir.path):
        mirror = Mirror(Client(url), run_dir.path)
        push_results(mirror, run_dir)
        mirror.push(film_names(run_dir))
