"""run.log: where log records and warnings of a run go, the libraries' included."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hv15_batch.errors import Secondary
from hv15_batch.redaction import redacted

Tell = Callable[[str], None]


class _FileHandler(logging.FileHandler):
    error: Exception | None = None
    """Why the first line was lost; None as long as none was."""
    losing = Secondary("run.log lacks lines")

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a line, or lose it."""
        with self.losing:
            return bool(super().handle(record))
        self.error = self.error or self.losing.error
        return False

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line: on a full disk a traceback on the screen for each would help nobody."""
        error = sys.exc_info()[1]
        if self.error is None and isinstance(error, Exception):
            self.error = error.with_traceback(None)

    def close(self) -> None:
        """Close the file; lines that a full disk did not take are lost here too."""
        with suppress(OSError):
            super().close()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, traceback included, without secrets."""
        return redacted(super().format(record))


@contextmanager
def text_log(path: Path, is_alone: bool = True, tell: Tell | None = None) -> Iterator[None]:
    """Within: this process's log records and warnings go to a file, and nowhere else.

    Parent and executor append to the same file, a line at a time. Where the process is not this
    program's alone, only this package's records go there, and its own logging stays as it is.
    Lines that cannot be written are lost.

    Args:
        path: The file.
        is_alone: See above.
        tell: Takes one line where some are lost.
    """
    form = _Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    with _opened(path, tell) as handler:
        handler.setFormatter(form)
        with _alone(handler) if is_alone else _added(handler, logging.getLogger("hv15_batch")):
            yield


@contextmanager
def _opened(path: Path, tell: Tell | None) -> Iterator[logging.Handler]:
    """Yield what writes to the file, or to nowhere; tell at the end that lines are missing."""
    losing = Secondary("run.log lacks lines", tell)
    handler: logging.Handler = logging.NullHandler()
    with losing:
        handler = _FileHandler(path, encoding="utf-8")
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
