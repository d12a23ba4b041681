"""Exit codes of the command; in a sweep the largest is the sweep's."""

from __future__ import annotations

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
