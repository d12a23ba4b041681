"""Runs the user's command when there is news; it can't fail, delay or outlive the run's patience.

How a command is run is decided here, when and with what in `notices`. Values go as environment
variables only. No shell is involved, and nothing of a manifest is ever part of the command line.
"""

from __future__ import annotations

import logging
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from errno import ENOEXEC
from pathlib import Path
from typing import Any

from hv15_batch.config import ConfigError

logger = logging.getLogger(__name__)

KEPT_VARIABLES = frozenset(
    """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TERM TMPDIR PWD LD_LIBRARY_PATH
    DISPLAY WAYLAND_DISPLAY XAUTHORITY XDG_RUNTIME_DIR XDG_CONFIG_HOME DBUS_SESSION_BUS_ADDRESS
    SSL_CERT_FILE SSL_CERT_DIR http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY
    WSL_DISTRO_NAME WSL_INTEROP WSLENV
    """.split()
)
"""What of this process's environment a command gets, so that tokens of other things stay here."""
KEPT_PREFIXES = ("LC_", "NOTIFY_")
"""The same by prefix; `NOTIFY_*` is for what the user's command needs, a token for example."""
MAX_OUTPUT_BYTES = 4000
"""Of a command's output, kept for run.log."""
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

    def __init__(
        self,
        command: tuple[str, ...],
        timeout_seconds: float,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Remember what to run.

        Args:
            command: Program and arguments; empty for none.
            timeout_seconds: After that the command and what it started is killed.
            environ: This process's environment, of which little is handed on.
        """
        self._command = command
        self._timeout_seconds = timeout_seconds
        self._environ = {k: v for k, v in environ.items() if _is_kept(k)}
        self._secrets = [v for k, v in self._environ.items() if k.startswith("NOTIFY_") if v]
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
        environ = {**self._environ, "HV15_EVENT": event, **texts}
        notice = _Notice(self._command, environ, self._timeout_seconds)
        self._running = [n for n in self._running if n.is_alive()]

        def run() -> None:
            self._report(event, *notice.run())

        notice.thread = threading.Thread(target=run, name=f"notify-{event}", daemon=True)
        try:
            notice.thread.start()
        except RuntimeError as error:  # no more threads
            self._report(event, str(error), b"")
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

    def _report(self, event: str, fault: str | None, output: bytes) -> None:
        text = " ".join(output.decode("utf-8", "replace").split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
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

    def run(self) -> tuple[str | None, bytes]:
        """Return what went wrong, or None, and the beginning of what the command said."""
        try:
            # close_fds: neither the directory's lock nor the worker's pipe may live on in it.
            # A session of its own: Ctrl-C in the terminal is not for it, and it dies as a group.
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                close_fds=True,
                start_new_session=True,
                shell=False,
            )
        except (OSError, ValueError) as error:
            hint = "; a script begins with #!" if getattr(error, "errno", 0) == ENOEXEC else ""
            return f"could not be started ({error}{hint})", b""
        process, pipe = self._process, self._process.stdout
        assert pipe is not None
        with pipe:  # open until it is killed: otherwise it would be ended by SIGPIPE
            output = _read(process, pipe.fileno(), time.monotonic() + self._timeout_seconds)
            if process.poll() is None:
                self.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_KILL_SECONDS)
                return f"killed after {self._timeout_seconds:g} s", output
        code = process.returncode
        if code < 0:
            return f"ended by signal {-code}", output
        return (f"exit code {code}" if code else None), output

    def kill(self) -> None:
        """End the command and what it started."""
        if self._process is not None and self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _read(process: subprocess.Popen[bytes], pipe: int, deadline: float) -> bytes:
    """Return the beginning of the output, once the process has ended or its time is over.

    What it leaves running may hold the pipe open: only the process itself is waited for.
    """
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        is_open = True
        while time.monotonic() < deadline:
            has_ended = process.poll() is not None
            is_ready = is_open and bool(selector.select(0 if has_ended else _POLL_SECONDS))
            if is_ready:
                chunk = os.read(pipe, 1 << 16)
                is_open = bool(chunk)
                output += chunk[: MAX_OUTPUT_BYTES - len(output)]
            if has_ended and (not is_ready or len(output) == MAX_OUTPUT_BYTES):
                break
            if not is_open or len(output) == MAX_OUTPUT_BYTES:
                time.sleep(_POLL_SECONDS)  # a command that never stops talking gets no processor
    return output


def _is_kept(name: str) -> bool:
    return name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)


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
