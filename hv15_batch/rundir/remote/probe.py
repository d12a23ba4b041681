"""Asks a store for the two promises that a run rests on, before anything is written for good."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime

from hv15_batch.errors import Refused, StoreError
from hv15_batch.rundir.remote.client import Client

FOLDER = "probe"


@dataclass(frozen=True)
class Probed:
    """What a store does."""

    now: datetime
    """The time by its own clock."""
    etag_is_md5: bool
    """Whether etags of objects are the MD5 of their bytes."""


def probe(client: Client) -> Probed:
    """Check that a store keeps to conditions: seven requests.

    An object is created twice, and swapped once with the right tag and once with a stale one. The
    second creation and the stale swap must fail.

    Raises:
        Refused: One of them does not fail; the message names the store.
        StoreError: The store cannot be used at all.
    """
    name = f"{FOLDER}/{secrets.token_hex(8)}"
    first, second, third = (f"{number} {name}".encode() for number in range(3))
    etag = client.create(name, first)
    try:
        if etag is None:
            etag = _own(client, name, first)
        if not etag:
            raise Refused(_refusal(client, "has no etags"))
        if client.create(name, second) is not None:
            raise Refused(_refusal(client, "overwrites an object that must only be created"))
        swapped = client.swap(name, second, etag) or _own(client, name, second)
        if not swapped or swapped == etag:
            raise Refused(_refusal(client, "does not swap an object by its etag"))
        if client.swap(name, third, etag) is not None:
            raise Refused(_refusal(client, "swaps an object with a stale etag"))
        found = client.head(name)
        if found is None:
            raise StoreError(f"{client.url}: an object is gone just after it was written.")
    finally:
        client.delete([name])
    return Probed(found.modified, swapped == hashlib.md5(second, usedforsecurity=False).hexdigest())


def _own(client: Client, name: str, content: bytes) -> str | None:
    """Return the etag of an object that was written although the answer said otherwise."""
    found = client.get(name)
    return found[1] if found and found[0] == content else None


def _refusal(client: Client, what: str) -> str:
    return (
        f"{client.url}: this store {what}, so two runs at once could spoil the run directory; use "
        "one with conditional writes (S3, GCS, Azure, R2, MinIO), or a folder on a disk."
    )
