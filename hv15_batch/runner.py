"""The loop: hand clips to the executor, take records, log, status, stop rules.

No torch. What is decided here is which clip is next and when to stop; how a clip is rendered is
the executor's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from hv15_batch.exit_codes import EXIT_OK, EXIT_SOME_FAILED, EXIT_STOPPED
from hv15_batch.outcome import InHand, Outcome, StopRun
from hv15_batch.pace import Pace
from hv15_batch.plan import PlannedClip
from hv15_batch.progress import Progress
from hv15_batch.records import FAILED, INTERRUPTED, ClipRecord
from hv15_batch.rundir import utc_now
from hv15_batch.runlog import RunLog
from hv15_batch.schedule import Clock, Gate, Stop, Wait
from hv15_batch.signals import Demand, Signals

POLL_SECONDS = 0.2
WAIT_SECONDS = 0.5
"""Between two looks at clock, pause file and signals while nothing is rendered."""
SIGNAL_GRACE_SECONDS = 0.3
"""A signal to the whole process group may reach the executor before it reaches the parent."""
MAX_DEATHS_IN_A_ROW = 2
"""An executor that dies this often without finishing a clip in between won't get better."""


class Runner:
    """Renders the clips of a plan."""

    def __init__(
        self,
        make_executor: Callable[[], Executor],
        run_log: RunLog,
        progress: Progress,
        known: Mapping[str, Any],
        gate: Gate,
        pace: Pace,
        clock: Clock,
    ) -> None:
        """Wire it up.

        Args:
            make_executor: called at the start, after each death and after each wait.
            run_log: takes the records.
            progress: is told what happens.
            known: log columns of an attempt of which the executor left no record.
            gate: says before each clip whether to go on, stop or wait.
            pace: is told how clips go on, and knows how long they take.
            clock: lets time pass while waiting.
        """
        self._make_executor = make_executor
        self._executor: Executor
        self._is_up = False  # while waiting there is no executor: the card is free
        self._log = run_log
        self._progress = progress
        self._known = known
        self._gate = gate
        self._pace = pace
        self._clock = clock
        self._in_hand: dict[tuple[str, int | None], InHand] = {}
        self._is_busy = False  # with a clip after which it has not said `Ready`
        self._records: list[ClipRecord] = []
        self._deaths = 0
        self._todo_count = 0
        self._signals = Signals(pace, clock)
        self._stop_reason: str | None = None
        self.has_logged = False
        """Whether the log has a record of this run."""

    def run(self, todo: Sequence[PlannedClip]) -> Outcome:
        """Render all these clips in this order.

        Raises:
            ConfigError: the executor cannot carry out the settings here.
        """
        self._todo_count = len(todo)
        queue = [Job(p.clip, p.attempts + 1, p.use_latents) for p in reversed(todo)]
        with self._signals:
            try:
                if self._goes_on(queue):
                    self._bring_up()
                    self._encode([p.clip for p in todo if not (p.has_latents and p.use_latents)])
                    self._progress.rendering(len(todo))
                self._render(queue)
                self._release()
            except StopRun as stop:
                return Outcome(stop.exit_code, stop.state, stop.message, self._records)
            finally:
                self._kill()
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

    def _render(self, queue: list[Job]) -> None:
        """Render the jobs from the end of the queue."""
        while self._goes_on(queue):
            self._submit(queue.pop())
            while self._in_hand or self._is_busy:
                event = self._next_event()
                if isinstance(event, Ready):
                    self._is_busy = False  # before or after the clip's own `Finished`
                    self._pace.ready()
                    if self._goes_on(queue):
                        self._submit(queue.pop())
                elif isinstance(event, Finished):
                    self._finish(event)
                elif isinstance(event, Died):
                    self._is_busy = False
                    self._bury(event.reason)
                    if self._goes_on(queue):
                        self._replace(event.reason)
                        self._submit(queue.pop())
        if self._stop_reason:
            raise StopRun(EXIT_STOPPED, "stopped", self._stop_reason)
        if queue:
            self._stop_interrupted()

    def _goes_on(self, queue: list[Job]) -> bool:
        """Whether the next clip is to be begun now.

        Waits where the gate says so, once nothing is in hand; what is in hand is finished first.
        """
        waited: Wait | None = None
        while queue and not self._signals.demand and not self._stop_reason:
            verdict = self._gate(queue[-1])
            if verdict is None:
                if waited:
                    self._progress.going_on()
                return True
            if isinstance(verdict, Stop):
                self._stop_reason = verdict.reason
                break
            if self._in_hand or self._is_busy:
                break
            if verdict != waited:
                self._release()
                self._progress.waiting(waited := verdict)
            self._clock.sleep(WAIT_SECONDS)
        return False

    def _submit(self, job: Job) -> None:
        self._bring_up()
        self._in_hand[job.key] = InHand(job, utc_now())
        self._is_busy = True
        self._pace.submitted(job)
        self._executor.submit(job)
        self._progress.started(job.clip.clip_id)

    # -- the executor -------------------------------------------------------------------------

    def _bring_up(self) -> None:
        """Start an executor where there is none."""
        if not self._is_up:
            self._executor = self._make_executor()
            self._is_up = True
            self._executor.start()
            self._pace.started_worker()

    def _release(self) -> None:
        """End the executor in order: the card is free."""
        if self._is_up:
            self._executor.close()
            self._is_up = False

    def _kill(self) -> None:
        if self._is_up:
            self._executor.kill()
            self._is_up = False

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
                    self._pace.stepped(event)
                    self._progress.stepped(clip_id, stage, step, steps)
                case Refused(message):
                    raise ConfigError(message)
                case Died():
                    time.sleep(SIGNAL_GRACE_SECONDS)
                    self._obey_signals()
                    if self._signals.demand is Demand.soon:
                        self._stop_interrupted()  # nobody is left to finish it
                    return event
                case _:
                    return event

    def _finish(self, event: Finished) -> None:
        self._deaths = 0
        del self._in_hand[event.job.key]
        self._pace.finished(event.record, event.job)
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
            raise StopRun(EXIT_STOPPED, "stopped", message) from error
        self.has_logged = True

    def _bury(self, reason: str) -> None:
        """Log what a dead executor had in hand as failed."""
        for lost in self._let_go():
            self._take(lost.record(self._known, FAILED, "WorkerDied", reason))

    def _let_go(self) -> list[InHand]:
        lost, self._in_hand = list(self._in_hand.values()), {}
        return lost

    def _replace(self, reason: str) -> None:
        self._deaths += 1
        self._kill()
        if self._deaths >= MAX_DEATHS_IN_A_ROW:
            message = f"{reason}, {self._deaths} times without a clip in between; see run.log"
            raise StopRun(EXIT_STOPPED, "stopped", message)
        self._progress.say(f"{reason}; starting another one")
        self._bring_up()

    # -- signals ------------------------------------------------------------------------------

    def _obey_signals(self) -> None:
        """Stop where a signal asks for it now; say when it asks for it soon.

        Raises:
            StopRun: to be obeyed at once.
        """
        jobs = [lost.job for lost in self._in_hand.values()]
        if self._signals.end_now(jobs):
            self._stop_interrupted()
        if line := self._signals.news(jobs):
            self._progress.say(line)

    def _stop_interrupted(self) -> None:
        """End at once; log what was in hand as interrupted.

        Raises:
            StopRun: always.
        """
        self._kill()
        name = self._signals.cause.name
        for lost in self._let_go():
            self._append(lost.record(self._known, INTERRUPTED, name, "stopped by the user"))
        raise StopRun(self._signals.exit_code, "interrupted", f"interrupted by {name}")
