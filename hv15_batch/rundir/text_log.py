"""run.log: where log records and warnings of a run go, the libraries' included."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from hv15_batch.redaction import shown

SYNC_SECONDS = 10.0
"""Lines are brought to the disk this often, and a warning or an error at once: what a power loss
takes away is at most that long."""


class _FileHandler(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        self._synced_at = -math.inf
        super().__init__(path, encoding="utf-8")
        _sync(path.parent)  # the file's name; its lines follow

    def _open(self) -> TextIOWrapper:
        """Open the file, through no link, and in a folder that is made again where it is gone."""
        path = Path(self.baseFilename)
        if path.parent.parent.parent.is_dir():  # the run directory; it may have been moved
            path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", errors=self.errors, opener=_open_no_link)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the lines of a record, and see that they stay."""
        super().emit(record)
        now = time.monotonic()
        if record.levelno >= logging.WARNING or now - self._synced_at >= SYNC_SECONDS:
            self._synced_at = now
            self._sync()

    def _sync(self) -> None:
        if self.stream is not None:
            with suppress(OSError, ValueError):  # no disk that can be synced, or closed
                os.fsync(self.stream.fileno())

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line: on a full disk a traceback on the screen for each would help nobody."""

    def close(self) -> None:
        """Close the file; lines that a full disk did not take are lost here too."""
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
        """Return the lines of a record, traceback included, as people may see them."""
        return shown(super().format(record))


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
        handler.close()


@contextmanager
def text_log(path: Path, is_alone: bool = True) -> Iterator[None]:
    """Within: this process's log records and warnings go to a file, and nowhere else.

    Parent and executor append to the same file, a line at a time. Where the process is not this
    program's alone, only this package's records go there, and its own logging stays as it is.
    """
    handler = _FileHandler(path)
    handler.setFormatter(_Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    if not is_alone:
        with _added(handler, logging.getLogger("hv15_batch")):
            yield
        return
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
        handler.close()
