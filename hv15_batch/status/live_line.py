"""The live line at the foot of a terminal: what a run does now, in parts that are never cut apart.

    clips 143/200 | fox_s0_11223344 denoise 12/50 | 1.42 s a step | end 07:12, 90 % by 08:03 | 71 °C

Where it is longer than the terminal is wide, it is broken between its parts. All rows are drawn at
once for the width of now, and the cursor rests at the start of the first. So nothing remains on the
screen when a terminal is made narrower and wraps them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from hv15_batch.record import DENOISE
from hv15_batch.status.terminal import fit, size_of, width

_ERASE = "\r\x1b[J"
"""Moves to the start of the line and erases all that follows."""
_UP = "\x1b[A"
_REDRAW_SECONDS = 1.0
"""Elapsed seconds are drawn again this often while nothing happens."""
_BETWEEN = " | "
_NAME_COLUMNS = 40
"""A longer name of a clip is cut in the middle."""


class LiveLine:
    """The line, and the text above it."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw nothing yet.

        Args:
            out: A terminal whose lines can be redrawn.
            clock: Seconds since any moment.
        """
        self._out = out
        self._clock = clock
        self._whole = ""
        self._facts: Sequence[str] = ()
        self._current: dict[int, _Work] = {}
        self._num_drawn = 0
        self._drawn_at = 0.0

    def print(self, text: str) -> None:
        """Print lines above the live one."""
        self._write(f"{_ERASE}{text}\n")

    def show_whole(self, what: str, done: int, total: int, facts: Sequence[str] = ()) -> None:
        """Show how many of all are done, and facts such as the expected end, in words."""
        self._whole = f"{what} {done}/{total}"
        self._facts = facts
        self._draw()

    def show_steps(self, name: str, stage: str, step: int, steps: int, worker: int = 0) -> None:
        """Show a stage of a worker's clip; each clip and each stage starts anew."""
        now, work = self._clock(), self._current.get(worker)
        if work is None or (work.name, work.stage, work.steps) != (name, stage, steps):
            work = self._current[worker] = _Work(name, stage, now, steps)
        work.take(step, now)
        self._draw()

    def show_stage(self, name: str, stage: str, worker: int = 0) -> None:
        """Show a stage without steps, and its seconds so far."""
        self._current[worker] = _Work(name, stage, self._clock())
        self._draw()

    def show_loading(self, what: str, worker: int = 0) -> None:
        """Show what is being loaded, and its seconds so far."""
        self._current[worker] = _Work("", f"loading {what}", self._clock())
        self._draw()

    def clear_current(self, name: str | None = None, worker: int | None = None) -> None:
        """Remove what a worker does; with a name only if it is that clip.

        Without a worker, that of all is removed.
        """
        workers = list(self._current) if worker is None else [worker]
        for each in workers:
            if each in self._current and name in (None, self._current[each].name):
                del self._current[each]
                self._draw()

    def tick(self) -> None:
        """Draw the seconds again; called often."""
        if self._num_drawn and self._clock() - self._drawn_at >= _REDRAW_SECONDS:
            self._draw()

    def close(self) -> None:
        """Keep the number of clips on the screen, and move below it."""
        self._current, self._facts = {}, ()
        if self._num_drawn:
            self._num_drawn = 0
            self._out.write(_ERASE + "".join(f"{row}\n" for row in self._rows()))
            self._out.flush()
        self._whole = ""

    def _draw(self) -> None:
        self._write(_ERASE)

    def _write(self, before: str) -> None:
        rows = self._rows()
        # One write, so that the line does not flicker.
        body = "\n".join(rows) + _UP * (len(rows) - 1) + "\r" if rows else ""
        self._num_drawn, self._drawn_at = len(rows), self._clock()
        self._out.write(before + body)
        self._out.flush()

    def _rows(self) -> list[str]:
        columns, rows = size_of(self._out)
        # One column less, so that no terminal wraps. With one row there is no room to move back.
        return list(_wrapped(self._parts(), columns - 1))[: max(rows - 1, 1)]

    def _parts(self) -> list[str]:
        """Return the parts of the line, what counts most first."""
        now = self._clock()
        works = [work for _, work in sorted(self._current.items())]
        if len(works) == 1 and max(self._current) == 0:
            doing = works[0].parts(now)
        else:
            doing = [f"{n}: {work.short(now)}" for n, work in sorted(self._current.items())]
            doing += _pace(second for work in works for second in work.step_seconds)
        return [*filter(None, [self._whole]), *doing, *self._facts]


class _Work:
    """What one worker does."""

    def __init__(self, name: str, stage: str, now: float, steps: int = 0) -> None:
        self.name, self.stage, self.steps = name, stage, steps
        self.step_seconds: list[float] = []
        """Of this clip, without its first step, which loads and encodes."""
        self._since = now
        self._last: tuple[int, float] | None = None

    def take(self, step: int, now: float) -> None:
        """Take the end of a step."""
        if self._last is not None and step > self._last[0]:
            taken = (now - self._last[1]) / (step - self._last[0])
            self.step_seconds += [taken] * (step - self._last[0])
        if self._last is None or step != self._last[0]:
            self._last = step, now

    def parts(self, now: float) -> list[str]:
        """Return what a line says of a worker alone."""
        name = fit(self.name, _NAME_COLUMNS)
        return [" ".join(filter(None, [name, self.short(now)])), *_pace(self.step_seconds)]

    def short(self, now: float) -> str:
        """Return what a line says of one of several workers."""
        if self.stage == DENOISE and self._last is not None:
            return f"{self.stage} {self._last[0]}/{self.steps}"
        return f"{self.stage} {_clock_of(now - self._since)}"


def _pace(seconds: Sequence[float] | Iterator[float]) -> list[str]:
    """Return the median of steps as a part; none before the second step."""
    known = list(seconds)
    if not known:
        return []
    median = statistics.median(known)
    digits = 1 if median >= 10 else 2 if median >= 1 else 3
    return [f"{median:.{digits}f} s a step"]


def _clock_of(seconds: float) -> str:
    """Return e.g. `00:07` or `1:02:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _wrapped(parts: Sequence[str], columns: int) -> Iterator[str]:
    """Yield the rows of a line, broken between its parts; a part that is too long is cut."""
    row = ""
    for part in parts:
        longer = f"{row}{_BETWEEN}{part}" if row else part
        if row and width(longer) > columns:
            yield row
            longer = part
        row = fit(longer, columns)
    if row:
        yield row
