"""One process of the script that loads its model once and takes a row at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.external._process import RESULTS, Program
from hv15_batch.official.command import ENVIRONMENT, row_arguments, serve_command
from hv15_batch.official.limits import script_of

_POLL_SECONDS = 0.25


class NotTaken(Exception):
    """The process ended before it began the row, which is no fault of the row."""


class Served:
    """The running process. After an error it is ended, and another one takes the next clip."""

    def __init__(self, config: Config) -> None:
        """Start it; it loads the model with its first row."""
        folder = script_of(config.official).parent
        words = serve_command(config, RESULTS)
        self._program = Program(words, folder, ENVIRONMENT, has_results=True)
        self.num_rows = 0
        """Rows that it has finished."""

    @property
    def is_gone(self) -> bool:
        """Whether it ended since its last row, which is no fault of the next one."""
        return self._program.has_ended

    def render(
        self,
        config: Config,
        clip: Clip,
        file: Path,
        heard: Callable[[str, str], None],
        tick: Callable[[], None],
    ) -> int | None:
        """Let it make a clip; return the exit code that the script would have had.

        Args:
            config: Settings, `model` being the clip's.
            clip: The clip.
            file: File that it writes.
            heard: Gets each line, and the stream that it came from.
            tick: Is called while it works.

        Returns:
            The code; that of the process where it ended before its answer.

        Raises:
            NotTaken: It had finished another row, and ended before it began this one.
        """
        row = {"arguments": row_arguments(config, clip, file)}
        try:
            self._program.write(json.dumps(row))
        except OSError:
            pass  # it is gone: its last words and its code say why
        result: dict[str, Any] = {}
        while "code" not in result and not self._program.is_over:
            for stream, line in self._program.read(_POLL_SECONDS):
                if stream != "results":
                    heard(stream, line)
                elif line:
                    result |= json.loads(line)
            tick()
        if "code" not in result:
            code = self._program.wait() or None
            if self.num_rows and not result:
                raise NotTaken
            return code
        self.num_rows += 1
        for stream, line in self._program.read_rest():
            if stream != "results":
                heard(stream, line)
        return int(result["code"])

    def end(self) -> None:
        """End it."""
        self._program.end()
