"""`hv15-batch status --watch`: the same lines again and again, in place on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from pathlib import Path
from typing import TextIO

from hv15_batch.clock import utc_now
from hv15_batch.errors import EXIT_OK, EXIT_SIGINT
from hv15_batch.redaction import one_line, show, shown
from hv15_batch.rundir.status import ACTIVE_STATES, Status, format_progress, is_gone, read_status
from hv15_batch.status.show import format_status

WATCH_SECONDS = 2.0

_UP = "\x1b[{}A"
_END_OF_LINE = "\x1b[K"
_END_OF_SCREEN = "\x1b[J"
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def watch(run_dir: Path, out: TextIO | None = None) -> int:
    """Show the status of a run until it has ended, and return 0; 130 after Ctrl-C.

    On a terminal the lines are drawn over in one go. Elsewhere a line is written when a clip, the
    state or a count has changed, and all of them at the end.

    Raises:
        Refused: there is no status, or it can't be understood.
    """
    out = out or sys.stdout
    read_status(run_dir)  # nothing is drawn where there is nothing
    is_terminal = out.isatty() and os.environ.get("TERM") != "dumb"
    try:
        _redraw(run_dir, out) if is_terminal else _follow(run_dir, out)
    except KeyboardInterrupt:
        print(file=out)  # the prompt begins a line of its own
        return EXIT_SIGINT
    return EXIT_OK


def _redraw(run_dir: Path, out: TextIO) -> None:
    drawn = 0
    out.write(_HIDE_CURSOR)
    try:
        while True:
            status = read_status(run_dir)
            columns, rows = shutil.get_terminal_size()
            lines = shown(format_status(run_dir, status, utc_now())).split("\n")
            lines = [fit(line, columns - 1) for line in lines[: max(rows - 1, 1)]]
            # One write for all: no moment at which the screen is empty.
            up = _UP.format(min(drawn, rows - 1)) if drawn else ""
            body = "".join(f"{line}{_END_OF_LINE}\n" for line in lines)
            out.write(f"\r{up}{body}{_END_OF_SCREEN}")
            out.flush()
            drawn = len(lines)
            if _has_ended(status):
                return
            time.sleep(WATCH_SECONDS)
    finally:
        out.write(_SHOW_CURSOR)
        out.flush()


def _follow(run_dir: Path, out: TextIO) -> None:
    shown: object = None
    while True:
        status = read_status(run_dir)
        if _has_ended(status):
            show(format_status(run_dir, status, utc_now()), file=out)
            return
        news = (status.state, status.done, status.failed, status.suspect, status.clip_id)
        if news != shown:
            shown = news
            show(_line(status), file=out)
        time.sleep(WATCH_SECONDS)


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


def _has_ended(status: Status) -> bool:
    return status.state not in ACTIVE_STATES or is_gone(status)


def fit(text: str, columns: int) -> str:
    """Return a line that takes at most so many columns, cut in the middle where it must be."""
    if sum(map(_columns, text)) <= columns:
        return text
    head, tail = _start(text, columns // 2), _start(text[::-1], (columns - 1) // 2)[::-1]
    return f"{head}…{tail}"


def _start(text: str, columns: int) -> str:
    taken = 0
    for index, character in enumerate(text):
        taken += _columns(character)
        if taken > columns:
            return text[:index]
    return text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
