"""A time limit for what might wait for ever: a pipe, a device, a damaged file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = 60


class Hangs(BaseException):
    """Not an `Exception`, which a library or the program would take for a damage."""


@contextmanager
def no_hang(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `Hangs` where what is within takes longer."""

    def ring(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
