"""Exit codes, and the errors that reach a user as a message, without a traceback."""

from __future__ import annotations

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
