"""Runs the user's command when there is news; it can't fail, delay or outlive the run's patience.

How a command is run is decided here, when and with what in `notices`. Values go as environment
variables only. No shell is involved, and nothing of a manifest is ever part of the command line.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from errno import ENOEXEC
from io import FileIO
from pathlib import Path
from typing import Any

from hv15_batch.config import ConfigError
from hv15_batch.redaction import redacted

logger = logging.getLogger(__name__)

MAX_OUTPUT_CHARACTERS = 4000
"""Of a command's output, kept for run.log."""
MAX_OUTPUT_BYTES = 1 << 20
"""A command that prints more is killed: its output is held in memory."""
MAX_VALUE_CHARACTERS = 2000
_KILL_SECONDS = 1.0
_POLL_SECONDS = 0.05


def parse_command(command: Any) -> tuple[str, ...]:
    """Return program and arguments of `notify.command`; empty where there is none.

    A text is split once, as a shell splits words and without anything else that a shell does; a
    list is taken as it is.

    Raises:
        ConfigError: neither, or the program isn't there.
    """
    if command is None:
        return ()
    is_list = isinstance(command, list) and all(isinstance(word, str) for word in command)
    if not isinstance(command, str) and not is_list:
        raise ConfigError(
            f"notify.command={command!r}: must be a text or a list of texts, for example "
            'notify.command="/home/me/tell.sh"; null for none.'
        )
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise ConfigError(
            f"notify.command={command!r}: not a command ({error}); close the quote, or give a list."
        ) from None
    if not words or not words[0] or any("\0" in word for word in words):
        raise ConfigError(
            f"notify.command={command!r}: names no program; leave it out for no notices."
        )
    program = shutil.which(os.path.expanduser(words[0]))
    if program is None:
        raise ConfigError(
            f"notify.command={command!r}: no program {words[0]!r} can be run here; install it, "
            "give its whole path, or set notify.command=null."
        )
    return (os.path.abspath(program), *words[1:])


class Notifier:
    """Runs one command for each notice, each in a thread of its own."""

    def __init__(self, command: tuple[str, ...], timeout_seconds: float) -> None:
        """Remember what to run.

        Args:
            command: Program and arguments; empty for none.
            timeout_seconds: After that the command and what it started is killed.
        """
        self._command = command
        self._timeout_seconds = timeout_seconds
        self._running: list[_Notice] = []
        self.fault: str | None = None
        """What went wrong last; None as long as all went well."""

    def tell(self, event: str, values: Mapping[str, object]) -> None:
        """Run the command with `HV15_EVENT` and these values; returns at once.

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
            self._report(event, *notice.run())

        notice.thread = threading.Thread(target=run, name=f"notify-{event}", daemon=True)
        try:
            notice.thread.start()
        except RuntimeError as error:  # no more threads
            self._report(event, str(error), "")
        else:
            self._running.append(notice)

    def wait(self) -> None:
        """Wait for what is still running, at most its timeout; Ctrl-C ends it at once."""
        deadline = time.monotonic() + self._timeout_seconds + 2 * _KILL_SECONDS
        try:
            for notice in self._running:
                notice.join(deadline - time.monotonic())
        except KeyboardInterrupt:
            for notice in self._running:
                notice.kill()

    def _report(self, event: str, fault: str | None, output: str) -> None:
        # Secrets first: one that is cut in two, or has other spaces, would not be recognised.
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
        """Return what went wrong, or None, and the beginning of what the command printed."""
        try:
            # A file and no pipe: what the command leaves running may hold it open, and nobody has
            # to read. In memory: news of a full disk must get out.
            with open(os.memfd_create("notice"), "w+b", buffering=0) as output:
                fault = self._run(output)
                output.seek(0)
                return fault, output.read(MAX_OUTPUT_BYTES).decode("utf-8", "replace")
        except (OSError, ValueError) as error:
            hint = "; a script begins with #!" if getattr(error, "errno", 0) == ENOEXEC else ""
            return f"could not be started ({error}{hint})", ""

    def _run(self, output: FileIO) -> str | None:
        # close_fds: neither the directory's lock nor the worker's pipe may live on in it.
        # A session of its own: Ctrl-C in the terminal is not for it, and it dies as a group.
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
        """End the command and what it started."""
        if self._process is not None and self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _fault(code: int) -> str | None:
    """Return what an exit code says, as `subprocess` gives it; None for 0."""
    if code < 0:
        return f"ended by signal {-code}"
    return f"exit code {code}" if code else None


def _clean(value: object) -> str:
    """Return a value as the environment can hold it: no control characters, not too long."""
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
