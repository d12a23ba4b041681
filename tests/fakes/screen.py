"""A terminal without a window: what a program writes, as a person would see it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import termios

import pyte


class Screen(io.TextIOBase):
    """A stream that is a terminal of a given size; `lines` is what stands on it."""

    def __init__(self, columns: int = 80, rows: int = 16) -> None:
        self._ours, self._theirs = pty.openpty()
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.Stream(self._screen)
        self.resize(columns)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._theirs

    def write(self, text: str) -> int:
        self._stream.feed(text.replace("\n", "\r\n"))  # as a terminal's driver does
        return len(text)

    def resize(self, columns: int) -> None:
        """Make it narrower or wider, as a person does who drags its edge."""
        rows = self._screen.lines
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def lines(self) -> list[str]:
        """Return all lines, those that were scrolled off the top too."""
        columns = range(self._screen.columns)
        gone = ["".join(line[x].data for x in columns) for line in self._screen.history.top]
        shown = [line.rstrip() for line in (*gone, *self._screen.display)]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def close(self) -> None:
        if not self.closed:
            os.close(self._ours)
            os.close(self._theirs)
        super().close()
