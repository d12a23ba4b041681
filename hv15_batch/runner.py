"""The loop: plan, hand clips to the executor, take records, log, status, stop rules.

No torch. What is decided here is which clip is next and when to stop; how a clip is rendered is
the executor's business.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType

from hv15_batch.config import ConfigError
from hv15_batch.executor import (
    Died,
    Encoded,
    EncodingEnded,
    Event,
    Executor,
    Finished,
    Job,
    Note,
    Ready,
    Refused,
    Stepped,
)
from hv15_batch.plan import PlannedClip
from hv15_batch.progress import Progress
from hv15_batch.records import FAILED, INTERRUPTED, ClipRecord, asked_record
from hv15_batch.rundir import utc_now
from hv15_batch.runlog import RunLog

POLL_SECONDS = 0.2
MAX_DEATHS_IN_A_ROW = 2
"""An executor that dies this often without finishing a clip in between won't get better."""

EXIT_OK = 0
EXIT_REFUSED = 2
EXIT_SOME_FAILED = 3
EXIT_STOPPED = 4
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


@dataclass
class Outcome:
    """How a run ended."""

    exit_code: int
    state: str
    """done, failed, stopped or interrupted."""
    message: str = ""
    records: list[ClipRecord] = field(default_factory=list)
    """Of this run, without texts."""


class _Stop(Exception):  # noqa: N818 - not an error: the way out of the loop
    def __init__(self, exit_code: int, state: str, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.state, self.message = exit_code, state, message


class Runner:
    """Renders the clips of a plan that are not done."""

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        run_log: RunLog,
        progress: Progress,
        run_id: str,
        manifest_sha256: str,
        check_before_clip: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Wire it up; `check_before_clip` returns why to stop before the next clip, or None."""
        self._make_executor = make_executor
        self._executor = make_executor()
        self._log = run_log
        self._progress = progress
        self._run_id = run_id
        self._manifest_sha256 = manifest_sha256
        self._check_before_clip = check_before_clip
        self._in_hand: list[Job] = []
        self._records: list[ClipRecord] = []
        self._deaths = 0
        self._todo_count = 0
        self._number = 0
        self._signals: list[int] = []

    def run(self, planned: Sequence[PlannedClip]) -> Outcome:
        """Render all clips of the plan that are not done, in its order."""
        todo = [p for p in planned if not p.is_done]
        self._todo_count = len(todo)
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self._executor.start()
            self._encode(todo)
            self._progress.rendering(len(todo))
            self._render([Job(p.clip, p.attempts + 1, p.use_latents) for p in todo])
            self._executor.close()
        except _Stop as stop:
            return self._outcome(stop.exit_code, stop.state, stop.message)
        finally:
            self._executor.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        failed = sum(r.status == FAILED for r in self._records)
        if failed:
            return self._outcome(EXIT_SOME_FAILED, "failed", f"{failed} clips failed")
        return self._outcome(EXIT_OK, "done", "")

    # -- phases -------------------------------------------------------------------------------

    def _encode(self, todo: Sequence[PlannedClip]) -> None:
        clips = [p.clip for p in todo if not (p.has_latents and p.use_latents)]
        if not clips:
            return
        self._executor.encode(clips)
        while True:
            event = self._next_event()
            if isinstance(event, EncodingEnded):
                return
            if isinstance(event, Died):
                raise _Stop(EXIT_STOPPED, "stopped", f"encoding failed: {event.reason}")

    def _render(self, jobs: list[Job]) -> None:
        queue = list(reversed(jobs))
        self._submit_next(queue)
        while self._in_hand:
            event = self._next_event()
            if isinstance(event, Ready):
                self._submit_next(queue)
            elif isinstance(event, Finished):
                self._deaths = 0
                self._in_hand.remove(event.job)
                self._take(event.record)
            elif isinstance(event, Died):
                self._bury(event.reason)
                self._submit_next(queue)
        if queue and self._signals:
            self._stop_interrupted()

    def _submit_next(self, queue: list[Job]) -> None:
        if not queue or self._signals:
            return
        reason = self._check_before_clip()
        if reason:
            self._drain()
            raise _Stop(EXIT_STOPPED, "stopped", reason)
        job = queue.pop()
        self._in_hand.append(job)
        self._executor.submit(job)

    def _drain(self) -> None:
        while self._in_hand:
            event = self._next_event()
            if isinstance(event, Finished):
                self._in_hand.remove(event.job)
                self._take(event.record)
            elif isinstance(event, Died):
                self._bury(event.reason)

    # -- events -------------------------------------------------------------------------------

    def _next_event(self) -> Event:
        """Return the next event that the loop must act on; show the others."""
        while True:
            at_once = len(self._signals) > 1 or signal.SIGTERM in self._signals
            if at_once or (self._signals and not self._in_hand):
                self._stop_interrupted()
            event = self._executor.poll(POLL_SECONDS)
            match event:
                case None:
                    pass
                case Note(text):
                    self._progress.say(text)
                case Encoded(done, total):
                    self._progress.encoding(done, total)
                case Stepped(clip_id, stage, step, steps):
                    self._progress.stepped(clip_id, stage, step, steps)
                case Refused(message):
                    raise ConfigError(message)
                case _:
                    return event

    def _take(self, record: ClipRecord) -> None:
        """Log a record; only then does the clip count."""
        self._log.append(record)
        self._number += 1
        self._progress.finished_clip(record, self._number, self._todo_count)
        self._records.append(replace(record, prompt=None, negative_prompt=None))

    def _bury(self, reason: str) -> None:
        """Log what a dead executor had in hand as failed, and replace it."""
        now = utc_now()
        for job in self._in_hand:
            self._take(self._record_without_result(job, FAILED, "WorkerDied", reason, now))
        self._in_hand.clear()
        self._deaths += 1
        if self._deaths >= MAX_DEATHS_IN_A_ROW:
            raise _Stop(EXIT_STOPPED, "stopped", f"{reason}, {self._deaths} times in a row")
        self._executor.kill()
        self._executor = self._make_executor()
        self._executor.start()

    def _record_without_result(
        self, job: Job, status: str, error_type: str | None, message: str, at: object
    ) -> ClipRecord:
        return asked_record(
            job.clip,
            run_id=self._run_id,
            manifest_sha256=self._manifest_sha256,
            attempt=job.attempt,
            status=status,
            error_type=error_type,
            error_message=message,
            started_at=None,
            finished_at=at,
        )

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        if self._signals == [signal.SIGINT] and self._in_hand:
            self._progress.say(
                "Stopping after the clip in hand; press Ctrl-C again to stop at once."
            )

    def _stop_interrupted(self) -> None:
        """End at once; log what was in hand as interrupted.

        Raises:
            _Stop: always.
        """
        self._executor.kill()
        number = signal.SIGTERM if signal.SIGTERM in self._signals else signal.SIGINT
        for job in self._in_hand:
            self._log.append(
                self._record_without_result(
                    job, INTERRUPTED, number.name, "stopped by the user", utc_now()
                )
            )
        self._in_hand.clear()
        code = EXIT_SIGTERM if number is signal.SIGTERM else EXIT_SIGINT
        raise _Stop(code, "interrupted", f"interrupted by {number.name}")

    def _outcome(self, exit_code: int, state: str, message: str) -> Outcome:
        return Outcome(exit_code, state, message, self._records)


def median_warm_seconds(records: Sequence[ClipRecord]) -> float | None:
    """Return the median `total_seconds` of the clips that were not cold."""
    warm = [r.total_seconds for r in records if r.total_seconds is not None and not r.is_cold]
    return statistics.median(warm) if warm else None


