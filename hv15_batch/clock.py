"""The time: now, and since the command was started."""

from __future__ import annotations

import time
from datetime import datetime, timezone


class Clock:
    """The time, and the time since the command was started."""

    def __init__(self) -> None:
        """Start counting."""
        self.started = self.now()
        self._started_seconds = _running_seconds()

    def now(self) -> datetime:
        """Return the time, in the local zone."""
        return datetime.now().astimezone()

    def elapsed_seconds(self) -> float:
        """Return the seconds since the start; a clock that is set does not move them."""
        return _running_seconds() - self._started_seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def _running_seconds() -> float:
    """Return the seconds that this machine has been up, asleep or not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_now() -> datetime:
    """Return the time, with its zone."""
    return datetime.now(timezone.utc)
