"""Reports how the runs of a sweep end, by files, because a launcher may run them anywhere."""

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
from typing import Any

from hydra.core.utils import JobReturn

from hv15_batch.errors import EXIT_STOPPED, Refused

_BEGUN = "begun"
_ELSEWHERE = "use hydra/launcher=basic or submitit_local"


@contextmanager
def temporary_folder() -> Iterator[str]:
    """Yield a folder for the files of Hydra and of a sweep; it is removed afterwards.

    Raises:
        Refused: No folder for temporary files can be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="hv15_batch-", ignore_cleanup_errors=True)
    except OSError as error:
        raise Refused(
            f"no folder for temporary files can be written ({error.strerror}); set TMPDIR to a "
            "folder that can."
        ) from error
    with folder as name:
        yield name


@dataclass(frozen=True)
class Caller:
    """The process and thread that started a sweep, for its runs in any process."""

    pid: int
    thread: int
    stderr: tuple[int, int] | None
    """Device and inode of its stderr."""

    @classmethod
    def here(cls) -> Caller:
        """Return this process and thread."""
        stderr = None
        with suppress(OSError):
            found = os.fstat(2)
            stderr = (found.st_dev, found.st_ino)
        return cls(os.getpid(), threading.get_ident(), stderr)

    def check_job(self) -> None:
        """Check, in a run of the sweep, that it can render where its launcher has put it.

        Raises:
            Refused: It cannot; the message has the reason.
        """
        if multiprocessing.current_process().daemon:
            raise Refused(
                "hydra/launcher: it uses daemonic processes, which may not start the "
                f"worker that renders; {_ELSEWHERE}."
            )
        here = Caller.here()
        if here.pid == self.pid and here.thread != self.thread:
            raise Refused(
                "hydra/launcher: it uses threads of one process, which share signals, "
                f"text log and settings of Hydra; {_ELSEWHERE}."
            )

    @property
    def sees_job(self) -> bool:
        """Whether the sweep's terminal shows the output of this run; called in the run."""
        return self.stderr == Caller.here().stderr


@dataclass(frozen=True)
class End:
    """How one run of a sweep ended."""

    code: int
    has_value: bool = False
    """It has a value for `sweep_value`."""
    line: str = ""
    """A line for the user, if the run's own output is not seen."""


class Ends:
    """A folder with a file for each run: first that it has started, then how it ended."""

    def __init__(self, folder: str) -> None:
        """Take a folder. A run on another machine may not see it, and then reports nothing."""
        self._folder = Path(folder)

    def begin(self) -> Path:
        """Report that a run has started; return its file."""
        path = self._folder / f"{uuid.uuid4().hex}.{_BEGUN}"
        if self._folder.is_dir():
            path.touch()
        return path

    def tell(self, begun: Path, end: End) -> None:
        """Report how it ended; the file is replaced as a whole."""
        if begun.is_file():
            begun.write_text(json.dumps(end.line), encoding="utf-8")
            begun.rename(begun.with_suffix(f".{end.code}.{end.has_value:d}"))

    def read(self) -> list[End]:
        """Return how the runs ended; killed ones count as stopped."""
        ends = []
        for path in sorted(self._folder.iterdir()):
            _, *parts = path.name.split(".")
            if parts == [_BEGUN]:
                ends.append(
                    End(EXIT_STOPPED, line="a run of the sweep ended and did not report how")
                )
            else:
                line = json.loads(path.read_text(encoding="utf-8"))
                ends.append(End(int(parts[0]), parts[1] == "1", line))
        return ends


def codes_of(returned: Any) -> Iterator[int]:
    """Yield the exit codes in a sweeper's result: `JobReturn`s in lists, or nothing."""
    if isinstance(returned, JobReturn):
        if isinstance(returned.return_value, int):
            yield returned.return_value
    elif isinstance(returned, (list, tuple)):
        for item in returned:
            yield from codes_of(item)
