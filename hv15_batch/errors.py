"""Exit codes, errors that are told instead of a traceback, and what is no error of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

logger = logging.getLogger(__name__)

EXIT_OK = 0
"""Every clip is done, now or before."""
EXIT_FAULT = 1
"""A fault of this program, shown whole."""
EXIT_REFUSED = 2
"""Configuration, command line or manifest refused; nothing was touched."""
EXIT_SOME_FAILED = 3
EXIT_STOPPED = 4
"""Stopped early, resumable."""
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class Refused(ValueError):
    """What a user asked for is refused before anything is touched; the message is for the user."""

    exit_code = EXIT_REFUSED


class LogSchemaError(ValueError):
    """A segment that this version can't read."""


class Secondary:
    """Within it: what never decides how a run ends. Its failure is one line, and the run goes on.

    That holds for pages, tables, thumbnails, notices, status, text log, telemetry and measures of
    quality. It takes every `Exception`: a full disk, a library that is missing, a fault of this
    program. The line comes once, however often the same failure comes back.
    """

    def __init__(self, loss: str, tell: Callable[[str], None] | None = None) -> None:
        """Say what is lost by a failure.

        Args:
            loss: A clause such as `the page is not up to date`; the reason follows in brackets.
            tell: Shows the line to the user; None where run.log is enough.
        """
        self._loss = loss
        self._tell = tell
        self._told: set[str] = set()
        self.error: Exception | None = None
        """Of the last time; None where it went well. Without its traceback, which holds tensors."""

    def __enter__(self) -> Secondary:
        self.error = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.error = error.with_traceback(None)
        line = f"{self._loss} ({reason_of(error)})"
        if line not in self._told:
            self._told.add(line)
            with suppress(Exception):  # who tells of it may be what fails
                is_known = isinstance(error, (OSError, Refused, LogSchemaError))
                if logger.hasHandlers():  # else it would go to stderr
                    info = None if is_known else (type(error), error, traceback)
                    logger.warning("%s", line, exc_info=info)
                if self._tell is not None:
                    self._tell(line)
        return True


def reason_of(error: Exception) -> str:
    """Return why something failed, on one line: the system's words, or class and message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, (Refused, LogSchemaError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
