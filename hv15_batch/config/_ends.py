"""How the jobs of a sweep end, told by files: a launcher may run them anywhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.errors import EXIT_STOPPED, Refused

_BEGUN = "begun"
_ELSEWHERE = "use hydra/launcher=basic or submitit_local"


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a folder for the files of Hydra and of a sweep; it is removed afterwards.

    Raises:
        Refused: no folder for temporary files can be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="hv15_batch-", ignore_cleanup_errors=True)
    except OSError as error:
        raise Refused(
            f"no folder for temporary files can be written ({error.strerror}); set TMPDIR to one "
            "that can."
        ) from error
    with folder as name:
        yield name


@dataclass(frozen=True)
class Caller:
    """Who began a sweep, as its jobs find it in whichever process they run."""

    pid: int
    thread: int
    stderr: tuple[int, int] | None
    """Device and file that it shows its errors on."""

    @classmethod
    def here(cls) -> Caller:
        """Return this process and thread."""
        stderr = None
        with suppress(OSError):
            found = os.fstat(2)
            stderr = (found.st_dev, found.st_ino)
        return cls(os.getpid(), threading.get_ident(), stderr)

    def check_job(self) -> None:
        """Check, in the job, that a job can render where its launcher runs it.

        Raises:
            Refused: it can't, and why.
        """
        if multiprocessing.current_process().daemon:
            raise Refused(
                "hydra/launcher: runs its jobs in daemonic processes, which may not start the "
                f"worker that renders; {_ELSEWHERE}."
            )
        here = Caller.here()
        if here.pid == self.pid and here.thread != self.thread:
            raise Refused(
                "hydra/launcher: runs its jobs in threads of one process, which share signals, "
                f"text log and settings of Hydra; {_ELSEWHERE}."
            )

    @property
    def sees_job(self) -> bool:
        """Whether what this job prints is seen where the sweep was typed; asked in the job."""
        return self.stderr == Caller.here().stderr


@dataclass(frozen=True)
class End:
    """How one job ended."""

    code: int
    has_value: bool = False
    """It gave what `sweep_value` asks for."""
    line: str = ""
    """What the user should read of it, if it ran where nobody sees what it printed."""


class Ends:
    """A folder with a file for each job: first that it has begun, then how it ended."""

    def __init__(self, folder: str) -> None:
        """Take a folder, which a job on another machine may not see: then it tells nothing."""
        self._folder = Path(folder)

    def begin(self) -> Path:
        """Tell that a job has begun; return its file."""
        path = self._folder / f"{uuid.uuid4().hex}.{_BEGUN}"
        if self._folder.is_dir():
            path.touch()
        return path

    def tell(self, begun: Path, end: End) -> None:
        """Tell how it ended: whole or not at all."""
        if begun.is_file():
            begun.write_text(json.dumps(end.line), encoding="utf-8")
            begun.rename(begun.with_suffix(f".{end.code}.{end.has_value:d}"))

    def read(self) -> list[End]:
        """Return how the jobs ended, those that were killed as stopped."""
        ends = []
        for path in sorted(self._folder.iterdir()):
            _, *parts = path.name.split(".")
            if parts == [_BEGUN]:
                ends.append(End(EXIT_STOPPED, line="a job of the sweep ended without a word"))
            else:
                line = json.loads(path.read_text(encoding="utf-8"))
                ends.append(End(int(parts[0]), parts[1] == "1", line))
        return ends
