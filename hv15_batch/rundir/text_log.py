"""run.log: the log records and warnings of a run, those of libraries included."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from hv15_batch.errors import Secondary
from hv15_batch.redaction import shown

SYNC_SECONDS = 10.0
"""Lines are synced this often, warnings and errors at once."""

Tell = Callable[[str], None]


class _FileHandler(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        self._synced_at = -math.inf
        self._losing = Secondary("run.log lacks lines")
        self.error: Exception | None = None
        """Why the first line was lost; None if none was."""
        super().__init__(path, encoding="utf-8")
        _sync(path.parent)  # the file's name; its lines are synced later

    def _open(self) -> TextIOWrapper:
        """Open the file, not through a link; make its folder again if it is gone."""
        path = Path(self.baseFilename)
        if path.parent.parent.parent.is_dir():  # the run directory; it may have been moved
            path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", errors=self.errors, opener=_open_no_link)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the lines of a record, and sync them in time."""
        super().emit(record)
        now = time.monotonic()
        if record.levelno >= logging.WARNING or now - self._synced_at >= SYNC_SECONDS:
            self._synced_at = now
            self._sync()

    def _sync(self) -> None:
        if self.stream is not None:
            with suppress(OSError, ValueError):  # a disk that cannot be synced, or a closed file
                os.fsync(self.stream.fileno())

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a line, or lose it."""
        with self._losing:
            return bool(super().handle(record))
        self.error = self.error or self._losing.error
        return False

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line, because a traceback for each line on a full disk would help nobody."""
        error = sys.exc_info()[1]
        if self.error is None and isinstance(error, Exception):
            self.error = error.with_traceback(None)

    def close(self) -> None:
        """Close the file; lines for which the disk had no room are lost."""
        if self.stream is not None:
            with suppress(OSError, ValueError):
                self.stream.flush()
            self._sync()
        with suppress(OSError):
            super().close()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _sync(folder: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, traceback included, without secrets."""
        return shown(super().format(record))


@contextmanager
def text_log(path: Path, is_alone: bool = True, tell: Tell | None = None) -> Iterator[None]:
    """Send this process's log records and warnings to a file only, while the block runs.

    Parent and executor append to the same file, a line at a time. Lines that cannot be written are
    lost.

    Args:
        path: The file.
        is_alone: False if the process is another program. Then only this package's records go to
            the file, and the program's own logging stays unchanged.
        tell: Gets one line if some are lost.
    """
    form = _Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    with _opened(path, tell) as handler:
        handler.setFormatter(form)
        with _alone(handler) if is_alone else _added(handler, logging.getLogger("hv15_batch")):
            yield


@contextmanager
def _opened(path: Path, tell: Tell | None) -> Iterator[logging.Handler]:
    """Yield a handler for the file, or for nothing; report lost lines at the end."""
    losing = Secondary("run.log lacks lines", tell)
    handler: logging.Handler = logging.NullHandler()
    with losing:
        handler = _FileHandler(path)
    try:
        yield handler
    finally:
        handler.close()
        if isinstance(handler, _FileHandler) and handler.error is not None:
            with losing:
                raise handler.error


@contextmanager
def _alone(handler: logging.Handler) -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        root.handlers, root.level = handlers, level
        logging.captureWarnings(False)


@contextmanager
def _added(handler: logging.Handler, logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
