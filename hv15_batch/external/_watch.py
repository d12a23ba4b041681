"""Follows one clip of the script by what it says: stages, seconds, the card's memory."""

from __future__ import annotations

import logging
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip
from hv15_batch.dispatch.protocol import Alive, Emit, Stepped
from hv15_batch.machine.nvml import GpuHealthReader
from hv15_batch.official.output import Heard, Output
from hv15_batch.record import DECODE, DENOISE, ENCODE

logger = logging.getLogger(__name__)

_ALIVE_SECONDS = 1.0
_MAX_ALIVE_LINES = 2000
"""Further lines of a clip are no sign of life: a script that hangs may print for ever."""
_MAX_LOGGED_CHARACTERS = 1 << 18
"""Of a clip in run.log, each line's time and name included."""
_LOG_PREFIX_CHARACTERS = 80
_MAX_LINE_CHARACTERS = 4000


class Watch:
    """Follows one clip: its stages for those who wait, its seconds and the card's memory."""

    def __init__(self, clip: Clip, file: Path, emit: Emit, health: GpuHealthReader) -> None:
        """Begin with nothing said; `file` is the one that was asked for."""
        self._clip, self._emit, self._health = clip, emit, health
        self._num_steps = clip.settings.num_inference_steps
        self.output = Output(self._num_steps, file)
        self._began = self._alive_at = time.perf_counter()
        self._num_lines = self._num_logged = 0
        self._box_at: float | None = None
        self._step_at: dict[int, float] = {}
        self._ended_at: float | None = None
        self._peak_bytes: int | None = None

    def heard(self, stream: str, line: str) -> None:
        """Take in a line."""
        if not line.strip():
            return
        heard = self.output.heard(line, stream == "error")
        now = time.perf_counter()
        self._tell_alive(now)
        if heard in (Heard.first, Heard.step):
            if self.output.step in self._step_at:
                return
            self._step_at[self.output.step] = now
            self._step(DENOISE, self.output.step)
            if self.output.step == self._num_steps:
                self._step(DECODE, self._num_steps)
            return
        if heard is Heard.box:
            self._box_at = now
            self._step(ENCODE, 0)
        if "%|" not in line:
            self._log(line.rstrip())

    def _step(self, stage: str, step: int) -> None:
        self._emit(Stepped(self._clip.clip_id, stage, step, self._num_steps))

    def _tell_alive(self, now: float) -> None:
        self._num_lines += 1
        if self._num_lines <= _MAX_ALIVE_LINES and now - self._alive_at >= _ALIVE_SECONDS:
            self._alive_at = now
            self._emit(Alive())

    def _log(self, line: str) -> None:
        if self._num_logged > _MAX_LOGGED_CHARACTERS:
            return
        logger.info("generate.py: %s", line[:_MAX_LINE_CHARACTERS])
        self._num_logged += min(len(line), _MAX_LINE_CHARACTERS) + _LOG_PREFIX_CHARACTERS
        if self._num_logged > _MAX_LOGGED_CHARACTERS:
            logger.warning("generate.py says more of %s than is kept here", self._clip.clip_id)

    def tick(self) -> None:
        """Look at the card's memory."""
        used = self._health.read().vram_used_bytes
        if used is not None:
            self._peak_bytes = max(used, self._peak_bytes or 0)

    def end(self) -> None:
        """Stop the clock."""
        self._ended_at = time.perf_counter()

    @property
    def load_seconds(self) -> float | None:
        """From the start to the box, which is printed once the model is loaded."""
        return None if self._box_at is None else self._box_at - self._began

    @property
    def step_seconds(self) -> list[float] | None:
        """Seconds from one state of the bar to the next; None unless each of them was heard."""
        if len(self._step_at) != self._num_steps + 1:
            return None
        times = [self._step_at[number] for number in range(self._num_steps + 1)]
        return [after - before for before, after in pairwise(times)]

    @property
    def other_seconds(self) -> float | None:
        """From the box to the end, without denoising where that is known; None without a box."""
        if self._box_at is None or self._ended_at is None:
            return None
        return self._ended_at - self._box_at - sum(self.step_seconds or ())

    def columns(self) -> dict[str, Any]:
        """Return what is known of the clip; what the script does not tell is missing."""
        steps = self.step_seconds
        return {
            "attention_backend": self.output.attention,
            "dtype": self.output.dtype,
            "denoise_seconds": None if steps is None else sum(steps),
            "step_seconds": steps,
            "peak_vram_device_bytes": self._peak_bytes,
        }
