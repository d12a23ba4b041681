"""The one client of object storage: obstore, with messages of our own.

Messages of the library may quote the server, and so identify a user's key: none of them is shown.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from hv15_batch.errors import Refused, StoreError
from hv15_batch.units import GIB, MIB

INSTALL = "pip install 'hv15_batch[store]'"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, or the role of the instance",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the service account of the instance",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or the instance's identity",
}
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_WORDS = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("AWS_REGION", "AWS_DEFAULT_REGION"),
    ),
    "gs": (),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
}
"""Variables whose values go into a request as they are."""
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"),
    "gs": (),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(/[!-~]*)?")
_PANIC = "PanicException"
"""What the library raises instead of an error where it did not foresee one; no `Exception`."""
_FOLDERS_AT_ONCE = 8
_MOST_VERSIONS = 64
_MOST_AT_ONCE = 4 * GIB
"""S3 takes at most 5 GiB in one request; what is larger goes in parts."""
_STATUS = re.compile(r"non-2xx status code: ([0-9]{3})")
_UNKNOWN = re.compile(
    r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AuthenticationFailed"
    r"|169\.254\.169\.254|metadata\.google|CredentialsNotLoaded|[Mm]issing [Aa]ccess"
)
"""Of servers; and the services that give an instance its identity, where none answers."""
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)


class Item(NamedTuple):
    """One object; a listing may have a million."""

    name: str
    """Relative to the run directory."""
    size: int
    etag: str
    """Without quotes; of plain S3 the MD5 of the bytes."""
    modified: datetime
    """By the clock of the store."""
    sha256: str | None = None
    """As its writer gave it; only `head` knows."""
    md5: str | None = None


@dataclass(frozen=True)
class Patience:
    """How long a client tries."""

    request_seconds: float
    retries: int
    retry_seconds: float


USUAL = Patience(request_seconds=600.0, retries=10, retry_seconds=180.0)
"""For clips on a slow line: 100 MiB in ten minutes are 1.4 Mbit/s."""
LOOK = Patience(request_seconds=60.0, retries=3, retry_seconds=20.0)
"""For the first look: who typed the URL is waiting."""
ROW = Patience(request_seconds=60.0, retries=3, retry_seconds=10.0)
"""For one try at a row, or at a look at a clip: a signal is obeyed after it."""
SHORT = Patience(request_seconds=8.0, retries=1, retry_seconds=8.0)
"""For the lease, whose renewal is tried again soon anyway."""


class Client:
    """Objects below one URL."""

    def __init__(self, url: str, patience: Patience | None = None) -> None:
        """Prepare; nothing is asked of the server yet.

        Args:
            url: As `checked_url` returns it.
            patience: None for `USUAL`.

        Raises:
            Refused: obstore is not installed.
            StoreError: The environment does not suit the store.
        """
        try:
            import obstore
            import obstore.store
        except ImportError as error:
            raise Refused(
                f"{url}: run directories on object storage need obstore; type: {INSTALL}"
            ) from error
        patience = patience or USUAL
        self._versions: dict[tuple[str, str], str] = {}
        self.url = url
        self._scheme = url.partition(":")[0]
        self._api: Any = obstore
        self._errors: Any = obstore.exceptions
        options: dict[str, Any] = {
            "timeout": timedelta(seconds=patience.request_seconds),
            "connect_timeout": timedelta(seconds=min(10.0, patience.request_seconds)),
        }
        if fault := _environment_fault(self._scheme):
            raise StoreError(f"{url}: in the environment {fault}; correct it, or unset it.")
        named = _ENDPOINTS[self._scheme]
        if any(os.environ.get(name, "").startswith("http://") for name in named):
            options["allow_http"] = True  # typed by the user, so it is meant
        retry = {
            "max_retries": patience.retries,
            "retry_timeout": timedelta(seconds=patience.retry_seconds),
        }
        try:
            self._store = obstore.store.from_url(url, client_options=options, retry_config=retry)
        except self._errors.BaseError:  # nothing was asked: a variable is missing or wrong
            raise StoreError(self._not_opened()) from None

    def put(self, name: str, data: bytes | Path) -> str:
        """Write an object, whether it exists or not, and return its etag."""
        return self._put(name, data, "overwrite") or ""

    def create(
        self, name: str, data: bytes | Path, attributes: Mapping[str, str] | None = None
    ) -> str | None:
        """Write a new object and return its etag; None if there is one."""
        return self._put(name, data, "create", attributes)

    def swap(self, name: str, data: bytes, etag: str) -> str | None:
        """Write an object if it still has an etag, and return the new one; None if it has not."""
        mode = {"e_tag": f'"{etag}"'}
        if (version := self._versions.get((name, etag))) is not None:
            mode["version"] = version  # which Google compares
        return self._put(name, data, mode)

    def _put(
        self, name: str, data: bytes | Path, mode: Any, attributes: Mapping[str, str] | None = None
    ) -> str | None:
        size = data.stat().st_size if isinstance(data, Path) else len(data)
        try:
            with self._asking(f"write {name}", self._errors.BaseError):
                result = self._api.put(
                    self._store,
                    name,
                    data,
                    mode=mode,
                    attributes=dict(attributes) if attributes else None,
                    use_multipart=size > _MOST_AT_ONCE,
                )
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            return None
        return self._seen(name, result)

    def _seen(self, name: str, found: Mapping[str, Any]) -> str:
        etag = _bare(found["e_tag"])
        if found["version"] is not None:
            self._versions[name, etag] = found["version"]
            if len(self._versions) > _MOST_VERSIONS:
                del self._versions[next(iter(self._versions))]
        return etag

    def head(self, name: str) -> Item | None:
        """Return what the store has under a name; None if there is nothing."""
        try:
            with self._asking(f"read {name}"):
                found = self._api.get(self._store, name, options={"head": True})
        except FileNotFoundError:
            return None
        own = {str(key).lower(): str(value) for key, value in found.attributes.items()}
        return _item(found.meta, own.get("sha256"), own.get("md5"))

    def get(self, name: str, max_bytes: int = MIB) -> tuple[bytes, str] | None:
        """Return a small object and its etag; None if there is none."""
        try:
            with self._asking(f"read {name}"):
                found = self._api.get(self._store, name)
                if found.meta["size"] > max_bytes:
                    raise StoreError(f"{self.url}/{name}: has more than {max_bytes:,} bytes.")
                return bytes(found.bytes()), self._seen(name, found.meta)
        except FileNotFoundError:
            return None

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes.

        Raises:
            FileNotFoundError: There is none.
        """
        with self._asking(f"read {name}"):
            for chunk in self._api.get(self._store, name).stream(min_chunk_size=MIB):
                yield bytes(chunk)

    def fetch(self, name: str, path: Path) -> None:
        """Write an object's bytes into a file; raise like `chunks`."""
        with path.open("wb") as file:
            file.writelines(self.chunks(name))

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of an object's bytes, which are read; raise like `chunks`."""
        digest = hashlib.sha256()
        for chunk in self.chunks(name):
            digest.update(chunk)
        return digest.hexdigest()

    def list(self, but: Container[str] = ()) -> list[Item]:
        """Return every object below the URL, oldest first.

        One request per 1,000 of them, for all folders in it side by side.

        Args:
            but: Folders that are left out.
        """

        def below(folder: str) -> list[Item]:
            with self._asking("list it"):
                batches = self._api.list(self._store, folder)
                return [_item(meta) for batch in batches for meta in batch]

        with self._asking("list it"):
            top = self._api.list_with_delimiter(self._store)
        with ThreadPoolExecutor(_FOLDERS_AT_ONCE, thread_name_prefix="list") as pool:
            parts = list(pool.map(below, (f for f in top["common_prefixes"] if f not in but)))
        return oldest_first(chain(map(_item, top["objects"]), *parts))

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; it is no error if one is gone."""
        if wanted := list(names):
            with self._asking("delete objects"):
                self._api.delete(self._store, wanted)

    @contextmanager
    def _asking(self, what: str, *passed: type[Exception]) -> Iterator[None]:
        """Turn an error of the library into one of ours.

        Raises:
            StoreError: The server refuses, does not answer, or has no such bucket.
            FileNotFoundError: There is no such object.
        """
        errors = self._errors
        conflicts = (errors.AlreadyExistsError, errors.PreconditionError)
        try:
            yield
        except (FileNotFoundError, errors.NotFoundError) as error:
            if _NO_BUCKET.search(str(error)):
                raise StoreError(self._no_bucket()) from None
            raise FileNotFoundError(2, "no such object", self.url) from None
        except errors.BaseError as error:
            if passed and isinstance(error, conflicts):
                raise
            raise self._error(what, error) from None
        except BaseException as error:
            if type(error).__name__ == _PANIC:
                raise StoreError(self._not_opened()) from None
            raise

    def _not_opened(self) -> str:
        return (
            f"{self.url}: the environment does not open this store; set "
            f"{_CREDENTIALS[self._scheme]}, and look at its other variables that begin with "
            f"{_VARIABLES[self._scheme]}."
        )

    def _error(self, what: str, error: Exception) -> StoreError:
        text = str(error)
        status = _STATUS.search(text)
        code = status[1] if status else ""
        if _NO_BUCKET.search(text):
            return StoreError(self._no_bucket())
        if code == "401" or _UNKNOWN.search(text):
            return StoreError(
                f"{self.url}: the store does not know these credentials, or there are none; set "
                f"{_CREDENTIALS[self._scheme]}."
            )
        if code == "403" or isinstance(error, self._errors.PermissionDeniedError):
            return StoreError(
                f"{self.url}: the store does not allow to {what} with these credentials; correct "
                f"the permissions, or set {_CREDENTIALS[self._scheme]}."
            )
        reason = f"it answered with {code}" if code else "it did not answer in time"
        return StoreError(
            f"{self.url}: the store failed to {what} ({reason}, also when asked again); look at "
            "the network and at the store, and run again.",
            may_pass=True,
        )

    def _no_bucket(self) -> str:
        bucket = self.url.split("/")[2]
        return f"{self.url}: there is no bucket {bucket}; create it, or correct the name."


def _environment_fault(scheme: str) -> str | None:
    """Return which variable would break every request, without its value; None if none does."""
    for name in _WORDS[scheme]:
        value = os.environ.get(name, "")
        if " " in value or not value.isprintable():
            return f"{name} has a blank or a line break in it"
    for name in _ENDPOINTS[scheme]:
        if not _ENDPOINT.fullmatch(os.environ.get(name, "https://-")):
            return f"{name} is no address such as https://HOST:PORT"
    return None


def oldest_first(items: Iterable[Item]) -> list[Item]:
    """Return objects by the time of their writing."""
    return sorted(items, key=attrgetter("modified", "name"))


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


def _item(meta: Mapping[str, Any], sha256: str | None = None, md5: str | None = None) -> Item:
    etag = _bare(meta["e_tag"])
    return Item(meta["path"], meta["size"], etag, meta["last_modified"], sha256, md5)
