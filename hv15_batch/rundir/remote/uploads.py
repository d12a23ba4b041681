"""A worker's side of object storage: latents and clips go up, latents come down."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from hv15_batch.errors import Secondary, StoreError
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.remote.client import Client
from hv15_batch.rundir.remote.objects import OBJECTS, read_stored
from hv15_batch.units import MIB

NOTE_SECONDS = 60.0
"""An upload that takes longer says so, and again: silence would count as a dead worker."""

Tell = Callable[[str], None]


class Uploads:
    """Uploads of one worker. Names are never reused: each has the attempt's id."""

    def __init__(self, client: Client, folder: Path) -> None:
        """Take the store and the working folder."""
        self._client = client
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._begun: dict[str, Future[str]] = {}
        self._own: dict[str, str] = {}
        self._listed: dict[str, str] = {}
        self._read_at: tuple[int, int] | None = None

    def fetch_latents(self, path: Path) -> bool:
        """Bring saved latents into their file here; return whether the store has some.

        Args:
            path: Named by their `denoise_sha256`.
        """
        name = self._name_of(path.stem)
        if name is None:
            return False
        with publishing(path, makes_folder=True) as temporary:
            self._client.fetch(name, temporary)
        return True

    def _name_of(self, key: str) -> str | None:
        """Return the name of saved latents; other workers may have uploaded them meanwhile."""
        if (name := self._own.get(key) or self._listed.get(key)) is not None:
            return name
        with suppress(FileNotFoundError):
            status = (self._folder / OBJECTS).stat()
            state = (status.st_size, status.st_mtime_ns)
            if state != self._read_at:
                stored = read_stored(self._folder)
                self._listed = {} if stored is None else stored.latents
                self._read_at = state
        return self._listed.get(key)

    def begin_latents(self, path: Path, attempt_id: str, is_new: bool) -> None:
        """Upload latents in the background, unless the store has them already."""
        key = path.stem
        known = None if is_new else self._name_of(key)
        name = known or f"latents/{key}.{attempt_id}{path.suffix}"

        def upload() -> str:
            if known is None:
                self._upload(name, path)
                self._own[key] = name
            return name

        self._begun[attempt_id] = self._thread.submit(upload)

    def end_latents(self, attempt_id: str, tell: Tell) -> str | None:
        """Wait for the upload of an attempt's latents; return their name, None if none began.

        Raises:
            StoreError: They are not in the store; the file here is kept.
        """
        begun = self._begun.pop(attempt_id, None)
        if begun is None:
            return None
        with _patience("latents", tell):
            return begun.result()

    def upload_frames(self, paths: Iterable[Path], attempt_id: str, tell: Tell) -> None:
        """Upload the frames with which other clips begin; they are fetched by those clips' workers.

        Raises:
            StoreError: One is not in the store.
        """
        for path in paths:
            with _patience(path.stem, tell):
                self._upload(f"frames/{path.stem}.{attempt_id}{path.suffix}", path)
            path.unlink(missing_ok=True)

    def upload_clip(self, file: str, attempt_id: str, tell: Tell) -> str:
        """Upload a clip and its thumbnail, and return the clip's name in the store.

        Args:
            file: Relative path of the clip here.
            attempt_id: 16 hex digits.
            tell: Prints a line.

        Raises:
            StoreError: It is not in the store; the file here is kept.
        """
        path = self._folder / file
        name = f"clips/{path.stem}.{attempt_id}{path.suffix}"
        with _patience(path.stem, tell):
            self._upload(name, path)
            thumb = self._folder / "thumbs" / f"{path.stem}.jpg"
            with Secondary(f"{path.stem} has no thumbnail in the store", tell):
                kept = thumb.rename(thumb.with_name(f"{path.stem}.{attempt_id}.jpg"))
                self._client.create(f"thumbs/{kept.name}", kept)
        return name

    def _upload(self, name: str, path: Path) -> None:
        """Create an object and make sure that it has the file's bytes.

        An etag that is their MD5 says so. Otherwise the object is read back.
        """
        md5, sha256 = _hashes(path)
        etag = self._client.create(name, path, {"md5": md5, "sha256": sha256})
        if etag == md5:
            return
        # Another kind of etag; or a second try found the first one, whose answer was lost.
        if self._client.sha256(name) != sha256:
            raise StoreError(
                f"{self._client.url}/{name}: the store has other bytes than were uploaded; run "
                "again, and if that does not help use another store."
            )


@contextmanager
def _patience(what: str, tell: Tell) -> Iterator[None]:
    """Say now and then that an upload is still under way."""
    has_ended = threading.Event()

    def watch() -> None:
        seconds = NOTE_SECONDS
        while not has_ended.wait(NOTE_SECONDS):
            tell(f"{what}: its upload has taken {seconds:.0f} s so far")
            seconds += NOTE_SECONDS

    thread = threading.Thread(target=watch, name="upload-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


def _hashes(path: Path) -> tuple[str, str]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()
