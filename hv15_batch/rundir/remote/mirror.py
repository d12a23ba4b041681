"""Keeps a working folder and a run directory in the store alike: small files and log segments.

Clips, latents and thumbnails are not copied; of them the folder has a list.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from hv15_batch.errors import LogSchemaError, Refused, StoreError
from hv15_batch.rundir.log import num_rows
from hv15_batch.rundir.paths import ASSETS, REWRITES, RunDir
from hv15_batch.rundir.publish import publishing, sha256_of_file
from hv15_batch.rundir.remote import lease
from hv15_batch.rundir.remote.client import Client, Item, oldest_first
from hv15_batch.rundir.remote.objects import (
    FILMS,
    NAMES,
    PULL_LOCK,
    read_address,
    write_address,
    write_objects,
)
from hv15_batch.units import GIB

_THREADS = 16
_MAX_COPY_BYTES = GIB
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_SHARD = r"shards/[0-9]+-of-[0-9]+/"
_OWN = (
    rf"log/{_NAME}\.parquet|runs/{_NAME}/(config\.yaml|system\.json|manifest\.[a-z]+)"
    r"|status\.json"
)
"""What a run of all clips has, and each shard."""
_COPIED = re.compile(
    rf"({_SHARD})?({_OWN})|plan\.csv|decided\.json|run\.json|(rows|rewrites)\.jsonl"
)
"""What planning and readers need. A name from the store decides nothing else here."""
_LARGE_FOLDERS = ("clips", "latents", "thumbs", "frames", "films")
_LARGE = "|".join(_LARGE_FOLDERS)
_LISTED = re.compile(rf"({_LARGE})/[A-Za-z0-9._-]+")
_OURS = re.compile(
    rf"({_LARGE}|log|runs|assets|previews|probe|inputs|shards)/.*|{re.escape(lease.NAME)}"
)

FRESH_SECONDS = 120.0
"""For so long the listing of a run's start holds under its lease, if no run has written since."""
_LARGE_NAMES = tuple(f"{folder}/" for folder in _LARGE_FOLDERS)
_UNCOMPARED = (*_LARGE_NAMES, "probe/")
_kept: dict[str, tuple[float, list[Item]]] = {}
"""By URL the listing of a start, from then until the run has its lease: it may be large."""

__all__ = ("NAMES", "PULL_LOCK", "Mirror", "film_names", "push_results")


class Mirror:
    """A working folder and its run directory in the store."""

    def __init__(self, client: Client, folder: Path) -> None:
        """Take both; the folder is made if there is none."""
        self._client = client
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._address = read_address(folder, client.url)
        write_address(folder, self._address)

    @property
    def id(self) -> str:
        """Tells this folder from those of other machines."""
        return self._address.id

    def pull(
        self, may_put: bool = False, but: Collection[str] = (), is_start: bool = False
    ) -> list[Item]:
        """Bring the folder up to date by one listing, and return the listing.

        Log segments that an earlier run here could not put are kept. So are rewritten prompts
        that were edited here.

        Args:
            may_put: Put those files; needs the lease.
            but: Beginnings of names that are left as they are: runs of this machine write them.
            is_start: A run begins here, and will ask again under its lease.

        Raises:
            Refused: There are other objects, and no run. Or rewritten prompts that would be put
                were changed in the store too.
            StoreError: The store does not answer.
        """
        items, is_known = self._listing(may_put, is_start)
        self._check_usable(items)
        but = tuple(but)
        others = (item for item in items if not item.name.startswith((*_LARGE_NAMES, *but)))
        copied = (item for item in others if _COPIED.fullmatch(item.name))
        listed = {item.name: item for item in copied}
        is_edited = self._is_edited(listed.get(REWRITES), may_put)
        if is_edited:
            listed.pop(REWRITES, None)
        changed = [item for item in listed.values() if not self._is_copy(item)]
        here = [name for name in self.segments_here() if not name.startswith(but)]
        unsent = [name for name in here if self._is_unsent(name, listed)]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="pull") as pool:
            kept = list(pool.map(self._fetch, changed))
        unsent += [item.name for item, is_kept in zip(changed, kept, strict=True) if is_kept]
        unsent += [REWRITES] if is_edited else []
        for name in self._address.copies.keys() - listed.keys() - set(unsent):
            if _COPIED.fullmatch(name) and not name.startswith(but):  # deleted in the store
                (self._folder / name).unlink(missing_ok=True)
                del self._address.copies[name]
        if not is_known:
            large = (item for item in items if _LISTED.fullmatch(item.name))
            write_objects(self._folder, ((item.name, item.size) for item in large))
        write_address(self._folder, self._address)
        if may_put:
            self.push(unsent)
        return items

    def _listing(self, may_put: bool, is_start: bool) -> tuple[list[Item], bool]:
        """Return a listing, and whether its large folders are those of the start.

        Under the lease these are enough, if they still hold. Runs write log and status with each
        clip, so what they put shows in the small folders.
        """
        at, url = time.monotonic(), self._client.url
        before, known = _kept.pop(url, (at, []))
        if may_put and known and at - before < FRESH_SECONDS:
            small = self._client.list(but=_LARGE_FOLDERS)
            large = [item for item in known if item.name.startswith(_LARGE_NAMES)]
            if _states(small) == _states(known):
                return oldest_first([*large, *small]), True
        items = self._client.list()
        if is_start:
            _kept.clear()  # of a plan that no run followed
            _kept[url] = at, items
        return items, False

    def push(self, names: Iterable[str], client: Client | None = None) -> None:
        """Put the files that have changed since they were alike in the store.

        Args:
            names: Relative to the folder; missing files are left out.
            client: Another one, with other patience.

        Raises:
            StoreError: The store does not take one.
        """
        try:
            for name in names:
                path = self._folder / name
                with suppress(FileNotFoundError):
                    state = _state(path)
                    copy = self._address.copies.get(name)
                    if copy is None or copy[1:] != state:
                        etag = (client or self._client).put(name, path)
                        self._address.copies[name] = (etag, *state)
        finally:
            write_address(self._folder, self._address)

    def withdraw(self, name: str) -> None:
        """Delete an object, and forget that it was there."""
        if self._address.copies.pop(name, None) is not None:
            self._client.delete([name])

    def _check_usable(self, items: Iterable[Item]) -> None:
        names = [item.name for item in items]
        if any(name.startswith(("log/", "runs/", "shards/")) for name in names):
            return
        small = {"status.json", "plan.csv", "decided.json", "rows.jsonl", "index.html", "clips.csv"}
        small |= {REWRITES, "run.json"}
        if others := sorted(n for n in names if not _OURS.fullmatch(n) and n not in small):
            raise Refused(
                f"run_dir={self._client.url}: holds other objects ({', '.join(others[:3])}) and is "
                "no run directory; name an empty or new folder with run_dir=."
            )

    def segments_here(self) -> list[str]:
        """Return the names of the log's segments in the folder."""
        logs = ("log/*.parquet", "shards/*/log/*.parquet")
        found = (path for each in logs for path in self._folder.glob(each))
        names = (path.relative_to(self._folder).as_posix() for path in found)
        return [name for name in names if _COPIED.fullmatch(name)]

    def _is_copy(self, item: Item) -> bool:
        """Whether the file here is what the store has."""
        copy = self._address.copies.get(item.name)
        try:
            return copy is not None and copy == (item.etag, *_state(self._folder / item.name))
        except FileNotFoundError:
            return False

    def _is_edited(self, item: Item | None, may_put: bool) -> bool:
        """Whether the rewritten prompts here are other ones than the store last had from here.

        Args:
            item: Those in the store.
            may_put: They will be put, so none in the store may be lost.

        Raises:
            Refused: Those in the store have changed too.
        """
        path = self._folder / REWRITES
        try:
            state = _state(path)
        except FileNotFoundError:
            return False
        etag, *known = self._address.copies.get(REWRITES, (None,))
        if tuple(known) == state:
            return False
        if item is None or item.etag == etag:
            return True
        with suppress(FileNotFoundError):  # deleted since it was listed
            if self._client.sha256(REWRITES) == sha256_of_file(path):
                self._address.copies[REWRITES] = (item.etag, *state)
            elif may_put:
                raise Refused(
                    f"run_dir={self._client.url}: {path} was edited, and so was "
                    f"{self._client.url}/{REWRITES}; put the lines that you want into one of them, "
                    "and delete the other."
                )
        return True

    def _is_unsent(self, name: str, listed: Iterable[str]) -> bool:
        """Whether a segment here never reached the store, or not with its last row."""
        copy = self._address.copies.get(name)
        return name not in listed and (copy is None or copy[1:] != _state(self._folder / name))

    def _fetch(self, item: Item) -> bool:
        """Copy an object here; return whether the file here was kept, because it has more rows."""
        if item.size > _MAX_COPY_BYTES:
            raise StoreError(f"{self._client.url}/{item.name}: has {item.size:,} bytes, too many.")
        path = self._folder / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with publishing(path) as temporary:
                self._client.fetch(item.name, temporary)
                if path.is_file() and _has_more_rows(path, temporary):
                    temporary.write_bytes(path.read_bytes())
                    return True
        except FileNotFoundError:  # deleted since it was listed
            return False
        self._address.copies[item.name] = (item.etag, *_state(path))
        return False


def _states(items: Iterable[Item]) -> set[tuple[str, str]]:
    """Return names and etags of what a run writes besides its clips and its lease."""
    return {
        (item.name, item.etag)
        for item in items
        if not item.name.startswith(_UNCOMPARED) and not item.name.endswith(lease.NAME)
    }


def _has_more_rows(path: Path, other: Path) -> bool:
    """Whether a segment here has rows that the store lacks: segments only grow."""
    if path.suffix != ".parquet":
        return False
    try:
        return num_rows(path) > num_rows(other)
    except LogSchemaError:  # reading the log reports it
        return False


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def push_results(mirror: Mirror, run_dir: RunDir) -> None:
    """Put the page and the tables of a working folder. Films, which are large, come after them.

    Raises:
        StoreError: The store does not take them.
    """
    tables = (run_dir.benchmark_table, run_dir.benchmark_table.with_suffix(".md"))
    small = (run_dir.plan, run_dir.clips_table, run_dir.decided, run_dir.rows, run_dir.status)
    assets = sorted((run_dir.path / ASSETS).glob("[!.]*"))
    mirror.push(map(run_dir.relative, (*small, *tables, *assets, run_dir.page)))


def film_names(run_dir: RunDir) -> list[str]:
    """Return the names of the films in a working folder."""
    return sorted(map(run_dir.relative, (run_dir.path / FILMS).glob("[!.]*")))
