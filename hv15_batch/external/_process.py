"""A program under guard: its lines as they come, its end, and the end of all that it started."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

_GUARD = Path(__file__).with_name("_guard.py")
_END_SECONDS = 60.0
_CHUNK_BYTES = 65536
_MAX_LINE_BYTES = 1 << 20
"""A longer line is given in pieces."""
_MAX_REST_READS = 1000
"""A thread of the program may write for ever."""
_ORDER = ("out", "error", "results")
_BAR = re.compile(rb"%\|[^|]*\|[^|]*\]\s*\Z")
"""Source: tqdm, `bar_format`."""
_ENDS = re.compile(rb"[\r\n]")
_KILLED = 128


class Program:
    """A running program. It ends with this object, with this process, and when it is asked to."""

    def __init__(
        self, words: Sequence[str], folder: Path, environ: Mapping[str, str], has_results: bool
    ) -> None:
        """Start it in a session of its own.

        Args:
            words: Program and arguments.
            folder: Where it starts.
            environ: Variables beside those of this process.
            has_results: It gets one more descriptor, whose number stands for the word `RESULTS`,
                and may be written to.
        """
        guarded, self._alive = os.pipe()
        self.results: IO[bytes] | None = None
        passed, theirs = [guarded], None
        if has_results:
            ours, theirs = os.pipe()
            os.set_blocking(ours, False)
            self.results = os.fdopen(ours, "rb", buffering=0)
            passed.append(theirs)
        words = [str(theirs) if word == RESULTS else word for word in words]
        guard = [sys.executable, "-I", "-S", str(_GUARD), str(guarded)]
        try:
            self._process = subprocess.Popen(
                [*guard, "" if theirs is None else str(theirs), *words],
                cwd=folder,
                env={**os.environ, **environ},
                stdin=subprocess.PIPE if has_results else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=passed,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            for number in passed:
                os.close(number)
        self._streams = selectors.DefaultSelector()
        self._rest: dict[int, bytes] = {}
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for stream in (self._process.stdout, self._process.stderr):
            os.set_blocking(stream.fileno(), False)
            self._streams.register(stream, selectors.EVENT_READ)
        if self.results is not None:
            self._streams.register(self.results, selectors.EVENT_READ)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def write(self, line: str) -> None:
        """Give it a line.

        Raises:
            OSError: It is gone.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def read(self, timeout_seconds: float) -> list[tuple[str, str]]:
        """Return `out`, `error` or `results`, and a line without its end, of what came meanwhile.

        A line ends at a carriage return too. A bar writes that before its next state, so its state
        counts as a line as soon as it is whole. Each stream that is ready is read once. What is
        said is read last and comes first: it may be what errors and results followed.
        """
        ready = [key for key, _ in self._streams.select(timeout_seconds)]
        assert self._process.stdout is not None
        out = self._streams.get_map().get(self._process.stdout) if ready else None
        if out is not None and out not in ready:
            ready.append(out)
        ready.sort(key=lambda key: _ORDER.index(self._name(key.fd)), reverse=True)
        found = [list(self._take(key)) for key in ready]
        return [line for lines in reversed(found) for line in lines]

    def read_rest(self) -> Iterator[tuple[str, str]]:
        """Yield as `read` what was written before now; a line without an end counts as one."""
        for _ in range(_MAX_REST_READS):
            if not self._streams.select(0.0):
                break
            yield from self.read(0.0)
        for number, rest in list(self._rest.items()):
            del self._rest[number]
            yield self._name(number), rest.decode(errors="replace")

    def _take(self, key: selectors.SelectorKey) -> Iterator[tuple[str, str]]:
        """Read once from a stream, and yield its lines."""
        number = key.fd
        try:
            data = os.read(number, _CHUNK_BYTES)
        except BlockingIOError:
            return
        *lines, rest = _ENDS.split(self._rest.pop(number, b"") + data)
        if not data:
            self._streams.unregister(key.fileobj)
            lines.append(rest)
        elif len(rest) > _MAX_LINE_BYTES or _BAR.search(rest):
            lines.append(rest)
        elif rest:
            self._rest[number] = rest
        for line in lines:
            yield self._name(number), line.decode(errors="replace")

    def _name(self, number: int) -> str:
        assert self._process.stdout is not None
        if self.results is not None and number == self.results.fileno():
            return "results"
        return "out" if number == self._process.stdout.fileno() else "error"

    @property
    def is_over(self) -> bool:
        """Whether it has closed all its streams, so that `read` yields nothing more."""
        return not self._streams.get_map()

    @property
    def has_ended(self) -> bool:
        """Whether it ended, also where lines of it are still to be read."""
        return self._process.poll() is not None

    def wait(self) -> int:
        """Return its exit code, negative for a signal; call when it `is_over`."""
        code = self._process.wait()
        return _KILLED - code if _KILLED < code <= _KILLED + signal.NSIG else code

    def end(self) -> None:
        """End it and all that it started, and wait for that."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._streams.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass
        if self.results is not None:
            self.results.close()
            self.results = None


RESULTS = "{results}"
"""The word that stands for the number of the descriptor for results."""
