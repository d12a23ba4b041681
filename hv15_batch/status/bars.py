"""Bars at the foot of a terminal: one for all clips, one for the current clip of each worker.

tqdm formats the lines, and this module places them. All are drawn at once for the current width,
and the cursor rests at the start of the first. So nothing remains on the screen when a terminal is
made narrower and wraps them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from hv15_batch.record import DENOISE
from hv15_batch.status.terminal import fit, size_of

_ERASE = "\r\x1b[J"
"""Moves to the start of the line and erases all that follows."""
_UP = "\x1b[A"
_REDRAW_SECONDS = 1.0
"""Elapsed seconds are drawn again this often while nothing happens."""
_METER = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}"
_NARROW_METER = "{desc} {n_fmt}/{total_fmt} {elapsed}{postfix}"
_NAME_COLUMNS, _BAR_COLUMNS = 10, 10
"""Smallest width of a name and a bar; with less room the line has no bar."""


class Bars:
    """The lines, and the text above them."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw nothing yet.

        Args:
            out: A terminal whose lines can be redrawn.
            clock: Seconds since any moment.
        """
        self._out = out
        self._clock = clock
        self._whole: _Bar | None = None
        self._current: dict[int, _Bar] = {}
        self._num_drawn = 0
        self._drawn_at = 0.0
        self._is_ascii = not _takes_blocks(out)

    def print(self, text: str) -> None:
        """Print lines above the bars."""
        self._write(f"{_ERASE}{text}\n")

    def show_whole(self, what: str, done: int, total: int, left: str = "") -> None:
        """Show how many of all are done, and how much time is left in words."""
        if self._whole is None or (self._whole.name, self._whole.total) != (what, total):
            self._whole = _Bar(what, "", done, total, self._clock())
        self._whole.done, self._whole.left = done, left
        self._draw()

    def show_steps(self, name: str, stage: str, step: int, steps: int, worker: int = 0) -> None:
        """Show a stage of a clip; each clip and each stage starts at zero.

        The first event of denoising is the end of a step, so seconds count from the clip's start.
        """
        now, bar = self._clock(), self._current.get(worker)
        if bar is None or (bar.name, bar.stage, bar.total) != (name, stage, steps):
            is_begun = bar is not None and bar.name == name and stage == DENOISE
            since = bar.since if bar is not None and is_begun else now
            bar = self._current[worker] = _Bar(name, stage, step, steps, now, since)
        bar.step(step, now)
        self._draw()

    def show_stage(self, name: str, stage: str, worker: int = 0) -> None:
        """Show a stage without steps, and its seconds so far."""
        self._current[worker] = _Bar(name, stage, 0, 1, self._clock())
        self._draw()

    def show_loading(self, what: str, worker: int = 0) -> None:
        """Show what is being loaded, and its seconds so far."""
        self._current[worker] = _Bar(f"loading {what}", "", 0, 0, self._clock())
        self._draw()

    def clear_current(self, name: str | None = None, worker: int | None = None) -> None:
        """Remove the line of a worker's current clip; with a name only if it is that clip.

        Without a worker, those of all are removed.
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
        """Keep the bar of all clips on the screen, and move below it."""
        self._current = {}
        if self._num_drawn:
            last = self._lines()
            self._num_drawn = 0
            self._whole = None
            self._out.write(_ERASE + "".join(f"{line}\n" for line in last))
            self._out.flush()
        self._whole = None

    def _draw(self) -> None:
        self._write(_ERASE)

    def _write(self, before: str) -> None:
        lines = self._lines()
        # One write, so that the bars do not flicker.
        body = "\n".join(lines) + _UP * (len(lines) - 1) + "\r" if lines else ""
        self._num_drawn, self._drawn_at = len(lines), self._clock()
        self._out.write(before + body)
        self._out.flush()

    def _lines(self) -> list[str]:
        columns, rows = size_of(self._out)
        now = self._clock()
        bars = [*filter(None, [self._whole]), *(bar for _, bar in sorted(self._current.items()))]
        # One column less, so that no terminal wraps. With one row there is no room to move back.
        return [bar.line(columns - 1, now, self._is_ascii) for bar in bars[: max(rows - 1, 1)]]


class _Bar:
    """One line: count, total, start and pace."""

    def __init__(
        self,
        name: str,
        stage: str,
        done: int,
        total: int,
        now: float,
        since: float | None = None,
    ) -> None:
        self.name, self.stage, self.total = name, stage, total
        self.done = done
        self.left = ""
        self.since = now if since is None else since
        self._first = self._last = (done, now)

    def step(self, done: int, now: float) -> None:
        """Take a step; the pace is that between the first and the last one of this bar."""
        self.done = done
        self._last = (done, now)

    def line(self, columns: int, now: float, is_ascii: bool) -> str:
        """Return the line, at most so many columns wide."""
        elapsed = now - self.since
        seconds = tqdm.format_interval(elapsed)
        if not self.total:  # loading
            return fit(f"{self.name} {seconds}", columns)
        if self.stage and self.stage != DENOISE:  # a stage without steps
            rest = f" {self.stage} {seconds}"
            return fit(f"{fit(self.name, max(columns - len(rest), 1))}{rest}", columns)
        stage = f" {self.stage}" if self.stage else ""
        postfix = self._pace() if self.stage else self.left
        rest = f"{stage} {self.done}/{self.total} {seconds}" + f", {postfix}" * bool(postfix)
        room = columns - len(rest) - len(" ||") - _BAR_COLUMNS
        has_bar = room >= min(_NAME_COLUMNS, len(self.name))
        name = fit(self.name, max(room if has_bar else columns - len(rest), 1))
        meter = tqdm.format_meter(
            self.done,
            self.total,
            elapsed,
            ncols=columns,
            prefix=f"{name}{stage}",
            ascii=is_ascii,
            bar_format=_METER if has_bar else _NARROW_METER,
            postfix=postfix,
        )
        return fit(str(meter), columns)

    def _pace(self) -> str:
        """Return the mean pace of the steps in tqdm's form; empty before the second step."""
        (first, began), (last, ended) = self._first, self._last
        if last <= first or ended <= began:
            return ""
        seconds = (ended - began) / (last - first)
        return f"{seconds:.2f}s/it" if seconds >= 1 else f"{1 / seconds:.2f}it/s"


def _takes_blocks(out: TextIO) -> bool:
    try:
        "█▏…".encode(getattr(out, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
