"""Exit codes, and the errors that reach a user as a message, without a traceback."""

from __future__ import annotations

import errno
from dataclasses import dataclass

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
