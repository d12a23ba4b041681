"""What a person sees while a run goes on: bars on a terminal, plain lines elsewhere, status.json.

Reads nothing and decides nothing.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from hv15_batch.records import FAILED, SUSPECT, ClipRecord
from hv15_batch.rundir import publish_json, utc_now
from hv15_batch.schedule import Wait

_STATUS_SECONDS = 1.0
"""Steps and tiny clips come faster than anyone reads; status.json is not written more often."""


_ERROR_CHARACTERS = 200


class Progress:
    """Counts clips and shows them."""

    def __init__(
        self, status_file: Path, run_id: str, total: int, done: int, out: TextIO | None = None
    ) -> None:
        """Begin with `done` of `total` clips finished by earlier runs."""
        self._status_file = status_file
        self._out = out or sys.stdout
        self._tty = self._out.isatty()
        self._bar: Any = None
        self._steps: Any = None
        self._written_at = 0.0
        self._warm_seconds: list[float] = []
        self._last_finish = time.monotonic()
        self.failed = 0
        self.suspect = 0
        self.finished = 0
        self.rendered = 0
        self.is_rendering = False
        # One process draws: tqdm's default lock is a semaphore that a kill would leave behind.
        tqdm.set_lock(threading.RLock())
        self._status: dict[str, Any] = {
            "state": "encoding",
            "run_id": run_id,
            "pid": os.getpid(),
            "total": total,
            "done": done,
            "failed": 0,
            "suspect": 0,
            "clip_id": None,
            "stage": None,
            "step": None,
            "steps": None,
            "seconds_per_clip": None,
            "eta": None,
            "message": "",
            "goes_on_at": None,
            "hostname": socket.gethostname(),
        }
        self._set()

    @property
    def seconds_per_clip(self) -> float | None:
        """Median wall seconds of this run's warm clips; None before the first."""
        return statistics.median(self._warm_seconds) if self._warm_seconds else None

    def say(self, text: str) -> None:
        """Print a line without breaking the bars."""
        with suppress(BrokenPipeError):  # who listened is gone: the night's work goes on
            if self._bar is not None:
                self._bar.write(text, file=self._out)
                self._out.flush()
            else:
                print(text, file=self._out, flush=True)

    def encoding(self, done: int, total: int) -> None:
        """Show that another text or image is encoded."""
        if self._status["state"] != "encoding":
            return  # a damaged entry, made again in the middle of a run
        if self._tty:
            self._bar = self._bar or self._make_bar(total, "encode")
            self._advance(done)
        elif done == total:
            self.say(f"encoded {total} texts and images")
        self._set(throttled=True, stage="encode", step=done, steps=total)

    def rendering(self, todo: int) -> None:
        """Show that clips are rendered from now on."""
        self._close_bars()
        if self._tty:
            self._bar = self._make_bar(todo, "clips")
        self._last_finish = time.monotonic()
        self.is_rendering = True
        self._set(state="rendering", stage=None, step=None, steps=None)

    def waiting(self, wait: Wait) -> None:
        """Show that nothing is rendered now, why, and until when."""
        self.say(wait.line)
        moment = wait.until.isoformat(timespec="seconds") if wait.until else None
        what: dict[str, Any] = {"clip_id": None, "stage": None, "step": None, "steps": None}
        self._set(state=wait.state, message=wait.reason, goes_on_at=moment, eta=None, **what)

    def going_on(self) -> None:
        """Show that a wait is over."""
        self.say("Going on.")
        self._last_finish = time.monotonic()
        state = "rendering" if self.is_rendering else "encoding"
        self._set(state=state, message="", goes_on_at=None)

    def stepped(self, clip_id: str, stage: str, step: int, steps: int) -> None:
        """Show a denoising step or another stage of the clip in hand."""
        if self._tty:
            if self._steps is None:
                self._steps = tqdm(total=steps, leave=False, position=1, file=self._out)
            self._steps.total = steps
            self._steps.n = step
            self._steps.set_description(f"{clip_id[:40]} {stage}")
            self._steps.refresh()
        self._set(throttled=True, clip_id=clip_id, stage=stage, step=step, steps=steps)

    def finished_clip(self, record: ClipRecord, number: int, todo: int) -> None:
        """Show an ended attempt."""
        now = time.monotonic()
        seconds, self._last_finish = now - self._last_finish, now
        self.finished += 1
        if record.status == FAILED:
            self.failed += 1
        else:
            self.rendered += 1
            self.suspect += record.status == SUSPECT
            if not record.is_cold:
                # Two files may be finished at once while one clip takes as long as ever.
                busy = [record.denoise_seconds, record.decode_seconds]
                is_own = record.denoise_attempt == record.attempt
                own = sum(s for s in busy if s is not None) if is_own else 0.0
                self._warm_seconds.append(max(seconds, own))
        if record.total_seconds is not None and record.denoise_attempt == record.attempt:
            seconds = record.total_seconds  # its own stages; less than those from saved latents
        self.say(_line(record, number, todo, seconds))
        if self._bar is not None:
            self._advance(number)
        per_clip = self.seconds_per_clip
        eta = utc_now() + timedelta(seconds=per_clip * (todo - number)) if per_clip else None
        self._set(
            throttled=True,
            done=self._status["done"] + (record.status != FAILED),
            failed=self.failed,
            suspect=self.suspect,
            seconds_per_clip=per_clip,
            eta=eta.isoformat(timespec="seconds") if eta else None,
        )

    def end(self, state: str, message: str = "") -> None:
        """Close the bars and write the last status."""
        self._close_bars()
        what: dict[str, Any] = {"clip_id": None, "stage": None, "step": None, "steps": None}
        self._set(state=state, message=message, goes_on_at=None, **what)

    def _set(self, throttled: bool = False, **values: Any) -> None:
        self._status.update(values)
        now = time.monotonic()
        if throttled and now - self._written_at < _STATUS_SECONDS:
            return
        self._written_at = now
        self._status["updated_at"] = utc_now().isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk stops the run where clips and log are written
            publish_json(self._status_file, self._status)

    def _make_bar(self, total: int, what: str) -> Any:
        return tqdm(total=total, desc=what, file=self._out, position=0)

    def _advance(self, n: int) -> None:
        self._bar.n = n
        self._bar.refresh()

    def _close_bars(self) -> None:
        for bar in (self._steps, self._bar):
            if bar is not None:
                bar.close()
        self._steps = self._bar = None


def format_error(record: ClipRecord) -> str:
    """Return what went wrong, on one short line."""
    text = " ".join(f"{record.error_type}: {record.error_message}".split())
    return text if len(text) <= _ERROR_CHARACTERS else f"{text[: _ERROR_CHARACTERS - 1]}…"


def _line(record: ClipRecord, number: int, todo: int, seconds: float) -> str:
    head = f"[{number}/{todo}] {record.clip_id}"
    if record.status == FAILED:
        return f"{head} failed: {format_error(record)}"
    parts = [f"{seconds:.1f} s"]
    if record.peak_vram_reserved_bytes is not None:
        parts.append(f"{record.peak_vram_reserved_bytes / 2**30:.1f} GiB")
    if record.status == SUSPECT:
        parts.append(f"suspect: {record.quality_flag}")
    return f"{head} {', '.join(parts)}"
