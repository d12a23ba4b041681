"""What the machines of one run share: files by name in its store, and the trial of that store.

The store is the run directory itself: a folder that all machines see, or a URL.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.errors import Refused, StoreError
from hv15_batch.files import read_bytes
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.store import is_url, place
from hv15_batch.units import MIB

INPUTS = "inputs"
PROBE = "probe"
_PROBE_BYTES = 4096
_MAX_INPUT_BYTES = 256 * MIB


class Shared:
    """Files below one run directory, by relative name."""

    def __init__(self, where: str) -> None:
        """Take a path or a URL; nothing is asked yet.

        Raises:
            Refused: The client of the store is not installed.
        """
        self.where = where
        self._client = None
        if is_url(where):
            from hv15_batch.rundir.remote.client import LOOK, Client

            self._client = Client(where, LOOK)

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder.

        Raises:
            StoreError, OSError: The store does not answer.
        """
        if self._client is None:
            path = Path(self.where) / folder
            return {entry.name for entry in path.iterdir()} if path.is_dir() else set()
        from hv15_batch.rundir.remote.client import LOOK, Client

        return {item.name for item in Client(f"{self.where}/{folder}", LOOK).list()}

    def put(self, name: str, data: bytes) -> None:
        """Write a file as a whole; raise like `names`."""
        if self._client is not None:
            self._client.put(name, data)
            return
        with publishing(Path(self.where) / name, makes_folder=True) as temporary:
            temporary.write_bytes(data)

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raise like `names`, and `FileNotFoundError`."""
        if self._client is None:
            return read_bytes(Path(self.where) / name, _MAX_INPUT_BYTES)
        return b"".join(self._client.chunks(name))

    def delete(self, names: list[str]) -> None:
        """Delete files; raise like `names`."""
        if self._client is not None:
            self._client.delete(names)
            return
        for name in names:
            (Path(self.where) / name).unlink(missing_ok=True)
        with suppress(OSError):
            (Path(self.where) / names[0]).parent.rmdir()  # once it is empty


# -- the trial --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A file that one machine wrote, and the name of one that another is to write."""

    asked: str
    sha256: str
    """Of the first one's bytes."""
    answer: str

    @property
    def names(self) -> list[str]:
        """Both names."""
        return [self.asked, self.answer]


def ask(shared: Shared) -> Question:
    """Write a random file for another machine to read.

    Raises:
        StoreError, OSError: It cannot be written.
    """
    data = secrets.token_bytes(_PROBE_BYTES)
    asked, answer = (f"{PROBE}/{secrets.token_hex(8)}" for _ in range(2))
    shared.put(asked, data)
    return Question(asked, hashlib.sha256(data).hexdigest(), answer)


def answer(shared: Shared, question: Question) -> str:
    """Read the other's file, write a random one, and return its SHA-256.

    Raises:
        Refused: One of both does not work; the message says which.
    """
    _check(shared, question.asked, question.sha256, "it", "the driver has")
    data = secrets.token_bytes(_PROBE_BYTES)
    try:
        shared.put(question.answer, data)
    except (OSError, StoreError) as error:
        raise Refused(
            f"it cannot write {shared.where}/{question.answer} ({_reason(error)}); give the user "
            "of the cluster's processes the right to write there."
        ) from error
    return hashlib.sha256(data).hexdigest()


def check_answer(shared: Shared, question: Question, sha256: str) -> None:
    """Read the other machine's answer.

    Raises:
        Refused: It is not there, or has other bytes.
    """
    _check(shared, question.answer, sha256, "the driver", "it has")


def _check(shared: Shared, name: str, sha256: str, reader: str, writer: str) -> None:
    """Read a file that another machine wrote.

    Raises:
        Refused: It is not there, or has other bytes; the message says who does not see it.
    """
    mount = "let all machines see one folder under this path, or use run_dir=s3://BUCKET/FOLDER"
    try:
        found = hashlib.sha256(shared.read(name)).hexdigest()
    except (OSError, StoreError) as error:
        raise Refused(
            f"{reader} cannot read {shared.where}/{name}, which {writer} just written "
            f"({_reason(error)}); {mount}."
        ) from error
    if found != sha256:
        raise Refused(
            f"{reader} reads other bytes in {shared.where}/{name} than {writer} just written; "
            f"{mount}."
        )


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


# -- what workers need ------------------------------------------------------------------------


def join(where: str) -> RunDir:
    """Return a run directory as another machine than the driver's finds it.

    Raises:
        Refused: The store cannot be read, or the folders cannot be made.
    """
    run_dir = RunDir(place(where))
    run_dir.create()
    return run_dir


class Inputs:
    """Files that workers of all machines need, each stored once under its hash."""

    def __init__(self, run_dir: RunDir) -> None:
        """Take a run directory; nothing is asked yet."""
        self._folder = run_dir.path / INPUTS
        self._shared = Shared(run_dir.url or str(run_dir.path))
        self._known: set[str] | None = None

    def known(self) -> set[str]:
        """Return the names that were there at the first call, and own ones since; raise like `put`.

        One listing.
        """
        if self._known is None:
            self._known = self._shared.names(INPUTS)
        return self._known

    def put(self, name: str, data: bytes) -> None:
        """Store a file, unless it is there.

        Raises:
            StoreError, OSError: The store does not take it.
        """
        if name not in self.known():
            self._shared.put(f"{INPUTS}/{name}", data)
            self.known().add(name)

    def read(self, name: str) -> bytes:
        """Return a file of the store; raise like `put`, and `FileNotFoundError`."""
        return self._shared.read(f"{INPUTS}/{name}")

    def fetch(self, name: str) -> Path:
        """Return the path of a file here.

        One whose name is a SHA-256 has that content, or counts as missing.

        Raises:
            StoreError, OSError: It is not there, or cannot be read.
        """
        path = self._folder / name
        data = None if path.is_file() else self.read(name)
        if data is not None:
            with publishing(path, makes_folder=True) as temporary:
                temporary.write_bytes(data)
        if len(name) == 64 and hashlib.sha256(path.read_bytes()).hexdigest() != name:
            raise FileNotFoundError(2, "its content is not that of its name", str(path))
        return path
