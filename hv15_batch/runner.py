"""The loop: hand clips to the executor, take records, log, status, stop rules.

No torch. What is decided here is which clip is next and when to stop; how a clip is rendered is
the executor's business.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import FrameType
from typing import Any

from hv15_batch.clip import Clip
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
from hv15_batch.exit_codes import EXIT_OK, EXIT_SIGINT, EXIT_SIGTERM, EXIT_SOME_FAILED, EXIT_STOPPED
from hv15_batch.plan import PlannedClip
from hv15_batch.progress import Progress
from hv15_batch.records import FAILED, INTERRUPTED, ClipRecord, asked_record
from hv15_batch.rundir import utc_now
from hv15_batch.runlog import RunLog

POLL_SECONDS = 0.2
SIGNAL_GRACE_SECONDS = 0.3
"""A signal to the whole process group may reach the executor before it reaches the parent."""
MAX_DEATHS_IN_A_ROW = 2
"""An executor that dies this often without finishing a clip in between won't get better."""


@dataclass
class Outcome:
    """How a run ended."""

    exit_code: int
    state: str
    """done, failed, stopped or interrupted."""
    message: str = ""
    records: list[ClipRecord] = field(default_factory=list)
    """Of this run, without texts."""


@dataclass(frozen=True)
class _InHand:
    job: Job
    since: datetime


class _Stop(Exception):
    """Not an error: the way out of the loop."""

    def __init__(self, exit_code: int, state: str, message: str) -> None:
        super().__init__(message)
        self.exit_code, self.state, self.message = exit_code, state, message


class Runner:
    """Renders the clips of a plan."""

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        run_log: RunLog,
        progress: Progress,
        known: Mapping[str, Any],
        check_before_clip: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Wire it up.

        Args:
            make_executor: called at the start and after each death.
            run_log: takes the records.
            progress: is told what happens.
            known: log columns of an attempt of which the executor left no record.
            check_before_clip: returns why to stop before the next clip, or None.
        """
        self._make_executor = make_executor
        self._executor = make_executor()
        self._log = run_log
        self._progress = progress
        self._known = known
        self._check_before_clip = check_before_clip
        self._in_hand: dict[tuple[str, int | None], _InHand] = {}
        self._is_busy = False  # with a clip after which it has not said `Ready`
        self._records: list[ClipRecord] = []
        self._deaths = 0
        self._todo_count = 0
        self._signals: list[int] = []
        self._has_said_it = False
        self._stop_reason: str | None = None
        self.has_logged = False
        """Whether the log has a record of this run."""

    def run(self, todo: Sequence[PlannedClip]) -> Outcome:
        """Render all these clips in this order.

        Raises:
            ConfigError: the executor cannot carry out the settings here.
        """
        self._todo_count = len(todo)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            self._executor.start()
            self._encode([p.clip for p in todo if not (p.has_latents and p.use_latents)])
            self._progress.rendering(len(todo))
            self._render([Job(p.clip, p.attempts + 1, p.use_latents) for p in todo])
            self._executor.close()
        except _Stop as stop:
            return Outcome(stop.exit_code, stop.state, stop.message, self._records)
        finally:
            self._executor.kill()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        failed = sum(r.status == FAILED for r in self._records)
        message = f"{failed} of {len(todo)} clips failed"
        if failed:
            return Outcome(EXIT_SOME_FAILED, "failed", message, self._records)
        return Outcome(EXIT_OK, "done", "", self._records)

    # -- phases -------------------------------------------------------------------------------

    def _encode(self, clips: list[Clip]) -> None:
        """Let the executor encode what these clips need; what fails there fails its clips."""
        if not clips:
            return
        self._executor.encode(clips)
        while True:
            event = self._next_event()
            if isinstance(event, EncodingEnded):
                return
            if isinstance(event, Died):
                self._replace(event.reason)
                self._executor.encode(clips)  # what it had encoded is on the disk

    def _render(self, jobs: list[Job]) -> None:
        queue = list(reversed(jobs))
        self._submit_next(queue)
        while self._in_hand or self._is_busy:
            event = self._next_event()
            if isinstance(event, Ready):
                self._is_busy = False  # before or after the clip's own `Finished`
                self._submit_next(queue)
            elif isinstance(event, Finished):
                self._finish(event)
            elif isinstance(event, Died):
                self._is_busy = False
                self._bury(event.reason)
                if self._goes_on(queue):
                    self._replace(event.reason)
                    self._submit_next(queue)
        if self._stop_reason:
            raise _Stop(EXIT_STOPPED, "stopped", self._stop_reason)
        if queue and self._signals:
            self._stop_interrupted()
        assert not queue, f"{len(queue)} clips were never rendered"

    def _goes_on(self, queue: list[Job]) -> bool:
        """Whether there is a next clip; what is in hand is finished in any case."""
        if queue and not self._signals and not self._stop_reason:
            self._stop_reason = self._check_before_clip()
            return not self._stop_reason
        return False

    def _submit_next(self, queue: list[Job]) -> None:
        if self._goes_on(queue):
            job = queue.pop()
            self._in_hand[job.key] = _InHand(job, utc_now())
            self._is_busy = True
            self._executor.submit(job)
            self._progress.started(job.clip.clip_id)

    # -- events -------------------------------------------------------------------------------

    def _next_event(self) -> Event:
        """Return the next event that the loop must act on; show the others."""
        while True:
            self._obey_signals()
            event = self._executor.poll(POLL_SECONDS)
            match event:
                case None:
                    pass
                case Note():
                    self._progress.say(event.text)
                case Encoded():
                    self._progress.encoding(event.done, event.total)
                case Stepped(clip_id, stage, step, steps):
                    self._progress.stepped(clip_id, stage, step, steps)
                case Refused(message):
                    raise ConfigError(message)
                case Died():
                    time.sleep(SIGNAL_GRACE_SECONDS)
                    self._obey_signals()
                    return event
                case _:
                    return event

    def _finish(self, event: Finished) -> None:
        self._deaths = 0
        del self._in_hand[event.job.key]
        self._take(event.record)

    def _take(self, record: ClipRecord) -> None:
        """Log a record; only then does the clip count."""
        self._append(record)
        self._records.append(replace(record, prompt=None, negative_prompt=None))
        self._progress.finished_clip(record, len(self._records), self._todo_count)

    def _append(self, record: ClipRecord) -> None:
        try:
            self._log.append(record)
        except OSError as error:
            # The clip's file is there; without a row it is made again from its latents.
            message = f"the log could not be written ({error.strerror})"
            raise _Stop(EXIT_STOPPED, "stopped", message) from error
        self.has_logged = True

    def _bury(self, reason: str) -> None:
        """Log what a dead executor had in hand as failed."""
        for lost in self._let_go():
            self._take(self._record_without_result(lost, FAILED, "WorkerDied", reason))

    def _let_go(self) -> list[_InHand]:
        lost, self._in_hand = list(self._in_hand.values()), {}
        return lost

    def _replace(self, reason: str) -> None:
        self._deaths += 1
        self._executor.kill()
        if self._deaths >= MAX_DEATHS_IN_A_ROW:
            message = f"{reason}, {self._deaths} times without a clip in between; see run.log"
            raise _Stop(EXIT_STOPPED, "stopped", message)
        self._progress.say(f"{reason}; starting another one")
        self._executor = self._make_executor()
        self._executor.start()

    def _record_without_result(
        self, lost: _InHand, status: str, error_type: str, message: str
    ) -> ClipRecord:
        return asked_record(
            lost.job.clip,
            **self._known,
            attempt=lost.job.attempt,
            status=status,
            error_type=error_type,
            error_message=message,
            started_at=lost.since,
            finished_at=utc_now(),
        )

    # -- signals ------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # A closed terminal asks for the same as SIGTERM.
        self._signals.append(signal.SIGTERM if number == signal.SIGHUP else number)

    def _obey_signals(self) -> None:
        """Stop where a signal says so: SIGINT after the clip in hand, a second one at once.

        Raises:
            _Stop: to be obeyed at once.
        """
        if not self._signals:
            return
        is_first_interrupt = self._signals == [signal.SIGINT]
        if not is_first_interrupt or not self._in_hand:
            self._stop_interrupted()
        if not self._has_said_it:
            self._has_said_it = True
            self._progress.say("Stopping after the clip in hand; Ctrl-C again stops at once.")

    def _stop_interrupted(self) -> None:
        """End at once; log what was in hand as interrupted.

        Raises:
            _Stop: always.
        """
        self._executor.kill()
        number = signal.SIGTERM if signal.SIGTERM in self._signals else signal.SIGINT
        for lost in self._let_go():
            why = (number.name, "stopped by the user")
            self._append(self._record_without_result(lost, INTERRUPTED, *why))
        code = EXIT_SIGTERM if number is signal.SIGTERM else EXIT_SIGINT
        raise _Stop(code, "interrupted", f"interrupted by {number.name}")
