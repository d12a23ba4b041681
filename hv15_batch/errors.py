"""Exit codes, and the errors that are told to a user instead of a traceback."""

from __future__ import annotations

EXIT_OK = 0
"""Every clip is done, now or before."""
EXIT_FAULT = 1
"""A fault of this program, shown whole."""
EXIT_REFUSED = 2
"""Configuration, command line or manifest refused; nothing was touched."""
EXIT_SOME_FAILED = 3
"""Some clips failed; the next run tries them again."""
EXIT_STOPPED = 4
"""Stopped early: the message says why, for example disk, card or log lost, `until=`, bad clips."""
EXIT_SIGINT = 130
"""Interrupted by Ctrl-C."""
EXIT_SIGTERM = 143
"""Ended by SIGTERM, or by a terminal that was closed."""


class Refused(ValueError):
    """What a user asked for is refused before anything is touched; the message is for the user."""

    exit_code = EXIT_REFUSED


class LogSchemaError(ValueError):
    """A segment that this version can't read."""
