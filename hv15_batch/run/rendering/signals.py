"""Signals from the user, the terminal or the system, and what they demand of the run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from enum import Enum
from types import FrameType, TracebackType
from typing import Any

from hv15_batch.clock import Clock
from hv15_batch.dispatch.protocol import HANDLED, Job
from hv15_batch.errors import EXIT_SIGINT, EXIT_SIGTERM
from hv15_batch.forecast.pace import Pace
from hv15_batch.units import format_duration

TERMINATION_SECONDS = 6.0
"""After SIGTERM a clip that is only being decoded or written may take this long. `docker stop`
kills after 10 s and systemd after 90; log, tables and page need a moment too."""


class Demand(Enum):
    """What the signals so far demand."""

    after_clip = "after_clip"
    """End when the current clip is finished: one SIGINT."""
    soon = "soon"
    """End within `TERMINATION_SECONDS`: SIGTERM or SIGHUP."""
    at_once = "at_once"
    """End now: a second SIGINT, or anything after SIGTERM."""


class Signals:
    """Receives signals while its `with` block runs."""

    def __init__(self, pace: Pace, clock: Clock, received: list[int] | None = None) -> None:
        """Start without any.

        Args:
            pace: Knows how far the current clips are.
            clock: Measures how long the end may take.
            received: List of signals so far. Code that appends one ends the run like that signal.
        """
        self._pace = pace
        self._clock = clock
        self._told: Demand | None = None
        self._must_end_at: float | None = None  # on the clock, after SIGTERM or SIGHUP
        self._received: list[int] = [] if received is None else received
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        """Handle signals from now on. Python can do so in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in HANDLED:
            # nohup: the terminal may close.
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._handlers[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        """Restore the earlier handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    @property
    def demand(self) -> Demand | None:
        """What the run must do; None before the first signal."""
        match [signal.SIGTERM if n == signal.SIGHUP else n for n in self._received]:
            case []:
                return None
            case [signal.SIGINT]:
                return Demand.after_clip
            case [signal.SIGTERM] | [signal.SIGINT, signal.SIGTERM]:
                return Demand.soon
        return Demand.at_once

    @property
    def cause(self) -> signal.Signals:
        """The signal that ends the run. SIGHUP of a closed terminal counts as SIGTERM."""
        ends = (n for n in self._received if n in (signal.SIGTERM, signal.SIGHUP))
        return signal.Signals(next(ends, signal.SIGINT))

    def end_now(self, current: Sequence[Job]) -> bool:
        """Whether the run must end now, given its current clips."""
        demand = self.demand
        if demand is Demand.soon:
            return not self._ends_in_time(current)
        return demand is not None and (not current or demand is Demand.at_once)

    def news(self, current: Sequence[Job]) -> str | None:
        """Return a line for the user about a new demand, once."""
        demand = self.demand
        if demand is None or demand is self._told:
            return None
        self._told = demand
        if demand is Demand.soon:
            return f"Ending in at most {TERMINATION_SECONDS:.0f} s: a clip is only being written."
        seconds = self._pace.remaining_seconds(current)
        when = f", in about {format_duration(max(seconds, 1))}" if seconds else ""
        return f"Stopping after the current clip{when}; Ctrl-C again stops at once."

    def _ends_in_time(self, current: Sequence[Job]) -> bool:
        """Whether a clip is already denoised and will be written before the deadline."""
        now = self._clock.elapsed_seconds()
        if self._must_end_at is None:
            self._must_end_at = now + TERMINATION_SECONDS
        left = self._must_end_at - now
        jobs = [job for job in current if self._pace.has_denoised(job)]
        return left > 0 and any(self._pace.remaining_seconds([job]) <= left for job in jobs)

    @property
    def exit_code(self) -> int:
        """Exit code of a run that a signal ends."""
        return EXIT_SIGINT if self.cause is signal.SIGINT else EXIT_SIGTERM

    def _take(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)
