"""`hv15-batch status --watch`: the status again and again, in place on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from hv15_batch.clock import utc_now
from hv15_batch.errors import EXIT_OK, EXIT_SIGINT, Refused
from hv15_batch.redaction import one_line, show, shown
from hv15_batch.rundir.status import ACTIVE_STATES, Holder, Status, format_progress, is_gone
from hv15_batch.status.overall import current_run
from hv15_batch.status.show import format_start, format_status
from hv15_batch.status.terminal import can_redraw, fit, laid_out, num_rows, size_of

__all__ = ("fit", "watch")

WATCH_SECONDS = 2.0
START_SECONDS = 4.0
"""Wait this long for a run that was just typed: it reads and plans before it has the lock."""

_UP = "\x1b[{}A"
_END_OF_LINE = "\x1b[K"
_END_OF_SCREEN = "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def watch(
    run_dir: Path, out: TextIO | None = None, refresh: Callable[[], None] = lambda: None
) -> int:
    """Show the status of a run until it has ended, and return 0; 130 after Ctrl-C.

    On a terminal the lines are redrawn in place. Elsewhere a line is printed when the clip, the
    state or a count has changed, and the whole status at the end. A run that has just been started
    is waited for, because the file is still that of the run before.

    Args:
        run_dir: The run directory.
        out: None for stdout.
        refresh: Called before each look.

    Raises:
        Refused: There is no status, or it can't be understood.
    """
    out = out or sys.stdout
    seen = _Watched(run_dir, refresh)
    try:
        _redraw(seen, out) if can_redraw(out) else _follow(seen, out)
    except KeyboardInterrupt:
        print(file=out)  # so that the shell's prompt has its own line
        return EXIT_SIGINT
    return EXIT_OK


class _Watched:
    """The run of a directory: active, ended, or about to start."""

    def __init__(self, run_dir: Path, refresh: Callable[[], None]) -> None:
        self.run_dir = run_dir
        self._refresh = refresh
        self._deadline: float | None = time.monotonic() + START_SECONDS

    def look(self) -> Status | Holder:
        """Return the run of now; wait for a first run if there is none yet."""
        self._refresh()
        while True:
            try:
                return current_run(self.run_dir)
            except Refused:
                if not self._may_start():
                    raise
            time.sleep(WATCH_SECONDS / 4)

    def has_ended(self, seen: Status | Holder) -> bool:
        """Whether the run has ended, and no run that was just typed will start."""
        if isinstance(seen, Holder) or (seen.state in ACTIVE_STATES and not is_gone(seen)):
            self._deadline = None
            return False
        return not self._may_start()

    def _may_start(self) -> bool:
        return self._deadline is not None and time.monotonic() < self._deadline

    @property
    def is_waiting(self) -> bool:
        """Whether no run has been seen active yet."""
        return self._may_start()


def _redraw(watched: _Watched, out: TextIO) -> None:
    drawn = 0
    out.write(_HIDE_CURSOR)
    try:
        while True:
            seen = watched.look()
            has_ended = watched.has_ended(seen)
            columns, rows = size_of(out)
            lines = [
                part
                for line in shown(_text(watched.run_dir, seen)).split("\n")
                for part in laid_out(line, columns - 1)
            ]
            if not has_ended:  # the last lines stay, all of them
                lines = lines[: max(rows - 1, 1)]
            # One write for all: no moment at which the screen is empty.
            up = _UP.format(min(drawn, rows - 1)) if drawn else ""
            body = "".join(f"{line}{_END_OF_LINE}\n" for line in lines)
            out.write(f"\r{up}{body}{_END_OF_SCREEN}")
            out.flush()
            drawn = sum(num_rows(line, columns) for line in lines)
            if has_ended:
                return
            time.sleep(WATCH_SECONDS / 4 if watched.is_waiting else WATCH_SECONDS)
    finally:
        out.write(_SHOW_CURSOR)
        out.flush()


def _text(run_dir: Path, seen: Status | Holder) -> str:
    if isinstance(seen, Holder):
        return format_start(run_dir, seen, utc_now())
    return format_status(run_dir, seen, utc_now())


def _follow(watched: _Watched, out: TextIO) -> None:
    shown: object = None
    while True:
        seen = watched.look()
        if watched.has_ended(seen):
            show(_text(watched.run_dir, seen), file=out)
            return
        if isinstance(seen, Status) and not watched.is_waiting:
            clip = None if seen.workers else seen.clip_id  # of several each step brings another
            news = (seen.state, seen.done, seen.failed, seen.suspect, clip)
            if news != shown:
                shown = news
                show(_line(seen), file=out)
        time.sleep(WATCH_SECONDS / 4 if watched.is_waiting else WATCH_SECONDS)


def _line(status: Status) -> str:
    counts = format_progress(
        total=status.total, done=status.done, failed=status.failed, suspect=status.suspect
    )
    parts = [f"{utc_now().astimezone():%H:%M:%S} {counts}", one_line(status.state)]
    if status.clip_id:
        parts[-1] += f" {one_line(status.clip_id)}"
    if status.eta_p50 is not None:
        parts.append(f"end {status.eta_p50}")
    return ", ".join(parts)
