"""Exit codes, errors that reach a user as a message, advice by errno, and what ends no run."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

logger = logging.getLogger(__name__)

EXIT_OK = 0
"""Every clip is done, in this run or an earlier one."""
EXIT_FAULT = 1
"""A fault of this program; the traceback is printed."""
EXIT_REFUSED = 2
"""The configuration, command line or manifest was refused; nothing was touched."""
EXIT_SOME_FAILED = 3
"""Some clips failed; the next run tries them again."""
EXIT_STOPPED = 4
"""Stopped early; the message has the cause, e.g. `until=`, bad clips, a full disk, a lost card."""
EXIT_SIGINT = 130
"""Interrupted by Ctrl-C."""
EXIT_SIGTERM = 143
"""Ended by SIGTERM, or by a terminal that was closed."""


class Refused(ValueError):
    """A request is refused before anything is touched; the message is for the user."""

    exit_code = EXIT_REFUSED


class LogSchemaError(ValueError):
    """A segment that this version can't read."""


# -- what the system answers ------------------------------------------------------------------


@dataclass(frozen=True)
class Advice:
    """What to do about an error of the system."""

    text: str
    exit_code: int


_PATH = Advice("correct the path or its permissions", EXIT_REFUSED)
_SICK = Advice(
    "the disk does not read or write it: leave the file where it is, look at dmesg, the cables and "
    "the disk's health (smartctl), and run again when it answers",
    EXIT_STOPPED,
)
_NETWORK = Advice(
    "the server of this network file system does not answer, or has lost the file: mount it again, "
    "and run again",
    EXIT_STOPPED,
)
_FILES = Advice("raise the number of open files (ulimit -n) and run again", EXIT_STOPPED)
ADVICE = {
    errno.ENOSPC: Advice("free some disk and run again", EXIT_STOPPED),
    errno.EDQUOT: Advice(
        "your share of this disk is used up: delete something of yours there, or have the quota "
        "raised, and run again",
        EXIT_STOPPED,
    ),
    errno.EIO: _SICK,
    errno.ENXIO: _SICK,
    errno.ENODEV: _SICK,
    errno.EUCLEAN: Advice(
        "the file system is damaged: unmount it, check it (fsck), and run again", EXIT_STOPPED
    ),
    errno.ESTALE: _NETWORK,
    errno.EREMOTEIO: _NETWORK,
    errno.ENOTCONN: _NETWORK,
    errno.ETIMEDOUT: _NETWORK,
    errno.EHOSTDOWN: _NETWORK,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EROFS: Advice(
        "this file system is read-only: name a folder on another one, or mount it for writing; "
        "where it became so by itself, dmesg says why",
        EXIT_REFUSED,
    ),
    errno.EACCES: _PATH,
    errno.EPERM: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.ENAMETOOLONG: _PATH,
    errno.EINVAL: _PATH,
    errno.ELOOP: Advice(
        "a link is in the place of a file or folder of ours: remove the link", EXIT_REFUSED
    ),
}
"""The one place that knows what a number of the system means for a user."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""What a file system answers that has no file locks (`flock`)."""


def system_message(error: OSError) -> str:
    """Return what the system said and what to do about it, as the end of a sentence."""
    advice = ADVICE.get(error.errno or 0)
    reason = error.strerror or str(error)
    return f"{reason}; {advice.text}" if advice else reason


# -- what never decides how a run ends ----------------------------------------------------------


class Secondary:
    """Within it: what never decides how a run ends. Its failure is one line, and the run continues.

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
