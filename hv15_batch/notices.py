"""When the user's command is told something, and what: the first clip, failures, the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from hv15_batch.exit_codes import EXIT_OK, EXIT_SOME_FAILED
from hv15_batch.notify import Notifier
from hv15_batch.progress import format_error
from hv15_batch.records import FAILED, ClipRecord
from hv15_batch.rundir import RunDir
from hv15_batch.status_text import format_progress

FAILURE_SECONDS = 600.0
"""A failure is told at once, further ones at most this often, with their number."""


class Notices:
    """Decides what is news in one run."""

    def __init__(
        self,
        notifier: Notifier,
        run_dir: RunDir,
        snapshot: Callable[[], Mapping[str, Any]],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with a run.

        Args:
            notifier: Runs the command.
            run_dir: Of the run.
            snapshot: Returns what status.json says.
            say: Shows a line to the user: where the command does not work.
            clock: Seconds since any moment.
        """
        self._notifier = notifier
        self._run_dir = run_dir
        self._snapshot = snapshot
        self._say = say
        self._clock = clock
        self._has_clip = False
        self._untold: list[ClipRecord] = []
        self._told_failure_at: float | None = None
        self._has_said_fault = False

    def finished(self, record: ClipRecord) -> None:
        """Take an ended attempt: tell the first clip, and failures."""
        if record.status == FAILED:
            self._untold.append(record)
        elif not self._has_clip:
            self._has_clip = True
            self._tell("first_clip", _first_clip(record, self._snapshot()), record)
        self._tell_failures()
        self._show_fault()

    def end(self, state: str, message: str, exit_code: int) -> None:
        """Tell how the run ended, and wait for that."""
        is_over = exit_code in (EXIT_OK, EXIT_SOME_FAILED)
        values = self._snapshot()
        text = f"{state}: {_counts(values)}" + (f"; {message}" if message else "")
        self._tell("ended" if is_over else "stopped", text, None, exit_code)
        self._notifier.wait()
        self._show_fault()

    def _tell_failures(self) -> None:
        now = self._clock()
        told_at = self._told_failure_at
        if not self._untold or (told_at is not None and now - told_at < FAILURE_SECONDS):
            return
        last, count = self._untold[-1], len(self._untold)
        text = f"{last.clip_id} failed: {format_error(last)}"
        if count > 1:
            text += f" (and {count - 1} more since the last notice)"
        self._untold.clear()
        self._told_failure_at = now
        self._tell("clip_failed", text, last)

    def _tell(
        self, event: str, message: str, record: ClipRecord | None, exit_code: int | None = None
    ) -> None:
        values = self._snapshot()
        self._notifier.tell(
            event,
            {
                "MESSAGE": message,
                "RUN_DIR": self._run_dir.path,
                "RUN_ID": values["run_id"],
                "STATUS": values["state"],
                "CLIP_ID": record.clip_id if record else None,
                "THUMBNAIL": self._thumbnail(record),
                "DONE": values["done"],
                "TOTAL": values["total"],
                "FAILED": values["failed"],
                "SUSPECT": values["suspect"],
                "ETA": values["eta_p50"],
                "ETA_P90": values["eta_p90"],
                "ETA_BASIS": values["eta_basis"],
                "EXIT_CODE": exit_code,
            },
        )

    def _thumbnail(self, record: ClipRecord | None) -> Path | None:
        if record is None:
            return None
        path = self._run_dir.thumbs / f"{record.clip_id}.jpg"
        return path if path.is_file() else None

    def _show_fault(self) -> None:
        if self._notifier.fault is not None and not self._has_said_fault:
            self._has_said_fault = True
            self._say(f"notify.command: {self._notifier.fault}; the run goes on, see run.log")


def _first_clip(record: ClipRecord, values: Mapping[str, Any]) -> str:
    took = f" in {record.total_seconds:.0f} s" if record.total_seconds is not None else ""
    text = f"first clip: {record.clip_id}{took}; {_counts(values)}"
    if values["eta_p50"] is not None:
        p50, p90 = (datetime.fromisoformat(values[name]) for name in ("eta_p50", "eta_p90"))
        text += f"; done about {p50:%a %H:%M}, 90 % sure by {p90:%a %H:%M}"
    return text


def _counts(values: Mapping[str, Any]) -> str:
    names = ("total", "done", "failed", "suspect")
    return format_progress(**{name: values[name] for name in names})
