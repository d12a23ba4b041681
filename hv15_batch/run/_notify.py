"""Notices to the user: when, what, and the command that gets them."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from errno import ENOEXEC
from io import FileIO
from pathlib import Path
from typing import Any

from hv15_batch.dispatch.protocol import Event, Finished, Job
from hv15_batch.errors import EXIT_OK, EXIT_SOME_FAILED, Secondary, reason_of
from hv15_batch.record import FAILED, ClipRecord
from hv15_batch.redaction import redacted
from hv15_batch.run.outcome import format_error
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import format_progress
from hv15_batch.units import MIB, Say

logger = logging.getLogger(__name__)

MAX_OUTPUT_CHARACTERS = 4000
"""So much of a command's output goes to run.log."""
MAX_OUTPUT_BYTES = MIB
"""A command that prints more is killed: its output is held in memory."""
MAX_VALUE_CHARACTERS = 2000
_KILL_SECONDS = 1.0
_POLL_SECONDS = 0.05


class Notifier:
    """Runs one command for each notice, each in a thread of its own."""

    def __init__(self, command: tuple[str, ...], timeout_seconds: float) -> None:
        """Remember what to run.

        Args:
            command: Program and arguments; empty for none.
            timeout_seconds: After this time the command and its child processes are killed.
        """
        self._command = command
        self._timeout_seconds = timeout_seconds
        self._running: list[_Notice] = []
        self.fault: str | None = None
        """The last fault; None if there was none."""

    def tell(self, event: str, values: Mapping[str, object]) -> None:
        """Run the command with `HV15_EVENT` and these values; return at once.

        Args:
            event: What happened.
            values: By variable, without the prefix `HV15_`; None becomes an empty text.
        """
        if not self._command:
            return
        texts = {f"HV15_{name}": _clean(value) for name, value in values.items()}
        environ = {**os.environ, "HV15_EVENT": event, **texts}
        notice = _Notice(self._command, environ, self._timeout_seconds)
        self._running = [n for n in self._running if n.is_alive()]

        def run() -> None:
            with Secondary(f"notice {event} is lost") as told:
                self._report(event, *notice.run())
            if told.error is not None:
                self.fault = f"notice {event}: {reason_of(told.error)}"

        notice.thread = threading.Thread(target=run, name=f"notify-{event}", daemon=True)
        try:
            notice.thread.start()
        except RuntimeError as error:  # no more threads
            self._report(event, str(error), "")
        else:
            self._running.append(notice)

    def wait(self) -> None:
        """Wait for running commands, at most their timeout; Ctrl-C ends them at once."""
        deadline = time.monotonic() + self._timeout_seconds + 2 * _KILL_SECONDS
        try:
            for notice in self._running:
                notice.join(deadline - time.monotonic())
        except KeyboardInterrupt:
            for notice in self._running:
                notice.kill()

    def _report(self, event: str, fault: str | None, output: str) -> None:
        # Secrets first: a secret that is cut, or has other spaces, would not be recognised.
        text = " ".join(redacted(output).split())[:MAX_OUTPUT_CHARACTERS]
        text = f": {text}" if text else ""
        if fault is None:
            logger.info("notice %s: told%s", event, text)
        else:
            self.fault = f"notice {event}: {fault}"
            logger.warning("notice %s: %s%s", event, fault, text)


class _Notice:
    """One run of the command."""

    def __init__(
        self, command: tuple[str, ...], environ: dict[str, str], timeout_seconds: float
    ) -> None:
        self._command = command
        self._environ = environ
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self.thread: threading.Thread | None = None

    def is_alive(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def join(self, timeout_seconds: float) -> None:
        if self.thread is not None:
            self.thread.join(max(timeout_seconds, 0.0))

    def run(self) -> tuple[str | None, str]:
        """Return the fault or None, and the beginning of the command's output."""
        try:
            # A file instead of a pipe: a process that the command leaves behind may hold it open.
            # In memory, because the news may be that the disk is full.
            with open(os.memfd_create("notice"), "w+b", buffering=0) as output:
                fault = self._run(output)
                output.seek(0)
                return fault, output.read(MAX_OUTPUT_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            hint = "; a script begins with #!" if getattr(error, "errno", 0) == ENOEXEC else ""
            return f"could not be started ({error}{hint})", ""

    def _run(self, output: FileIO) -> str | None:
        # close_fds: the command must not inherit the directory's lock or the worker's pipe.
        # A session of its own: Ctrl-C in the terminal does not reach it, and it is killed as a
        # group.
        self._process = process = subprocess.Popen(
            self._command,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            close_fds=True,
            start_new_session=True,
            shell=False,
        )
        deadline = time.monotonic() + self._timeout_seconds
        fault = None
        while fault is None:
            with suppress(subprocess.TimeoutExpired):
                return _fault(process.wait(_POLL_SECONDS))
            if os.fstat(output.fileno()).st_size > MAX_OUTPUT_BYTES:
                fault = f"killed, having printed more than {MAX_OUTPUT_BYTES >> 20} MiB"
            elif time.monotonic() > deadline:
                fault = f"killed after {self._timeout_seconds:g} s"
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_KILL_SECONDS)
        return fault

    def kill(self) -> None:
        """Kill the command and its child processes."""
        if self._process is not None and self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _fault(code: int) -> str | None:
    """Return the meaning of an exit code of `subprocess`; None for 0."""
    if code < 0:
        return f"ended by signal {-code}"
    return f"exit code {code}" if code else None


def _clean(value: object) -> str:
    """Return a value for the environment: without control characters, not too long."""
    if value is None:
        return ""
    if isinstance(value, Path):
        return str(value)
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value))[:MAX_VALUE_CHARACTERS]
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


FAILURE_SECONDS = 600.0
"""The first failure is reported at once, later ones at most this often, with their number."""


class Notices:
    """Decides which events of a run are news."""

    def __init__(
        self,
        notifier: Notifier,
        run_dir: RunDir,
        snapshot: Callable[[], Mapping[str, Any]],
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Follow a run.

        Args:
            notifier: Runs the command.
            run_dir: Of the run.
            snapshot: Returns the content of status.json.
            say: Prints a line for the user if the command does not work.
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

    def submitted(self, job: Job, worker: int = 0) -> None:
        """No news."""

    def heard(self, event: Event, worker: int = 0) -> None:
        """Follow an event of the worker."""
        if isinstance(event, Finished):
            self.finished(event.record)

    def finished(self, record: ClipRecord) -> None:
        """Receive an ended attempt; report the first clip and failures."""
        if record.status == FAILED:
            self._untold.append(record)
        elif not self._has_clip:
            self._has_clip = True
            self._tell("first_clip", _first_clip(record, self._snapshot()), record)
        self._tell_failures()
        self._show_fault()

    def end(self, state: str, message: str, exit_code: int) -> None:
        """Report how the run ended, and wait for the command."""
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
                "RUN_DIR": self._run_dir.shown(),
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
        stem = Path(record.file).stem if record.file else record.clip_id
        path = self._run_dir.thumbs / f"{stem}.jpg"
        return path if path.is_file() else None

    def _show_fault(self) -> None:
        if self._notifier.fault is not None and not self._has_said_fault:
            self._has_said_fault = True
            self._say(f"notify.command: {self._notifier.fault}; the run continues, see run.log")


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
