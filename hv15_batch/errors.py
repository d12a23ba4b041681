"""Exit codes, errors with a message for the user, advice by errno, and secondary work."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

logger = logging.getLogger(__name__)

EXIT_OK = 0
"""Every clip that was asked for is done; `limit=` and `only=` may leave others."""
EXIT_FAULT = 1
"""A fault of this program; the traceback is printed."""
EXIT_REFUSED = 2
"""The configuration, command line or manifest was refused; nothing was touched."""
EXIT_SOME_FAILED = 3
"""Some clips failed, or follow a bad clip; the next run tries again."""
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
    """This version cannot read a segment of the log."""


class StoreError(OSError):
    """Object storage does not do what was asked; the message is for the user, without secrets."""

    def __init__(self, message: str, may_pass: bool = False) -> None:
        """Take the message, and whether the store may do it when it is asked again later."""
        super().__init__(None, message)
        self.may_pass = may_pass

    def __str__(self) -> str:
        return str(self.strerror)


# -- errors of the system ---------------------------------------------------------------------


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
        "if that happened by itself, dmesg has the reason",
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
        "a link has the name of a file or folder of the run: remove the link", EXIT_REFUSED
    ),
}
"""Advice by errno."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
"""Errors of a file system without file locks (`flock`)."""


def system_message(error: OSError) -> str:
    """Return the system's error and what to do about it, as the end of a sentence."""
    advice = ADVICE.get(error.errno or 0)
    reason = error.strerror or str(error)
    return f"{reason}; {advice.text}" if advice else reason


# -- secondary work -----------------------------------------------------------------------------


class Secondary:
    """A block whose failure becomes one line, while the run continues.

    It guards pages, tables, thumbnails, notices, status, text log, telemetry and measures of
    quality. It catches every `Exception`: a full disk, a missing library, a fault of this program.
    A failure that repeats prints its line once.
    """

    def __init__(self, loss: str, tell: Callable[[str], None] | None = None) -> None:
        """Take what a failure costs.

        Args:
            loss: A clause such as `the page is not up to date`; the reason follows in brackets.
            tell: Prints the line for the user; None if run.log is enough.
        """
        self._loss = loss
        self._tell = tell
        self._told: set[str] = set()
        self.error: Exception | None = None
        """Error of the last use, or None. It has no traceback, which would keep tensors alive."""

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
            with suppress(Exception):  # reporting may fail as well
                is_known = isinstance(error, (OSError, Refused, LogSchemaError))
                if logger.hasHandlers():  # otherwise it would go to stderr
                    info = None if is_known else (type(error), error, traceback)
                    logger.warning("%s", line, exc_info=info)
                if self._tell is not None:
                    self._tell(line)
        return True


def reason_of(error: Exception) -> str:
    """Return the reason of an error on one line: the system's message, or class and message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, (Refused, LogSchemaError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
