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
def text_log(path: Path) -> Iterator[None]:
    """Within: this process's log records and warnings go to a file, and nowhere else.

    Parent and executor append to the same file, a line at a time.
    """
    handler = _FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
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
