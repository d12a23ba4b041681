"""The lease: a note in the store of which run works there, renewed while the run lives.

It only saves work: what is done is decided by the log. Who loses the lease finishes its clips.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

from hv15_batch.errors import Refused, StoreError
from hv15_batch.rundir.remote.client import Client, Item

NAME = "lock.json"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0

logger = logging.getLogger(__name__)


class Lease:
    """A run's lease of a run directory."""

    def __init__(
        self,
        client: Client,
        facts: Mapping[str, Any],
        monotonic: Callable[[], float] = time.monotonic,
        name: str = NAME,
    ) -> None:
        """Prepare.

        Args:
            client: With short patience.
            facts: Of the holder: `pid`, `hostname`, `run_id`, `started_at`, and `folder`, which is
                the id of the working folder here.
            monotonic: The clock.
            name: Of the object; that of a shard is in its folder.
        """
        self._name = name
        self._client = client
        self._facts = dict(facts)
        self._monotonic = monotonic
        self._etag = ""
        self._now = datetime.now(timezone.utc)
        self._number = 0
        self._renewed_at = monotonic()
        self._lost: str | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self, now: datetime) -> None:
        """Take the lease: create it, or take over one that is released or expired.

        A lease that this machine's own working folder holds is taken over too: the folder is
        locked, so the run that held it is dead.

        Args:
            now: The time by the store's clock.

        Raises:
            Refused: Another run holds it; the message names that run.
            StoreError: The store does not answer.
        """
        at, self._now = self._monotonic(), now
        etag = self._created()
        if etag is None:
            found = self._client.get(self._name)
            if found is None:
                raise Refused(self._held_by({}))
            holder = _parsed(found[0])
            if self._is_own(found[0]):
                etag = found[1]  # written, although the answer was lost
            elif self._is_free(holder, now):
                etag = self._swapped(found[1])
            if etag is None:
                raise Refused(self._held_by(holder))
        self._etag, self._renewed_at = etag, at

    def check_free(self, now: datetime) -> None:
        """Refuse where `acquire` would; writes nothing. Raises like `acquire`."""
        found = self._client.get(self._name)
        if found is not None and not self._is_free(_parsed(found[0]), now):
            raise Refused(self._held_by(_parsed(found[0])))

    def check_others(self, items: Iterable[Item], excludes: Callable[[str], bool]) -> None:
        """Refuse to render beside the holders of other leases. Needs the own one.

        Each looks after it took its own lease, so of two that start at once one sees the other.

        Args:
            items: A listing.
            excludes: Whether the holder of a lease, by its name, may render the same clips.

        Raises:
            Refused: The message names the holder.
            StoreError: The store does not answer.
        """
        for item in items:
            if item.name == self._name or not excludes(item.name):
                continue
            found = self._client.get(item.name)
            if found is not None and not self._is_free(_parsed(found[0]), self._now, item.name):
                raise Refused(self._held_by(_parsed(found[0]), item.name))

    def _created(self) -> str | None:
        try:
            return self._client.create(self._name, self._content())
        except StoreError:
            with suppress(StoreError):  # the first error says more
                found = self._client.get(self._name)
                if found is not None and self._is_own(found[0]):
                    return found[1]
            raise

    def _is_own(self, content: bytes) -> bool:
        return bool(_parsed(content).get("run_id") == self._facts["run_id"])

    def _is_free(self, holder: Mapping[str, Any], now: datetime, name: str | None = None) -> bool:
        if holder.get("released") or holder.get("folder") == self._facts["folder"]:
            return True
        item = self._client.head(name or self._name)
        return item is not None and (now - item.modified).total_seconds() > LEASE_SECONDS

    def keep(self) -> None:
        """Renew it in a thread until `release`."""
        self._thread.start()

    def _keep(self) -> None:
        while not self._closing.wait(RENEW_SECONDS):
            self.renew()

    def renew(self) -> None:
        """Renew it once; a store that does not answer is asked again the next time."""
        if self._lost is not None:
            return
        at = self._monotonic()
        try:
            etag = self._swapped(self._etag)
            if etag is None:
                self._lost = self._taken_by()
                logger.warning("%s", self._lost)
            else:
                self._etag, self._renewed_at = etag, at
        except StoreError as error:
            logger.warning("the lease was not renewed: %s", error)

    def _swapped(self, etag: str) -> str | None:
        """Write the lease over the one with an etag; None if another run has written it.

        After an unclear answer the object is read: one's own run in it means held.
        """
        content = self._content()
        try:
            swapped = self._client.swap(self._name, content, etag)
        except StoreError:
            found = self._client.get(self._name)
            if found is None or found[0] != content:
                raise  # of another run, or still the older one: tried again the next time
            return found[1]
        if swapped is None:
            found = self._client.get(self._name)
            if found is not None and self._is_own(found[0]):
                return found[1]
        return swapped

    def fault(self) -> str | None:
        """Return why no further clip may start; None while the lease is held."""
        if self._lost is not None:
            return self._lost
        seconds = self._monotonic() - self._renewed_at
        if seconds <= LEASE_SECONDS:
            return None
        return (
            f"{self._client.url}: the lease could not be renewed for {seconds:.0f} s, so another "
            "run may begin there; look at the network and at the store"
        )

    def release(self) -> None:
        """Let others take it at once; leave the lease of another run alone.

        Raises:
            StoreError: The store does not answer; the lease expires by itself.
        """
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(2 * RENEW_SECONDS)
        if self._lost is None:
            content = json.dumps({**self._facts, "released": True})
            self._client.swap(self._name, content.encode(), self._etag)

    def _content(self) -> bytes:
        self._number += 1  # so that no two are alike, and no two etags
        return json.dumps({**self._facts, "renewal": self._number}).encode()

    def _taken_by(self) -> str:
        found = self._client.get(self._name)
        holder = _parsed(found[0]) if found else {}
        who = _who(holder) if holder else "somebody, who deleted it"
        return f"{self._client.url}: the lease was lost to {who}"

    def _held_by(self, holder: Mapping[str, Any], name: str | None = None) -> str:
        folder = (name or self._name).rpartition("/")[0].rpartition("/")[2]
        shard = f"shard {folder.replace('-of-', '/')} is " if folder else ""
        return (
            f"run_dir={self._client.url}: {shard}in use by {_who(holder)}; wait for it, watch it "
            f"with `hv15-batch status {self._client.url}`, or choose another folder with "
            "run_dir=DIR. "
            f"If it was killed, the folder is free {LEASE_SECONDS:.0f} s after its last sign."
        )


def _who(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another process"
    return (
        f"process {holder.get('pid')} on {holder.get('hostname')} (run {holder.get('run_id')}, "
        f"since {holder.get('started_at')})"
    )


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
