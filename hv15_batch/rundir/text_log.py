"""run.log: where log records and warnings of a run go, the libraries' included."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hv15_batch.redaction import redacted


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line: on a full disk a traceback on the screen for each would help nobody."""

    def close(self) -> None:
        """Close the file; lines that a full disk did not take are lost here too."""
        with suppress(OSError):
            super().close()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, traceback included, without secrets."""
        return redacted(super().format(record))


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
    handler = _FileHandler(path, encoding="utf-8")
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
